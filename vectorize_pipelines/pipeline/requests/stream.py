"""The stream of a run over messages: reads, decodes, and encodes them to batches, which `pipeline.writing` writes.

    MessageSource ──Message──▶ [thread] decode, fetch, parse ─MessageBatch─▶ [thread] encode ──EmbeddingBatch──▶ writer
                                                                                             │ acknowledge
                                                                                             ▼
                                                     ledger, then one Kafka transaction (`report`)

A `MessageBatch` is some consecutive messages, which are acknowledged together. `runs` makes the stream.
Messages that an earlier run had in hand when it died come one at a time up to the encoder (`suspects`).
"""

import gc
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.prefetch import prefetch
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.encoders.base import EngineChoice
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.sources import MessageSource, Polled
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.progress import PROGRESS_INTERVAL_SECONDS
from vectorize_pipelines.pipeline.requests.advance import NOTED_SECONDS
from vectorize_pipelines.pipeline.requests.batches import Entry, MessageBatch, positions_after
from vectorize_pipelines.pipeline.requests.content_budget import ContentBudget
from vectorize_pipelines.pipeline.requests.context import RunContext
from vectorize_pipelines.pipeline.requests.decoding import MessageDecoder, reached_by
from vectorize_pipelines.pipeline.requests.encoding import RequestEncoding
from vectorize_pipelines.pipeline.requests.pending import PendingRequest
from vectorize_pipelines.pipeline.requests.reader import RequestReader
from vectorize_pipelines.pipeline.requests.report import Report
from vectorize_pipelines.pipeline.requests.suspects import RunProgress, SuspectReading
from vectorize_pipelines.pipeline.requests.targets import Targets
from vectorize_pipelines.pipeline.stop_policy import StopPolicy
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.pipeline.totals import Failure, RunNotices, Totals
from vectorize_pipelines.state.attempts import Attempts, may_be_of_an_item

logger = logging.getLogger(__name__)

#: How often is looked whether the run is to end.
LOOK_SECONDS = 1.0
#: So long at most a run waits for further messages to prove with that an error is of the first one.
GATHERING_SECONDS = 5.0
#: Rows of a message that is not a text, as long as none has been seen.
ROWS_EXPECTED = 8.0
#: A run that goes on for a day may meet any number; all of them are in the dead letters.
FAILURES_KEPT = 1000


@dataclass(slots=True)
class RunCounts:
    """The messages that a run has dealt with, acknowledged or not acted upon; for its metadata."""

    messages: int = 0
    dead_letters: int = 0
    superseded: int = 0
    cancelled: int = 0
    tombstones: int = 0
    newest_ms: int = 0


