"""Dead letters of assessments, as failed tasks for clients that follow a camera. Called by `risk.feed`."""

from typing import Any, TypeAlias

from vectorize_pipelines.kafka.topics import Family
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage
from vectorize_pipelines.messaging.dead_letters import stored_letter
from vectorize_pipelines.pipeline.assessments.results import ASSESSING

#: A task, and the result in which its error stands.
FailedTask: TypeAlias = tuple[AssessmentTaskMessage, RiskAssessmentResultMessage]


def failed_task(message: Any) -> FailedTask | None:
    """Return the task of a dead letter, and a result that has the letter's error.

    None for letters of other stages, whose messages are no tasks, and for those whose message did not fit into the
    topic: they do not say which task it was. Raises `InvalidMessageError`.
    """
    stored = stored_letter(message, Family.ASSESSMENTS, {})
    letter = stored.letter
    if letter is None or letter.stage != ASSESSING or letter.value is None:
        return None
    task = AssessmentTaskMessage.from_json(letter.value)
    result = RiskAssessmentResultMessage(
        task_id=task.task_id,
        message_id=task.message_id,
        camera_id=task.camera_id,
        group_index=task.group_index,
        groups_total=task.groups_total,
        error={"class": letter.error_class, "message": letter.error_message},
        timestamp=stored.failed_at,
    )
    return task, result
