"""The figures in the words of Prometheus. Called by `gateway.routes.metrics`.

Names and labels are those that dashboards are written against: docs/http.md lists them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.monitoring.checks.report import HealthModel
from vectorize_pipelines.gateway.monitoring.figures import Sums
from vectorize_pipelines.gateway.monitoring.measuring import RequestFigures
from vectorize_pipelines.gateway.monitoring.remembered import Reading
from vectorize_pipelines.state.request_totals import DURATION_BOUNDS

#: Kinds of content -> how particularly they name the text, or JSON.
_TEXT = {"text/plain": 2, "application/openmetrics-text": 2, "text/*": 1}
_JSON = {"application/json": 2, "application/*": 1, "*/*": 0}
_QUALITY = re.compile(r"q=([01](?:\.[0-9]{0,3})?)")


@dataclass(frozen=True, slots=True)
class LedgerReading:
    """The figures of the ledger."""

    counts: Reading[dict[RequestState, int]]
    sums: Reading[Sums]


@dataclass(frozen=True, slots=True)
class WorkerRuns:
    """Runs by their queue: those that wait for a worker, and those that one executes."""

    waiting: dict[str, int]
    running: dict[str, int]


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot(Collector):
    """The figures of one moment, except those of the process.

    `ledger` and `worker_runs` are None where they cannot be asked, the latter also where runs need no worker.
    """

    report: HealthModel
    ledger: LedgerReading | None
    worker_runs: WorkerRuns | None
    models_loaded: int

    def collect(self) -> Iterator[Metric]:
        """Yield each family of figures; one that is not known is missing."""
        if self.ledger is not None:
            yield from _of_ledger(self.ledger)
        if self.report.queue_size is not None:
            yield GaugeMetricFamily(
                "vectorize_queue_messages",
                "Messages of the request topics that no run has acknowledged, marks of transactions included; "
                "without Kafka, requests that wait",
                self.report.queue_size,
            )
        if self.report.active_workers is not None:
            yield GaugeMetricFamily(
                "vectorize_active_workers",
                "Workers that live, where runs wait for workers, else runs in progress",
                self.report.active_workers,
            )
        if self.worker_runs is not None:
            yield _of_workers(self.worker_runs)
        yield GaugeMetricFamily(
            "vectorize_models_loaded", "Models that the server itself has loaded", self.models_loaded
        )
        parts = GaugeMetricFamily(
            "vectorize_part_up", "1 for a part that answers; only what is configured", labels=["part"]
        )
        for name, is_up in _parts(self.report).items():
            if is_up is not None:
                parts.add_metric([name], is_up)
        yield parts


def expose(snapshot: Snapshot, requests: RequestFigures, accept: str) -> tuple[bytes, str]:
    """Return the text of everything, and its media type: OpenMetrics where that is accepted. Reads /proc."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in (snapshot, requests.requests, requests.seconds):
        registry.register(collector)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    encode, media_type = choose_encoder(accept)
    return encode(registry), media_type


def wants_text(accept: str) -> bool:
    """Return whether a header `Accept` prefers text to JSON. Without a preference it is JSON."""
    text, json = (0.0, -1), (0.0, -1)
    for part in accept.lower().split(","):
        kind, *parameters = (each.strip() for each in part.split(";"))
        quality = _quality(parameters)
        if kind in _TEXT:
            text = max(text, (quality, _TEXT[kind]))
        elif kind in _JSON:
            json = max(json, (quality, _JSON[kind]))
    return text[0] > 0 and text > json


def _of_ledger(ledger: LedgerReading) -> Iterator[Metric]:
    tasks = GaugeMetricFamily("vectorize_tasks", "Requests that the ledger has, by state", labels=["state"])
    for state, number in ledger.counts.value.items():
        tasks.add_metric([state.value], number)
    yield tasks
    present, grown = ledger.sums.value.present, ledger.sums.value.since_start
    yield GaugeMetricFamily("vectorize_ledger_vectors", "Vectors of all requests that the ledger has", present.vectors)
    missed = "what ends between two looks at the ledger with a clean-up in between may be missing"
    yield CounterMetricFamily(
        "vectorize_vectors", f"Vectors of requests that ended since the server started; {missed}", grown.vectors
    )
    buckets, number = [], 0
    for bound, more in zip((*map(str, DURATION_BOUNDS), "+Inf"), grown.durations, strict=True):
        number += more
        buckets.append((bound, number))
    yield HistogramMetricFamily(
        "vectorize_task_duration_seconds",
        "Time from taking a request up to its end, of those completed since the server started, as the ledger has it; "
        + missed,
        buckets,
        grown.seconds,
    )
    yield GaugeMetricFamily(
        "vectorize_ledger_read_timestamp_seconds",
        "When the ledger was read for the figures above",
        min(ledger.counts.as_of, ledger.sums.as_of).timestamp(),
    )


def _of_workers(runs: WorkerRuns) -> Metric:
    family = GaugeMetricFamily(
        "vectorize_worker_runs",
        "Runs that wait for a worker, or that one executes, by queue",
        labels=["queue", "state"],
    )
    for state, numbers in (("waiting", runs.waiting), ("running", runs.running)):
        for queue, number in numbers.items():
            family.add_metric([queue, state], number)
    return family


def _parts(report: HealthModel) -> dict[str, bool | None]:
    return {
        "kafka": report.kafka.connected,
        "store": report.store.connected,
        "database": report.database.connected,
        "redis": report.redis.connected,
        "dagster": report.dagster.connected,
        "daemon": report.dagster.daemon_healthy,
    }


def _quality(parameters: list[str]) -> float:
    found = [_QUALITY.fullmatch(each) for each in parameters if each.startswith("q=")]
    if not found:
        return 1.0
    return float(found[0][1]) if found[0] is not None else 0.0
