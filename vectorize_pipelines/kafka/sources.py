"""Messages of followed topics: those behind the committed offsets, or those of some days.

A run reads either source in its reading thread and gets the messages as confluent_kafka has them. Neither source
commits anything: what has been dealt with is committed in the transaction that tells the outcomes.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.kafka.clients import consumer, kafka_errors, retry
from vectorize_pipelines.kafka.followed import FollowedTopic
from vectorize_pipelines.kafka.partitions import AddedPartitions, PartitionId, SameTopics
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import Consumer, TopicPartition

logger = logging.getLogger(__name__)

MILLISECONDS = 1000
#: Before every timestamp that a message can have: without one it is -1.
_EARLIEST = -(2**63)
#: Ends are told, and told soon: a broker that has nothing new answers after so long.
_TELL_ENDS: dict[str, Any] = {"enable.partition.eof": True, "fetch.wait.max.ms": 100}


@dataclass(slots=True)
class Polled:
    """Messages in the order in which they were read, and where reading stands after them.

    positions  the next offset of each partition that has moved on, also past what is no message (a transaction's
               marks); empty for a source whose offsets are never committed
    """

    messages: Sequence[ReceivedMessage] = ()
    positions: Mapping[PartitionId, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LostRange:
    """Messages that the broker had deleted before anybody read them: from `begin` on, up to `end`, not included."""

    topic: str
    partition: int
    begin: int
    end: int

    @property
    def messages(self) -> int:
        """The number of offsets; marks of transactions count too."""
        return self.end - self.begin

    def __str__(self) -> str:
        return f"{self.topic}, partition {self.partition}, offsets {self.begin} to {self.end - 1}"


class CommittedNote(NamedTuple):
    """A committed offset, and what was kept with it (`TransactionalProducer.send`)."""

    offset: int
    note: str


class MessageSource(ABC):
    """A source of messages, until there are no more; used by one thread, and closed by it."""

    @abstractmethod
    def poll(self, most: int) -> Polled:
        """At most so many messages, waiting a moment for the first. Raises `KafkaError` where the broker fails."""

    @abstractmethod
    def at_end(self) -> bool:
        """Return whether everything that was there when the last poll began has been given."""

    @abstractmethod
    def lag(self) -> int:
        """About how many messages are left."""

    def begins_at(self) -> Mapping[PartitionId, int]:
        """Return where reading begins in each partition; asked before the first poll."""
        return {}

    def ends_at(self) -> Mapping[PartitionId, int]:
        """The end of each partition when it was opened."""
        return {}

    @property
    def lost(self) -> Sequence[LostRange]:
        """The messages that the broker had deleted before anybody read them."""
        return ()

    @abstractmethod
    def close(self) -> None:
        """Leave the broker."""


class DrainSource(MessageSource):
    """The messages behind the committed offsets of a shard, those of the lanes with priority first.

    Partitions that a topic gets meanwhile are taken up, those of the shard (`AddedPartitions`).

    A normal message goes before the next batch of a lane with priority once those alone have been served for
    `kafka.drain.ageing_seconds`, so no lane can hold up another for ever. The topics have to be there.
    """

    def __init__(self, settings: KafkaSettings, followed: FollowedTopic, shard: Shard):
        """Read nothing yet. Raises `KafkaError`, and `SettingsError` where Kafka is not configured."""
        self._ageing_seconds = settings.drain.ageing_seconds
        self._linger_seconds = settings.drain.linger_ms / MILLISECONDS
        with ThreadPoolExecutor(1, thread_name_prefix="vectorize-topics") as beside:
            same = beside.submit(SameTopics, settings, followed.lanes)
            self._lanes = _open_lanes(settings, followed.lanes, shard)
        try:
            self._same = same.result()
        except BaseException:
            self.close()
            raise
        self._normal = self._lanes[-1]
        self._normal_served = time.monotonic()

    @property
    def lost(self) -> Sequence[LostRange]:
        return [each for lane in self._lanes for each in lane.lost]

    def group_metadata(self) -> object:
        """The metadata that a transaction needs for committing offsets of this group."""
        return self._normal.consumer.consumer_group_metadata()

    def poll(self, most: int) -> Polled:
        self._same.look()
        aged = time.monotonic() - self._normal_served >= self._ageing_seconds
        *first, last = reversed(self._lanes) if aged else self._lanes
        positions: dict[PartitionId, int] = {}
        for lane in first:
            polled = self._poll_lane(lane, most, 0)
            positions.update(polled.positions)
            if polled.messages:
                return Polled(polled.messages, positions)
        polled = self._poll_lane(last, most, self._linger_seconds)
        return Polled(polled.messages, {**positions, **polled.positions})

    def _poll_lane(self, lane: "_Lane", most: int, wait_seconds: float) -> Polled:
        polled = lane.poll(most, wait_seconds)
        if lane is self._normal:
            self._normal_served = time.monotonic()
        return polled

    def at_end(self) -> bool:
        return all(lane.at_end() for lane in self._lanes)

    def lag(self) -> int:
        return sum(lane.lag() for lane in self._lanes)

    def begins_at(self) -> Mapping[PartitionId, int]:
        return {place: offset for lane in self._lanes for place, offset in lane.positions.items()}

    def ends_at(self) -> Mapping[PartitionId, int]:
        return {place: offset for lane in self._lanes for place, offset in lane.ends.items()}

    def notes(self) -> Mapping[PartitionId, CommittedNote]:
        """Return what was kept with the committed offsets from which reading begins."""
        return {place: note for lane in self._lanes for place, note in lane.notes.items()}

    def close(self) -> None:
        for lane in self._lanes:
            lane.consumer.close()


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The offset to begin at: what is committed, or the partition's first where nothing is or that is gone."""

    number: int
    committed: int
    low: int
    high: int
    note: str

    @property
    def offset(self) -> int:
        """The first offset that is still there."""
        return max(self.committed, self.low)


