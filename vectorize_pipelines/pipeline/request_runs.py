"""Opens the streams of runs over messages: draining a topic, replaying days, one request by itself.

Called by the assets from Kafka and by the job for a single request.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from functools import partial
from math import inf
from typing import Protocol, TypeVar

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.items import Modality
from vectorize_pipelines.ledger import RequestLedger
from vectorize_pipelines.messaging.callbacks import CallbackDelivery
from vectorize_pipelines.messaging.control import Cancellations
from vectorize_pipelines.messaging.outcomes import EventProducer, OutcomeProducer
from vectorize_pipelines.messaging.topics import create_topics
from vectorize_pipelines.pipeline.changes import Days
from vectorize_pipelines.pipeline.request_encoding import LeaseEncoder
from vectorize_pipelines.pipeline.request_report import Report, SingleReport, TopicReport
from vectorize_pipelines.pipeline.request_stream import RequestStream
from vectorize_pipelines.pipeline.request_units import Ending
from vectorize_pipelines.pipeline.requests import Work, occurred
from vectorize_pipelines.settings import DrainSettings, Settings
from vectorize_pipelines.sources.kafka import WHOLE, DrainSource, MessageSource, ReplaySource, Shard
from vectorize_pipelines.sources.single import SingleRequest, SingleSource
from vectorize_pipelines.stores.protocol import VectorStore
from vectorize_pipelines.versions import SourceVersions

_NEVER = datetime.max.replace(tzinfo=UTC)
#: For sources that end by themselves.
_AT_THE_END = Ending(0, inf, _NEVER)


@dataclass(frozen=True, slots=True)
class DrainRequest:
    """What a drain run is to do.

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

    def ending(self, drain: DrainSettings) -> Ending:
        """When the run ends."""
        idle = drain.idle_seconds if self.idle_seconds is None else self.idle_seconds
        most = drain.max_seconds if self.max_seconds is None else self.max_seconds
        if self.once:
            return Ending(0, most, _NEVER, self.should_stop)
        return Ending(idle, most, _end_of_today(), self.should_stop)


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
    # Says soon that nobody answers: a transaction would be waited for until an outage is over.
    create_topics(kafka)
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
        ending = request.ending(kafka.drain)
        days = partial(_days, settings)
        return _stream(
            settings, request, source, report, ending, days, store, lease_encoder, resources, force=request.force
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
        report = Report(ledger, request.modality, request.run_id, cancellations)
        at_its_start = _days(settings)  # what lies in the future belongs to the window's last day, also after midnight
        return _stream(
            settings,
            request,
            source,
            report,
            _AT_THE_END,
            lambda: at_its_start,
            store,
            lease_encoder,
            resources,
            force=request.force,
        )


def open_single(
    settings: Settings, single: SingleRequest, store: VectorStore, lease_encoder: LeaseEncoder
) -> RequestStream:
    """The stream of one request that was no message; needs no Kafka. Raises `LedgerError`."""
    with ExitStack() as resources:
        report = _single_report(settings, single, resources)
        source = SingleSource(single.message)
        days = partial(_days, settings)
        return _stream(settings, single, source, report, _AT_THE_END, days, store, lease_encoder, resources)


def _stream(
    settings: Settings,
    request: DrainRequest | ReplayRequest | SingleRequest,
    source: MessageSource,
    report: Report,
    ending: Ending,
    days: Callable[[], Days],
    store: VectorStore,
    lease_encoder: LeaseEncoder,
    resources: ExitStack,
    *,
    force: bool = False,
) -> RequestStream:
    owned = ExitStack()
    stream = RequestStream(
        settings,
        request.modality,
        request.run_id,
        source=source,
        store=store,
        versions=_closing(resources, SourceVersions.open(settings)),
        report=report,
        lease_encoder=lease_encoder,
        ending=ending,
        days=days,
        force=force,
        resources=owned,
    )
    owned.push(resources.pop_all())  # not before: the caller closes them where there is no stream
    return stream


def abandon_single(settings: Settings, single: SingleRequest, error: VectorizeError | None) -> None:
    """Notes that a request ended without its stream: it failed, or, without an error, it was cancelled.

    Raises `LedgerError`.
    """
    occurred_at = occurred(single.request.origin)
    work = Work(single.request, None, _days(settings).of(occurred_at), occurred_at, datetime.now(UTC))
    with ExitStack() as resources:
        _single_report(settings, single, resources).abandoned(work, error)


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


def _end_of_today() -> datetime:
    return datetime.combine(datetime.now(UTC).date() + timedelta(days=1), time_of_day(), UTC)
