"""Requests on their way to a topic: checked as in the run that drains them, with topic, key and value of the message.

Called by `client` and by the HTTP server, so that both send the same and refuse the same.
"""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging.messages import (
    TASK_TYPE_OF,
    InvalidMessageError,
    Origin,
    Request,
    TaskType,
    decode,
)
from vectorize_pipelines.settings import KafkaSettings

_MODALITY_OF: dict[str, Modality] = {task_type.value: modality for modality, task_type in TASK_TYPE_OF.items()}
#: Of what has no place yet.
_NOWHERE = Origin("", 0, 0, 0)
# Made once: `json.dumps` with options makes one for each call.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


# Not frozen, as little as `ledger.RequestRow`.
@dataclass(slots=True)
class OutgoingRequest:
    """A valid request and its message. `topic` is the lane of its modality and priority; the key is the `task_id`."""

    topic: str
    key: bytes
    value: bytes
    modality: Modality
    request: Request


def json_of(message: Mapping[str, Any]) -> bytes:
    """Return a message as JSON. Raises `TypeError`, `ValueError` and `RecursionError` for what has no such form."""
    return _encode(message).encode("utf-8", "surrogatepass")


def prepare(
    settings: KafkaSettings,
    message: Mapping[str, Any],
    modality: Modality | None = None,
    encode: Callable[[Mapping[str, Any]], bytes] = json_of,
) -> OutgoingRequest:
    """Return the request in the JSON object of a message; one without `task_id` gets a new one.

    modality  whose topic it goes to; None: that of its task types (`modality_of`)
    encode    writes the message; what was read as JSON, `pydantic_core.to_json` writes in a seventh of the time

    Raises `InvalidMessageError` as `messages.decode` does, and for what cannot be written as JSON.
    """
    modality = modality or modality_of(message)
    if message.get("task_id") is None:
        message = {**message, "task_id": str(uuid.uuid4())}
    try:
        value = encode(message)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidMessageError("", f"the request cannot be written as JSON: {error}") from None
    request = decode(value, None, _NOWHERE, modality, settings.metadata_limits)
    assert isinstance(request, Request), "only a null value is anything else"
    topic = TopicNames(settings.topic_prefix).lane(modality, request.priority)
    return OutgoingRequest(topic, request.task_id.encode(), value, modality, request)


def modality_of(message: Mapping[str, Any]) -> Modality:
    """Return whose topic a request goes to, which refuses by name what is invalid.

    That of its task type; of a batch, that of the first entry which names one, else text.
    """
    task_type, data = message.get("task_type"), message.get("data")
    if task_type == TaskType.BATCH and isinstance(data, list):
        entries = (entry.get("task_type") for entry in data if isinstance(entry, Mapping))
        task_type = next((each for each in entries if each is not None), None)
    return _MODALITY_OF.get(task_type, Modality.TEXT) if isinstance(task_type, str) else Modality.TEXT
