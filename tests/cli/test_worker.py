"""`vectorize worker`: what it takes from options, variables and worker.env, what it refuses; `vectorize workers`."""

import json
from pathlib import Path

import pytest

from tests.commands import Vectorize
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.heartbeats import NodeStatus, Pulse

REDIS = "redis://127.0.0.1:1/0"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command puts into its environment is taken back after the test."""
    for name in ("WORKER__POOL_SIZE", "WORKER_POOL_SIZE", "WORKER__QUEUES", "NODE_NAME", "WORKER_API_TOKEN"):
        monkeypatch.setenv(f"VECTORIZE_{name}", "taken away")
        monkeypatch.delenv(f"VECTORIZE_{name}")
    for name in ("WORKER_POOL_SIZE", "WORKER_API_TOKEN", "WORKER_MASTER_HOST", "VECTORIZE_WORKER_MASTER_HOST"):
        monkeypatch.setenv(name, "taken away")
        monkeypatch.delenv(name)


def test_what_has_no_counterpart_is_refused_at_once_with_what_replaces_it(
    vectorize_here: Vectorize, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("worker.env").write_text("WORKER_MASTER_HOST=10.0.0.1\nWORKER_API_TOKEN=s3cret-token\n")
    done = vectorize_here("worker", "--master-port", 8000, "--task-poll-interval", 1)
    assert done.code == 2
    for said in ("WORKER_MASTER_HOST has no counterpart", "--master-port", "WORKER_API_TOKEN", "--task-poll-interval"):
        assert said in done.err
    for instead in ("VECTORIZE_REDIS__URL", "VECTORIZE_GATEWAY__PORT", "dequeue_interval_seconds"):
        assert instead in done.err
    assert "s3cret-token" not in done.err


def test_without_redis_it_says_so(vectorize_here: Vectorize) -> None:
    done = vectorize_here("worker")
    assert (done.code, "VECTORIZE_REDIS__URL" in done.err) == (2, True), done.err


def test_several_hosts_need_postgresql(vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTORIZE_REDIS__URL", REDIS)
    done = vectorize_here("worker", "--pool-size", 2)
    assert (done.code, "storage: {postgres: …}" in done.err, "standalone" in done.err) == (2, True, True), done.err


def test_a_wrong_value_names_the_variable_that_it_came_from(
    vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("node.env").write_text("WORKER_POOL_SIZE=0\n")
    done = vectorize_here("worker", "--config", "node.env")
    assert (done.code, "VECTORIZE_WORKER_POOL_SIZE" in done.err, "worker.pool_size" in done.err) == (2, True, True)
    done = vectorize_here("worker", "--queues", "text,pictures")
    assert (done.code, "names of queues belong here, separated by commas" in done.err) == (2, True), done.err


def test_a_file_of_settings_in_yaml_is_refused(vectorize_here: Vectorize) -> None:
    done = vectorize_here("worker", "--config", "worker.yaml")
    assert (done.code, "vectorize.yaml" in done.err) == (2, True), done.err


def test_workers_lists_those_that_live(vectorize_here: Vectorize, redis_settings: Settings) -> None:
    assert vectorize_here("workers", "--json").json == []
    status = NodeStatus(node_id="n-1", name="host-a", host="a", queues=("text",), models=("all-MiniLM-L6-v2",))
    with Pulse(redis_settings, lambda: status) as pulse:
        found: list[dict[str, object]] = []
        while not found:
            pulse.beat_soon()
            found = json.loads(vectorize_here("workers", "--json").out)
        (listed,) = found
        said = {name: listed[name] for name in ("node_id", "name", "host", "queues", "models", "run_id", "run_queue")}
        assert said == {
            "node_id": "n-1",
            "name": "host-a",
            "host": "a",
            "queues": ["text"],
            "models": ["all-MiniLM-L6-v2"],
            "run_id": None,
            "run_queue": None,
        }
        assert listed["last_heartbeat"]
        assert "n-1" in vectorize_here("workers").out
