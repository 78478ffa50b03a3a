"""What stands in the place of the runs that make and assess tasks: it sends both, in transactions as they do."""

from collections.abc import Iterable

from tests.messaging.brokers import send
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage
from vectorize_pipelines.settings import KafkaSettings


class Assessor:
    """Sends to the topics of these settings."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.settings = settings

    def send_tasks(self, *tasks: AssessmentTaskMessage) -> None:
        """Tasks, in one transaction."""
        self._send(self.settings.assessment_tasks_topic, tasks)

    def send_results(self, *results: RiskAssessmentResultMessage) -> None:
        """Results, in one transaction."""
        self._send(self.settings.risk_results_topic, results)

    def _send(
        self, topic: str, messages: Iterable[AssessmentTaskMessage] | Iterable[RiskAssessmentResultMessage]
    ) -> None:
        send(self.settings, topic, *({"key": each.camera_id.encode(), "value": each.to_json()} for each in messages))