class _Lane:
    """One topic's partitions of a shard, read from the committed offsets on."""

    def __init__(self, settings: KafkaSettings, topic: str, shard: Shard):
        # Where the broker has deleted what is to be read next, that is told: see `_go_on_after_deletion`.
        self.consumer = consumer(settings, **_TELL_ENDS, **{"auto.offset.reset": "error"})
        self.lost: list[LostRange] = []
        self.notes: dict[PartitionId, CommittedNote] = {}
        self._settings = settings
        self._seconds = settings.request_seconds
        self._topic = topic
        self._shard = shard
        self._ended: set[PartitionId] = set()
        self._positions: dict[PartitionId, int] = {}
        self._ends: dict[PartitionId, int] = {}
        # Where reading goes on after a loss: committed even if no message follows, or every run would tell of the loss.
        self._skipped: dict[PartitionId, int] = {}
        doing = f"reading the offsets of {topic}"
        with kafka_errors(settings, doing):
            self._take_up(self._beginnings(_partitions(self.consumer, topic, self._seconds)), self.consumer.assign)
        self._added = AddedPartitions(topic, self._take_up_new)

    @property
    def positions(self) -> Mapping[PartitionId, int]:
        """The next offset to read in each partition."""
        return self._positions

    @property
    def ends(self) -> Mapping[PartitionId, int]:
        """The end of each partition when it was taken up."""
        return self._ends

    def poll(self, most: int, wait_seconds: float) -> Polled:
        self._added.look()
        if not self._positions:
            time.sleep(wait_seconds)
            return Polled()
        deleted: list[PartitionId] = []
        moved: dict[PartitionId, int]
        with kafka_errors(self._settings, f"reading {self._topic}"):
            polled = _read(self.consumer, most, wait_seconds, self._ended, deleted)
            moved = {place: offset for place, offset in polled.positions.items() if offset > self._positions[place]}
            self._positions.update(moved)
            for place in deleted:
                self._go_on_after_deletion(place)
        for place, offset in self._skipped.items():
            moved[place] = max(offset, moved.get(place, 0))
        self._skipped.clear()
        return Polled(polled.messages, moved)

    def at_end(self) -> bool:
        return len(self._ended) == len(self._positions)

    def lag(self) -> int:
        return sum(max(0, self._high(place) - offset) for place, offset in self._positions.items())

    def _beginnings(self, numbers: Sequence[int]) -> "list[_Beginning]":
        """Return where reading begins in those of the partitions that are the shard's and are not read yet."""
        from confluent_kafka import TopicPartition

        owned = [
            TopicPartition(self._topic, number)
            for number in numbers
            if self._shard.owns(number) and (self._topic, number) not in self._positions
        ]
        if not owned:
            return []
        doing = f"reading the offsets of {self._topic}"
        committed = retry(self._settings, doing, lambda: self.consumer.committed(owned, timeout=self._seconds))
        found: list[_Beginning] = []
        for partition in committed:
            low, high = _bounds(self._settings, self.consumer, partition)
            offset = partition.offset
            if offset > high:  # of a topic that was deleted and made again
                offset = low
            # Negative where nothing has been committed yet.
            note = "" if offset != partition.offset else partition.metadata or ""
            found.append(_Beginning(partition.partition, offset if offset >= 0 else low, low, high, note))
        return found

    def _take_up(self, beginnings: "Sequence[_Beginning]", assign: "Callable[[list[TopicPartition]], None]") -> None:
        """Read these partitions, too. They count only once the consumer has them, which may fail."""
        from confluent_kafka import TopicPartition

        assign([TopicPartition(self._topic, each.number, each.offset) for each in beginnings])
        for each in beginnings:
            place = (self._topic, each.number)
            self._positions[place] = each.offset
            self._ends[place] = each.high
            self.notes[place] = CommittedNote(each.committed, each.note)
            self._note_lost(each.number, each.committed, each.low)

    def _take_up_new(self) -> list[int]:
        new = self._beginnings(_partitions(self.consumer, self._topic, self._seconds))
        if new:
            self._take_up(new, self.consumer.incremental_assign)
        return [each.number for each in new]

    def _go_on_after_deletion(self, place: PartitionId) -> None:
        """Read on from the first message that is there, where the client says that the next one is not any more."""
        from confluent_kafka import TopicPartition

        low, high = _bounds(self._settings, self.consumer, TopicPartition(*place))
        position = self._positions[place]
        self._note_lost(place[1], position, low)
        # A client may say so where nothing was deleted, after its broker has started again: what was read already
        # would come a second time. A topic that was made again is read from its beginning if it is shorter than that.
        offset = position if low <= position <= high else low
        logger.warning("%s, partition %d, is read on from offset %d, after %d", *place, offset, position)
        self._positions[place] = offset
        self._ended.discard(place)
        self.consumer.incremental_unassign([TopicPartition(*place)])
        self.consumer.incremental_assign([TopicPartition(*place, offset)])

    def _note_lost(self, number: int, position: int, low: int) -> None:
        if low > position:
            lost = LostRange(self._topic, number, position, low)
            self.lost.append(lost)
            self._skipped[self._topic, number] = low
            logger.warning(
                "%d messages were deleted by the broker before they were read: %s; have the topic keep them longer "
                "(retention.ms, retention.bytes), or see that runs keep up",
                lost.messages,
                lost,
            )

    def _high(self, place: PartitionId) -> int:
        """The end of a partition as the broker last told it with what was read."""
        return _cached_end(self.consumer, place)


