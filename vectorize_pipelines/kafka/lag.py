"""The messages that wait in the topics, counted by watermarks and committed offsets alone: none is read."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING

from vectorize_pipelines.kafka.clients import admin, consumer, retry
from vectorize_pipelines.kafka.followed import FollowedTopic
from vectorize_pipelines.kafka.partitions import PartitionId, offsets, partitions_of
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import Consumer
    from confluent_kafka.admin import AdminClient

#: What has been committed is asked for at least as often.
COMMITTED_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """The messages that wait in one partition. `committed` is None where nothing has been.

    `high` is the first offset that a reader of committed messages does not get.
    """

    topic: str
    partition: int
    committed: int | None
    low: int
    high: int

    @property
    def unread(self) -> range:
        """The offsets that drain runs have still to read: from what was committed, or is still there, to the end."""
        committed = self.committed or 0
        # Behind the end: of a topic that was deleted and made again.
        return range(max(self.low, committed if committed <= self.high else 0), self.high)

    @property
    def lag(self) -> int:
        """The number of those offsets; transactions' marks count too."""
        return len(self.unread)


def partition_lags(
    settings: KafkaSettings,
    followed: FollowedTopic,
    client: "AdminClient | None" = None,
    reader: "Consumer | None" = None,
) -> list[PartitionLag]:
    """Return the lag of every lane, in their order, by partition. Five requests, each bounded in time.

    Whoever asks often hands in the same `client`, and a `reader` from `offset_reader`. Raises `KafkaError`, also
    where a topic is missing.
    """
    client = admin(settings) if client is None else client
    places = partitions_of(settings, list(followed.lanes), client)
    return lags_of(settings, places, client, reader)


def lags_of(
    settings: KafkaSettings, places: list[PartitionId], client: "AdminClient", reader: "Consumer | None" = None
) -> list[PartitionLag]:
    """The same for these partitions, in their order. Raises `KafkaError`."""
    if not places:
        return []
    committed = committed_offsets(settings, places, reader)
    low = offsets(settings, places, latest=False, client=client)
    high = offsets(settings, places, latest=True, client=client)
    return [PartitionLag(*place, committed.get(place), low[place], high[place]) for place in places]


class LagWatch:
    """The lag of one followed topic, for who looks many times a second: one request where nothing has arrived.

    Keeps its connection to the cluster. Used by one thread at a time.
    """

    def __init__(self, settings: KafkaSettings, followed: FollowedTopic) -> None:
        """Raises `KafkaNotConfiguredError`."""
        self._settings = settings
        self._followed = followed
        self._client = admin(settings)
        self._reader = offset_reader(settings)
        self._last: Sequence[PartitionLag] = ()
        self._asked = 0.0
        self._looking = Lock()

    def look(self) -> Sequence[PartitionLag]:
        """As `partition_lags`; committed offsets may be `COMMITTED_SECONDS` old."""
        with self._looking:
            if not self._last or time.monotonic() - self._asked >= COMMITTED_SECONDS:
                self._last = partition_lags(self._settings, self._followed, self._client, self._reader)
                self._asked = time.monotonic()
            else:
                places = [(each.topic, each.partition) for each in self._last]
                high = offsets(self._settings, places, latest=True, client=self._client)
                self._last = [replace(each, high=high[each.topic, each.partition]) for each in self._last]
            return self._last


def committed_offsets(
    settings: KafkaSettings, places: list[PartitionId], reader: "Consumer | None" = None
) -> dict[PartitionId, int]:
    """The offsets that the group of the drain runs has committed; without an entry, none. Raises `KafkaError`.

    `reader` is one that `offset_reader` gave, for who asks often.
    """
    from confluent_kafka import TopicPartition

    wanted = [TopicPartition(*place) for place in places]
    client = offset_reader(settings) if reader is None else reader
    try:
        found = retry(
            settings,
            f"asking for the offsets of the group {settings.group}",
            lambda: client.committed(wanted, timeout=settings.request_seconds),
        )
    finally:
        if reader is None:
            client.close()
    return {(each.topic, each.partition): each.offset for each in found if each.offset >= 0}


def offset_reader(settings: KafkaSettings) -> "Consumer":
    """A consumer that only asks for committed offsets, and does not wait for transactions that are open.

    Not an `AdminClient`: librdkafka 2.16's crashes the process when the group's coordinator is just being found
    (`list_consumer_group_offsets` reaches into the consumer group that only a consumer has).
    """
    return consumer(settings, **{"isolation.level": "read_uncommitted"})
