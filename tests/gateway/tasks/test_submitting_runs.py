"""Requests taken in without Kafka: each becomes a run, launched through a real Dagster web server and daemon."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import dagster as dg
import httpx2
import pytest

from tests.gateway.serving import served, text
from tests.servers.dagster import dagster_servers, until
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.paths import PATH_PREFIX
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.home import use_dagster_home
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow
from vectorize_pipelines.stores import open_store

LONG = [f"entry {n}: " + "the wind turned to the north and the sea rose. " * 20 for n in range(1500)]

#: The first run makes the model ready, which takes minutes on a busy machine.
SECONDS = 480

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def http(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx2.Client]:
    """A client of a server beside a real Dagster."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    use_dagster_home(load_settings())
    with dg.DagsterInstance.get():
        pass  # two processes that make the databases at once get in each other's way
    # A run that is to end looks for that between batches.
    quiet = {"VECTORIZE_CORPUS__WATCH": "false", "VECTORIZE_PIPELINE__BATCH_ITEMS": "64"}
    with dagster_servers(home, tmp_path / "servers.log", path_prefix=PATH_PREFIX, **quiet) as graphql:
        address = DagsterAddress(graphql.url.removesuffix(PATH_PREFIX))
        with served(load_settings(), address) as client:
            yield client


def noted(task_id: str) -> RequestRow | None:
    with closing(RequestLedger.open(load_settings())) as ledger:
        return ledger.get(task_id)


def in_state(task_id: str, state: RequestState) -> bool:
    row = noted(task_id)
    assert row is not None
    assert row.state is state or not row.state.is_final, (task_id, row)
    return row.state is state


def test_each_request_becomes_a_run(http: httpx2.Client) -> None:
    answer = http.post("/tasks/submit", json=text(task_id="boat", metadata={"tenant": "a"}))
    assert answer.status_code == 200, answer.text
    row = noted("boat")
    assert row is not None
    assert row.run_id is not None
    assert answer.json() == {
        **{"task_id": "boat", "status": "pending"},
        **{"created_at": row.submitted_at.isoformat(), "estimated_processing_time": None},
    }
    long = {"task_id": "long", "task_type": "batch_vectorization", "data": LONG}
    names = ["long", "waits", "cancelled"]
    batch = http.post("/tasks/batch", json=[long, text("a lamp", task_id="waits"), text("fog", task_id="cancelled")])
    assert batch.status_code == 200, batch.text
    assert [each["task_id"] for each in batch.json()["tasks"]] == names

    # One run at a time has the pool's place, so that the others are still in the queue.
    assert _cancel(http, "cancelled") == "cancelled"
    never_begun = noted("cancelled")
    assert never_begun is not None
    assert (never_begun.state, never_begun.started_at) == (RequestState.CANCELLED, None)
    twice = http.delete("/tasks/cancelled")
    assert (twice.status_code, twice.json()["task_status"]) == (409, "cancelled")
    assert http.delete("/tasks/nobody").status_code == 404
    until("the end of the first", lambda: in_state("boat", RequestState.COMPLETED), SECONDS)
    late = http.delete("/tasks/boat")
    assert (late.status_code, late.json()["task_status"]) == (409, "completed")
    until("the long one", lambda: in_state("long", RequestState.PROCESSING), SECONDS)
    assert _cancel(http, "long") == "cancelling"
    until("its end", lambda: in_state("long", RequestState.CANCELLED), SECONDS)
    until("the one that waited", lambda: in_state("waits", RequestState.COMPLETED), SECONDS)

    store = open_store(load_settings().store, load_settings().home)
    stored = {each for found in store.scan("texts", ("source_id",)) for each in found["source_id"].to_pylist()}
    assert {"boat", "waits"} <= stored
    assert "cancelled" not in stored
    again = noted("boat")
    assert again is not None
    assert (again.version, again.run_id, again.vectors) == (row.version, row.run_id, 1)


def _cancel(http: httpx2.Client, task_id: str) -> Any:
    answer = http.delete(f"/tasks/{task_id}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["task_id"] == task_id
    return answer.json()["status"]


def test_dagster_is_away(home: Path) -> None:
    with served(load_settings()) as http:
        answer = http.post("/tasks/submit", json=text(task_id="t"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["detail"].endswith("nothing was accepted")
        batch = http.post("/tasks/batch", json=[text(task_id=f"t-{n}") for n in range(12)])
        assert (batch.status_code, "tasks" in batch.json()) == (503, False)
    assert noted("t") is None


def test_more_runs_than_one_asks_for_at_a_time(home: Path) -> None:
    with served(load_settings()) as http:
        answer = http.post("/tasks/batch", json=[text() for _ in range(101)])
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["field"] == "tasks"