class RequestStream(EmbeddingStream):
    """The stream of one run over one modality's messages. Everything given to it is closed with it.

    `days` is asked before each batch is read: a run may go on past midnight.
    """

    def __init__(
        self,
        context: RunContext,
        source: MessageSource,
        report: Report,
        stop_policy: StopPolicy,
        days: Callable[[], Days],
        resources: ExitStack,
        attempts: Attempts | None = None,
    ):
        self.totals, self.failures, self.touched = Totals(), [], set()
        self.notices = RunNotices()
        self.counts = RunCounts()
        # Messages wait in their topics: of an outage only what has been encoded already is borne.
        self.outage = context.outage
        self._settings = context.settings
        self._source = source
        self._report = report
        self._stop_policy = stop_policy
        self._resources = resources
        self._attempts = attempts or Attempts()
        self._last_batch: MessageBatch | None = None
        self._progress = RunProgress()
        self._targets = Targets(context.settings, context.store, context.modality)
        self._content_budget = ContentBudget(context.settings.uris.max_held_bytes)
        self._reader = RequestReader(context.settings, self._content_budget)
        self._encoding = RequestEncoding(context, self._targets, report)
        self._decoder = MessageDecoder(context, days, self._attempts)
        self._suspects = SuspectReading(
            context.modality,
            self._progress,
            self._attempts,
            self._decoder,
            self._take_up_requests,
            self._reader,
            self._encoding,
        )
        self._begun = time.monotonic()
        self._why_ended = ""
        self._lag = 0
        # A document has many chunks, and content that is held while it waits: the first ones are few.
        self._rows_each = 1.0 if context.modality is Modality.TEXT else ROWS_EXPECTED
        self.collection = self._targets.default_collection
        self.model = self._targets.default_model

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        depth = self._settings.pipeline.queue_batches
        messages = prefetch(self._message_batches(), depth, "vectorize-read", late=True, leaving=self._leave)
        batches = prefetch(self._encoded(messages), depth, "vectorize-encode", late=True, leaving=self._leave)
        self._resources.callback(batches.close)
        with _rare_collections():
            yield from batches

    def close(self) -> None:
        self._leave()
        self._resources.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and may_be_of_an_item(error):
            self._attempts.ending(error, proven=self._progress.has_stored)
        self.close()

    def _leave(self) -> None:
        """End what the threads wait for: messages, a store, content, and room, which nobody would make any more."""
        self._progress.left.set()
        self.outage.close()
        self._targets.close()
        self._reader.close()

    def reported(self) -> None:
        """Do nothing: the next run makes up for the materializations of a killed run's days."""

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
            "lost_unread": sum(lost.messages for lost in self._source.lost),
            "lag": self._lag,
        }

    def losses(self) -> Sequence[str]:
        return [str(lost) for lost in self._source.lost]

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

    def _message_batches(self) -> Generator[MessageBatch, None, None]:
        last_message = last_look = last_said = time.monotonic()
        while True:
            started = time.perf_counter()
            polled = self._poll_suspects() if self._attempts.is_near() else self._source.poll(self._messages_together())
            if self._progress.left.is_set():
                return
            now = time.monotonic()
            if polled.messages:
                last_message = now
            if polled.messages or polled.positions:
                for batch in self._batches_of(polled):
                    batch.read_seconds = time.perf_counter() - started
                    yield batch
                    started = time.perf_counter()
                if self._why_ended:
                    return  # with messages read that have not been dealt with
            if now - last_look >= LOOK_SECONDS or not polled.messages:
                last_look = now
                self._lag = self._source.lag()
                if now - max(last_message, last_said) >= PROGRESS_INTERVAL_SECONDS:
                    # Whoever writes the batches says how far the run is, and none come.
                    last_said = now
                    logger.info("%s: nothing arrives; %s", self.collection, self.progress())
                at_end = self._stop_policy.reason_at_end(now - last_message) if self._source.at_end() else None
                self._why_ended = at_end or self._reason_to_stop() or ""
                if self._why_ended:
                    return

    def _batches_of(self, polled: Polled) -> Generator[MessageBatch, None, None]:
        """The batches of messages that have been read: noted as in hand before anything is done with them."""
        reached = reached_by(polled)
        if polled.messages and self._attempts.has_suspects(self._attempts.offsets_until(reached)):
            self._attempts.note_read(reached, noted=False)
            if self._last_batch is None or self._suspects.wait(self._last_batch):
                self._why_ended = yield from self._suspects.batches(polled, reached, self._reason_to_stop)
            return
        self._attempts.note_read(reached, noted=bool(polled.messages))
        for entries, positions, ends in self._decoder.parts(polled, reached):
            for batch in self._read(entries, positions, ends):
                self._last_batch = batch
                yield batch

    def _poll_suspects(self) -> Polled:
        """Read as many as are written together.

        Until the run has stored anything, that is all that is there of so many, which may take several polls: a message
        that an earlier run met an error with needs others to prove the error with.
        """
        most = min(self._messages_together(), self._suspects.portion)
        polled = self._source.poll(most)
        deadline = time.monotonic() + GATHERING_SECONDS
        while (
            polled.messages
            and len(polled.messages) < most
            and self._attempts.knows_deaths
            and not (self._progress.has_stored or self._source.at_end() or self._progress.left.is_set())
            and time.monotonic() < deadline
        ):
            more = self._source.poll(most - len(polled.messages))
            polled = Polled([*polled.messages, *more.messages], {**polled.positions, **more.positions})
        return polled

    def _messages_together(self) -> int:
        """The number of messages that give the encoder a batch, going by how many rows the last ones had."""
        rows = int(self._encoding.rows_together / self._rows_each)
        return max(1, min(self._settings.kafka.drain.batch_messages, rows))

    def _reason_to_stop(self) -> str | None:
        """Return why the run is to end, whatever is left to be done."""
        return self._stop_policy.reason(self._begun)

    def _takes_long(self, requests: Sequence[PendingRequest]) -> bool:
        """Return whether it is worth noting that they are being processed; yes where it is not known."""
        rows = sum(len(pending.request.items) for pending in requests) * self._rows_each
        return rows * self._encoding.seconds_per_row > NOTED_SECONDS

    def _take_up_requests(self, requests: Sequence[PendingRequest]) -> None:
        """Tell that the requests are in hand, and find where they go; end those that cannot, or need not."""
        self._report.taken_up(requests, noted=self._takes_long(requests))
        for pending in requests:
            if self._report.cancelled(pending):
                pending.state = RequestState.CANCELLED
                continue
            try:
                pending.target = self.outage.call(partial(self._targets.of, pending.request))
            except ItemError as error:
                pending.fail(error)

    def _read(
        self, entries: Sequence[Entry], positions: Mapping[PartitionId, int], reached: Mapping[PartitionId, int]
    ) -> Iterator[MessageBatch]:
        """Everything that comes before the encoder, for the requests that still count.

        Yields one batch, or several where the run may not hold the content of all of them at once.
        """
        requests = [
            entry for entry in entries if isinstance(entry, PendingRequest) and entry.state is RequestState.PROCESSING
        ]
        self._take_up_requests(requests)
        begin = 0
        for last in self._reader.read([pending for pending in requests if pending.state is RequestState.PROCESSING]):
            end = entries.index(last, begin) + 1
            until = positions_after(entries[:end], positions)
            yield self._batch_of(entries[begin:end], until, until)
            begin = end
        yield self._batch_of(entries[begin:], positions, reached)

    def _batch_of(
        self, entries: Sequence[Entry], positions: Mapping[PartitionId, int], reached: Mapping[PartitionId, int]
    ) -> MessageBatch:
        batch = MessageBatch(entries, positions, reached)
        if batch.requests:
            self._rows_each = max(1.0, sum(len(pending.items) for pending in batch.requests) / len(batch.requests))
        return batch

    # The encoding thread

    def _encoded(self, message_batches: Generator[MessageBatch, None, None]) -> Generator[EmbeddingBatch, None, None]:
        with ExitStack() as leases:
            leases.callback(message_batches.close)
            leases.callback(self._encoding.close)
            for messages in message_batches:
                if messages.rehearsal:
                    self._encoding.rehearse(messages)
                    messages.done.set()
                    continue
                batches = self._encoding.batches(messages)
                acknowledge = self._probe_stored if messages.probe else self._acknowledge
                batches[-1].acknowledge = partial(acknowledge, messages, batches)
                yield from batches

    # The writer's thread

    def _probe_stored(self, messages: MessageBatch, batches: list[EmbeddingBatch]) -> None:
        """Note that the store has taken the messages; that is all that was asked."""
        for batch in batches:
            self._progress.has_stored |= batch.records.num_rows > 0
            batch.release()
        self._content_budget.give_back(messages.release())
        messages.done.set()

    def _acknowledge(self, messages: MessageBatch, batches: list[EmbeddingBatch]) -> None:
        """Tell the messages' outcomes and commit their offsets; only then do their figures count."""
        self._report.finished(messages.requests, messages.invalid, messages.positions)
        self._attempts.acknowledged(messages.reached)
        self.totals.merge(messages.encoding)
        self.totals.spread("read", messages.read_seconds, Counter(pending.day for pending in messages.requests))
        for batch in batches:
            self._progress.has_stored |= batch.records.num_rows > 0
            self.totals.merge(batch.totals)
            self.touched.update(batch.totals)
            batch.release()
        self._content_budget.give_back(messages.release())
        batches.clear()  # the last of them refers to this list: without it all of them go at once
        self._count(messages)
        messages.done.set()

    def _count(self, messages: MessageBatch) -> None:
        for pending in messages.requests:
            if pending.state is RequestState.FAILED and pending.error is not None:
                self._fail(pending.request.task_id, pending.day, pending.error)
            elif pending.state is RequestState.CANCELLED:
                self.counts.cancelled += 1
            elif not pending.vectors:
                self.counts.superseded += 1
            elif pending.told:
                self._note(pending)
            self.counts.newest_ms = max(self.counts.newest_ms, pending.request.origin.timestamp_ms)
        for invalid in messages.invalid:
            self._fail(invalid.task_id or invalid.place, invalid.day, invalid.error)
        self.counts.messages += len(messages.entries)
        self.counts.tombstones += len(messages.tombstones)

    def _note(self, pending: PendingRequest) -> None:
        totals = self.totals.of(pending.day)
        totals.note(pending.told)
        totals.truncated += pending.tokens_told[1]
        self.notices.add(pending.request.task_id, pending.day, pending.told)

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


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Have Python look for cyclic garbage a hundredth as often.

    What a batch makes goes without it, as soon as the batch has been acknowledged; meanwhile the search would go
    through all of that several hundred times, a quarter of what messages cost without a model.
    """
    before = gc.get_threshold()
    gc.set_threshold(100 * 700, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
