"""Tasks as tests make them."""

from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.pipeline.assessments.pending import PendingTask

#: The smallest JPEG that says so.
PICTURE = "/9j/4AAQSkZJRgABAQAAAQABAAD/2Q=="


class Message:
    """A message as a consumer gives it."""

    def __init__(self, value: bytes, place: tuple[str, int], offset: int, timestamp_ms: int):
        self._value, self._place, self._offset, self._timestamp_ms = value, place, offset, timestamp_ms

    def topic(self) -> str:
        return self._place[0]

    def partition(self) -> int:
        return self._place[1]

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes | None:
        return b"camera"

    def value(self) -> bytes | None:
        return self._value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, self._timestamp_ms


def task(name: str, *, camera: str = "camera-1", seconds: float = 120.0, **further: Any) -> AssessmentTaskMessage:
    """A task whose time is over after so many seconds; of equal `further` fields the content is the same."""
    now = datetime.now(UTC)
    group = {
        "group_index": 0,
        "object_count": 2,
        "bbox": [0, 0, 100, 50],
        "classes": ["car", "person"],
        "avg_confidence": 0.9,
        "member_indices": [0, 1],
        "group_image_base64": PICTURE,
        **further,
    }
    found = [
        {"object_id": number, "class_name": kind, "confidence": 0.9, "bbox": [0, 0, 10 + number, 20]}
        for number, kind in enumerate(("car", "person"))
    ]
    return AssessmentTaskMessage.from_dict(
        {
            "task_id": name,
            "message_id": f"detection of {name}",
            "camera_id": camera,
            "group_index": group["group_index"],
            "groups_total": 1,
            "group": group,
            "detected_objects": found,
            "timestamp": now.isoformat(),
            "deadline": (now + timedelta(seconds=seconds)).isoformat(),
        }
    )


def pending(
    offset: int, *, name: str = "", partition: int = 0, timestamp_ms: int = 0, size: int = 1, deadline: float = inf
) -> PendingTask:
    """A task that has been read."""
    content = task(name or f"{partition}/{offset}")
    place = ("tasks", partition)
    message = Message(b"{}", place, offset, timestamp_ms)
    return PendingTask(place, offset, timestamp_ms, "2026-11-30", message, content, deadline=deadline, size=size)
