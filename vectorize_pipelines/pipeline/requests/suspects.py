"""Messages that an earlier run had in hand when it died: one at a time up to the encoder, then some together.

Called by `requests.stream` in its reading thread, with nothing else in hand. Each message is decoded, read and
encoded alone, and noted as alone while that lasts (`vectorize_pipelines.state.attempts`): a death names it. What nobody
died of is written by portions, whose rows take the vectors that the run remembers. Each death of a portion makes the
next one smaller, down to one message.

An error tells something of a message only once the run has stored another one (`RunProgress.has_stored`): the first
message is therefore written before the next is tried and, where an earlier run met an error with it alone, after a
probe, which is another message that is written and not acknowledged.
"""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.sources import Polled
from vectorize_pipelines.pipeline.requests.batches import Entry, MessageBatch, entry_origin, positions_after
from vectorize_pipelines.pipeline.requests.decoding import MessageDecoder, spot_of
from vectorize_pipelines.pipeline.requests.encoding import RequestEncoding
from vectorize_pipelines.pipeline.requests.pending import PendingRequest
from vectorize_pipelines.pipeline.requests.reader import RequestReader
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.state.attempts import Attempts, Spot

#: Messages that are written together; of those that name contents fewer, since a run holds these meanwhile.
PORTION = {Modality.TEXT: 64, Modality.IMAGE: 8, Modality.DOCUMENT: 8}
WAIT_SECONDS = 0.05


@dataclass(slots=True)
class RunProgress:
    """The progress of a run, for its threads.

    left        set once nobody reads its batches any more
    has_stored  whether it has stored any message
    """

    left: Event = field(default_factory=Event)
    has_stored: bool = False


