"""Messages of a real topic that are read once more, by their places."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.cimpl import NewTopic

from tests.messaging.brokers import send
from vectorize_pipelines.kafka.clients import admin
from vectorize_pipelines.kafka.lookup import MessageLookup
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.settings import KafkaSettings


@pytest.fixture
def topic(kafka_settings: KafkaSettings) -> str:
    """A topic of two partitions; each has 30 messages, three in each transaction, whose marks have offsets too."""
    name = f"{kafka_settings.topic_prefix}.looked-up"
    client = admin(kafka_settings)  # the futures are never done once the client is gone
    client.create_topics([NewTopic(name, 2, 1)])[name].result(60)
    for transaction in range(10):
        numbers = range(3 * transaction, 3 * transaction + 3)
        messages = [{"value": b"%d" % number, "partition": place} for place in (0, 1) for number in numbers]
        send(kafka_settings, name, *messages)
    return name


@pytest.fixture
def lookup(kafka_settings: KafkaSettings) -> Iterator[MessageLookup]:
    with closing(MessageLookup(kafka_settings)) as found:
        yield found


def places(found: list[ReceivedMessage]) -> dict[PartitionId, list[int]]:
    by_place: dict[PartitionId, list[int]] = {}
    for each in found:
        by_place.setdefault((each.topic(), each.partition()), []).append(each.offset())
    return by_place


def test_exactly_what_is_wanted_is_found_however_often(topic: str, lookup: MessageLookup) -> None:
    # Each transaction of three messages takes a fourth offset, which is its mark and no message.
    wanted = {(topic, 0): {0, 5, 38}, (topic, 1): {21}}
    for _ in range(3):
        found = lookup.find(wanted)
        assert {place: set(offsets) for place, offsets in places(found).items()} == wanted
        assert {each.value() for each in found} == {b"0", b"4", b"29", b"16"}
    assert places(lookup.find({(topic, 1): {0}})) == {(topic, 1): [0]}


def test_what_is_no_message_or_not_there_any_more_is_missing(
    topic: str, lookup: MessageLookup, kafka_settings: KafkaSettings
) -> None:
    assert places(lookup.find({(topic, 0): {2, 3, 39}, (topic, 1): {1_000_000}})) == {(topic, 0): [2]}
    client = admin(kafka_settings)
    (deleted,) = client.delete_records([TopicPartition(topic, 0, 20)]).values()
    deleted.result(60)
    assert places(lookup.find({(topic, 0): {4, 21}})) == {(topic, 0): [21]}
    assert lookup.find({(topic, 0): {4, 5}}) == []
