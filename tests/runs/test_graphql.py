"""Runs and backfills over GraphQL, against a real web server and daemon, with the queries that README shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.servers.dagster import GraphQL, dagster_servers, until
from tests.small_corpus import DAYS, write_document
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.home import use_dagster_home
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore

FINISHED = ("SUCCESS", "FAILURE", "CANCELED")
LONG_DOCUMENTS = 20
PARAGRAPHS = 25

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def graphql(corpus: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GraphQL]:
    """Servers that launch nothing by themselves."""
    with servers(corpus, home, tmp_path, monkeypatch, watch="false") as graphql:
        yield graphql


@contextmanager
def servers(corpus: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: str) -> Iterator[GraphQL]:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    use_dagster_home(load_settings())
    with dg.DagsterInstance.get():
        pass  # two processes that make the databases at once get in each other's way
    settings = {"VECTORIZE_CORPUS__PATH": str(corpus), "VECTORIZE_CORPUS__WATCH": watch}
    settings["VECTORIZE_PIPELINE__BATCH_ITEMS"] = "32"  # a run that is terminated has written some, and has some left
    with dagster_servers(home, tmp_path / "servers.log", **settings) as graphql:
        yield graphql


def launch(graphql: GraphQL, day: str, **config: Any) -> str:
    """Launches `embed_corpus` for a day and gives the run's id."""
    answer = graphql(
        "LaunchRun",
        params={
            "selector": {
                "repositoryLocationName": "vectorize_pipelines.definitions",
                "repositoryName": "__repository__",
                "jobName": "embed_corpus",
            },
            "runConfigData": {"ops": {"corpus_embeddings": {"config": config}}} if config else {},
            "executionMetadata": {
                "tags": [{"key": "dagster/partition", "value": day}, {"key": "team", "value": "lighthouse"}]
            },
        },
    )
    assert answer["__typename"] == "LaunchRunSuccess", answer
    run_id: str = answer["run"]["runId"]
    return run_id


def finished(graphql: GraphQL, run_id: str) -> str:
    """The status that a run ends with."""

    def look() -> str | None:
        status: str = graphql("RunStatus", runId=run_id)["status"]
        return status if status in FINISHED else None

    status: str = until(f"the end of run {run_id}", look, 240)
    return status


def the_store() -> VectorStore:
    return open_store(load_settings().store, load_settings().home)


def backfilled(graphql: GraphQL, days: list[str], shard: str) -> str:
    """Launch a backfill of some days over a shard of the files; return its id."""
    config = {"ops": {"corpus_embeddings": {"config": {"shard": shard}}}}
    params = {"assetSelection": [{"path": ["corpus_embeddings"]}], "partitionNames": days, "runConfigData": config}
    backfill = graphql("LaunchBackfill", params=params)
    assert backfill["__typename"] == "LaunchBackfillSuccess", backfill
    return str(backfill["backfillId"])


def backfill_done(graphql: GraphQL, backfill: str) -> bool:
    status = graphql("BackfillStatus", backfillId=backfill)
    assert status["numPartitions"] == 3
    assert status["status"] not in ("FAILED", "COMPLETED_FAILED", "CANCELED"), status
    return bool(status["status"] in ("COMPLETED", "COMPLETED_SUCCESS"))


def test_runs_and_backfills(graphql: GraphQL, corpus: Path) -> None:
    first = DAYS[0].isoformat()
    run_id = launch(graphql, first)
    assert finished(graphql, run_id) == "SUCCESS"
    store = the_store()
    assert store.count_by("corpus", "partition") == {first: 1}

    days = [day.isoformat() for day in DAYS]
    for n in range(9):
        write_document(corpus, f"watch-{n}.md", f"The watch number {n} saw nothing.", n % 3)
    backfills = [backfilled(graphql, days, shard) for shard in ("0/2", "1/2")]
    for backfill in backfills:
        until(f"the end of the backfill {backfill}", partial(backfill_done, graphql, backfill), 240)
    assert store.count_by("corpus", "partition") == dict.fromkeys(days, 4)
    for backfill in backfills:
        of_backfill = [{"key": "dagster/backfill", "value": backfill}]
        listed = graphql("ListRuns", filter={"statuses": ["SUCCESS"], "tags": of_backfill}, limit=10)
        assert listed["count"] == 1, "the three days are one run"

    page = graphql("ListRuns", filter={"statuses": ["SUCCESS"]}, limit=1)
    assert (page["count"], len(page["results"])) == (3, 1)
    next_page = graphql("ListRuns", filter={"statuses": ["SUCCESS"]}, limit=2, cursor=page["results"][0]["runId"])
    assert next_page["results"][1]["runId"] == run_id
    tagged = graphql("ListRuns", filter={"tags": [{"key": "team", "value": "lighthouse"}]}, limit=10)
    assert [run["runId"] for run in tagged["results"]] == [run_id]

    failed = launch(graphql, first, path="/nowhere")
    assert finished(graphql, failed) == "FAILURE"


def test_a_terminated_run_leaves_what_the_next_one_completes(graphql: GraphQL, corpus: Path) -> None:
    for n in range(LONG_DOCUMENTS):
        text = "\n\n".join(
            f"Watch {n}, entry {m}: " + f"the wind turned to {n * m} degrees. " * 25 for m in range(PARAGRAPHS)
        )
        write_document(corpus, f"log-{n}.md", text)
    today = datetime.now(UTC).date().isoformat()
    run_id = launch(graphql, today, mode="drain")

    def started_to_write() -> bool:
        assert graphql("RunStatus", runId=run_id)["status"] not in FINISHED, "it ended before it could be terminated"
        store = the_store()
        return any(each.name == "corpus" for each in store.collections()) and store.count("corpus") > 0

    until("the first rows", started_to_write, 240)
    assert graphql("TerminateRun", runId=run_id)["__typename"] == "TerminateRunSuccess"
    assert finished(graphql, run_id) == "CANCELED"
    store = the_store()
    written = store.count("corpus")
    ids = [name for batch in store.scan("corpus", ("id",)) for name in batch.column("id").to_pylist()]
    assert len(ids) == len(set(ids)) == written > 0

    again = launch(graphql, today, mode="drain")
    assert finished(graphql, again) == "SUCCESS"
    rows = store.count("corpus")
    assert rows > written
    assert set(store.count_by("corpus", "run_id")) == {run_id, again}, "what the first run wrote was encoded again"
    third = launch(graphql, today, mode="drain", reconcile=True)
    assert finished(graphql, third) == "SUCCESS"
    assert store.count("corpus") == rows


def test_the_daemon_notices_new_and_deleted_files(
    corpus: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stored() -> set[str]:
        try:
            return {Path(name).name for name in the_store().count_by("corpus", "source_id")}
        except CollectionNotFoundError:  # the run is about to make it
            return set()

    with servers(corpus, home, tmp_path, monkeypatch, watch="true"):
        until("the first files in the store", lambda: stored() == {"lamp.md", "boat.txt", "灯塔.md"}, 240)
        write_document(corpus, "fog.md", "The fog horn sounds every ninety seconds.")
        (corpus / "boat.txt").unlink()
        until("the changes in the store", lambda: stored() == {"lamp.md", "fog.md", "灯塔.md"}, 240)
