"""Cancellations: the compacted control topic says which requests are not wanted any more.

A message of the topic has the `task_id` as its key and `{"action": "cancel", "timestamp_ms": …}` as its value; a null
value takes the cancellation back.
"""

import json
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from vectorize_pipelines.messaging.clients import produce
from vectorize_pipelines.messaging.reading import TopicReader
from vectorize_pipelines.messaging.topics import TopicNames
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import Producer

log = logging.getLogger(__name__)


def cancel(
    producer: "Producer",
    names: TopicNames,
    task_id: str,
    timestamp_ms: int | None = None,
    on_delivery: Callable[[Any, Any], None] | None = None,
) -> None:
    """Hands the cancellation to the producer; whoever calls flushes it. It counts for messages up to `timestamp_ms`,
    milliseconds since 1970, by default now."""
    at = time.time_ns() // 1_000_000 if timestamp_ms is None else timestamp_ms
    value = json.dumps({"action": "cancel", "timestamp_ms": at}).encode()
    produce(producer, names.control, key=task_id.encode(), value=value, on_delivery=on_delivery)


class Cancellations:
    """What has been cancelled. `refresh` brings it up to date; nothing is known before the first call."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._reader = TopicReader(settings, TopicNames(settings.topic_prefix).control)
        self._cancelled: dict[str, int] = {}
        self._is_first = True

    def refresh(self) -> None:
        """Takes in what is new, without waiting; the first call reads the topic to its end. Raises `KafkaError`."""
        messages = self._reader.to_end() if self._is_first else iter(self._reader.available())
        for message in messages:
            self._take(message.key(), message.value())
        self._is_first = False

    def cancelled(self, task_id: str, timestamp_ms: int) -> bool:
        """Whether a message of that time is cancelled. One that was sent after the cancellation is not."""
        return self._cancelled.get(task_id, -1) >= timestamp_ms

    def close(self) -> None:
        """Lets go of the connections."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        try:
            task_id = (key or b"").decode()
            if value is None:
                self._cancelled.pop(task_id, None)
                return
            content = json.loads(value)
            if content["action"] == "cancel":
                self._cancelled[task_id] = int(content["timestamp_ms"])
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            log.warning("a message of the control topic is no cancellation and is passed over: %r", error)
