"""Lag, from offsets alone."""

import pytest
from confluent_kafka import TopicPartition

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.kafka.clients import consumer, producer
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.lag import PartitionLag, partition_lags
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.settings import KafkaSettings


def test_lag_is_what_lies_behind_the_committed_offsets(kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    normal, priority = topics.requests(Modality.TEXT), topics.priority(Modality.TEXT)
    assert [each.lag for each in partition_lags(kafka_settings, followed_topic(kafka_settings, "text"))] == [0] * 12
    sender = producer(kafka_settings)
    for number in range(40):
        sender.produce(normal, value=b"x", partition=number % 2)
    sender.produce(priority, value=b"x", partition=5)
    sender.flush(30)
    reader = consumer(kafka_settings)
    reader.commit(offsets=[TopicPartition(normal, 1, 15)], asynchronous=False)
    reader.close()
    lags = partition_lags(kafka_settings, followed_topic(kafka_settings, "text"))
    assert [each.topic for each in lags] == [priority] * 6 + [normal] * 6
    assert {(each.topic, each.partition): each.lag for each in lags if each.lag} == {
        (priority, 5): 1,
        (normal, 0): 20,
        (normal, 1): 5,
    }
    assert next(each for each in lags if (each.topic, each.partition) == (normal, 1)) == PartitionLag(
        normal, 1, 15, 0, 20
    )
    assert {each.lag for each in partition_lags(kafka_settings, followed_topic(kafka_settings, "image"))} == {0}


def test_what_is_not_committed_yet_is_no_lag(kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    topic = topics.requests(Modality.TEXT)
    sender = producer(kafka_settings, "test")
    sender.init_transactions(30)
    sender.begin_transaction()
    sender.produce(topic, value=b"x", partition=0)
    sender.flush(30)
    followed = followed_topic(kafka_settings, "text")
    assert sum(each.lag for each in partition_lags(kafka_settings, followed)) == 0
    sender.commit_transaction(30)
    assert (
        sum(each.lag for each in partition_lags(kafka_settings, followed_topic(kafka_settings, "text"))) == 2
    )  # the message and the mark


def test_a_missing_topic_is_named(kafka_settings: KafkaSettings) -> None:
    with pytest.raises(KafkaError, match=r"\.text\.priority is missing .*`vectorize topics create`"):
        partition_lags(kafka_settings, followed_topic(kafka_settings, "text"))
