"""Cancellations: the compacted control topic says which requests are not wanted any more.

A message of the topic has the `task_id` as its key and `{"action": "cancel", "timestamp_ms": …}` as its value; a null
value takes the cancellation back.
"""

import json
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.kafka.clients import produce
from vectorize_pipelines.kafka.reading import TopicReader
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import Producer

log = logging.getLogger(__name__)


def cancel(
    producer: "Producer",
    names: TopicNames,
    task_id: str,
    on_delivery: Callable[[Any, Any], None] | None = None,
) -> None:
    """Hand the cancellation to the producer; the caller flushes it. It counts for messages up to now."""
    key, value = cancellation(task_id)
    produce(producer, names.control, key=key, value=value, on_delivery=on_delivery)


def cancellation(task_id: str, at_least_ms: int = 0) -> tuple[bytes, bytes]:
    """Return key and value of the message that cancels a request.

    It counts for messages up to now, and up to `at_least_ms`: the time of a message that is known may lie in the
    future of this machine's clock.
    """
    timestamp_ms = max(time.time_ns() // 1_000_000, at_least_ms)
    return task_id.encode(), json.dumps({"action": "cancel", "timestamp_ms": timestamp_ms}).encode()


class Cancellations:
    """The requests that have been cancelled, as `refresh` found them; none are known before the first call."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._reader = TopicReader(settings, TopicNames(settings.topic_prefix).control)
        self._cancelled: dict[str, int] = {}
        self._is_first = True

    def refresh(self) -> None:
        """Take in what is new, without waiting; the first call reads the topic to its end. Raises `KafkaError`."""
        messages = self._reader.to_end() if self._is_first else iter(self._reader.available())
        for message in messages:
            self._take(message.key(), message.value())
        self._is_first = False

    def cancelled(self, task_id: str, timestamp_ms: int) -> bool:
        """Return whether a message of that time is cancelled. One that was sent after the cancellation is not."""
        return self._cancelled.get(task_id, -1) >= timestamp_ms

    def close(self) -> None:
        """Let go of the connections."""
        self._reader.close()

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
