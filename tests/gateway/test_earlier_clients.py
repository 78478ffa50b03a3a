"""A client of the earlier master, pointed at this server, gets what it reads: M1 to M8 of what its users have."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.gateway.earlier_client import MasterClient, session
from tests.gateway.running import until
from tests.gateway.whole import Whole, whole_server
from vectorize_pipelines.gateway.door.listening import bind_metrics
from vectorize_pipelines.settings import GatewaySettings

#: What `GET /tasks/{task_id}` had, as far as users name it.
TASK = {"task_id", "task_type", "status", "progress", "created_at", "started_at", "completed_at", "error", "metadata"}
HEALTH = {"status", "kafka_connected", "weaviate_connected", "redis_connected", "active_workers", "queue_size"}
#: Tasks that the client submits, and those that are left when it has cancelled one, which had not begun.
SUBMITTED = 17
PENDING = SUBMITTED - 1
COUNTS = ("total_tasks", "pending_tasks", "processing_tasks", "completed_tasks", "failed_tasks", "cancelled_tasks")


@pytest.fixture(scope="module")
def prometheus() -> socket.socket:
    """The socket of the port that Prometheus asks."""
    bound = bind_metrics(GatewaySettings(metrics_port=0))
    assert bound is not None
    return bound


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, prometheus: socket.socket) -> Iterator[Whole]:
    """A server that asks for no token, since none has been made: the earlier master knew none."""
    with whole_server(tmp_path_factory.mktemp("earlier"), scopes=(), metrics_port=prometheus) as server:
        yield server


@pytest.fixture(scope="module")
def got(server: Whole) -> dict[str, Any]:
    """What the client got, by call; it is the same client for every test."""
    got = dict(session(server.url))
    # The script asked again every few seconds; figures are a second old.
    watching = MasterClient(server.url)
    until(lambda: [watching.metrics()[name] for name in ("total_tasks", "cancelled_tasks")] == [SUBMITTED, 1])
    return {**got, "metrics": watching.metrics()}


def test_a_task_is_submitted_and_looked_up(got: dict[str, Any]) -> None:
    submitted, task = got["submitted"], got["task"]
    assert (submitted["status"], task["status"]) == ("pending", "pending")
    assert submitted["estimated_processing_time"] is None, "nothing has been done yet"
    assert task.keys() > TASK
    assert (task["task_id"], task["task_type"]) == (submitted["task_id"], "text_vectorization")
    assert (task["progress"], task["error"], task["started_at"]) == (0, None, None)


@pytest.mark.parametrize("call", ["batch of texts", "image", "document"])
def test_every_type_of_task_is_taken(got: dict[str, Any], call: str) -> None:
    assert got[call]["status"] == "pending"
    assert got[call]["task_id"]


def test_many_are_taken_by_one_call(got: dict[str, Any]) -> None:
    many = got["many"]
    assert [each["status"] for each in many["tasks"]] == ["pending"] * 3
    assert len({each["task_id"] for each in many["tasks"]}) == many["total"] == 3
    assert got["numbered"] == ["pending"] * 10


def test_tasks_are_listed_in_pages(got: dict[str, Any]) -> None:
    page, waiting = got["page"], got["waiting"]
    assert (page["page"], page["page_size"], page["total"], len(page["tasks"])) == (1, 10, SUBMITTED, 10)
    assert (waiting["page"], waiting["page_size"], waiting["total"], len(waiting["tasks"])) == (2, 5, SUBMITTED, 5)
    assert all(task.keys() > TASK for task in page["tasks"])
    assert {task["status"] for task in waiting["tasks"]} == {"pending"}


def test_a_task_is_cancelled(got: dict[str, Any]) -> None:
    assert got["cancelled"]["status"] in ("cancelled", "cancelling")


@pytest.mark.parametrize("call", ["an empty text", "a type that is none", "an unknown task"])
def test_what_is_wrong_is_said_in_detail(got: dict[str, Any], call: str) -> None:
    """As the earlier master did, and never with a stack trace."""
    assert isinstance(got[call]["detail"], str)
    assert "Traceback" not in got[call]["detail"]
    assert "task_id" not in got[call]


def test_health_and_figures_have_the_names_that_dashboards_read(got: dict[str, Any]) -> None:
    health, metrics = got["health"], got["metrics"]
    assert health.keys() >= HEALTH
    assert health["status"] == "healthy"
    assert (health["active_workers"], health["queue_size"]) == (0, 0)
    assert metrics["total_tasks"] == sum(metrics[name] for name in COUNTS[1:]) == SUBMITTED
    assert (metrics["pending_tasks"], metrics["completed_tasks"]) == (PENDING, 0)
    assert (metrics["average_processing_time"], metrics["total_vectors_generated"]) == (0, 0)


def test_prometheus_finds_the_figures_at_a_port_of_their_own(got: dict[str, Any], prometheus: socket.socket) -> None:
    port = prometheus.getsockname()[1]
    text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text
    assert f'vectorize_tasks{{state="pending"}} {PENDING}.0' in text.splitlines()


def test_each_task_is_launched_once(server: Whole, got: dict[str, Any]) -> None:
    launches = [each for each in server.dagster.got if b"LaunchRequests" in each.body]
    assert sum(each.body.count(b"vectorize/request_id") for each in launches) == SUBMITTED
