"""Messages -> batches of records with their vectors, reading, encoding and writing side by side.

    MessageSource ──Message──▶ [thread] decode, fetch, parse ──Unit──▶ [thread] encode ──EmbeddingBatch──▶ writer
                                                                                             │ acknowledge
                                                                                             ▼
                                                     ledger, then one Kafka transaction (`request_report`)

A unit is some consecutive messages, which are acknowledged together (`request_units`). `request_runs` makes the stream.
"""

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from threading import Event

from vectorize_pipelines.encoders.protocol import EngineChoice
from vectorize_pipelines.errors import ItemError
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
from vectorize_pipelines.pipeline.content_budget import ContentBudget
from vectorize_pipelines.pipeline.outage import configured_outage
from vectorize_pipelines.pipeline.request_encoding import LeaseEncoder, RequestEncoding
from vectorize_pipelines.pipeline.request_reader import RequestReader
from vectorize_pipelines.pipeline.request_report import Poison, Report
from vectorize_pipelines.pipeline.request_units import Ending, Entry, RunCounts, Unit, positions_after
from vectorize_pipelines.pipeline.requests import Targets, Work, occurred
from vectorize_pipelines.pipeline.stream import PROGRESS_INTERVAL_SECONDS, EmbeddingBatch, EmbeddingStream
from vectorize_pipelines.pipeline.totals import Failure, Totals
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.kafka import MessageSource, Place
from vectorize_pipelines.stores.protocol import VectorStore
from vectorize_pipelines.versions import SourceVersions

logger = logging.getLogger(__name__)

#: How often is looked whether the run is to end.
LOOK_SECONDS = 1.0
MILLISECONDS_OF_A_DAY = 86_400_000
#: A request that takes longer is noted as being processed; of a faster one the note would come late.
NOTED_SECONDS = 1.0
#: Rows of a message that is not a text, as long as none has been seen.
ROWS_EXPECTED = 8.0
#: A run that goes on for a day may meet any number; all of them are in the dead letters.
FAILURES_KEPT = 1000


