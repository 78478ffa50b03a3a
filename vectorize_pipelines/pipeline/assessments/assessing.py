"""Judging one task: the question, the model's answer, and the row that says what became of it."""

import time
from collections.abc import Callable
from datetime import UTC, datetime

from vectorize_pipelines.errors import ItemError, KeysError, NoSuitableKeyError, PaidItemError, ProviderUnavailableError
from vectorize_pipelines.pipeline.assessments.pending import PendingTask
from vectorize_pipelines.pipeline.assessments.prompt import (
    PROMPT_VERSION,
    SYSTEM,
    RiskAnswer,
    UnreadablePictureError,
    content_key,
    picture_of,
    prompt_of,
)
from vectorize_pipelines.providers.call_progress import LEAST_SECONDS
from vectorize_pipelines.providers.chat import Answer, ChatModel
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.assessments import AssessmentRow, AssessmentState
from vectorize_pipelines.state.provider_calls import CallRecord

#: What a row and a result have in the place of an error's class where a task's time was over.
EXPIRED = "expired"
#: Errors that say nothing about the task: the same call may succeed later. Not so `NoSuitableKeyError`.
TRANSIENT = (ProviderUnavailableError, KeysError)
#: A call whose limit is its task's deadline ends so much before it, at most: shortly before it waits for a key no more,
#: and a busy event loop reads its clock only now and then. It says nothing about the provider.
EARLY_SECONDS = LEAST_SECONDS + 0.25


class Judge:
    """Judges tasks, and ends those that cannot be. `now`: seconds since 1970."""

    def __init__(self, settings: Settings, run_id: str, now: Callable[[], float] = time.time):
        self._most_bytes = settings.assessments.max_image_bytes
        self._seconds = settings.providers.deadline_seconds
        self._version = "/".join(filter(None, (PROMPT_VERSION, settings.assessments.prompt_version)))
        self._run_id = run_id
        self._now = now

    async def judge(self, model: ChatModel, pending: PendingTask, begins: Callable[[], None] = lambda: None) -> bool:
        """Have the model judge a task: leaves it with a row, and with an error where it failed.

        `begins`: as in `ChatModel.ask`. Returns whether a provider answered, whatever it said. Raises those of
        `TRANSIENT` while the task's time is not over, and `NoSuitableKeyError`, which no task is to blame for.
        """
        task = pending.task
        assert task is not None, "what cannot be read is not judged"
        left = pending.deadline - self._now()
        if left <= 0:
            self.expire(pending)
            return False
        try:
            prompt, picture = prompt_of(task), picture_of(task, self._most_bytes)
        except UnreadablePictureError as error:
            self.fail(pending, error)
            return False
        try:
            answer = await model.ask(
                system=SYSTEM,
                prompt=prompt,
                images=[picture] if picture is not None else [],
                schema=RiskAnswer,
                prompt_version=self._version,
                cache_key=content_key(prompt, picture),
                deadline_seconds=min(left, self._seconds),
                tenant=None,
                camera=task.camera_id,
                begins=begins,
            )
        except ItemError as error:
            self.fail(pending, error)
            return True
        except NoSuitableKeyError:
            raise
        except TRANSIENT:
            if self._now() < pending.deadline - EARLY_SECONDS:
                raise
            self.expire(pending)
            return False
        pending.row = self._completed(pending, answer)
        return not answer.record.cached

    def expire(self, pending: PendingTask) -> None:
        """End a task whose time is over."""
        row = self._row(pending, AssessmentState.EXPIRED)
        row.error_class = EXPIRED
        # Of a call that ended a moment too early, too: what expired is told by this from what has another deadline.
        row.assessed_at = max(row.assessed_at, datetime.fromtimestamp(pending.deadline, UTC))
        late = datetime.fromtimestamp(pending.deadline, UTC).isoformat(timespec="milliseconds")
        row.error_message = f"the task was to be judged before {late}: more keys, or more runs, judge more in a second"
        pending.row = row

    def fail(self, pending: PendingTask, error: Exception) -> None:
        """End a task that cannot be judged, for a reason of its own."""
        # Its trace would keep what its functions had in hand, the picture among it.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        row = self._row(pending, AssessmentState.FAILED)
        row.error_class, row.error_message = type(error).__name__, str(error)
        if isinstance(error, PaidItemError) and error.record is not None:
            _note_call(row, error.record)
        pending.row, pending.error = row, error

    def _completed(self, pending: PendingTask, answer: Answer[RiskAnswer]) -> AssessmentRow:
        row, value = self._row(pending, AssessmentState.COMPLETED), answer.value
        row.level, row.score = value.risk_level.value, value.risk_score
        row.summary, row.recommendation, row.hazards = value.summary, value.recommendation, tuple(value.hazards)
        _note_call(row, answer.record)
        return row

    def _row(self, pending: PendingTask, state: AssessmentState) -> AssessmentRow:
        task = pending.task
        assert task is not None, "what cannot be read has no row"
        return AssessmentRow(
            task_id=task.task_id,
            state=state,
            day=pending.day,
            camera_id=task.camera_id,
            message_id=task.message_id,
            group_index=task.group_index,
            groups_total=task.groups_total,
            occurred_at=task.timestamp,
            assessed_at=datetime.fromtimestamp(self._now(), UTC),
            topic=pending.place[0],
            partition=pending.place[1],
            offset=pending.offset,
            attempt=pending.attempt,
            run_id=self._run_id,
        )


def _note_call(row: AssessmentRow, record: CallRecord) -> None:
    """Note in a row what the calls for its task took."""
    row.model, row.key_name = record.model, record.key_name or None
    row.prompt_tokens, row.completion_tokens = record.prompt_tokens, record.completion_tokens
    row.cost, row.latency_ms, row.cached = record.cost or 0.0, record.latency_ms, record.cached
