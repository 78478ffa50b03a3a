"""What became of tasks, told: first to the table, then to Kafka in one transaction.

Called by `stream`, in the run's main thread, for tasks in the order in which they were done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.transactions import OutgoingMessage, TransactionalProducer
from vectorize_pipelines.messaging.assessments import RiskAssessmentResultMessage, RiskLevel
from vectorize_pipelines.messaging.dead_letters import DeadLetter
from vectorize_pipelines.messaging.messages import origin_of
from vectorize_pipelines.pipeline.assessments.pending import PendingTask
from vectorize_pipelines.pipeline.assessments.searchable import EmbeddingRequests
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.assessments import AssessmentRow, Assessments, AssessmentState

#: In which stage a message failed, as its dead letter says it.
DECODING = "decode"
ASSESSING = "assess"

#: Notes that tasks are done with; returns where each partition stands then, with the metadata of its offset.
Settle: TypeAlias = Callable[[Sequence[PendingTask]], Mapping[PartitionId, tuple[int, str]]]


class Results:
    """The results of a replay: noted in the table, and sent to be embedded; nobody is answered.

    producer  needed where the settings name a collection
    settle    `TaskWindow.settle`
    force     what was completed before is replaced
    """

    def __init__(
        self,
        settings: Settings,
        assessments: Assessments,
        producer: TransactionalProducer | None,
        settle: Settle,
        *,
        force: bool = False,
    ):
        self._settings = settings
        self._assessments = assessments
        self._producer = producer
        self._settle = settle
        self._force = force
        self._requests = EmbeddingRequests(settings)

    def tell(self, tasks: Sequence[PendingTask]) -> list[PendingTask]:
        """Note what became of tasks, and tell it; return those that count: not those answered by another message.

        Raises `LedgerError` and `KafkaError`: the tasks are then dealt with again by a later run.
        """
        rows = [each.row for each in tasks if each.row is not None and not each.answered and not each.needless]
        standing = self._assessments.record(rows, force=self._force)
        counting = []
        for each in tasks:
            if each.needless:
                continue
            if each.row is not None and not each.answered:
                noted = standing[each.row.task_id]
                if noted.place != each.row.place:
                    continue
                each.row = noted
            counting.append(each)
        self._send(tasks, counting)
        return counting

    def _send(self, tasks: Sequence[PendingTask], counting: Sequence[PendingTask]) -> None:
        messages = [message for each in counting for message in self._searchable(each)]
        self._settle(tasks)
        if self._producer is not None and messages:
            self._producer.send(messages, {}, None)

    def _searchable(self, pending: PendingTask) -> Iterator[OutgoingMessage]:
        row, task = pending.row, pending.task
        if row is not None and task is not None and row.state is AssessmentState.COMPLETED:
            yield from self._requests.of(row, task)


class TopicResults(Results):
    """The results of a drain run: of each task one result or one dead letter, with the offsets of their messages."""

    def __init__(
        self,
        settings: Settings,
        assessments: Assessments,
        producer: TransactionalProducer,
        settle: Settle,
        group_metadata: object,
        run_id: str,
    ):
        super().__init__(settings, assessments, producer, settle)
        self._transactions = producer
        self._group_metadata = group_metadata
        self._run_id = run_id

    def _send(self, tasks: Sequence[PendingTask], counting: Sequence[PendingTask]) -> None:
        messages = [message for each in counting for message in self._messages(each)]
        settled = self._settle(tasks)
        if messages or settled:
            positions = {place: offset for place, (offset, _) in settled.items()}
            notes = {place: text for place, (_, text) in settled.items()}
            self._transactions.send(messages, positions, self._group_metadata, notes)

    def _messages(self, pending: PendingTask) -> Iterator[OutgoingMessage]:
        kafka, row = self._settings.kafka, pending.row
        if row is None or row.state is AssessmentState.FAILED:
            yield self._letter(pending)
        else:
            result = result_of(row)
            yield OutgoingMessage(kafka.risk_results_topic, row.camera_id.encode(), result.to_json())
            yield from self._searchable(pending)

    def _letter(self, pending: PendingTask) -> OutgoingMessage:
        message, error = pending.message, pending.error
        assert error is not None, "what failed has an error"
        assert message is not None, "what was put aside can only expire"
        stage = DECODING if pending.task is None else ASSESSING
        letter = DeadLetter.of(
            origin_of(message), message.key(), message.value(), message.headers(), error, stage, self._run_id
        )
        return letter.to_message(self._settings.kafka.assessment_dead_letter_topic)


def result_of(row: AssessmentRow) -> RiskAssessmentResultMessage:
    """Return the result that a row is told as; one that was not judged has no level and an error."""
    failed = row.error_class is not None
    error = {"class": row.error_class or "", "message": row.error_message or ""} if failed else None
    return RiskAssessmentResultMessage(
        task_id=row.task_id,
        message_id=row.message_id,
        camera_id=row.camera_id,
        group_index=row.group_index,
        groups_total=row.groups_total,
        risk_level=None if row.level is None else RiskLevel(row.level),
        risk_score=row.score,
        summary=row.summary or "",
        hazards=list(row.hazards),
        recommendation=row.recommendation or "",
        model=row.model or "",
        key_name=None if row.cached else row.key_name,
        prompt_tokens=row.prompt_tokens,
        completion_tokens=row.completion_tokens,
        latency_ms=row.latency_ms,
        error=error,
        timestamp=row.assessed_at,
    )