class RequestStream(EmbeddingStream):
    """The stream of one run over one modality's messages. Everything given to it is closed with it.

    `days` is asked before each batch is read: a run may go on past midnight.
    """

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
        days: Callable[[], Days],
        force: bool,
        resources: ExitStack,
    ):
        self.totals, self.failures, self.touched = Totals(), [], set()
        self.counts = RunCounts()
        # Messages wait in their topics: of an outage only what has been encoded already is borne.
        self.outage = configured_outage(settings)
        self._settings = settings
        self._modality = modality
        self._source = source
        self._report = report
        self._ending = ending
        self._days = days
        self._resources = resources
        self._targets = Targets(settings, store, modality)
        self._content_budget = ContentBudget(settings.uris.max_held_bytes)
        self._reader = RequestReader(settings, self._content_budget)
        self._encoding = RequestEncoding(
            settings,
            modality,
            run_id,
            store=store,
            versions=versions,
            targets=self._targets,
            report=report,
            lease_encoder=lease_encoder,
            outage=self.outage,
            force=force,
        )
        self._left = Event()
        self._begun = time.monotonic()
        self._why_ended = ""
        self._lag = 0
        # A document has many chunks, and content that is held while it waits: the first ones are few.
        self._rows_each = 1.0 if modality is Modality.TEXT else ROWS_EXPECTED
        self.collection = self._targets.default_collection
        self.model = self._targets.default_model

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        depth = self._settings.pipeline.queue_batches
        units = prefetch(self._units(), depth, "vectorize-read", late=True, leaving=self._leave)
        batches = prefetch(self._encoded(units), depth, "vectorize-encode", late=True, leaving=self._leave)
        self._resources.callback(batches.close)
        with _rare_collections():
            yield from batches

    def close(self) -> None:
        self._leave()
        self._resources.close()

    def _leave(self) -> None:
        """Ends what the threads wait for: messages, a store, content, and room, which nobody would make any more."""
        self._left.set()
        self.outage.close()
        self._reader.close()

    def reported(self) -> None:
        """Nothing is kept for a later run: the materialization of a killed run's days is made up for by the next."""

    @property
    def choice(self) -> EngineChoice | None:
        return self._encoding.choice

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
            if self._left.is_set():
                return
            entries = self._entries(polled.messages)
            now = time.monotonic()
            if polled.messages:
                last_message = now
            if polled.messages or polled.positions:
                for unit in self._read(entries, polled.positions):
                    unit.read_seconds = time.perf_counter() - started
                    yield unit
                    started = time.perf_counter()
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
        rows = int(self._encoding.rows_together / self._rows_each)
        return max(1, min(self._settings.kafka.drain.batch_messages, rows))

    def _reason_to_end(self, now: float, last_message: float) -> str | None:
        ending = self._ending
        if now - last_message >= ending.idle_seconds and self._source.at_end():
            return f"nothing came for {ending.idle_seconds:g} s" if ending.idle_seconds else "nothing was left"
        if now - self._begun >= ending.max_seconds:
            return f"the run's {ending.max_seconds:g} s are over"
        if datetime.now(UTC) >= ending.day_ends:
            return "the day has ended"
        return ending.should_stop()

    def _entries(self, messages: Sequence[ReceivedMessage]) -> list[Entry]:
        entries: list[Entry] = []
        now = datetime.now(UTC)
        day_of = _days_of_messages(self._days())
        for message in messages:
            key, value = message.key(), message.value()
            origin = origin_of(message)
            occurred_at = occurred(origin)
            day = day_of(origin.timestamp_ms, occurred_at)
            try:
                request = decode(value, key, origin, self._modality)
            except InvalidMessageError as error:
                entries.append(Poison(message, error, error.task_id, day))
            else:
                if isinstance(request, Tombstone):
                    entries.append(request)
                else:
                    entries.append(Work(request, message, day, occurred_at, now))
        return entries

    def _takes_long(self, works: Sequence[Work]) -> bool:
        """Whether it is worth noting that they are being processed; yes where it is not known."""
        rows = sum(len(work.request.items) for work in works) * self._rows_each
        return rows * self._encoding.seconds_per_row > NOTED_SECONDS

    def _read(self, entries: Sequence[Entry], positions: Mapping[Place, int]) -> Iterator[Unit]:
        """Everything that comes before the encoder, for the requests that still count.

        Gives one unit, or several where the run may not hold the content of all of them at once.
        """
        works = [entry for entry in entries if isinstance(entry, Work)]
        self._report.taken_up(works, noted=self._takes_long(works))
        for work in works:
            if self._report.cancelled(work):
                work.state = RequestState.CANCELLED
                continue
            try:
                work.target = self.outage.wait_out(partial(self._targets.of, work.request))
            except ItemError as error:
                work.fail(error)
        begin = 0
        for last in self._reader.read([work for work in works if work.state is RequestState.PROCESSING]):
            end = entries.index(last, begin) + 1
            yield self._unit(entries[begin:end], positions_after(entries[:end], positions))
            begin = end
        yield self._unit(entries[begin:], positions)

    def _unit(self, entries: Sequence[Entry], positions: Mapping[Place, int]) -> Unit:
        unit = Unit(entries, positions)
        if unit.works:
            self._rows_each = max(1.0, sum(len(work.items) for work in unit.works) / len(unit.works))
        return unit

    # The encoding thread

    def _encoded(self, units: Generator[Unit, None, None]) -> Generator[EmbeddingBatch, None, None]:
        with ExitStack() as leases:
            leases.callback(units.close)
            leases.callback(self._encoding.close)
            for unit in units:
                batches = self._encoding.batches(unit)
                batches[-1].acknowledge = partial(self._acknowledge, unit, batches)
                yield from batches

    # The writer's thread

    def _acknowledge(self, unit: Unit, batches: list[EmbeddingBatch]) -> None:
        """The unit's outcomes are told, its offsets committed; only then do its figures count."""
        self._report.finished(unit.works, unit.poison, unit.positions)
        self.totals.spread("read", unit.read_seconds, Counter(work.day for work in unit.works))
        for batch in batches:
            self.totals.merge(batch.totals)
            self.touched.update(batch.totals)
            batch.let_go()
        self._content_budget.give_back(unit.let_go())
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


def _days_of_messages(days: Days) -> Callable[[int, datetime], str]:
    """Gives the partition of a message by its time; most are of the same few days."""
    known: dict[int, str] = {}

    def day_of(milliseconds: int, occurred_at: datetime) -> str:
        number = milliseconds // MILLISECONDS_OF_A_DAY
        if number not in known:
            known[number] = days.of(occurred_at)
        return known[number]

    return day_of


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
