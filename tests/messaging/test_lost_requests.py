"""Requests whose messages are gone before a run took them up, with a real broker."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta

import pytest
from confluent_kafka import TopicPartition

from tests.messaging.brokers import send
from tests.state.rows import START, row
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.gateway.tasks.producing import UNKNOWN_OFFSET
from vectorize_pipelines.kafka.clients import admin, consumer, producer
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging import lost_requests
from vectorize_pipelines.messaging.lost_requests import fail_lost_requests
from vectorize_pipelines.settings import KafkaSettings, Settings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow

BEFORE = START + timedelta(days=30)
NOWHERE = KafkaSettings(bootstrap_servers="127.0.0.1:1", request_seconds=0.1)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[RequestLedger]:
    with closing(RequestLedger.open(settings)) as opened:
        yield opened


def waiting(name: str, topic: str, offset: int = 0, partition: int = 0) -> RequestRow:
    return replace(
        row(name, RequestState.PENDING, offset=offset, run_id=None), topic=topic, partition=partition, vectors=0
    )


def test_a_request_whose_message_is_gone_has_failed(
    kafka_settings: KafkaSettings, topics: TopicNames, ledger: RequestLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lost_requests, "ROWS_TOGETHER", 2)  # several pages
    topic, other = topics.requests(Modality.TEXT), topics.requests(Modality.IMAGE)
    send(kafka_settings, topic, *[{"value": b"x", "partition": 0}] * 3)
    send(kafka_settings, other, *[{"value": b"x", "partition": 0}] * 3)
    client, first = admin(kafka_settings), TopicPartition(topic, 0, 1)
    client.delete_records([first])[first].result(30)
    reader = consumer(kafka_settings)
    reader.commit(offsets=[TopicPartition(other, 0, 2)], asynchronous=False)
    reader.close()
    lost = [
        waiting("deleted", topic),
        waiting("passed over", other, 1),
        waiting("of an earlier topic", topic, 99),
        waiting("in no partition", topic, partition=99),
        waiting("somewhere in a partition that has been read", topic, UNKNOWN_OFFSET, partition=1),
        waiting("in no topic", f"{topic}.gone"),
        replace(waiting("given up", topic), state=RequestState.PROCESSING, started_at=START, run_id="run"),
    ]
    kept = [
        waiting("there", topic, 1),
        waiting("not read yet", other, 2),
        waiting("somewhere among those not read yet", other, UNKNOWN_OFFSET),
        replace(waiting("young", topic), submitted_at=BEFORE),
        replace(waiting("under way", topic), state=RequestState.PROCESSING, started_at=BEFORE, run_id="run"),
        replace(waiting("with a run", ""), run_id="run"),
        replace(row("done"), topic=topic),
    ]
    ledger.record([*lost, *kept])
    assert fail_lost_requests(kafka_settings, ledger, BEFORE) == len(lost)
    for each in kept:
        assert ledger.get(each.request_id) == each
    for each in lost:
        found = ledger.get(each.request_id)
        assert found is not None
        assert (found.state, found.error_class) == (RequestState.FAILED, "LostMessageError")
        assert "send it again" in (found.error_message or "")
        assert found.finished_at is not None
        assert found.version == each.version
    assert fail_lost_requests(kafka_settings, ledger, BEFORE) == 0


def test_brokers_that_have_none_of_the_topics_say_nothing_of_messages(
    kafka_settings: KafkaSettings, ledger: RequestLedger
) -> None:
    old = waiting("old", TopicNames(kafka_settings.topic_prefix).requests(Modality.TEXT))
    ledger.record([old])
    with pytest.raises(KafkaError, match="is it the right cluster"):
        fail_lost_requests(kafka_settings, ledger, BEFORE)
    assert ledger.get("old") == old


def test_what_waits_behind_an_open_transaction_is_not_lost(
    kafka_settings: KafkaSettings, topics: TopicNames, ledger: RequestLedger
) -> None:
    topic = topics.requests(Modality.TEXT)
    client = producer(kafka_settings, f"open-{kafka_settings.topic_prefix}")
    client.init_transactions(30)
    client.begin_transaction()
    client.produce(topic, b"x", partition=0)
    client.flush(30)
    ledger.record([waiting("behind", topic)])
    assert fail_lost_requests(kafka_settings, ledger, BEFORE) == 0
    client.abort_transaction(30)


def test_no_broker_is_asked_where_nothing_waits_for_long(ledger: RequestLedger) -> None:
    ledger.record([replace(waiting("young", "vectorize.text"), submitted_at=BEFORE), row("done")])
    assert fail_lost_requests(NOWHERE, ledger, BEFORE) == 0
