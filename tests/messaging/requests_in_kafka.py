"""Requests for the topics of a test, and what became of them."""

import json
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import Any

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.clients import producer
from vectorize_pipelines.kafka.topics import TopicNames, create_topics
from vectorize_pipelines.settings import KafkaSettings, load_settings
from vectorize_pipelines.stores import open_store

COLUMNS = ("id", "source_id", "item_index", "text", "occurred_at", "partition", "metadata", "model", "content_hash")


def text(task_id: str, data: str, **further: Any) -> dict[str, Any]:
    """A request for one text."""
    return {"task_id": task_id, "task_type": "text_vectorization", "data": data, **further}


def send(
    settings: KafkaSettings,
    requests: Iterable[dict[str, Any] | bytes | None],
    *,
    modality: Modality = Modality.TEXT,
    day: date | None = None,
    at: datetime | None = None,
    key: str | None = None,
    partition: int = -1,
) -> None:
    """Put requests, raw bytes, or a deletion of `key` onto the modality's topic: at that time, on that day, or now."""
    create_topics(settings)
    sender = producer(settings)
    topic = TopicNames(settings.topic_prefix).requests(modality)
    if day is not None:
        at = datetime(day.year, day.month, day.day, 12, tzinfo=UTC)
    timestamp_ms = 0 if at is None else int(at.timestamp() * 1000)
    for request in requests:
        name = request["task_id"] if isinstance(request, dict) else key
        value = json.dumps(request).encode() if isinstance(request, dict) else request
        sender.produce(topic, value, name.encode() if name else None, partition, timestamp=timestamp_ms)
    assert sender.flush(30) == 0


def rows(collection: str) -> list[dict[str, Any]]:
    """The rows of a collection by id, without what differs from run to run."""
    settings = load_settings()
    store = open_store(settings.store, settings.home)
    found = [row for batch in store.scan(collection, COLUMNS) for row in batch.to_pylist()]
    return sorted(found, key=lambda row: str(row["id"]))
