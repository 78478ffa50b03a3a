"""Reading topics without a group's rebalancing: from given positions, up to the end or on and on."""

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.messaging.clients import admin, consumer, insisted, kafka_error, kafka_errors
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

_FETCH_MESSAGES = 1000
_SLICE_SECONDS = 0.1
#: So long a broker holds the answer that there is nothing, and with it the sign that the end is reached.
_FETCH_WAIT_MS = 50

#: Topic and partition.
Place = tuple[str, int]


class TopicReader:
    """Reads all partitions of a topic under read_committed, each from `starts` or, without an entry, its beginning.

    `group` names the reader; nothing is committed under it.
    """

    def __init__(
        self, settings: KafkaSettings, topic: str, starts: Mapping[int, int] | None = None, *, group: str | None = None
    ) -> None:
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        self._settings = settings
        self._topic = topic
        properties = {"enable.partition.eof": True, "fetch.wait.max.ms": _FETCH_WAIT_MS}
        self._consumer = consumer(settings, group or f"{settings.group}.reader", **properties)
        places = partitions_of(settings, [topic], self._consumer)
        starts = starts or {}
        self._consumer.assign(
            [TopicPartition(topic, number, starts.get(number, OFFSET_BEGINNING)) for _, number in places]
        )
        self._unfinished = {number for _, number in places}
        self._trouble = ""

    @property
    def at_end(self) -> bool:
        """Whether the end of every partition has been seen since the start, or since the last message from it."""
        return not self._unfinished

    def available(self, seconds: float = 0.0) -> list[Any]:
        """The messages that are there; waits at most `seconds` for the first. Raises `KafkaError`."""
        from confluent_kafka import KafkaError as Code

        with kafka_errors(self._settings, f"reading {self._topic}"):
            fetched = self._consumer.consume(_FETCH_MESSAGES, timeout=seconds)
        messages = []
        for message in fetched:
            error, partition = message.error(), message.partition()
            if error is None and partition is not None:
                self._unfinished.add(partition)
                messages.append(message)
            elif error is None or error.code() == Code._PARTITION_EOF:
                self._unfinished.discard(-1 if partition is None else partition)
            elif error.code() > 0 or error.fatal():
                raise kafka_error(self._settings, f"reading {self._topic}", error)
            else:  # of the client itself, such as a lost connection: it goes on trying
                self._trouble = error.str()
        return messages

    def to_end(self) -> Iterator[Any]:
        """The messages up to the end of every partition. Raises `KafkaError`, also where the brokers fall silent."""
        deadline = time.monotonic() + self._settings.request_seconds
        while not self.at_end:
            messages = self.available(_SLICE_SECONDS)
            yield from messages
            if messages:
                deadline = time.monotonic() + self._settings.request_seconds
            elif time.monotonic() > deadline:
                raise KafkaError(
                    f"reading {self._topic} failed at {self._settings.bootstrap_servers}: nothing came for "
                    f"{self._settings.request_seconds:g} seconds, and the end was not reached. {self._trouble}".rstrip()
                )

    def close(self) -> None:
        """Lets go of the connections."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def partitions_of(settings: KafkaSettings, topics: list[str], client: Any = None) -> list[Place]:
    """Every partition of the topics. Raises `KafkaError`, also for a topic that is missing."""
    client = admin(settings) if client is None else client
    places: list[Place] = []
    for topic in topics:
        with kafka_errors(settings, f"looking at {topic}", client):
            found = client.list_topics(topic, timeout=settings.request_seconds).topics[topic]
        if found.error is not None or not found.partitions:
            raise KafkaError(
                f"the topic {topic} is missing at {settings.bootstrap_servers}; `vectorize topics create` makes it"
            )
        places += [(topic, number) for number in sorted(found.partitions)]
    return places


def offsets(
    settings: KafkaSettings, places: list[Place], *, latest: bool, client: "AdminClient | None" = None
) -> dict[Place, int]:
    """The first offset of each partition that is still there or, with `latest`, the one after the last committed.

    Raises `KafkaError`.
    """
    from confluent_kafka import IsolationLevel, TopicPartition
    from confluent_kafka.admin._listoffsets import OffsetSpec

    spec: OffsetSpec = (OffsetSpec.latest if latest else OffsetSpec.earliest)()  # type: ignore[no-untyped-call]
    asked = {TopicPartition(*place): spec for place in places}
    client = admin(settings) if client is None else client  # the futures are never done once the client is gone

    def ask() -> dict[Place, int]:
        answers = client.list_offsets(
            asked, isolation_level=IsolationLevel.READ_COMMITTED, request_timeout=settings.request_seconds
        )
        return {(each.topic, each.partition): answer.result().offset for each, answer in answers.items()}

    return insisted(settings, "asking for offsets", ask)
