"""What waits in the topics, from watermarks and committed offsets alone: no message is read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vectorize_pipelines.items import Modality
from vectorize_pipelines.messaging.clients import admin, insisted
from vectorize_pipelines.messaging.reading import Place, offsets, partitions_of
from vectorize_pipelines.messaging.topics import TopicNames
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """What waits in one partition. `committed` is None where nothing has been; `high` is the first offset that a
    reader of committed messages does not get."""

    topic: str
    partition: int
    committed: int | None
    low: int
    high: int

    @property
    def lag(self) -> int:
        """Offsets between what was committed, or is still there, and the end; transactions' marks count too."""
        return max(0, self.high - max(self.low, self.committed or 0))


def partition_lags(
    settings: KafkaSettings, modality: Modality, client: "AdminClient | None" = None
) -> list[PartitionLag]:
    """Both lanes of a modality, the priority lane first, by partition. Five requests, each bounded in time.

    Whoever asks often hands in the same `client`. Raises `KafkaError`, also where a topic is missing.
    """
    client = client or admin(settings)
    places = partitions_of(settings, list(TopicNames(settings.topic_prefix).lanes(modality)), client)
    committed = committed_offsets(settings, places, client)
    low = offsets(settings, places, latest=False, client=client)
    high = offsets(settings, places, latest=True, client=client)
    return [PartitionLag(*place, committed.get(place), low[place], high[place]) for place in places]


def committed_offsets(
    settings: KafkaSettings, places: list[Place], client: "AdminClient | None" = None
) -> dict[Place, int]:
    """What the group of the drain runs has committed; without an entry, nothing. Raises `KafkaError`."""
    from confluent_kafka import ConsumerGroupTopicPartitions, TopicPartition

    wanted = ConsumerGroupTopicPartitions(settings.group, [TopicPartition(*place) for place in places])
    client = client or admin(settings)  # the futures are never done once the client is gone

    def ask() -> dict[Place, int]:
        answers = client.list_consumer_group_offsets([wanted], request_timeout=settings.request_seconds)
        found = answers[settings.group].result().topic_partitions
        return {(each.topic, each.partition): each.offset for each in found if each.offset >= 0}

    return insisted(settings, f"asking for the offsets of the group {settings.group}", ask)
