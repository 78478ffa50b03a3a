"""Reading topics without a group's rebalancing: from given positions, up to the end or on and on."""

import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.kafka.clients import consumer, kafka_error, kafka_errors
from vectorize_pipelines.kafka.partitions import AddedPartitions, partitions_of
from vectorize_pipelines.settings import KafkaSettings

_FETCH_MESSAGES = 1000
#: How long a look for more partitions may take: those who ask for messages may be in a hurry.
LOOK_SECONDS = 1.0
#: The client gives what it has, and the sign of an end, only once so long is over, or a thousand messages are there.
_SLICE_SECONDS = 0.01
#: So long a broker holds the answer that there is nothing, and with it the sign that the end is reached.
_FETCH_WAIT_MS = 50


class TopicReader:
    """A reader of all partitions of a topic under read_committed, each from `starts` or else its beginning.

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
        self._numbers = {number for _, number in places}
        self._unfinished = set(self._numbers)
        self._added = AddedPartitions(topic, self._take_up_new)
        self._trouble = ""

    @property
    def at_end(self) -> bool:
        """Return whether every partition's end has been seen since the start, or since the last message from it."""
        return not self._unfinished

    def available(self, seconds: float = 0.0) -> list[Any]:
        """Return the messages that are there; waits at most `seconds` for the first. Raises `KafkaError`.

        Partitions that the topic gets meanwhile are read, too (`AddedPartitions`).
        """
        from confluent_kafka import KafkaError as Code

        self._added.look()
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

    def _take_up_new(self) -> set[int]:
        from confluent_kafka import OFFSET_BEGINNING, TopicPartition

        found = partitions_of(self._settings, [self._topic], self._consumer, LOOK_SECONDS)
        new = {number for _, number in found} - self._numbers
        if new:
            self._consumer.incremental_assign(
                [TopicPartition(self._topic, number, OFFSET_BEGINNING) for number in sorted(new)]
            )
        self._numbers |= new
        self._unfinished |= new
        return new

    def to_end(self) -> Iterator[Any]:
        """Yield messages up to the end of every partition. Raises `KafkaError`, also where the brokers fall silent."""
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
        """Let go of the connections."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
