"""Detections as tests make them."""

import base64
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

#: The time of detections that are given none: long ago.
SOME_TIME = datetime(2024, 1, 2, 12, tzinfo=UTC)

_finite = st.floats(0, 1e6, allow_nan=False)
_shares = st.floats(0, 1)
_names = st.text(st.characters(categories=("L", "N"), include_characters="-_ /"), min_size=1, max_size=20)
_boxes = st.lists(_finite, min_size=4, max_size=4)


def detection(
    camera: str = "cam-1",
    message_id: str | None = "m-1",
    groups: int = 1,
    *,
    at: datetime | None = SOME_TIME,
    picture: bytes | None = b"a picture",
    **group: Any,
) -> dict[str, Any]:
    """A detection with so many groups of two objects each; `group` replaces fields of every group."""
    content: dict[str, Any] = {
        "camera_id": camera,
        "detected_objects": [
            {"object_id": n, "class_name": "car", "confidence": 0.9, "bbox": [n, 0, n + 1, 1]}
            for n in range(2 * groups)
        ],
        "traffic_groups": [
            {
                "group_index": n,
                "object_count": 2,
                "bbox": [0, 0, 20, 10],
                "classes": ["car"],
                "avg_confidence": 0.9,
                "member_indices": [2 * n, 2 * n + 1],
                "group_image_base64": None if picture is None else base64.b64encode(picture).decode(),
                **group,
            }
            for n in range(groups)
        ],
    }
    if message_id is not None:
        content["message_id"] = message_id
    if at is not None:
        content["timestamp"] = at.isoformat()
    return content


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that do not compress, as those of a picture."""
    return random.Random(seed).randbytes(size)


@st.composite
def detections(draw: st.DrawFn) -> dict[str, Any]:
    """Valid detections, in every form that the fields allow."""
    objects = draw(
        st.lists(
            st.fixed_dictionaries(
                {"object_id": st.integers(0, 99) | _names, "class_name": _names, "confidence": _shares, "bbox": _boxes}
            ),
            max_size=6,
        )
    )
    numbers = draw(st.lists(st.integers(0, 50), max_size=4, unique=True))
    content: dict[str, Any] = {
        "camera_id": draw(_names),
        "detected_objects": objects,
        "traffic_groups": [_group(draw, number, objects) for number in numbers],
    }
    content |= draw(st.fixed_dictionaries({}, optional={"message_id": _names, "version": st.just(1)}))
    moments = st.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1))
    when = moments.map(lambda each: each.replace(tzinfo=UTC).isoformat()) | st.integers(10**8, 4 * 10**9)
    return content | draw(st.fixed_dictionaries({}, optional={"timestamp": when}))


def _group(draw: st.DrawFn, number: int, objects: Sequence[Any]) -> dict[str, Any]:
    members = draw(st.lists(st.integers(0, len(objects) - 1), unique=True)) if objects else []
    return {
        "group_index": number,
        "object_count": len(members),
        "bbox": draw(_boxes),
        "classes": draw(st.lists(_names, max_size=3)),
        "avg_confidence": draw(_shares),
        "member_indices": members,
        **draw(st.fixed_dictionaries({}, optional={"group_image_base64": st.none() | st.just("/9j/")})),
    }
