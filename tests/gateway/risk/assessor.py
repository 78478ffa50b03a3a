"""What stands in the place of the runs that make and assess tasks: it sends both, in transactions as they do."""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING

from vectorize_pipelines.kafka.clients import produce, producer
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage
from vectorize_pipelines.messaging.dead_letters import DeadLetter
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.pipeline.assessments.results import ASSESSING
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import Producer

_SECONDS = 30


class Assessor:
    """Sends to the topics of these settings."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings

    def send_tasks(self, *tasks: AssessmentTaskMessage) -> None:
        """Tasks, in one transaction."""
        self.send(self.settings.assessment_tasks_topic, ((each.camera_id, each.to_json()) for each in tasks))

    def send_results(self, *results: RiskAssessmentResultMessage) -> None:
        """Results, in one transaction."""
        self.send(self.settings.risk_results_topic, ((each.camera_id, each.to_json()) for each in results))

    def bury(self, task: AssessmentTaskMessage, error: Exception, stage: str = ASSESSING) -> None:
        """The dead letter of a task, as a run writes it."""
        origin = Origin(self.settings.assessment_tasks_topic, 0, 0, int(task.timestamp.timestamp() * 1000))
        letter = DeadLetter.of(origin, task.camera_id.encode(), task.to_json(), [], error, stage, "run-1")
        message = letter.to_message(self.settings.assessment_dead_letter_topic)
        self._sender.begin_transaction()
        produce(self._sender, message.topic, key=message.key, value=message.value, headers=list(message.headers))
        self._sender.commit_transaction(_SECONDS)

    def send(self, topic: str, messages: Iterable[tuple[str, bytes | None]]) -> None:
        """Keys and values, in one transaction."""
        self._sender.begin_transaction()
        for key, value in messages:
            produce(self._sender, topic, key=key.encode(), value=value)
        self._sender.commit_transaction(_SECONDS)

    @cached_property
    def _sender(self) -> "Producer":
        sender = producer(self.settings, f"{self.settings.topic_prefix}.assessor")
        sender.init_transactions(_SECONDS)
        return sender
