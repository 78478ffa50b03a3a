"""One request that came with its run and not by a topic, as a source of one message."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from pydantic_core import to_json

from vectorize_pipelines.core.items import MetadataLimits, Modality
from vectorize_pipelines.core.request_runs import REQUEST_ID_TAG, SUBMITTED_TAG
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.sources import MessageSource, Polled
from vectorize_pipelines.messaging.messages import (
    METADATA_LIMITS,
    InvalidMessageError,
    Request,
    Tombstone,
    decode,
    origin_of,
)
from vectorize_pipelines.messaging.outgoing import modality_of

#: Of a time in milliseconds since 1970, before the year 5139.
_MOST_DIGITS = 14


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
    """The task of a run for one request."""

    message: SingleMessage
    request: Request
    modality: Modality
    run_id: str

    @classmethod
    def of(
        cls,
        content: Mapping[str, Any],
        run_id: str,
        tags: Mapping[str, str] | None = None,
        limits: MetadataLimits = METADATA_LIMITS,
    ) -> Self:
        """The request in the JSON object that a message has.

        run_id  of its run, which is the `task_id` where neither the object nor a tag has one
        tags    of its run: with its `task_id` where the object has none, and the time at which it was submitted

        Raises `InvalidMessageError` as for a message.
        """
        tags = tags or {}
        task_id = content.get("task_id") or tags.get(REQUEST_ID_TAG) or run_id
        modality = modality_of(content)
        value = to_json({**content, "task_id": task_id})
        message = SingleMessage(value, str(task_id), _submitted_ms(tags))
        request = decode(value, message.key(), origin_of(message), modality, limits)
        assert not isinstance(request, Tombstone), "only a null value is one"
        return cls(message, request, modality, run_id)


class SingleSource(MessageSource):
    """A source of one message."""

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


def _submitted_ms(tags: Mapping[str, str]) -> int:
    """The time of the request: now, unless whoever launched the run has noted it."""
    noted = tags.get(SUBMITTED_TAG)
    if noted is None:
        return time.time_ns() // 1_000_000
    if not (noted.isascii() and noted.isdigit() and len(noted) <= _MOST_DIGITS):
        raise InvalidMessageError("", f"the tag {SUBMITTED_TAG} must be a time in milliseconds since 1970")
    return int(noted)
