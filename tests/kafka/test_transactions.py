"""Messages and offsets in one transaction, on a real broker."""

import pytest

from tests.messaging.brokers import read
from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.kafka.clients import consumer
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.kafka.transactions import OutgoingMessage, TransactionalProducer
from vectorize_pipelines.settings import KafkaSettings


def test_notes_that_the_broker_does_not_take_are_an_error_and_not_tried_again(kafka_settings: KafkaSettings) -> None:
    create_topics(kafka_settings, (Family.ASSESSMENTS,))
    topic = kafka_settings.risk_results_topic
    place = (topic, 0)
    group = consumer(kafka_settings)
    producer = TransactionalProducer(kafka_settings, "notes")
    metadata = group.consumer_group_metadata()
    with pytest.raises(KafkaError, match="metadata"):
        producer.send([OutgoingMessage(topic, None, b"lost")], {place: 1}, metadata, {place: "x" * 5000})
    producer.send([OutgoingMessage(topic, None, b"kept")], {place: 1}, metadata, {place: "x" * 4095})
    producer.close()
    group.close()
    assert [each.value() for each in read(kafka_settings, topic)] == [b"kept"]
