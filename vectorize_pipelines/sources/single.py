"""One request that came with its run and not by a topic, as a source of one message."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic_core import to_json

from vectorize_pipelines.items import Modality
from vectorize_pipelines.messaging.messages import (
    TASK_TYPE_OF,
    ReceivedMessage,
    Request,
    TaskType,
    Tombstone,
    decode,
    origin_of,
)
from vectorize_pipelines.sources.kafka import MessageSource, Polled


@dataclass(frozen=True, slots=True)
class SingleMessage:
    """A request's JSON as a message would have it. It lies in no topic; its offset tells it from later ones."""

    content: bytes
    task_id: str
    timestamp_ms: int

    def topic(self) -> str:
        return ""

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.timestamp_ms

    def key(self) -> bytes | None:
        return self.task_id.encode("utf-8", "replace")

    def value(self) -> bytes | None:
        return self.content

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, self.timestamp_ms


@dataclass(frozen=True, slots=True)
class SingleRequest:
    """What a run for one request is to do."""

    message: SingleMessage
    request: Request
    modality: Modality
    run_id: str

    @classmethod
    def of(cls, content: Mapping[str, Any], run_id: str) -> Self:
        """The request in the JSON object that a message has; its `task_id`, where it has none, is the run's id.

        Raises `InvalidMessageError` as for a message.
        """
        task_id = content.get("task_id") or run_id
        modality = _modality(content)
        value = to_json({**content, "task_id": task_id})
        message = SingleMessage(value, str(task_id), time.time_ns() // 1_000_000)
        request = decode(value, message.key(), origin_of(message), modality)
        assert not isinstance(request, Tombstone), "only a null value is one"
        return cls(message, request, modality, run_id)


class SingleSource(MessageSource):
    """Gives the message, once."""

    def __init__(self, message: ReceivedMessage):
        self._left = [message]

    def poll(self, most: int) -> Polled:
        given, self._left = self._left, []
        return Polled(given)

    def at_end(self) -> bool:
        return not self._left

    def lag(self) -> int:
        return len(self._left)

    def close(self) -> None:
        """There is nothing to leave."""


def _modality(content: Mapping[str, Any]) -> Modality:
    """That of its task type; of a batch, that of the first entry which names one, else text."""
    task_type = content.get("task_type")
    if task_type == TaskType.BATCH and isinstance(content.get("data"), list):
        entries = (entry.get("task_type") for entry in content["data"] if isinstance(entry, dict))
        task_type = next((each for each in entries if each is not None), None)
    return next((modality for modality, each in TASK_TYPE_OF.items() if each == task_type), Modality.TEXT)
