"""From a message of the detections' topic to the tasks of its groups. Nothing here reads or writes anything."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.messaging.detections import DetectionResultMessage, TrafficGroup
from vectorize_pipelines.messaging.messages import InvalidMessageError
from vectorize_pipelines.settings import AssessmentSettings

#: What task ids are made in; another one would make other tasks of the same detections.
_NAMESPACE = uuid.UUID("0c9c1f3e-6a4b-5d0e-9a55-7b3f2f1d8c60")
#: The last day that Python has a time for, in milliseconds since 1970.
LATEST_MS = 253_402_214_400_000


@dataclass(frozen=True, slots=True)
class Detection:
    """A valid detection, and the message that it came in.

    message_id  its own, or `topic/partition/offset`
    at          when the picture was taken, or when the message was sent where the detector does not say
    sent_at     the time of the message
    """

    message: ReceivedMessage
    content: DetectionResultMessage
    message_id: str
    at: datetime
    sent_at: datetime

    @property
    def seen_at(self) -> datetime:
        """Return when the picture was taken or, where that is said to lie in the future, was sent."""
        return min(self.at, self.sent_at)


def decode(message: ReceivedMessage, settings: AssessmentSettings) -> Detection:
    """Return the detection in a message. Raises `InvalidMessageError` naming the field; pictures are not decoded."""
    value = message.value()
    if value is None:
        raise InvalidMessageError("", "the value is missing")
    if len(value) > settings.max_message_bytes:
        raise InvalidMessageError(
            "", f"the value has {len(value):,} bytes: at most {settings.max_message_bytes:,} are taken"
        )
    content = DetectionResultMessage.from_json(value)
    for place, group in enumerate(content.traffic_groups):
        if group.image_bytes > settings.max_image_bytes:
            raise InvalidMessageError(
                f"traffic_groups[{place}].group_image_base64",
                f"about {group.image_bytes:,} bytes: at most {settings.max_image_bytes:,} are taken",
            )
    sent_at = time_of(message)
    message_id = content.message_id or f"{message.topic()}/{message.partition()}/{message.offset()}"
    return Detection(message, content, message_id, content.timestamp or sent_at, sent_at)


def time_of(message: ReceivedMessage) -> datetime:
    """Return a message's own time in UTC; that of its reading where it has none."""
    milliseconds = message.timestamp()[1]
    if milliseconds < 0:
        return datetime.now(UTC)
    return datetime.fromtimestamp(min(milliseconds, LATEST_MS) / 1000, UTC)


def tasks_of(detection: Detection, groups: Sequence[TrafficGroup], deadline: datetime) -> list[AssessmentTaskMessage]:
    """Return the tasks of those groups of a detection that are assessed."""
    content = detection.content
    return [
        AssessmentTaskMessage(
            task_id=task_id(content.camera_id, detection.message_id, group.group_index),
            message_id=detection.message_id,
            camera_id=content.camera_id,
            group_index=group.group_index,
            groups_total=len(groups),
            group=group,
            detected_objects=content.members(group),
            timestamp=detection.at,
            deadline=deadline,
        )
        for group in groups
    ]


def task_id(camera_id: str, message_id: str, group_index: int) -> str:
    """Return the id of a group's task: the same for every copy of the detection, whenever it is read."""
    return str(uuid.uuid5(_NAMESPACE, f"{camera_id}\n{message_id}\n{group_index}"))
