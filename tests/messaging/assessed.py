"""Tasks and results of assessments as tests make them up: camera, detection and group say which one it is."""

import base64
import io
from datetime import UTC, datetime, timedelta
from typing import Any

from PIL import Image

from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage
from vectorize_pipelines.messaging.detections import TrafficGroup

#: When the first picture of every camera was taken; each next one is a second later.
START = datetime(2026, 11, 30, 12, tzinfo=UTC)
#: From the picture to its assessment.
LATENCY = timedelta(seconds=40)


def taken_at(detection: int) -> datetime:
    """The time of a camera's picture."""
    return START + timedelta(seconds=detection)


def task(camera: str, detection: int, group: int = 0, groups: int = 1, **fields: Any) -> AssessmentTaskMessage:
    """A group that is to be assessed."""
    image = fields.pop("image", None)
    return AssessmentTaskMessage(
        task_id=f"{camera}/{detection}/{group}",
        message_id=f"{camera}/{detection}",
        camera_id=camera,
        group_index=group,
        groups_total=groups,
        group=TrafficGroup(
            group_index=group,
            object_count=1,
            bbox=[0, 0, 10, 10],
            classes=["car"],
            avg_confidence=0.9,
            member_indices=[0],
            group_image_base64=None if image is None else base64.b64encode(image).decode(),
        ),
        detected_objects=[],
        timestamp=fields.pop("timestamp", taken_at(detection)),
        deadline=taken_at(detection) + timedelta(minutes=2),
    )


def result(camera: str, detection: int, group: int = 0, groups: int = 1, **fields: Any) -> RiskAssessmentResultMessage:
    """What became of it."""
    given = {"risk_level": "low", "risk_score": 0.25, "summary": f"{camera} {detection}", "model": "judge"} | fields
    return RiskAssessmentResultMessage.from_dict(
        {
            "task_id": f"{camera}/{detection}/{group}",
            "message_id": f"{camera}/{detection}",
            "camera_id": camera,
            "group_index": group,
            "groups_total": groups,
            "timestamp": (taken_at(detection) + LATENCY).isoformat(),
            **given,
        }
    )


def picture(colour: tuple[int, int, int], kind: str = "JPEG") -> bytes:
    """A picture of one colour."""
    content = io.BytesIO()
    Image.new("RGB", (320, 200), colour).save(content, kind)
    return content.getvalue()
