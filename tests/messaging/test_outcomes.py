"""A transaction's producer that another one of its shard has fenced, whatever it is doing when it finds that out."""

from typing import Any

import pytest

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.kafka import transactions
from vectorize_pipelines.kafka.clients import consumer, produce
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.kafka.transactions import FencedError
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.outcomes import OutcomeProducer, Outcomes
from vectorize_pipelines.settings import KafkaSettings


@pytest.mark.parametrize("finds_out_while_producing", [False, True])
def test_a_fenced_producer_says_that_it_is(
    kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch, finds_out_while_producing: bool
) -> None:
    create_topics(kafka_settings)
    fenced = OutcomeProducer(kafka_settings, "text.0/1")
    later = OutcomeProducer(kafka_settings, "text.0/1")
    group = consumer(kafka_settings)

    def until_it_is_refused(client: Any, topic: str, **message: Any) -> None:
        while True:
            produce(client, topic, **message)
            client.poll(0.05)

    if finds_out_while_producing:
        monkeypatch.setattr(transactions, "produce", until_it_is_refused)
    told = Outcomes([ResultEvent("t", RequestState.COMPLETED)])
    with pytest.raises(FencedError, match="loses nothing"):
        fenced.send(told, group.consumer_group_metadata())
    monkeypatch.undo()
    later.send(told, group.consumer_group_metadata())
    for each in (fenced, later, group):
        each.close()