class SuspectReading:
    """Batches of messages that a run may die of.

    take_up  finds where requests go, and ends those that are cancelled or can go nowhere
    """

    def __init__(
        self,
        modality: Modality,
        progress: RunProgress,
        attempts: Attempts,
        decoder: MessageDecoder,
        take_up: Callable[[Sequence[PendingRequest]], None],
        reader: RequestReader,
        encoding: RequestEncoding,
    ):
        self.portion = PORTION[modality]
        self._defers = modality is Modality.TEXT
        self._progress = progress
        self._attempts = attempts
        self._decoder = decoder
        self._take_up = take_up
        self._reader = reader
        self._encoding = encoding

    def batches(
        self, polled: Polled, reached: Mapping[PartitionId, int], stop: Callable[[], str | None]
    ) -> Generator[MessageBatch, None, str]:
        """Rehearsals, and after some of them the batch of their messages.

        Ends early where `stop` gives a reason, which is returned: nothing further may be read then.
        """
        left, before = deque(polled.messages), list[Entry]()
        while left and not self._progress.left.is_set():
            if (reason := stop()) is not None:
                return reason
            if self._needs_probe(left[0]):
                yield from self._probe(list(left)[1:])
            rehearsed = Totals()
            portion = yield from self._portion(left, rehearsed, is_first=not before)
            if self._progress.left.is_set():
                return ""
            before += portion
            positions = positions_after(before, polled.positions) if left else polled.positions
            ends = positions_after(before, reached) if left else reached
            self._note_writing(portion)
            batch = MessageBatch(portion, positions, ends, encoding=rehearsed)
            yield batch
            if not self.wait(batch):
                return ""
            self._attempts.forget_acknowledged()
        return ""

    def _note_writing(self, portion: Sequence[Entry]) -> None:
        if len(portion) == 1:
            origin = entry_origin(portion[0])
            place = (origin.topic, origin.partition)
            self._attempts.note_alone(Spot(place, origin.offset, origin.timestamp_ms), "writing")
        else:
            self._attempts.note_writing(ranges_of(portion))

    def _needs_probe(self, message: ReceivedMessage) -> bool:
        return not self._progress.has_stored and self._attempts.needs_proof(spot_of(message))

    def _probe(self, others: Sequence[ReceivedMessage]) -> Generator[MessageBatch, None, None]:
        """Write a message that comes later, that of the fewest deaths: what would fail of all fails of this one, too.

        It is not acknowledged: its offset lies behind that of the one that has to wait.
        """
        for message in sorted(others, key=lambda message: self._attempts.times_in_hand(spot_of(message))):
            entry = yield from self._tried(message, False, Totals())
            if self._progress.left.is_set():
                return
            if isinstance(entry, PendingRequest):  # also one that has failed: it may hold contents
                self._attempts.note_writing(ranges_of([entry]))
                batch = MessageBatch([entry], probe=True)
                yield batch
                if not self.wait(batch) or self._progress.has_stored:
                    return

    def wait(self, batch: MessageBatch) -> bool:
        """Return once the batch is done; False where nobody will do it any more."""
        while not batch.done.wait(WAIT_SECONDS):
            if self._progress.left.is_set():
                return False
        return True

    def _portion(
        self, left: deque[ReceivedMessage], rehearsed: Totals, *, is_first: bool
    ) -> Generator[MessageBatch, None, list[Entry]]:
        """Take messages off the left end, as many as are written together, and try each.

        Of texts those come last that were alone in hand at a death: a kill from outside, soon after the start as its
        predecessors, strikes another one.
        """
        first = spot_of(left[0])
        most = self._attempts.portion(first.place, first.offset, self.portion)
        if is_first and not self._progress.has_stored and not self._attempts.deaths_alone(first):
            most = 1
        entries: list[Entry | None] = []
        deferred: list[tuple[int, ReceivedMessage]] = []
        while left and len(entries) < most and not self._progress.left.is_set():
            message, entry = left[0], None
            if entries and self._needs_probe(message):
                break  # what comes before is written, and may be all the proof that is needed
            if self._defers and most > 1 and len(self._attempts.deaths_alone(spot_of(message))) == 1:
                deferred.append((len(entries), message))
            else:
                entry = yield from self._tried(message, bool(entries), rehearsed)
                if entry is None:
                    break
            entries.append(entry)
            left.popleft()
        for number, message in deferred:
            entries[number] = yield from self._tried(message, False, rehearsed)
        return [entry for entry in entries if entry is not None]

    def _tried(
        self, message: ReceivedMessage, others_held: bool, rehearsed: Totals
    ) -> Generator[MessageBatch, None, Entry | None]:
        """The message, with its vectors remembered. None where there is no room for its contents beside others'."""
        spot = spot_of(message)
        self._attempts.note_alone(spot, "decoding")
        entry = self._decoder.entries([message])[0]
        if not isinstance(entry, PendingRequest) or entry.state is not RequestState.PROCESSING:
            return entry
        if others_held and not self._reader.has_room(entry):
            return None
        self._take_up([entry])
        if entry.state is not RequestState.PROCESSING or entry.target is None:
            return entry
        # Loading the settings' model takes seconds, and would be no message's fault.
        self._attempts.note_nothing()
        self._encoding.open(entry.target)
        self._attempts.note_alone(spot, "reading")
        for _ in self._reader.read([entry]):
            """Of one request nothing is passed on before its end."""
        self._attempts.note_alone(spot, "encoding")
        rehearsal = MessageBatch([entry], rehearsal=True)
        yield rehearsal
        if self.wait(rehearsal):
            rehearsed.merge(rehearsal.encoding)
        return entry


def ranges_of(entries: Sequence[Entry]) -> dict[PartitionId, tuple[int, int]]:
    """The first offset among the entries of each partition, and the one after the last."""
    found: dict[PartitionId, tuple[int, int]] = {}
    for entry in entries:
        origin = entry_origin(entry)
        place, offset = (origin.topic, origin.partition), origin.offset
        first, end = found.get(place, (offset, offset + 1))
        found[place] = (min(first, offset), max(end, offset + 1))
    return found
