"""Settings of assessing what cameras detect: which groups are assessed, and within which bounds."""

from pydantic import Field

from vectorize_pipelines.settings.base import COLLECTION_NAME, Names, Section


class AssessmentRule(Section):
    """The groups of a detection that are assessed; by default every one is."""

    min_objects: int = Field(0, ge=0, description="a group of fewer objects is left out")
    classes: Names = Field((), description="a group that has none of these classes is left out; empty: any class")
    min_confidence: float = Field(0.0, ge=0, le=1, description="a group of a lower average confidence is left out")
    min_area: float = Field(0.0, ge=0, description="a group whose box has fewer square pixels is left out")
    pause_seconds: float = Field(
        0.0, ge=0, description="a detection so soon after the last one of its camera that was assessed is left out"
    )
    hash_distance: int | None = Field(
        None,
        ge=0,
        le=64,
        description="a group whose picture differs by at most so many of 64 bits of a perceptual hash from one of its "
        "camera that was assessed lately is left out; null: pictures are not looked at",
    )
    hash_seconds: float = Field(60.0, gt=0, description="so long a picture counts as assessed lately")


class AssessmentSettings(Section):
    """The way from detections to assessed risks."""

    rule: AssessmentRule = AssessmentRule()
    send_detections: bool = Field(True, description="false: `DetectionKafkaProducer` sends nothing")
    deadline_seconds: float = Field(
        120.0, gt=0, description="a group that has not been assessed so long after its detection is dropped as expired"
    )
    max_message_bytes: int = Field(10 * 2**20, ge=1, description="a larger detection is refused")
    max_image_bytes: int = Field(5 * 2**20, ge=1, description="a detection with a larger picture of a group is refused")
    batch_messages: int = Field(256, ge=1, description="at most so many messages are taken together")
    batch_bytes: int = Field(
        32 * 2**20, ge=1, description="so many bytes of messages are held by a run, and those of one message more"
    )
    concurrency: int = Field(512, ge=1, description="calls of the model side by side in one run")
    held_tasks: int = Field(
        10_000, ge=1, description="groups that a run has in hand, at most: judged newest first where it cannot keep up"
    )
    held_bytes: int = Field(256 * 2**20, ge=1, description="what they may take in memory")
    silent_seconds: float = Field(
        900.0, gt=0, description="a camera that was heard of, and has not been for so long, has fallen silent"
    )
    prompt_version: str = Field("1", min_length=1, description="answers to another version of the prompt are asked for")
    collection: str | None = Field(
        None, pattern=COLLECTION_NAME, description="where results are kept as searchable text; null: nowhere"
    )
    image_collection: str | None = Field(
        None, pattern=COLLECTION_NAME, description="where the groups' pictures are kept as vectors; null: nowhere"
    )
    gather_seconds: float = Field(
        10.0, gt=0, description="the results of a detection are pushed as incomplete after so long"
    )
