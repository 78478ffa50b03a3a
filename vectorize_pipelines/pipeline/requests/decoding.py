"""Messages -> what they are: a valid request, a deletion, or neither; in parts that fit into memory together.

Called by `requests.stream` and `requests.suspects` in the reading thread.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TypeAlias

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.sources import Polled
from vectorize_pipelines.messaging.messages import InvalidMessageError, Origin, Tombstone, decode, origin_of, task_id_of
from vectorize_pipelines.pipeline.requests.batches import Entry, positions_after
from vectorize_pipelines.pipeline.requests.context import RunContext
from vectorize_pipelines.pipeline.requests.growth import (
    RequestGrowthError,
    check_message,
    check_request,
    in_parts,
    in_portions,
)
from vectorize_pipelines.pipeline.requests.pending import InvalidMessage, PendingRequest, occurred
from vectorize_pipelines.state.attempts import Attempts, Death, Spot, killed_runs

MILLISECONDS_OF_A_DAY = 86_400_000

#: Entries, what to commit with them, and how far reading has come with them.
Part: TypeAlias = tuple[Sequence[Entry], Mapping[PartitionId, int], Mapping[PartitionId, int]]

_REMEDY = (
    "`vectorize dead-letters replay --reason KilledRunsError` sends such messages back, each to be tried as if for the "
    "first time."
)


class MessageDecoder:
    """The first step with messages: entries. Those that runs have died of before are set aside: they come as failed.

    `days` is asked before each batch is decoded: a run may go on past midnight.
    """

    def __init__(self, context: RunContext, days: Callable[[], Days], attempts: Attempts):
        self._modality = context.modality
        self._limits = context.settings.kafka.metadata_limits
        self._most_bytes = context.settings.kafka.drain.batch_bytes
        self._days = days
        self._attempts = attempts

    def entries(self, messages: Sequence[ReceivedMessage]) -> list[Entry]:
        """Return what the messages are, in their order."""
        entries: list[Entry] = []
        now = datetime.now(UTC)
        day_of = _days_of_messages(self._days())
        for message in messages:
            origin = origin_of(message)
            occurred_at = occurred(origin)
            day = day_of(origin.timestamp_ms, occurred_at)
            decoded = partial(self._entry, message, origin, day, occurred_at, now)
            deaths = self._attempts.set_aside(spot_of(message)) if self._attempts.knows_deaths else ()
            entries.append(_set_aside(message, day, deaths, decoded) if deaths else decoded())
        return entries

    def parts(self, polled: Polled, reached: Mapping[PartitionId, int]) -> Iterator[Part]:
        """Divide what was polled into parts that grow to no more than messages may together."""
        if not polled.messages:
            yield (), polled.positions, reached
            return
        left = len(polled.messages)
        for portion in in_portions(polled.messages, self._most_bytes):
            for part in in_parts(self.entries(portion), self._most_bytes):
                left -= len(part)
                if left:
                    yield part, positions_after(part, polled.positions), positions_after(part, reached)
                else:
                    yield part, polled.positions, reached

    def _entry(
        self, message: ReceivedMessage, origin: Origin, day: str, occurred_at: datetime, started_at: datetime
    ) -> Entry:
        try:
            check_message(message, self._most_bytes)
            request = decode(message.value(), message.key(), origin, self._modality, self._limits)
        except InvalidMessageError as error:
            return InvalidMessage(message, error, error.task_id, day)
        if isinstance(request, Tombstone):
            return request
        pending = PendingRequest(request, message, day, occurred_at, started_at)
        try:
            check_request(request, self._most_bytes)
        except RequestGrowthError as error:
            pending.fail(error)
        return pending


def spot_of(message: ReceivedMessage) -> Spot:
    """The place of a message, and its time."""
    return Spot((message.topic(), message.partition()), message.offset(), message.timestamp()[1])


def reached_by(polled: Polled) -> Mapping[PartitionId, int]:
    """Return where reading stands afterwards, also of a source whose offsets are not committed."""
    if polled.positions:
        return polled.positions
    return {(message.topic(), message.partition()): message.offset() + 1 for message in polled.messages}


def _set_aside(message: ReceivedMessage, day: str, deaths: Sequence[Death], decode: Callable[[], Entry]) -> Entry:
    """The message as one that failed. It is decoded, for its request, unless a run may have died of just that."""
    error = killed_runs("message", deaths, _REMEDY)
    decoded = None if any(death.stage == "decoding" for death in deaths) else decode()
    if isinstance(decoded, PendingRequest):
        decoded.fail(error)
        return decoded
    task_id = task_id_of(message.key()) if decoded is None else decoded.task_id
    return InvalidMessage(message, error, task_id, day)


def _days_of_messages(days: Days) -> Callable[[int, datetime], str]:
    """A function that returns the partition of a message by its time; most are of the same few days."""
    known: dict[int, str] = {}

    def day_of(milliseconds: int, occurred_at: datetime) -> str:
        number = milliseconds // MILLISECONDS_OF_A_DAY
        if number not in known:
            known[number] = days.of(occurred_at)
        return known[number]

    return day_of
