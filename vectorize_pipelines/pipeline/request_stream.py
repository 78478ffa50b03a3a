"""Messages -> batches of records with their vectors, reading, encoding and writing side by side.

    MessageSource ──Message──▶ [thread] decode, fetch, parse ──Unit──▶ [thread] encode ──EmbeddingBatch──▶ writer
                                                                                             │ acknowledge
                                                                                             ▼
                                                     ledger, then one Kafka transaction (`request_report`)

A unit is some consecutive messages, which are acknowledged together. `pipeline.request_runs` makes the stream.
"""

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.encoders.protocol import Encoder, EngineChoice
from vectorize_pipelines.errors import ItemError, ModelTooLargeError, SettingsError, UnknownModelError
from vectorize_pipelines.items import Modality
from vectorize_pipelines.messaging.messages import (
    InvalidMessageError,
    ReceivedMessage,
    Tombstone,
    decode,
    origin_of,
)
from vectorize_pipelines.overlap import prefetch
from vectorize_pipelines.pipeline.changes import Days
from vectorize_pipelines.pipeline.encoding import FIRST_BATCH, ItemEncoder
from vectorize_pipelines.pipeline.outage import configured_outage
from vectorize_pipelines.pipeline.request_report import Poison, Report
from vectorize_pipelines.pipeline.request_writes import NO_RECORDS, Deletion, KnownSources, RequestWrite
from vectorize_pipelines.pipeline.requests import RequestReader, Target, Targets, UnusableModelError, Work, occurred
from vectorize_pipelines.pipeline.reuse import configured_reuse
from vectorize_pipelines.pipeline.stream import PROGRESS_INTERVAL_SECONDS, EmbeddingBatch, EmbeddingStream
from vectorize_pipelines.pipeline.totals import Failure, Totals
from vectorize_pipelines.records import make_records, record_id
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.kafka import MessageSource, Place
from vectorize_pipelines.stores.contents import vectors_of
from vectorize_pipelines.stores.filters import In
from vectorize_pipelines.stores.protocol import VectorStore
from vectorize_pipelines.versions import Known, SourceVersions

logger = logging.getLogger(__name__)

#: A batch takes at most about this long to encode: so long may a message of the priority lane wait for those before it.
SECONDS_PER_BATCH = 2.0
#: How often is looked whether the run is to end.
LOOK_SECONDS = 1.0
MILLISECONDS_OF_A_DAY = 86_400_000
#: A request that takes longer is noted as being processed; of a faster one the note would come late.
NOTED_SECONDS = 1.0
#: Rows of a message that is not a text, as long as none has been seen.
ROWS_EXPECTED = 8.0
#: A run that goes on for a day may meet any number; all of them are in the dead letters.
FAILURES_KEPT = 1000

#: Gives the encoder of a model; the second argument is the vectors' dimension, None for the model's own.
LeaseEncoder = Callable[[str, int | None], AbstractContextManager[Encoder]]


@dataclass(slots=True)
class Unit:
    """Consecutive messages. `positions`: where reading stands after them, for what is to be committed."""

    works: list[Work] = field(default_factory=list)
    tombstones: list[Tombstone] = field(default_factory=list)
    poison: list[Poison] = field(default_factory=list)
    positions: Mapping[Place, int] = field(default_factory=dict)
    read_seconds: float = 0.0

    def anything(self) -> bool:
        """Whether there is something to do or to acknowledge."""
        return bool(self.works or self.tombstones or self.poison or self.positions)


@dataclass(slots=True)
class RunCounts:
    """What a run has dealt with, acknowledged or not acted upon; for its metadata."""

    messages: int = 0
    dead_letters: int = 0
    superseded: int = 0
    cancelled: int = 0
    tombstones: int = 0
    newest_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """When a run of messages ends, beside when its source is exhausted.

    idle_seconds  without a message; 0: at the end of what is there
    max_seconds   since it began
    day_ends      a run is one day's: it ends with that day, in UTC
    should_stop   asked every second; a reason why it is to end now, or None
    """

    idle_seconds: float
    max_seconds: float
    day_ends: datetime
    should_stop: Callable[[], str | None] = lambda: None


