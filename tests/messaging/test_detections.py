"""Messages of detections and assessments: valid ones come through whole, anything else is refused by its field."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messaging.detections import SOME_TIME, detection, detections
from tests.messaging.drawn_messages import json_values
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage, RiskLevel
from vectorize_pipelines.messaging.detections import DetectedObject, DetectionResultMessage, TrafficGroup
from vectorize_pipelines.messaging.messages import InvalidMessageError


@given(detections())
def test_a_valid_detection_comes_through_whole(content: dict[str, Any]) -> None:
    message = DetectionResultMessage.from_dict(content)
    assert DetectionResultMessage.from_dict(message.to_dict()) == message
    assert DetectionResultMessage.from_json(message.to_json()) == message
    told = message.to_dict()
    assert json.loads(message.to_json()) == told
    for name in ("camera_id", "detected_objects"):
        assert told[name] == content[name]
    for group, given_group in zip(told["traffic_groups"], content["traffic_groups"], strict=True):
        assert group == {"group_image_base64": None, **given_group}
    assert told["version"] == 1


@given(st.binary())
def test_any_bytes_are_a_detection_or_an_error(value: bytes) -> None:
    _is_read_or_refused(value)


@given(detections(), st.data())
def test_a_damaged_detection_is_a_detection_or_an_error(content: dict[str, Any], data: st.DataObject) -> None:
    value = bytearray(json.dumps(content).encode())
    for place in data.draw(st.lists(st.integers(0, len(value) - 1), min_size=1, max_size=4)):
        value[place] = data.draw(st.integers(0, 255))
    _is_read_or_refused(bytes(value))
    _is_read_or_refused(bytes(value[: data.draw(st.integers(0, len(value)))]))


@given(detections(), st.data())
def test_a_field_of_another_kind_is_refused_by_name(content: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(("version", "camera_id", "detected_objects", "traffic_groups")))
    content[name] = data.draw(json_values | st.just(10**40))
    problem = _problem(content)
    # Members that are no objects any more are told by their group.
    assert problem is None or problem.startswith((name, "traffic_groups"))


def _problem(content: dict[str, Any]) -> str | None:
    try:
        DetectionResultMessage.from_dict(content)
    except InvalidMessageError as error:
        return str(error)
    return None


def _is_read_or_refused(value: bytes) -> None:
    try:
        message = DetectionResultMessage.from_json(value)
    except InvalidMessageError:
        return
    assert DetectionResultMessage.from_json(message.to_json()) == message


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "version: is 2, and this installation understands 1"),
        ({"camera_id": ""}, "camera_id: must have 1 to 512 characters"),
        ({"camera_id": "a\nb"}, "camera_id: must be printable"),
        ({"traffic_groups": None}, "traffic_groups: "),
        ({"traffic_groups": [{}]}, r"traffic_groups\[0\]\.group_index: is missing"),
        ({"detected_objects": []}, r"traffic_groups\[0\]\.member_indices: there are only 0 detected_objects"),
        ({"traffic_groups": 2 * detection()["traffic_groups"]}, r"traffic_groups\[1\]\.group_index: 0 stands there"),
        ({"timestamp": "yesterday"}, "timestamp: "),
        ({"timestamp": 10**30}, "timestamp: "),
    ],
)
def test_what_is_wrong_is_said_by_its_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidMessageError, match=f"^{said}"):
        DetectionResultMessage.from_dict({**detection(), **changes})


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"member_indices": [0, 0]}, "member_indices: a member stands there twice"),
        ({"bbox": [1, 2, 3]}, r"bbox: "),
        ({"bbox": [1, 2, 3, float("nan")]}, r"bbox\[3\]: "),
        ({"avg_confidence": 1.5}, "avg_confidence: "),
        ({"object_count": -1}, "object_count: "),
        ({"object_count": True}, "object_count: "),
    ],
)
def test_what_is_wrong_with_a_group_is_said_by_its_field(group: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidMessageError, match=rf"traffic_groups\[0\]\.{said}"):
        DetectionResultMessage.from_dict(detection(**group))


def test_times_are_read_as_users_write_them() -> None:
    same = SOME_TIME.astimezone(timezone(timedelta(hours=8)))
    for written in (SOME_TIME.isoformat(), same.isoformat(), "2024-01-02T12:00:00Z", "2024-01-02T12:00:00"):
        assert DetectionResultMessage.from_dict({**detection(), "timestamp": written}).timestamp == SOME_TIME
    seconds = DetectionResultMessage.from_dict({**detection(), "timestamp": SOME_TIME.timestamp()})
    assert seconds.timestamp == SOME_TIME
    assert seconds.to_dict()["timestamp"] == SOME_TIME.isoformat()


def test_a_field_of_a_later_version_is_passed_over() -> None:
    message = DetectionResultMessage.from_dict({**detection(), "weather": "rain"})
    assert message == DetectionResultMessage.from_dict(detection())


def test_numbers_of_numpy_are_taken() -> None:
    found = DetectedObject.from_dict(
        {
            "object_id": np.int64(3),
            "class_name": "car",
            "confidence": np.float32(0.5),
            "bbox": np.array([1, 2, 3, 4], dtype=np.float32),
        }
    )
    assert found == DetectedObject(object_id=3, class_name="car", confidence=0.5, bbox=[1, 2, 3, 4])
    with pytest.raises(InvalidMessageError, match="object"):
        DetectedObject.from_dict({"object_id": object()})


def test_a_picture_is_had_from_base64_and_from_a_data_uri() -> None:
    group = DetectionResultMessage.from_dict(detection(picture=b"\xff\xd8")).traffic_groups[0]
    assert group.image() == b"\xff\xd8"
    uri = TrafficGroup.from_dict({**group.to_dict(), "group_image_base64": "data:image/jpeg;base64,/9g="})
    assert uri.image() == b"\xff\xd8"
    assert TrafficGroup.from_dict({**group.to_dict(), "group_image_base64": None}).image() is None
    with pytest.raises(InvalidMessageError, match="of group 0 is no base64"):
        TrafficGroup.from_dict({**group.to_dict(), "group_image_base64": "~"}).image()


def test_tasks_and_results_come_through_whole() -> None:
    message = DetectionResultMessage.from_dict(detection())
    task = AssessmentTaskMessage(
        task_id="t",
        message_id="m",
        camera_id="cam-1",
        group_index=0,
        groups_total=1,
        group=message.traffic_groups[0],
        detected_objects=message.members(message.traffic_groups[0]),
        timestamp=SOME_TIME,
        deadline=SOME_TIME + timedelta(seconds=1),
    )
    assert AssessmentTaskMessage.from_json(task.to_json()) == task
    assert AssessmentTaskMessage.from_dict(task.to_dict()) == task
    about = {name: task.to_dict()[name] for name in ("task_id", "message_id", "camera_id", "group_index")}
    about |= {"groups_total": 1, "timestamp": datetime.now(UTC).isoformat()}
    judged = RiskAssessmentResultMessage.from_dict({**about, "risk_level": "high", "risk_score": 0.8, "hazards": ["h"]})
    assert RiskAssessmentResultMessage.from_dict(judged.to_dict()) == judged
    failed = RiskAssessmentResultMessage.from_dict({**about, "error": {"class": "X", "message": "y"}})
    assert (failed.risk_level, failed.to_dict()["error"]) == (None, {"class": "X", "message": "y"})
    with pytest.raises(InvalidMessageError, match="error: is missing, and so is risk_level or risk_score"):
        RiskAssessmentResultMessage.from_dict(about)
    with pytest.raises(InvalidMessageError, match="risk_level: "):
        RiskAssessmentResultMessage.from_dict({**about, "risk_level": "grave", "risk_score": 1})


def test_levels_have_an_order() -> None:
    assert [level.rank for level in RiskLevel] == list(range(5))
    assert max(RiskLevel.HIGH, RiskLevel.MEDIUM, key=lambda level: level.rank) is RiskLevel.HIGH