def _open_lanes(settings: KafkaSettings, topics: Sequence[str], shard: Shard) -> list[_Lane]:
    """Open lanes beside each other: each asks its broker some dozen times, and messages wait meanwhile."""
    with ThreadPoolExecutor(len(topics), thread_name_prefix="vectorize-lane") as pool:
        opening = [pool.submit(_Lane, settings, topic, shard) for topic in topics]
    error = next(filter(None, (each.exception() for each in opening)), None)
    if error is None:
        return [each.result() for each in opening]
    for each in opening:
        if each.exception() is None:
            each.result().consumer.close()
    raise error


class ReplaySource(MessageSource):
    """Every message whose timestamp lies in some days, up to what the topics hold when it is opened.

    Reading starts at the first message that is not older than the days, and goes on to the end: timestamps are the
    senders', and need not rise with the offsets.
    """

    def __init__(self, settings: KafkaSettings, followed: FollowedTopic, window: tuple[date, date], first_day: date):
        """`window`: first and last day, both included; `first_day`: the day that everything older belongs to."""
        self._settings = settings
        self._seconds = settings.request_seconds
        self._topics = followed.lanes
        begin = _milliseconds(window[0]) if window[0] > first_day else _EARLIEST
        # What lies in the future belongs to today, the last day.
        self._times = range(begin, _milliseconds(window[1] + timedelta(days=1)))
        self._open_ended = window[1] >= datetime.now(UTC).date()
        create_topics(settings, (followed.family,))
        self._consumer = consumer(settings, **_TELL_ENDS)
        self._left: dict[PartitionId, int] = {}  # the partitions that are still read, and where to stop
        self._at: dict[PartitionId, int] = {}
        with kafka_errors(settings, "looking for the messages of the days"):
            self._assign(begin)

    def _assign(self, begin: int) -> None:
        from confluent_kafka import TopicPartition

        wanted = [
            TopicPartition(topic, number, max(0, begin))
            for topic in self._topics
            for number in _partitions(self._consumer, topic, self._seconds)
        ]
        found = retry(
            self._settings,
            "looking for the messages of the days",
            lambda: self._consumer.offsets_for_times(wanted, timeout=self._seconds) if wanted else [],
        )
        assigned = []
        for partition in found:
            low, high = _bounds(self._settings, self._consumer, partition)
            offset = low if begin == _EARLIEST else partition.offset
            if 0 <= offset < high:
                place = (partition.topic, partition.partition)
                self._left[place], self._at[place] = high, offset
                assigned.append(TopicPartition(*place, offset))
        self._consumer.assign(assigned)

    def poll(self, most: int) -> Polled:
        if not self._left:
            return Polled()
        with kafka_errors(self._settings, "reading the messages of the days"):
            ended: set[PartitionId] = set()
            polled = _read(self._consumer, most, self._settings.drain.linger_ms / MILLISECONDS, ended)
        ends = dict(self._left)
        self._at.update(polled.positions)
        for place, offset in polled.positions.items():
            # What lies behind an open transaction is not there yet, and nobody knows when it will be.
            if place in self._left and (offset >= self._left[place] or place in ended):
                del self._left[place]
        return Polled([message for message in polled.messages if self._wanted(message, ends)])

    def _wanted(self, message: ReceivedMessage, ends: Mapping[PartitionId, int]) -> bool:
        end = ends.get((message.topic(), message.partition()))
        milliseconds = message.timestamp()[1]
        in_days = milliseconds in self._times or (self._open_ended and milliseconds >= self._times.stop)
        return end is not None and message.offset() < end and in_days

    def at_end(self) -> bool:
        return not self._left

    def begins_at(self) -> Mapping[PartitionId, int]:
        return dict(self._at)

    def ends_at(self) -> Mapping[PartitionId, int]:
        return dict(self._left)

    def lag(self) -> int:
        return sum(max(0, end - self._at[place]) for place, end in self._left.items())

    def close(self) -> None:
        self._consumer.close()


