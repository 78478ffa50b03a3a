"""The groups of detections that are to be assessed, and the risk that the model sees in each."""

from enum import StrEnum
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import Field, model_validator

from vectorize_pipelines.messaging.detections import MAX_OBJECTS, DetectedObject, Number, Share, TrafficGroup
from vectorize_pipelines.messaging.versioned import Finite, Moment, Name, VersionedMessage

if TYPE_CHECKING:
    from vectorize_pipelines.messaging.detection_producer import DetectionKafkaProducer

__all__ = [
    "AssessmentTaskMessage",
    "DetectionKafkaProducer",
    "RiskAssessmentResultMessage",
    "RiskLevel",
]


class RiskLevel(StrEnum):
    """How dangerous a group is, the least first."""

    NONE = "none"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """Its place in that order, from 0."""
        return list(RiskLevel).index(self)


class AssessmentTaskMessage(VersionedMessage):
    """One group that is to be assessed.

    task_id           the same whenever the task is made of the same detection
    message_id        the detection's
    group_index       the group's number within its detection, as the detector gave it
    groups_total      the number of groups of the detection that became tasks, this one included
    detected_objects  those of the group, in the order of `group.member_indices`
    timestamp         when the picture was taken
    deadline          nobody wants the answer later
    """

    task_id: Name
    message_id: Name
    camera_id: Name
    group_index: Number
    groups_total: Annotated[int, Field(ge=1)]
    group: TrafficGroup
    detected_objects: Annotated[list[DetectedObject], Field(max_length=MAX_OBJECTS)]
    timestamp: Moment
    deadline: Moment


class RiskAssessmentResultMessage(VersionedMessage):
    """What became of one task: an assessment or, with `error`, none.

    risk_score  0 to 1
    risk_level  None, as risk_score is, where there is an error
    key_name    the API key that the answer was had with; None for one that was known already
    latency_ms  of the call of the model, with its repeats
    error       `class` and `message`, or None
    timestamp   when it was assessed
    """

    task_id: Name
    message_id: Name
    camera_id: Name
    group_index: Number
    groups_total: Annotated[int, Field(ge=1)]
    risk_level: RiskLevel | None = None
    risk_score: Share | None = None
    summary: str = ""
    hazards: list[str] = Field(default_factory=list)
    recommendation: str = ""
    model: str = ""
    key_name: str | None = None
    prompt_tokens: Number = 0
    completion_tokens: Number = 0
    latency_ms: Annotated[Finite, Field(ge=0)] = 0.0
    error: dict[str, str] | None = None
    timestamp: Moment

    @model_validator(mode="after")
    def _assessed_or_failed(self) -> Self:
        """Refuse a result that says neither what the risk is nor why that is not known."""
        if self.error is None and (self.risk_level is None or self.risk_score is None):
            raise ValueError("error: is missing, and so is risk_level or risk_score")
        if self.error is not None and not {"class", "message"} <= self.error.keys():
            raise ValueError("error: must have class and message")
        return self


def __getattr__(name: str) -> Any:
    """Import `DetectionKafkaProducer` when it is first used: whoever reads messages does not need it."""
    if name == "DetectionKafkaProducer":
        return import_module("vectorize_pipelines.messaging.detection_producer").DetectionKafkaProducer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
