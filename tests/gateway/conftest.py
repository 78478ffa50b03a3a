"""Topics of assessments that are a test's own."""

import pytest

from tests.gateway.risk.assessor import Assessor
from tests.messaging.brokers import make_topic
from vectorize_pipelines.settings import KafkaSettings


@pytest.fixture
def assessor(kafka_settings: KafkaSettings, home: object, monkeypatch: pytest.MonkeyPatch) -> Assessor:
    """What sends tasks and results, to topics that the environment names."""
    names = {
        "assessment_tasks_topic": f"{kafka_settings.topic_prefix}-tasks",
        "risk_results_topic": f"{kafka_settings.topic_prefix}-results",
        "assessment_dead_letter_topic": f"{kafka_settings.topic_prefix}-letters",
    }
    for name, topic in names.items():
        monkeypatch.setenv(f"VECTORIZE_KAFKA__{name.upper()}", topic)
    settings = kafka_settings.model_copy(update=names)
    for topic in names.values():
        make_topic(settings, topic)
    return Assessor(settings)