class RequestStream(EmbeddingStream):
    """The stream of one run over one modality's messages. Everything given to it is closed with it."""

    def __init__(
        self,
        settings: Settings,
        modality: Modality,
        run_id: str,
        *,
        source: MessageSource,
        store: VectorStore,
        versions: SourceVersions,
        report: Report,
        lease_encoder: LeaseEncoder,
        ending: Ending,
        days: Days,
        force: bool,
        resources: ExitStack,
    ):
        self.totals, self.failures, self.touched = Totals(), [], set()
        self.counts = RunCounts()
        # Messages wait in their topics: of an outage only what has been encoded already is borne.
        self.outage = configured_outage(settings)
        self._settings = settings
        self._modality = modality
        self._run_id = run_id
        self._source = source
        self._store = store
        self._versions = versions
        self._sources = KnownSources(store, versions)
        self._report = report
        self._lease_encoder = lease_encoder
        self._ending = ending
        self._days = days
        self._force = force
        self._resources = resources
        self._targets = Targets(settings, store, modality)
        self._reader = RequestReader(settings)
        self._encoders: dict[tuple[str, int | None], ItemEncoder] = {}
        self._begun = time.monotonic()
        self._why_ended = ""
        self._lag = 0
        self._known_days: dict[int, str] = {}
        # A document has many chunks, and content that is held while it waits: the first ones are few.
        self._rows_each = 1.0 if modality is Modality.TEXT else ROWS_EXPECTED
        self.collection = self._targets.default_collection
        self.model = self._targets.default_model

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        depth = self._settings.pipeline.queue_batches
        units = prefetch(self._units(), depth, "vectorize-read", late=True)
        batches = prefetch(self._encoded(units), depth, "vectorize-encode", late=True)
        self._resources.callback(batches.close)
        with _rare_collections():
            yield from batches

    def close(self) -> None:
        self.outage.close()
        self._reader.close()
        self._resources.close()

    def reported(self) -> None:
        """Nothing is kept for a later run: the materialization of a killed run's days is made up for by the next."""

    @property
    def choice(self) -> EngineChoice | None:
        return next((each.encoder.choice for each in self._encoders.values() if each.encoder is not None), None)

    def figures(self) -> Mapping[str, int | float]:
        seconds = max(time.monotonic() - self._begun, 1e-9)
        counts = self.counts
        return {
            "messages": counts.messages,
            "messages_per_second": round(counts.messages / seconds, 1),
            "dead_letters": counts.dead_letters,
            "superseded": counts.superseded,
            "cancelled": counts.cancelled,
            "tombstones": counts.tombstones,
            "lost_unread": self._source.lost,
            "lag": self._lag,
        }

    def progress(self) -> str:
        figures = self.figures()
        oldest = f", the oldest for about {max(0.0, time.time() - self.counts.newest_ms / 1000):.1f} s"
        return (
            f"{figures['messages']} messages ({figures['messages_per_second']} a second), about {figures['lag']} "
            f"waiting{oldest if figures['lag'] and self.counts.newest_ms else ''}; {figures['dead_letters']} dead "
            f"letters; at {self._report.standing() or 'the beginning'}"
            f"{self._why_ended and '; ended: ' + self._why_ended}"
        )

    # The reading thread

    def _units(self) -> Generator[Unit, None, None]:
        last_message = last_look = last_said = time.monotonic()
        while True:
            started = time.perf_counter()
            polled = self._source.poll(self._messages_together())
            unit = self._unit(polled.messages, polled.positions)
            now = time.monotonic()
            if polled.messages:
                last_message = now
            if unit.anything():
                self._read(unit, started)
                if unit.works:
                    self._rows_each = max(1.0, sum(len(work.items) for work in unit.works) / len(unit.works))
                yield unit
            if now - last_look >= LOOK_SECONDS or not polled.messages:
                last_look = now
                self._lag = self._source.lag()
                if now - max(last_message, last_said) >= PROGRESS_INTERVAL_SECONDS:
                    # Whoever writes the batches says how far the run is, and none come.
                    last_said = now
                    logger.info("%s: nothing arrives; %s", self.collection, self.progress())
                self._why_ended = self._reason_to_end(now, last_message) or ""
                if self._why_ended:
                    return

    def _messages_together(self) -> int:
        """As many as give the encoder a batch, going by how many rows the last ones had."""
        rows = max((each.rows_together for each in self._encoders.values()), default=FIRST_BATCH)
        return max(1, min(self._settings.kafka.drain.batch_messages, int(rows / self._rows_each)))

    def _reason_to_end(self, now: float, last_message: float) -> str | None:
        ending = self._ending
        if now - last_message >= ending.idle_seconds and self._source.at_end():
            return f"nothing came for {ending.idle_seconds:g} s" if ending.idle_seconds else "nothing was left"
        if now - self._begun >= ending.max_seconds:
            return f"the run's {ending.max_seconds:g} s are over"
        if datetime.now(UTC) >= ending.day_ends:
            return "the day has ended"
        return ending.should_stop()

    def _unit(self, messages: Sequence[ReceivedMessage], positions: Mapping[Place, int]) -> Unit:
        unit = Unit(positions=positions)
        now = datetime.now(UTC)
        for message in messages:
            key, value = message.key(), message.value()
            origin = origin_of(message)
            occurred_at = occurred(origin)
            day = self._day(origin.timestamp_ms, occurred_at)
            try:
                request = decode(value, key, origin, self._modality)
            except InvalidMessageError as error:
                unit.poison.append(Poison(message, error, error.task_id, day))
            else:
                if isinstance(request, Tombstone):
                    unit.tombstones.append(request)
                else:
                    unit.works.append(Work(request, message, day, occurred_at, now))
        return unit

    def _day(self, milliseconds: int, occurred_at: datetime) -> str:
        """The partition of a message; most are of the same few days."""
        number = milliseconds // MILLISECONDS_OF_A_DAY
        if number not in self._known_days:
            self._known_days[number] = self._days.of(occurred_at)
        return self._known_days[number]

    def _takes_long(self, unit: Unit) -> bool:
        """Whether it is worth noting that the unit is being processed; yes where it is not known."""
        seconds = max((each.seconds_per_row for each in self._encoders.values()), default=inf)
        return sum(len(work.request.items) for work in unit.works) * self._rows_each * seconds > NOTED_SECONDS

    def _read(self, unit: Unit, started: float) -> None:
        """Everything that comes before the encoder, for the requests that still count."""
        self._report.taken_up(unit.works, noted=self._takes_long(unit))
        for work in unit.works:
            if self._report.cancelled(work):
                work.state = RequestState.CANCELLED
                continue
            try:
                work.target = self.outage.wait_out(partial(self._targets.of, work.request))
            except ItemError as error:
                work.fail(error)
        self._reader.read([work for work in unit.works if work.state is RequestState.PROCESSING])
        unit.read_seconds = time.perf_counter() - started

    # The encoding thread

    def _encoded(self, units: Generator[Unit, None, None]) -> Generator[EmbeddingBatch, None, None]:
        with ExitStack() as leases:
            leases.callback(units.close)
            leases.callback(self._close_encoders)
            for unit in units:
                yield from self._batches(unit)

    def _close_encoders(self) -> None:
        for each in self._encoders.values():
            each.close()

    def _batches(self, unit: Unit) -> Iterator[EmbeddingBatch]:
        """Deletions, then one batch for each collection; the last one acknowledges the unit."""
        batches = [*self._deletions(unit), *self._groups(unit)]
        if not batches:
            batches = [self._batch(self.collection, _nothing_to_announce)]
        batches[-1].acknowledge = partial(self._acknowledge, unit, batches)
        yield from batches

    def _deletions(self, unit: Unit) -> Iterator[EmbeddingBatch]:
        if unit.tombstones:
            deletion = Deletion(self._store, self._versions, unit.tombstones)
            for collection in self.outage.wait_out(partial(deletion.noted, self.collection)):
                yield self._batch(collection, deletion.announce)

    def _groups(self, unit: Unit) -> Iterator[EmbeddingBatch]:
        groups: dict[str, list[Work]] = {}
        for work in unit.works:
            if work.state is RequestState.PROCESSING and work.target is not None:
                groups.setdefault(work.target.collection, []).append(work)
        for collection, works in groups.items():
            known = self._sources.known(collection, [work.request.task_id for work in works])
            live = [work for work in works if not _is_superseded(work, known)]
            if self._modality is Modality.TEXT:  # of which the encoder refuses none: the others need not be encoded
                live = _newest(live)
            if live:
                yield self._group(collection, live, known)

    def _group(self, collection: str, works: Sequence[Work], known: Mapping[str, Known]) -> EmbeddingBatch:
        totals = Totals()
        target = works[0].target
        assert target is not None, "works without a target are in no group"
        vectors, made = self._vectors(collection, target, works, known, totals)
        live = _newest([work for work in works if work.error is None])
        counted = set(map(id, live))
        kept = [id(work) in counted for work in works for _ in work.items]
        items = [item for work in live for item in work.items]
        vectors = vectors[kept]
        ids = [record_id(collection, item.source_id, item.item_index) for item in items]
        records = make_records(
            ids,
            items,
            [work.day for work in live for _ in work.items],
            vectors,
            [time for time, keep in zip(made, kept, strict=True) if keep],
            [model for work in live for model in work.models],
            run_id=self._run_id,
        )
        write = RequestWrite(self._store, self._versions, self._sources, live, totals, self._report.cancelled)
        batch = self._batch(collection, partial(self._announce, write), records)
        batch.physical = target.physical
        batch.contents = {
            id_: item.content for id_, item in zip(ids, items, strict=True) if isinstance(item.content, bytes)
        }
        batch.keep = partial(self._encoder(target).keep, items, vectors)
        return batch

    def _announce(self, write: RequestWrite, batch: EmbeddingBatch) -> None:
        """Runs in the writer's thread: what was cancelled while it was encoded is not written any more."""
        self._report.refresh()
        write.announce(batch)

    def _vectors(
        self, collection: str, target: Target, works: Sequence[Work], known: Mapping[str, Known], totals: Totals
    ) -> tuple[npt.NDArray[np.float32], list[datetime]]:
        """A vector for every item of the works, in order, and when each was made; what is refused fails its work."""
        owners = [work for work in works for _ in work.items]
        items = [item for work in works for item in work.items]
        models = [model for work in works for model in work.models]
        vectors = np.empty((len(items), target.spec.dimension), dtype=np.float32)
        made = [datetime.now(UTC)] * len(items)
        look_up = partial(self._stored, collection, target.physical, works, known)
        stored = {} if self._force else self.outage.wait_out(look_up)
        left: list[int] = []
        for n, item in enumerate(items):
            found = stored.get((item.source_id, item.content_hash, models[n]))
            if found is None:
                left.append(n)
            else:
                vectors[n], made[n] = found
        days = [owners[n].day for n in left]
        try:
            vectors[left], refused = self._encoder(target).encode([items[n] for n in left], days, totals)
        except (UnknownModelError, ModelTooLargeError, SettingsError) as unusable:
            if target.model == self._targets.default_model:
                raise
            # A message named it, and no message behind that one would ever be reached.
            refused = dict.fromkeys(range(len(left)), UnusableModelError(f"model_name: {unusable}"))
        for place, error in refused.items():
            owners[left[place]].fail(error)
        return vectors, made

    def _stored(
        self, collection: str, physical: str, works: Sequence[Work], known: Mapping[str, Known]
    ) -> Mapping[tuple[str, str, str], tuple[Any, datetime]]:
        """(task id, content, model) -> vector and when it was made, of what the store has of these requests."""
        names = [work.request.task_id for work in works]
        asked = self._sources.may_have_rows(collection, physical, names, known)
        if not asked:
            return {}
        columns = ("source_id", "content_hash", "model", "embedded_at", "vector")
        table = self._store.fetch(physical, In("source_id", tuple(asked)), columns)
        vectors = vectors_of(table)
        rows = table.select(columns[:4]).to_pylist()
        return {
            (row["source_id"], row["content_hash"], row["model"]): (vectors[n], row["embedded_at"])
            for n, row in enumerate(rows)
        }

    def _encoder(self, target: Target) -> ItemEncoder:
        key = (target.model, target.dimension)
        if key not in self._encoders:
            self._encoders[key] = ItemEncoder(
                target.spec.dimension,
                lambda: self._lease_encoder(*key),
                configured_reuse(self._settings, target.spec, force=self._force),
                most_rows=self._settings.kafka.drain.batch_messages,
                seconds_per_batch=SECONDS_PER_BATCH,
            )
        return self._encoders[key]

    def _batch(
        self,
        collection: str,
        announce: Callable[[EmbeddingBatch], None],
        records: Any = NO_RECORDS,
    ) -> EmbeddingBatch:
        return EmbeddingBatch(
            collection=collection,
            announce=announce,
            records=records,
            stale=[],
            totals=Totals(),
            weights=Counter(records["partition"].to_pylist()),
            acknowledge=lambda: None,
            exclusive=lambda: self._versions.exclusive(collection),
        )

    # The writer's thread

    def _acknowledge(self, unit: Unit, batches: list[EmbeddingBatch]) -> None:
        """The unit's outcomes are told, its offsets committed; only then do its figures count."""
        self._report.finished(unit.works, unit.poison, unit.positions)
        self.totals.spread("read", unit.read_seconds, Counter(work.day for work in unit.works))
        for batch in batches:
            self.totals.merge(batch.totals)
            self.touched.update(batch.totals)
        batches.clear()  # the last of them refers to this list: without it all of them go at once
        for work in unit.works:
            self._count(work)
        for poison in unit.poison:
            self._fail(poison.task_id or poison.place, poison.day, poison.error)
        self.counts.messages += len(unit.works) + len(unit.poison) + len(unit.tombstones)
        self.counts.tombstones += len(unit.tombstones)
        self.counts.newest_ms = max(
            self.counts.newest_ms, *(work.request.origin.timestamp_ms for work in unit.works), 0
        )

    def _count(self, work: Work) -> None:
        if work.state is RequestState.FAILED and work.error is not None:
            self._fail(work.request.task_id, work.day, work.error)
        elif work.state is RequestState.CANCELLED:
            self.counts.cancelled += 1
        elif not work.vectors:
            self.counts.superseded += 1

    def _fail(self, name: str, day: str, error: ItemError) -> None:
        self.counts.dead_letters += 1
        failure = Failure(name, day, type(error).__name__, str(error))
        totals = self.totals.of(day)
        totals.documents += 1
        totals.failed += 1
        totals.errors[failure.error_class] += 1
        self.touched.add(day)
        if len(self.failures) < FAILURES_KEPT:
            self.failures.append(failure)


