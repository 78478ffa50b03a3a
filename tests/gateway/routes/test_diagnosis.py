"""Workers over HTTP, and a task that is submitted by hand."""

import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from tests.gateway.dagster.upstream import Upstream, standing_in
from tests.gateway.installations import NO_DAGSTER, NOBODY, READER, ledger_of, served
from tests.gateway.running import running
from tests.servers.dev import until
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.core.worker_queues import QUEUES
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.runs.workers.app import celery_app, send
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.heartbeats import Heartbeat, open_heartbeats
from vectorize_pipelines.state.request_rows import time_of

SUBMITTER = Caller.of("submitter", Scope.SUBMIT)
WORKERS = "/api/v1/diagnosis/workers"
LIFE_US = 3_600_000_000
ENCODED = "An id/with 灯塔 & 100%"
TEXT = {"task_type": "text_vectorization", "data": "a boat at sea", "collection": "notes"}


def heartbeats(settings: Settings, *lives: dict[str, Any], life_us: int = LIFE_US) -> None:
    """Have processes live that these dictionaries describe."""
    with closing(open_heartbeats(settings)) as store:
        now = store.now_us()
        for each in lives:
            times = {"started": time_of(now - 60_000_000), "last_heartbeat": time_of(now)}
            store.put(Heartbeat(**{"name": each["host"], **each, **times}), now + life_us)


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx2.Client]:
    """A client of a server with two workers on its host, and one elsewhere."""
    here = socket.gethostname()
    heartbeats(
        settings,
        {"node_id": "a", "host": here, "queues": ("text", "general"), "run_id": "run-1", "run_queue": "general"},
        {"node_id": "b", "host": here, "queues": ("text",), "models": ("all-MiniLM-L6-v2",), "gpu": "cuda:0"},
        {"node_id": "c", "host": "elsewhere.example", "queues": ("image",), "run_id": "run-2"},
    )
    heartbeats(settings, {"node_id": "late", "host": here, "queues": ("text",)}, life_us=-1)
    with served(settings) as client:
        yield client


# ---- workers


def test_the_workers_of_all_hosts_are_listed(client: httpx2.Client) -> None:
    answer = client.get(f"{WORKERS}/distributed")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    content = answer.json()
    listed = {each["node_id"]: each for each in content.pop("workers")}
    assert listed.keys() == {"a", "b", "c"}
    assert listed["b"].pop("started") < listed["b"].pop("last_heartbeat")
    assert listed["b"] == {
        "node_id": "b",
        "name": socket.gethostname(),
        "host": socket.gethostname(),
        "queues": ["text"],
        "models": ["all-MiniLM-L6-v2"],
        "memory_bytes": 0,
        "gpu": "cuda:0",
        "run_id": None,
        "run_queue": None,
    }
    assert (listed["a"]["run_id"], listed["a"]["run_queue"]) == ("run-1", "general")
    queues = content.pop("queues")
    assert content == {"total": 3, "busy": 2, "idle": 1}
    assert queues.keys() == QUEUES.keys()
    assert queues["text"] == {"total": 2, "busy": 1, "idle": 1}
    assert queues["image"] == queues["general"] == {"total": 1, "busy": 1, "idle": 0}
    assert queues["gpu-large"] == {"total": 0, "busy": 0, "idle": 0}


def test_those_of_this_host_are_told_apart(client: httpx2.Client) -> None:
    content = client.get(f"{WORKERS}/status").json()
    assert content["host"] == socket.gethostname()
    assert [each["node_id"] for each in content["workers"]] == ["a", "b"]
    assert (content["total"], content["busy"], content["idle"]) == (2, 1, 1)
    assert content["queues"]["text"] == {"total": 2, "busy": 1, "idle": 1}
    assert content["queues"]["image"] == {"total": 0, "busy": 0, "idle": 0}


def test_an_installation_without_workers_has_none(settings: Settings) -> None:
    with served(settings) as client:
        for path in ("distributed", "status"):
            content = client.get(f"{WORKERS}/{path}").json()
            assert (content["workers"], content["total"], content["busy"], content["idle"]) == ([], 0, 0, 0)


