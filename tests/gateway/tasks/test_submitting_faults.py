"""What was answered with 200 is in its topic, whatever is killed meanwhile: the server, or the broker."""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from tests.gateway.serving import Load, served, server_process
from tests.messaging.brokers import read
from tests.servers import kafka
from tests.servers.dagster import until
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.topics import TopicNames, create_topics
from vectorize_pipelines.settings import KafkaSettings, load_settings
from vectorize_pipelines.state.ledger import RequestLedger

#: How often the server is killed.
KILLS = int(os.environ.get("VECTORIZE_TEST_GATEWAY_KILLS", "5"))
#: Accepted requests before the next thing happens.
SOME = 300

pytestmark = pytest.mark.timeout(600 + 20 * KILLS)


@pytest.fixture
def own_broker(kafka_program: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[kafka.Server]:
    """A broker that the test may kill, with the topics, in the environment too."""
    with kafka.Server(tmp_path / "kafka") as server:
        monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", server.bootstrap_servers)
        create_topics(KafkaSettings(bootstrap_servers=server.bootstrap_servers))
        yield server


def lying(settings: KafkaSettings) -> set[str]:
    """The ids in the topic of texts, each of which is there once."""
    topic = TopicNames(settings.topic_prefix).requests(Modality.TEXT)
    found = Counter(message.key().decode() for message in read(settings, topic))
    assert not [key for key, times in found.items() if times > 1]
    return set(found)


def unknown(task_ids: list[str]) -> list[str]:
    """Those of the ids that the ledger does not know."""
    with closing(RequestLedger.open(load_settings())) as ledger:
        return [each for each in task_ids if ledger.get(each) is None]


def has_some(load: Load, before: int = 0) -> bool:
    """Return whether `SOME` more requests than before have been accepted."""
    return len(load.accepted) >= before + SOME


def test_a_server_that_is_killed_under_load(home: Path, topics: TopicNames, kafka_settings: KafkaSettings) -> None:
    accepted: list[str] = []
    for _ in range(KILLS):
        with server_process() as server:
            load = Load(server.url)
            until("accepted requests", partial(has_some, load))
            server.kill()
            load.stop()
            accepted += load.accepted
    assert len(accepted) >= KILLS * SOME
    assert set(accepted) <= lying(kafka_settings)
    assert not unknown(accepted)


def test_a_broker_that_is_killed_under_load(
    home: Path, own_broker: kafka.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_KAFKA__REQUEST_SECONDS", "3")
    with served(load_settings()) as http:
        load = Load(str(http.base_url))
        until("accepted requests", partial(has_some, load))
        own_broker.kill()
        until("refusals", lambda: len(load.refused) >= 20)
        before = len(load.accepted)
        own_broker.start()
        until("accepted requests again", partial(has_some, load, before))
        load.stop()
    found = lying(load_settings().kafka)
    assert set(load.accepted) <= found
    assert not set(load.refused) & found
    assert not unknown(load.accepted)


def test_a_broker_that_is_restarted_under_load_loses_no_request(home: Path, own_broker: kafka.Server) -> None:
    with served(load_settings()) as http:
        load = Load(str(http.base_url))
        until("accepted requests", partial(has_some, load))
        own_broker.restart()
        before = len(load.accepted)
        until("accepted requests again", partial(has_some, load, before))
        load.stop()
    assert not load.refused
    assert not load.unconfirmed
    assert set(load.accepted) == lying(load_settings().kafka)


def test_a_server_that_is_told_to_end_under_load(home: Path, topics: TopicNames, kafka_settings: KafkaSettings) -> None:
    with served(load_settings()) as http:
        load = Load(str(http.base_url))
        until("accepted requests", partial(has_some, load))
    load.stop()
    assert set(load.accepted) <= lying(kafka_settings)
    assert not unknown(load.accepted)
