"""`vectorize worker --mode standalone`: everything on one host, on SQLite and Redis."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from tests.commands import COMMAND
from tests.runs.workers.installation import sources
from tests.servers.dev import NO_RUNS, DevServer, until
from tests.servers.ports import free_ports
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.heartbeats import workers


@contextmanager
def standalone(log: Path) -> Iterator[DevServer]:
    """Start it, without waiting until it is ready; end it with all that it started."""
    (port,) = free_ports(1)
    own = {"VECTORIZE_GATEWAY__PORT": str(port), "VECTORIZE_GATEWAY__METRICS_PORT": "0"}
    command = [*COMMAND, "worker", "--mode", "standalone", "--node-id", "only", "--heartbeat-interval", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **NO_RUNS, **own}, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield DevServer(process, port, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(120)


@pytest.mark.timeout(600)
def test_a_request_is_executed_by_the_worker_beside_the_server(
    home: Path, redis_settings: Settings, tmp_path: Path
) -> None:
    with standalone(tmp_path / "log") as server:
        server.wait_until_ready()
        (worker,) = until("the worker", lambda: workers(redis_settings))
        assert worker.node_id == "only"
        request = {"task_type": "text_vectorization", "task_id": "a", "data": "A lamp.", "collection": "notes"}
        submitted = requests.post(f"{server.url}/tasks/submit", json=request, timeout=60)
        assert submitted.ok, submitted.text

        def state() -> str:
            return str(requests.get(f"{server.url}/tasks/a", timeout=60).json()["status"])

        until("the result", lambda: state() in ("completed", "failed"))
        assert state() == "completed", server.said()
        assert sources(redis_settings, "notes") == ["a"]
        (worker,) = until("the loaded model", lambda: [each for each in workers(redis_settings) if each.models])
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(120) == 0, server.said()
    assert workers(redis_settings) == []