def test_workers_are_found_in_redis(redis_settings: Settings) -> None:
    heartbeats(redis_settings, {"node_id": "a", "host": "north", "queues": ("text",), "run_id": "run-1"})
    with served(redis_settings) as client:
        content = client.get(f"{WORKERS}/distributed").json()
    assert [each["node_id"] for each in content["workers"]] == ["a"]
    assert content["queues"]["text"] == {"total": 1, "busy": 1, "idle": 0}


@pytest.mark.parametrize("path", ["distributed", "status"])
def test_a_redis_that_is_away_is_told_of(settings: Settings, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("VECTORIZE_REDIS__URL", "redis://user:hush-hush@localhost:1/0")
    away = load_settings()
    with served(away) as client:
        answer = client.get(f"{WORKERS}/{path}")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"].startswith("Redis at localhost:1 cannot be used: ")
    assert "hush" not in answer.text


@pytest.mark.parametrize("path", ["distributed", "status"])
def test_a_token_without_the_scope_sees_no_worker(settings: Settings, path: str) -> None:
    with served(settings, NOBODY) as client:
        assert client.get(f"{WORKERS}/{path}").status_code == 403


# ---- their number among the figures


def figures(client: httpx2.Client) -> dict[str, float]:
    """What Prometheus reads: the value of each line."""
    text = client.get("/metrics", headers={"Accept": "text/plain"}).text
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def with_workers(client: httpx2.Client) -> dict[str, float] | None:
    """The figures, once Redis has answered in time for all of them."""
    found = figures(client)
    names = ("vectorize_active_workers", 'vectorize_worker_runs{queue="text",state="waiting"}')
    return found if all(each in found for each in names) and found['vectorize_part_up{part="redis"}'] else None


def test_workers_are_counted_where_runs_wait_for_them(settings: Settings) -> None:
    launching = settings.model_copy(update={"run_launcher": "celery"})
    heartbeats(
        launching,
        {"node_id": "a", "host": "north", "queues": ("text",), "run_id": "run-1"},
        {"node_id": "b", "host": "south", "queues": ("text",)},
    )
    with served(launching) as client:  # whose Dagster is away: it is not asked how many there are
        until("both", lambda: client.get("/health").json()["active_workers"] == 2)
        until("the figure", lambda: client.get("/metrics").json()["active_workers"] == 2)
        until("the same for Prometheus", lambda: figures(client).get("vectorize_active_workers") == 2)
        heartbeats(launching, {"node_id": "c", "host": "north", "queues": ("text",)})
        until("the third", lambda: client.get("/health").json()["active_workers"] == 3)


def test_their_number_is_not_known_while_redis_is_away(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTORIZE_REDIS__URL", "redis://localhost:1/0")
    monkeypatch.setenv("VECTORIZE_RUN_LAUNCHER", "celery")
    with served(load_settings()) as client:
        report = client.get("/health").json()
        assert (report["active_workers"], report["redis_connected"]) == (None, False)
        found = figures(client)
        assert found['vectorize_part_up{part="redis"}'] == 0
        assert not [name for name in found if "worker" in name]


def test_what_waits_and_what_is_executed_is_counted_by_queue(
    redis_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(redis_settings) as client:
        assert not [name for name in figures(client) if "vectorize_worker_runs" in name], "runs need no workers here"
    monkeypatch.setenv("VECTORIZE_RUN_LAUNCHER", "celery")
    settings = load_settings()
    heartbeats(
        settings,
        {"node_id": "a", "host": "north", "queues": tuple(QUEUES), "run_id": "run-1", "run_queue": "text"},
        {"node_id": "b", "host": "north", "queues": tuple(QUEUES), "run_id": "run-2", "run_queue": "text"},
        {"node_id": "c", "host": "south", "queues": tuple(QUEUES)},
        {"node_id": "d", "host": "south", "queues": ("later",), "run_id": "run-3", "run_queue": "of a later version"},
    )
    app = celery_app(settings)
    for run_id, queue in (("run-4", "text"), ("run-5", "gpu-large"), ("run-6", "gpu-large")):
        send(app, settings, run_id, queue)
    with served(settings) as client:
        found: dict[str, float] = until("all that Redis knows", lambda: with_workers(client))
    assert found["vectorize_active_workers"] == 4
    assert found['vectorize_part_up{part="redis"}'] == 1
    runs = {name: value for name, value in found.items() if name.startswith("vectorize_worker_runs{")}
    assert len(runs) == 2 * len(QUEUES)
    assert {name: value for name, value in runs.items() if value} == {
        'vectorize_worker_runs{queue="text",state="waiting"}': 1,
        'vectorize_worker_runs{queue="text",state="running"}': 2,
        'vectorize_worker_runs{queue="gpu-large",state="waiting"}': 2,
    }


# ---- a task submitted by hand


@contextmanager
def submitting(settings: Settings) -> Iterator[tuple[httpx2.Client, Upstream]]:
    """A client that may submit, and what launches runs in the place of Dagster."""
    dagster = standing_in()
    with running(dagster) as url, served(settings, SUBMITTER, DagsterAddress(url)) as client:
        yield client, dagster


def by_hand(task_id: str) -> str:
    return f"/api/v1/diagnosis/tasks/{quote(task_id, safe='/')}/submit"


@pytest.mark.parametrize("task_id", ["mine", "vectorize.text/0/17", ENCODED, "ends/submit"])
@pytest.mark.parametrize("named", [False, True], ids=["by the path", "by the body too"])
def test_a_task_is_submitted_under_the_id_in_the_path(settings: Settings, task_id: str, named: bool) -> None:
    with submitting(settings) as (client, dagster):
        answer = client.post(by_hand(task_id), json={**TEXT, "task_id": task_id} if named else TEXT)
        assert answer.status_code == 200, answer.text
        with ledger_of(settings) as ledger:
            row = ledger.get(task_id)
        assert row is not None
        assert answer.json() == {
            "task_id": task_id,
            "status": "pending",
            "created_at": row.submitted_at.isoformat(),
            "estimated_processing_time": None,
        }
        assert (row.state, row.collection) == (RequestState.PENDING, "notes")
        assert sum(b"LaunchRequests" in each.body for each in dagster.got) == 1


def test_one_that_is_known_becomes_a_newer_version_as_at_the_other_address(settings: Settings) -> None:
    with submitting(settings) as (client, dagster):
        first = client.post("/tasks/submit", json={**TEXT, "task_id": "mine"})
        second = client.post(by_hand("mine"), json={**TEXT, "collection": "others"})
        assert (first.status_code, second.status_code) == (200, 200)
        assert first.json()["created_at"] < second.json()["created_at"]
        assert sum(b"LaunchRequests" in each.body for each in dagster.got) == 2


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({**TEXT, "task_id": "another"}, "task_id"),
        ({**TEXT, "task_id": 17}, "task_id"),
        ({**TEXT, "task_type": "no type"}, "task_type"),
        ({"task_type": "text_vectorization"}, "data"),
    ],
)
def test_what_is_wrong_is_refused_by_its_field(settings: Settings, content: dict[str, Any], field: str) -> None:
    with served(settings, SUBMITTER) as client:
        answer = client.post(by_hand("mine"), json=content)
        assert answer.status_code == 422
        assert [each["field"] for each in answer.json()["errors"]] == [field]
    with ledger_of(settings) as ledger:
        assert ledger.get("mine") is None


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"'])
def test_a_body_that_is_no_object_is_refused(settings: Settings, body: bytes) -> None:
    with served(settings, SUBMITTER) as client:
        answer = client.post(by_hand("mine"), content=body, headers={"Content-Type": "application/json"})
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
        assert client.post(by_hand("mine"), content=body).status_code == 415


def test_a_task_is_submitted_with_the_scope_for_it_only(settings: Settings) -> None:
    with served(settings, READER, NO_DAGSTER) as client:
        assert client.post(by_hand("mine"), json=TEXT).status_code == 403
