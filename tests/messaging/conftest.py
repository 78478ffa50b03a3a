"""Topics of the test's own on the shared broker."""

import pytest

from vectorize_pipelines.messaging.topics import TopicNames, create_topics
from vectorize_pipelines.settings import KafkaSettings


@pytest.fixture
def topics(kafka_settings: KafkaSettings) -> TopicNames:
    """All topics of `kafka_settings`, made."""
    create_topics(kafka_settings)
    return TopicNames(kafka_settings.topic_prefix)