def _nothing_to_announce(batch: EmbeddingBatch) -> None:
    """Of a batch that only acknowledges."""


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Has Python look for cyclic garbage a hundredth as often.

    What a unit makes goes without it, as soon as the unit has been acknowledged; meanwhile the search would go through
    all of that several hundred times, a quarter of what messages cost without a model.
    """
    before = gc.get_threshold()
    gc.set_threshold(100 * 700, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _version(work: Work) -> tuple[int, str, int, int]:
    return work.request.origin.version


def _is_superseded(work: Work, known: Mapping[str, Known]) -> bool:
    """Whether a newer message has been dealt with; ends the request then. Looked at once more when rows are written."""
    found = known.get(work.request.task_id)
    if found is None or found.version <= work.request.origin.version:
        return False
    work.state = RequestState.COMPLETED
    return True


def _newest(works: Sequence[Work]) -> list[Work]:
    """Of each task the newest of its requests; ends the others. The same request sent twice is answered twice.

    They are in one unit and for one collection, and none of them has failed: one that fails replaces nothing.
    """
    newest: dict[str, Work] = {}
    for work in works:
        other = newest.setdefault(work.request.task_id, work)
        if _version(work) > _version(other):
            newest[work.request.task_id] = work
    if len(newest) == len(works):
        return list(works)
    for work in works:
        newer = newest[work.request.task_id]
        if work is not newer:
            work.state = RequestState.COMPLETED
            work.vectors = len(newer.items) if work.request.items == newer.request.items else 0
    return [work for work in works if newest[work.request.task_id] is work]