def _partitions(client: "Consumer", topic: str, seconds: float) -> list[int]:
    return sorted(client.list_topics(topic, timeout=seconds).topics[topic].partitions)


def _bounds(settings: KafkaSettings, client: "Consumer", partition: Any) -> tuple[int, int]:
    """The first offset and the next one to be written, as soon as the partition has a leader."""
    seconds = settings.request_seconds
    return retry(
        settings,
        f"reading the bounds of {partition.topic}",
        lambda: client.get_watermark_offsets(partition, timeout=seconds),
    )


def _cached_end(client: "Consumer", place: PartitionId) -> int:
    from confluent_kafka import TopicPartition

    _, end = client.get_watermark_offsets(TopicPartition(*place), cached=True)
    return max(0, end)


def _read(
    client: "Consumer",
    most: int,
    wait_seconds: float,
    ended: set[PartitionId],
    deleted: list[PartitionId] | None = None,
) -> Polled:
    """The messages, and the next offset of each partition; `ended` gains and loses the partitions that are at an end.

    `deleted` gains those whose next message is not there any more, where the consumer tells that. Raises
    `KafkaException` for an error that came in a message's place.
    """
    from confluent_kafka import KafkaError as Codes
    from confluent_kafka import KafkaException

    messages: list[ReceivedMessage] = []
    positions: dict[PartitionId, int] = {}
    for given in client.consume(most, timeout=wait_seconds):
        error = given.error()
        message = cast("ReceivedMessage", given)
        place = (message.topic(), message.partition())
        if error is None:
            messages.append(message)
            positions[place] = message.offset() + 1
            ended.discard(place)
        elif error.code() == Codes._PARTITION_EOF:
            positions[place] = message.offset()
            ended.add(place)
        elif deleted is not None and error.code() == Codes._AUTO_OFFSET_RESET:
            deleted.append(place)
        else:
            raise KafkaException(error)
    return Polled(messages, positions)


def _milliseconds(day: date) -> int:
    return int(datetime.combine(day, time_of_day(), UTC).timestamp()) * MILLISECONDS
