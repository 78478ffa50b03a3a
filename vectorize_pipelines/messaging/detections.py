"""What a camera's detector has found in one picture: objects, and the groups that they form.

Boxes are left, top, right and bottom in pixels of the camera's picture.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from vectorize_pipelines.core.base64_text import decode_base64
from vectorize_pipelines.messaging.messages import InvalidMessageError
from vectorize_pipelines.messaging.versioned import Finite, Message, Moment, Name, VersionedMessage

MAX_OBJECTS = 10_000
MAX_GROUPS = 1_000

Box = Annotated[list[Finite], Field(min_length=4, max_length=4)]
Share = Annotated[float, Field(ge=0, le=1)]
Number = Annotated[int, Field(ge=0, lt=2**63)]


class DetectedObject(Message):
    """One object. `object_id`: the tracker's, a number or a text."""

    object_id: int | Name
    class_name: Name
    confidence: Share
    bbox: Box


class TrafficGroup(Message):
    """Objects that are close together.

    member_indices      the places of its objects in the detection's `detected_objects`
    group_image_base64  its part of the picture, a JPEG, PNG or WebP file; may be a `data:` URI
    """

    group_index: Number
    object_count: Number
    bbox: Box
    classes: Annotated[list[Name], Field(max_length=MAX_OBJECTS)]
    avg_confidence: Share
    member_indices: Annotated[list[Number], Field(max_length=MAX_OBJECTS)]
    group_image_base64: str | None = None

    @property
    def area(self) -> float:
        """The area of its box in square pixels."""
        left, top, right, bottom = self.bbox
        return abs(right - left) * abs(bottom - top)

    @property
    def image_bytes(self) -> int:
        """About the size of its picture's file, which is not decoded for it; 0 without one."""
        return len(self.group_image_base64 or "") * 3 // 4

    def image(self) -> bytes | None:
        """Return the file of its picture; None where it has none. Raises `InvalidMessageError`."""
        text = self.group_image_base64
        if not text:
            return None
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            return decode_base64(text)
        except ValueError:
            raise InvalidMessageError("group_image_base64", f"of group {self.group_index} is no base64") from None


class DetectionResultMessage(VersionedMessage):
    """One picture of a camera.

    message_id  what tells it from others; without one it is `topic/partition/offset` of its message
    timestamp   when the picture was taken; without one, the time of its message
    """

    message_id: Name | None = None
    camera_id: Name
    timestamp: Moment | None = None
    detected_objects: Annotated[list[DetectedObject], Field(max_length=MAX_OBJECTS)]
    traffic_groups: Annotated[list[TrafficGroup], Field(max_length=MAX_GROUPS)]

    @model_validator(mode="after")
    def _groups_fit(self) -> Self:
        """Refuse groups that could not be told apart, and members that are no objects."""
        count = len(self.detected_objects)
        indices: set[int] = set()
        for place, group in enumerate(self.traffic_groups):
            if group.group_index in indices:
                raise ValueError(f"traffic_groups[{place}].group_index: {group.group_index} stands there twice")
            indices.add(group.group_index)
            if group.member_indices and max(group.member_indices) >= count:
                raise ValueError(f"traffic_groups[{place}].member_indices: there are only {count} detected_objects")
            if len(set(group.member_indices)) != len(group.member_indices):
                raise ValueError(f"traffic_groups[{place}].member_indices: a member stands there twice")
        return self

    def members(self, group: TrafficGroup) -> list[DetectedObject]:
        """Return the objects of one of its groups."""
        return [self.detected_objects[index] for index in group.member_indices]
