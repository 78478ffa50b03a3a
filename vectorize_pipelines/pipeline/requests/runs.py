"""The streams of runs over messages, opened: draining a topic, replaying days, one request by itself.

Called by the assets from Kafka and by the job for a single request.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from typing import Protocol, TypeVar

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.sources import DrainSource, ReplaySource
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.messaging.callbacks import CallbackDelivery
from vectorize_pipelines.messaging.cancellations import Cancellations
from vectorize_pipelines.messaging.outcomes import EventProducer, OutcomeProducer
from vectorize_pipelines.pipeline.encoding import LeaseEncoder
from vectorize_pipelines.pipeline.mending import repair_requests
from vectorize_pipelines.pipeline.requests.context import RunContext
from vectorize_pipelines.pipeline.requests.pending import PendingRequest, occurred
from vectorize_pipelines.pipeline.requests.report import Report, SingleReport, TopicReport
from vectorize_pipelines.pipeline.requests.single import SingleRequest, SingleSource
from vectorize_pipelines.pipeline.requests.stream import RequestStream
from vectorize_pipelines.pipeline.spill import configured_outage
from vectorize_pipelines.pipeline.stop_policy import AT_THE_END, StopPolicy
from vectorize_pipelines.settings import DrainSettings, KafkaSettings, Settings
from vectorize_pipelines.state.attempts import RunAttempts
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.versions import SourceVersions
from vectorize_pipelines.stores.base import VectorStore


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """The task of a drain run.

    once         ends when nothing is outstanding, and does not wait for more; nor does it end with the day: there may
                 be nobody who takes up the rest
    idle_seconds, max_seconds   None: what the settings say
    should_stop  asked every second; a reason why the run is to end now, or None
    """

    modality: Modality
    run_id: str
    shard: Shard = WHOLE
    once: bool = False
    force: bool = False
    idle_seconds: float | None = None
    max_seconds: float | None = None
    should_stop: Callable[[], str | None] = lambda: None

    def stop_policy(self, drain: DrainSettings) -> StopPolicy:
        """Return when the run ends."""
        return StopPolicy.of_drain(
            drain,
            once=self.once,
            idle_seconds=self.idle_seconds,
            max_seconds=self.max_seconds,
            should_stop=self.should_stop,
        )


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """The task of a replay run. `window`: first and last day, both included."""

    modality: Modality
    run_id: str
    window: tuple[date, date]
    force: bool = False


def open_drain(
    settings: Settings, request: DrainRequest, store: VectorStore, lease_encoder: LeaseEncoder
) -> RequestStream:
    """The stream of what lies behind the committed offsets of a shard, and of what arrives while it runs.

    It fences an earlier run of the same shard. Raises `KafkaError`, `LedgerError`, and `SettingsError` where Kafka is
    not configured.
    """
    kafka = settings.kafka
    # Says soon that nobody answers: a transaction would be waited for until an outage is over.
    create_topics(kafka)
    # Before anything that may take long: the run ends with the day that it began in.
    policy, days = request.stop_policy(kafka.drain), partial(_days, settings)
    # Beside each other: each asks brokers or the database some dozen times, and messages wait meanwhile.
    with ExitStack() as resources, ThreadPoolExecutor(1, "vectorize-drain") as beside:
        taking_over = beside.submit(_take_over, kafka, request, resources)
        ledger = _closing(resources, RequestLedger.open(settings))
        cancellations = _closing(resources, Cancellations(kafka))
        events = _closing(resources, EventProducer(kafka))
        callbacks = _closing(resources, CallbackDelivery.open(settings))
        attempts = _closing(resources, RunAttempts.open(settings, "drain", request.run_id))
        context = _context(settings, request, store, lease_encoder, resources, force=request.force)
        outcomes, source = taking_over.result()
        report = TopicReport(
            ledger,
            request.modality,
            request.run_id,
            cancellations,
            outcomes=outcomes,
            events=events,
            callbacks=callbacks,
            group_metadata=source.group_metadata(),
        )
        attempts.begin(source.begins_at(), source.ends_at())
        return _owner(resources, lambda own: RequestStream(context, source, report, policy, days, own, attempts))


def _take_over(
    kafka: KafkaSettings, request: DrainRequest, resources: ExitStack
) -> tuple[OutcomeProducer, DrainSource]:
    """Fence an earlier run of the shard, and begin where it has stopped. Raises as `open_drain`."""
    # First: what the earlier run left open has to be settled before its offsets are read.
    outcomes = _closing(resources, OutcomeProducer(kafka, f"{request.modality.value}.{request.shard}"))
    return outcomes, _closing(resources, DrainSource(kafka, followed_topic(kafka, request.modality), request.shard))


def open_replay(
    settings: Settings, request: ReplayRequest, store: VectorStore, lease_encoder: LeaseEncoder
) -> RequestStream:
    """The stream of everything whose time lies in the window; commits no offset and answers nobody.

    Raises as `open_drain`.
    """
    kafka = settings.kafka
    with ExitStack() as resources:
        topic, first_day = followed_topic(kafka, request.modality), settings.partitions.start
        source = _closing(resources, ReplaySource(kafka, topic, request.window, first_day))
        cancellations = _closing(resources, Cancellations(kafka))
        ledger = _closing(resources, RequestLedger.open(settings))
        report = Report(ledger, request.modality, request.run_id, cancellations)
        at_its_start = _days(settings)  # what lies in the future belongs to the window's last day, also after midnight
        attempts = _closing(resources, RunAttempts.open(settings, "replay", request.run_id))
        attempts.begin(source.begins_at(), source.ends_at())
        context = _context(settings, request, store, lease_encoder, resources, force=request.force)
        return _owner(
            resources,
            lambda own: RequestStream(context, source, report, AT_THE_END, lambda: at_its_start, own, attempts),
        )


def open_single(
    settings: Settings, single: SingleRequest, store: VectorStore, lease_encoder: LeaseEncoder
) -> RequestStream:
    """The stream of one request that was no message; needs no Kafka. Raises `LedgerError`."""
    with ExitStack() as resources:
        report = _single_report(settings, single, resources)
        context = _context(settings, single, store, lease_encoder, resources)
        source, days = SingleSource(single.message), partial(_days, settings)
        return _owner(resources, lambda own: RequestStream(context, source, report, AT_THE_END, days, own))


def _context(
    settings: Settings,
    request: DrainRequest | ReplayRequest | SingleRequest,
    store: VectorStore,
    lease_encoder: LeaseEncoder,
    resources: ExitStack,
    *,
    force: bool = False,
) -> RunContext:
    versions = _closing(resources, SourceVersions.open(settings))
    repair_requests(settings, store, versions, request.modality.value)
    outage = configured_outage(settings)
    return RunContext(settings, request.modality, request.run_id, store, versions, lease_encoder, outage, force=force)


def _owner(resources: ExitStack, make: Callable[[ExitStack], RequestStream]) -> RequestStream:
    """Make a stream that closes the resources; where it cannot be made, the caller still has them to close."""
    owned = ExitStack()
    stream = make(owned)
    owned.push(resources.pop_all())
    return stream


def abandon_single(settings: Settings, single: SingleRequest, error: Exception | None) -> None:
    """Note that a request ended without its stream: it failed, or, without an error, it was cancelled.

    Raises `LedgerError`.
    """
    occurred_at = occurred(single.request.origin)
    pending = PendingRequest(single.request, None, _days(settings).of(occurred_at), occurred_at, datetime.now(UTC))
    with ExitStack() as resources:
        _single_report(settings, single, resources).abandoned(pending, error)


def _single_report(settings: Settings, single: SingleRequest, resources: ExitStack) -> SingleReport:
    return SingleReport(
        _closing(resources, RequestLedger.open(settings)),
        single.modality,
        single.run_id,
        _closing(resources, CallbackDelivery.open(settings)),
    )


class _HasClose(Protocol):
    def close(self) -> None: ...


_Closable = TypeVar("_Closable", bound=_HasClose)


def _closing(resources: ExitStack, closable: _Closable) -> _Closable:
    resources.callback(closable.close)
    return closable


def _days(settings: Settings) -> Days:
    return Days(settings.partitions.start, datetime.now(UTC).date())
