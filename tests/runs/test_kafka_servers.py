"""Requests from Kafka to the store with a real broker, web server and daemon: nothing is launched by hand."""

from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.messaging.requests_in_kafka import send, text
from tests.servers.dagster import GraphQL, dagster_servers, until
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.lag import partition_lags
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.settings import KafkaSettings, load_settings
from vectorize_pipelines.state.home import use_dagster_home
from vectorize_pipelines.stores import open_store

REQUESTS = 300
FINISHED = ("SUCCESS", "FAILURE", "CANCELED")

pytestmark = pytest.mark.timeout(600)


def long_text(number: int) -> dict[str, Any]:
    return text(f"note-{number}", " ".join(f"entry {m} of watch {number}: the wind turned." for m in range(60)))


def stored() -> list[str]:
    """The sources of all rows, each as often as it has rows."""
    store = open_store(load_settings().store, load_settings().home)
    try:
        return [name for batch in store.scan("texts", ("source_id",)) for name in batch["source_id"].to_pylist()]
    except CollectionNotFoundError:
        return []


def lag(settings: KafkaSettings) -> int:
    return sum(each.lag for each in partition_lags(settings, followed_topic(settings, "text")))


def drains(graphql: GraphQL, *statuses: str) -> list[dict[str, Any]]:
    tags = [{"key": "vectorize/mode", "value": "drain"}]
    found: list[dict[str, Any]] = graphql("ListRuns", filter={"statuses": statuses, "tags": tags}, limit=20)["results"]
    return found


def test_a_terminated_drain_run_loses_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka_settings: KafkaSettings
) -> None:
    use_dagster_home(load_settings())
    with dg.DagsterInstance.get():
        pass  # two processes that make the databases at once get in each other's way
    create_topics(kafka_settings)
    quiet = {"VECTORIZE_CORPUS__WATCH": "false", "VECTORIZE_KAFKA__DRAIN__IDLE_SECONDS": "1"}
    with dagster_servers(home, tmp_path / "servers.log", **quiet) as graphql:
        send(kafka_settings, [long_text(n) for n in range(REQUESTS)])
        until("the first rows", stored, 240)
        (run,) = drains(graphql, "STARTED")
        assert graphql("TerminateRun", runId=run["runId"])["__typename"] == "TerminateRunSuccess"
        until("its end", lambda: graphql("RunStatus", runId=run["runId"])["status"] in FINISHED)
        assert graphql("RunStatus", runId=run["runId"])["status"] == "CANCELED"
        until("everything", lambda: lag(kafka_settings) == 0, 240)
        assert sorted(stored()) == sorted(f"note-{n}" for n in range(REQUESTS))

        until("the end of the drain", lambda: not drains(graphql, "STARTED", "STARTING", "QUEUED"))
        assert len(drains(graphql, "SUCCESS")) == 1
        one = _submitted(graphql)
        until("the request", lambda: graphql("RunStatus", runId=one)["status"] == "SUCCESS")
        assert "asked-by-graphql" in stored()


def _submitted(graphql: GraphQL) -> str:
    answer = graphql(
        "SubmitRequest",
        params={
            "selector": {
                "repositoryLocationName": "vectorize_pipelines.definitions",
                "repositoryName": "__repository__",
                "jobName": "embed_request",
            },
            "runConfigData": {
                "ops": {"request": {"config": {"task_type": "text_vectorization", "data": "a boat at sea"}}}
            },
            "executionMetadata": {"tags": [{"key": "vectorize/request_id", "value": "asked-by-graphql"}]},
        },
    )
    assert answer["__typename"] == "LaunchRunSuccess", answer
    run_id: str = answer["run"]["runId"]
    return run_id
