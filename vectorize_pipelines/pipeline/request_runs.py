"""Opens the streams of runs over messages: draining a topic, replaying days, one request by itself.

Called by the assets from Kafka and by the job for a single request.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from math import inf
from typing import Protocol, TypeVar

from vectorize_pipelines.items import Modality
from vectorize_pipelines.ledger import RequestLedger
from vectorize_pipelines.messaging.callbacks import CallbackDelivery
from vectorize_pipelines.messaging.control import Cancellations
from vectorize_pipelines.messaging.outcomes import EventProducer, OutcomeProducer
from vectorize_pipelines.pipeline.changes import Days
from vectorize_pipelines.pipeline.request_report import Report, TopicReport
from vectorize_pipelines.pipeline.request_stream import Ending, LeaseEncoder, RequestStream
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.kafka import WHOLE, DrainSource, ReplaySource, Shard
from vectorize_pipelines.stores.protocol import VectorStore
from vectorize_pipelines.versions import SourceVersions


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """What a drain run is to do.

    once         ends when nothing is outstanding, and does not wait for more
    should_stop  asked every second; a reason why the run is to end now, or None
    """

    modality: Modality
    run_id: str
    shard: Shard = WHOLE
    once: bool = False
    force: bool = False
    should_stop: Callable[[], str | None] = lambda: None


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """What a replay run is to do. `window`: first and last day, both included."""

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
    with ExitStack() as resources:
        # First of all: what the earlier run left open has to be settled before its offsets are read.
        outcomes = OutcomeProducer(kafka, f"{request.modality.value}.{request.shard}")
        resources.callback(outcomes.close)
        source = _closing(resources, DrainSource(kafka, request.modality, request.shard))
        ledger = _closing(resources, RequestLedger.open(settings))
        report = TopicReport(
            ledger,
            request.modality,
            request.run_id,
            _closing(resources, Cancellations(kafka)),
            outcomes=outcomes,
            events=_closing(resources, EventProducer(kafka)),
            callbacks=_closing(resources, CallbackDelivery.open(settings)),
            group_metadata=source.group_metadata(),
        )
        drain = kafka.drain
        return RequestStream(
            settings,
            request.modality,
            request.run_id,
            source=source,
            store=store,
            versions=_closing(resources, SourceVersions.open(settings)),
            report=report,
            lease_encoder=lease_encoder,
            ending=Ending(
                0 if request.once else drain.idle_seconds, drain.max_seconds, _end_of_today(), request.should_stop
            ),
            days=_days(settings),
            force=request.force,
            resources=resources.pop_all(),
        )


def open_replay(
    settings: Settings, request: ReplayRequest, store: VectorStore, lease_encoder: LeaseEncoder
) -> RequestStream:
    """The stream of everything whose time lies in the window; commits no offset and answers nobody.

    Raises as `open_drain`.
    """
    kafka = settings.kafka
    with ExitStack() as resources:
        source = _closing(resources, ReplaySource(kafka, request.modality, request.window, settings.partitions.start))
        cancellations = _closing(resources, Cancellations(kafka))
        ledger = _closing(resources, RequestLedger.open(settings))
        return RequestStream(
            settings,
            request.modality,
            request.run_id,
            source=source,
            store=store,
            versions=_closing(resources, SourceVersions.open(settings)),
            report=Report(ledger, request.modality, request.run_id, cancellations),
            lease_encoder=lease_encoder,
            ending=Ending(0, inf, datetime.max.replace(tzinfo=UTC)),
            days=_days(settings),
            force=request.force,
            resources=resources.pop_all(),
        )


class _HasClose(Protocol):
    def close(self) -> None: ...


_Closable = TypeVar("_Closable", bound=_HasClose)


def _closing(resources: ExitStack, closable: _Closable) -> _Closable:
    resources.callback(closable.close)
    return closable


def _days(settings: Settings) -> Days:
    return Days(settings.partitions.start, datetime.now(UTC).date())


def _end_of_today() -> datetime:
    return datetime.combine(datetime.now(UTC).date() + timedelta(days=1), time_of_day(), UTC)
