"""Messages of one modality's topics: those behind the committed offsets, or those of some days.

`pipeline.request_stream` reads either source in its reading thread and gets the messages as confluent_kafka has them.
Neither source commits anything: what has been dealt with is committed in the transaction of `messaging.outcomes`.
"""

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import TYPE_CHECKING, Any, Self, TypeAlias, cast

from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.items import Modality
from vectorize_pipelines.messaging.clients import consumer, insisted, kafka_errors
from vectorize_pipelines.messaging.topics import TopicNames, create_topics
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import Consumer

    from vectorize_pipelines.messaging.messages import ReceivedMessage

#: (topic, partition)
Place: TypeAlias = tuple[str, int]

MILLISECONDS = 1000
#: Before every timestamp that a message can have: without one it is -1.
_EARLIEST = -(2**63)
#: Ends are told, and told soon: a broker that has nothing new answers after so long.
_TELL_ENDS: dict[str, Any] = {"enable.partition.eof": True, "fetch.wait.max.ms": 100}


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of a topic that one run owns: every partition whose number leaves `index` when divided by `count`."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """`0/4` is the first of four. Raises `SettingsError`."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip(), re.ASCII)
        if found is None or int(found[1]) >= int(found[2]):
            raise SettingsError(f"the shard is {text!r}; give its number and the count of shards, as in 0/4")
        return cls(int(found[1]), int(found[2]))

    def owns(self, partition: int) -> bool:
        """Whether a partition is this shard's."""
        return partition % self.count == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


#: The shard of a run that owns everything.
WHOLE = Shard()


@dataclass(slots=True)
class Polled:
    """Messages in the order in which they were read, and where reading stands after them.

    positions  the next offset of each partition that has moved on, also past what is no message (a transaction's
               marks); empty for a source whose offsets are never committed
    """

    messages: "Sequence[ReceivedMessage]" = ()
    positions: Mapping[Place, int] = field(default_factory=dict)


class MessageSource(ABC):
    """Gives messages until there are no more; used by one thread, and closed by it."""

    @abstractmethod
    def poll(self, most: int) -> Polled:
        """At most so many messages, waiting a moment for the first. Raises `KafkaError` where the broker fails."""

    @abstractmethod
    def at_end(self) -> bool:
        """Whether everything that was there when the last poll began has been given."""

    @abstractmethod
    def lag(self) -> int:
        """About how many messages are left."""

    @property
    def lost(self) -> int:
        """Messages that the broker had deleted before anybody read them."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Leaves the broker."""


class DrainSource(MessageSource):
    """What lies behind the committed offsets of a shard, the priority lane first.

    A normal message goes before the priority lane's next batch once that lane alone has been served for
    `kafka.drain.ageing_seconds`, so neither lane can hold up the other for ever. Topics that are missing are created.
    """

    def __init__(self, settings: KafkaSettings, modality: Modality, shard: Shard):
        """Reads nothing yet. Raises `KafkaError`, and `SettingsError` where Kafka is not configured."""
        create_topics(settings)
        self._ageing_seconds = settings.drain.ageing_seconds
        self._linger_seconds = settings.drain.linger_ms / MILLISECONDS
        names = TopicNames(settings.topic_prefix)
        self._priority = _Lane(settings, names.priority(modality), shard)
        self._normal = _Lane(settings, names.requests(modality), shard)
        self._normal_served = time.monotonic()

    @property
    def lost(self) -> int:
        return self._priority.lost + self._normal.lost

    def group_metadata(self) -> object:
        """What a transaction needs for committing offsets of this group."""
        return self._normal.consumer.consumer_group_metadata()

    def poll(self, most: int) -> Polled:
        lanes = (self._poll_priority, self._poll_normal)
        if time.monotonic() - self._normal_served >= self._ageing_seconds:
            lanes = (lanes[1], lanes[0])
        first = lanes[0](most, 0)
        if first.messages:
            return first
        second = lanes[1](most, self._linger_seconds)
        return Polled(second.messages, {**first.positions, **second.positions})

    def _poll_priority(self, most: int, wait_seconds: float) -> Polled:
        return self._priority.poll(most, wait_seconds)

    def _poll_normal(self, most: int, wait_seconds: float) -> Polled:
        polled = self._normal.poll(most, wait_seconds)
        self._normal_served = time.monotonic()
        return polled

    def at_end(self) -> bool:
        return self._priority.at_end() and self._normal.at_end()

    def lag(self) -> int:
        return self._priority.lag() + self._normal.lag()

    def close(self) -> None:
        self._priority.consumer.close()
        self._normal.consumer.close()


