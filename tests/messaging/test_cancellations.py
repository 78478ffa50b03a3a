"""Cancellations: what they count for, and that they are seen."""

import json
from contextlib import closing
from typing import Any

import pytest

from tests.messaging.brokers import send
from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.kafka.clients import producer
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging.cancellations import Cancellations, cancel
from vectorize_pipelines.settings import KafkaSettings


def _until_cancelled(cancellations: Cancellations, task_id: str, timestamp_ms: int, wanted: bool = True) -> None:
    """Looks until it is so; the test's time limit ends it where it never is."""
    while cancellations.cancelled(task_id, timestamp_ms) is not wanted:
        cancellations.refresh()


def _cancellation(task_id: str, timestamp_ms: int) -> dict[str, Any]:
    content = {"action": "cancel", "timestamp_ms": timestamp_ms}
    return {"key": task_id.encode(), "value": json.dumps(content).encode()}


def test_a_cancellation_counts_for_messages_not_newer(kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    send(kafka_settings, topics.control, *(_cancellation(f"before-{number}", 1000) for number in range(3000)))
    with closing(Cancellations(kafka_settings)) as cancellations:
        assert not cancellations.cancelled("before-0", 1000)
        cancellations.refresh()
        assert all(cancellations.cancelled(f"before-{number}", 1000) for number in range(3000))
        assert cancellations.cancelled("before-7", 999)
        assert not cancellations.cancelled("before-7", 1001)
        assert not cancellations.cancelled("other", 0)
        send(kafka_settings, topics.control, _cancellation("after", 2000))
        _until_cancelled(cancellations, "after", 2000)
        send(kafka_settings, topics.control, {"key": b"after", "value": None})
        _until_cancelled(cancellations, "after", 2000, wanted=False)


def test_what_is_no_cancellation_is_passed_over(kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    values = [b"", b"{", b"[]", b"3", b'{"action": "cancel"}', b'{"action": "cancel", "timestamp_ms": 1e999}', b"\xff"]
    values.append(b'{"action": "dance", "timestamp_ms": 5}')
    send(kafka_settings, topics.control, *({"key": b"t", "value": value} for value in values))
    cancel(sender := producer(kafka_settings), topics, "good")
    sender.flush(30)
    with closing(Cancellations(kafka_settings)) as cancellations:
        cancellations.refresh()
        assert cancellations.cancelled("good", 1)
        assert not cancellations.cancelled("t", 0)


def test_without_a_control_topic(kafka_settings: KafkaSettings) -> None:
    with pytest.raises(KafkaError, match="vectorize topics create"):
        Cancellations(kafka_settings)