class _Lane:
    """One topic's partitions of a shard, read from the committed offsets on."""

    def __init__(self, settings: KafkaSettings, topic: str, shard: Shard):
        from confluent_kafka import TopicPartition

        self.consumer = consumer(settings, **_TELL_ENDS)
        self.lost = 0
        self._settings = settings
        self._seconds = settings.request_seconds
        self._topic = topic
        self._ended: set[Place] = set()
        self._positions: dict[Place, int] = {}
        doing = f"reading the offsets of {topic}"
        with kafka_errors(settings, doing):
            numbers = _partitions(self.consumer, topic, self._seconds)
            owned = [TopicPartition(topic, number) for number in numbers if shard.owns(number)]
            committed = insisted(settings, doing, lambda: self.consumer.committed(owned, timeout=self._seconds))
            for partition in committed:
                low, high = _bounds(settings, self.consumer, partition)
                if partition.offset > high:  # of a topic that was deleted and made anew
                    partition.offset = low
                if partition.offset >= 0:
                    self.lost += max(0, low - partition.offset)
                partition.offset = max(partition.offset, low)  # negative where nothing has been committed yet
                self._positions[topic, partition.partition] = partition.offset
            self.consumer.assign(committed)

    def poll(self, most: int, wait_seconds: float) -> Polled:
        if not self._positions:
            return Polled()
        with kafka_errors(self._settings, f"reading {self._topic}"):
            polled = _read(self.consumer, most, wait_seconds, self._ended)
        moved = {place: offset for place, offset in polled.positions.items() if offset > self._positions[place]}
        self._positions.update(moved)
        return Polled(polled.messages, moved)

    def at_end(self) -> bool:
        return len(self._ended) == len(self._positions)

    def lag(self) -> int:
        return sum(max(0, self._high(place) - offset) for place, offset in self._positions.items())

    def _high(self, place: Place) -> int:
        """The end of a partition as the broker last told it with what was read."""
        return _cached_end(self.consumer, place)


class ReplaySource(MessageSource):
    """Every message whose timestamp lies in some days, up to what the topics hold when it is opened.

    Reading starts at the first message that is not older than the days, and goes on to the end: timestamps are the
    senders', and need not rise with the offsets.
    """

    def __init__(self, settings: KafkaSettings, modality: Modality, window: tuple[date, date], first_day: date):
        """`window`: first and last day, both included; `first_day`: the day that everything older belongs to."""
        names = TopicNames(settings.topic_prefix)
        self._settings = settings
        self._seconds = settings.request_seconds
        self._topics = [names.priority(modality), names.requests(modality)]
        begin = _milliseconds(window[0]) if window[0] > first_day else _EARLIEST
        # What lies in the future belongs to today, the last day.
        self._times = range(begin, _milliseconds(window[1] + timedelta(days=1)))
        self._open_ended = window[1] >= datetime.now(UTC).date()
        create_topics(settings)
        self._consumer = consumer(settings, **_TELL_ENDS)
        self._left: dict[Place, int] = {}  # the partitions that are still read, and where to stop
        self._at: dict[Place, int] = {}
        with kafka_errors(settings, "looking for the messages of the days"):
            self._assign(begin)

    def _assign(self, begin: int) -> None:
        from confluent_kafka import TopicPartition

        wanted = [
            TopicPartition(topic, number, max(0, begin))
            for topic in self._topics
            for number in _partitions(self._consumer, topic, self._seconds)
        ]
        found = insisted(
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
            ended: set[Place] = set()
            polled = _read(self._consumer, most, self._settings.drain.linger_ms / MILLISECONDS, ended)
        ends = dict(self._left)
        self._at.update(polled.positions)
        for place, offset in polled.positions.items():
            # What lies behind an open transaction is not there yet, and nobody knows when it will be.
            if place in self._left and (offset >= self._left[place] or place in ended):
                del self._left[place]
        return Polled([message for message in polled.messages if self._wanted(message, ends)])

    def _wanted(self, message: "ReceivedMessage", ends: Mapping[Place, int]) -> bool:
        end = ends.get((message.topic(), message.partition()))
        milliseconds = message.timestamp()[1]
        in_days = milliseconds in self._times or (self._open_ended and milliseconds >= self._times.stop)
        return end is not None and message.offset() < end and in_days

    def at_end(self) -> bool:
        return not self._left

    def lag(self) -> int:
        return sum(max(0, end - self._at[place]) for place, end in self._left.items())

    def close(self) -> None:
        self._consumer.close()


def _partitions(client: "Consumer", topic: str, seconds: float) -> list[int]:
    return sorted(client.list_topics(topic, timeout=seconds).topics[topic].partitions)


def _bounds(settings: KafkaSettings, client: "Consumer", partition: Any) -> tuple[int, int]:
    """The first offset and the next one to be written, as soon as the partition has a leader."""
    seconds = settings.request_seconds
    return insisted(
        settings,
        f"reading the bounds of {partition.topic}",
        lambda: client.get_watermark_offsets(partition, timeout=seconds),
    )


def _cached_end(client: "Consumer", place: Place) -> int:
    from confluent_kafka import TopicPartition

    _, end = client.get_watermark_offsets(TopicPartition(*place), cached=True)
    return max(0, end)


def _read(client: "Consumer", most: int, wait_seconds: float, ended: set[Place]) -> Polled:
    """The messages, and the next offset of each partition; `ended` gains and loses the partitions that are at an end.

    Raises `KafkaException` for an error that came in a message's place.
    """
    from confluent_kafka import KafkaError, KafkaException

    messages: list[ReceivedMessage] = []
    positions: dict[Place, int] = {}
    for given in client.consume(most, timeout=wait_seconds):
        error = given.error()
        message = cast("ReceivedMessage", given)
        place = (message.topic(), message.partition())
        if error is None:
            messages.append(message)
            positions[place] = message.offset() + 1
            ended.discard(place)
        elif error.code() == KafkaError._PARTITION_EOF:
            positions[place] = message.offset()
            ended.add(place)
        else:
            raise KafkaException(error)
    return Polled(messages, positions)


def _milliseconds(day: date) -> int:
    return int(datetime.combine(day, time_of_day(), UTC).timestamp()) * MILLISECONDS
