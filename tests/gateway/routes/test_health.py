"""Health over HTTP: what is there, what is away, what has stopped answering."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import dagster as dg
import httpx2
import pytest
import requests

from tests.gateway.installations import NOBODY, ended, ledger_of, new_row, served, taken_up
from tests.messaging.brokers import send
from tests.servers import kafka, web
from tests.servers.dagster import free_port
from tests.servers.dev import until
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.monitoring.checks.parts import DAEMON_SECONDS, daemon_health
from vectorize_pipelines.gateway.paths import PATH_PREFIX
from vectorize_pipelines.kafka.topics import TopicNames, create_topics
from vectorize_pipelines.settings import PROJECT_ROOT, Settings, load_settings
from vectorize_pipelines.state.home import use_dagster_home

#: The time of a test that looks at no clock.
NOW = 1_800_000_000.0


def daemon(
    name: str = "SENSOR", heard: float | None = 0.0, *, now: float | None = None, **fields: Any
) -> dict[str, Any]:
    """What Dagster says of a part of the daemon that was heard of so many seconds ago."""
    at = None if heard is None else (now or time.time()) - heard
    return {"daemonType": name, "required": True, "healthy": heard is not None, "lastHeartbeatTime": at} | fields


@contextmanager
def dagster_that_says(daemons: list[dict[str, Any]], runs: dict[str, Any]) -> Iterator[web.Web]:
    """A server that answers the query of health as Dagster's web server does, whatever it is asked."""
    data = {"instance": {"daemonHealth": {"allDaemonStatuses": daemons}}, "runsOrError": runs}

    def answer(handler: BaseHTTPRequestHandler) -> None:
        web.answer(handler, body=json.dumps({"data": data}).encode(), content_type="application/json")

    with web.serving(answer) as server:
        yield server


@pytest.fixture
def dagster() -> Iterator[DagsterAddress]:
    """One with a daemon, and two runs in progress."""
    with dagster_that_says([daemon()], {"__typename": "Runs", "count": 2}) as server:
        yield DagsterAddress(server.url(""))


@contextmanager
def silence() -> Iterator[int]:
    """The port of a server that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


def health(client: httpx2.Client) -> dict[str, Any]:
    """The report, whose status says the same as that of the answer."""
    answer = client.get("/health")
    report: dict[str, Any] = answer.json()
    assert answer.status_code == {"healthy": 200, "unhealthy": 503}[report["status"]], report
    assert answer.headers["content-type"] == "application/json"
    return report


def until_it_says(client: httpx2.Client, condition: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The first report of which this is so."""

    def look() -> dict[str, Any] | None:
        report = health(client)
        return report if condition(report) else None

    found: dict[str, Any] = until("another report", look)
    return found


def is_healthy(report: dict[str, Any]) -> bool:
    return bool(report["status"] == "healthy")


# ---- what is there


def test_a_server_says_that_it_runs_whatever_is_away(settings: Settings) -> None:
    with served(settings, NOBODY) as client:
        answer = client.get("/livez")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert client.get("/health").status_code == 403


def test_what_is_not_configured_is_neither_there_nor_away(settings: Settings, dagster: DagsterAddress) -> None:
    with ledger_of(settings) as ledger:
        ledger.record([new_row("one"), new_row("two"), taken_up(new_row("three")), ended(new_row("four"))])
    with served(settings, dagster=dagster) as client:
        report = until_it_says(client, is_healthy)
    report.pop("timestamp")
    report.pop("version")
    assert report == {
        "status": "healthy",
        "kafka_connected": None,
        "weaviate_connected": None,
        "redis_connected": None,
        "active_workers": 2,
        "queue_size": 2,
        "kafka": {"connected": None, "detail": "not configured"},
        "store": {"kind": "lancedb", "connected": True, "detail": None},
        "database": {"kind": "sqlite", "connected": True, "detail": None},
        "redis": {"connected": None, "detail": "not configured"},
        "dagster": {"connected": True, "daemon_healthy": True, "detail": None},
    }


def test_the_queue_is_what_waits_in_the_topics(topics: TopicNames, home: Path, dagster: DagsterAddress) -> None:
    settings = load_settings()
    for topic in topics.lanes(Modality.TEXT):
        send(settings.kafka, topic, {"value": b"one"}, {"value": b"two"})
    with served(settings, dagster=dagster) as client:
        report = until_it_says(client, is_healthy)
        assert report["kafka_connected"] is True
        assert report["queue_size"] >= 4  # the marks of transactions count too


def test_a_redis_that_answers_is_connected(redis_settings: Settings, dagster: DagsterAddress) -> None:
    with served(redis_settings, dagster=dagster) as client:
        report = until_it_says(client, is_healthy)
        assert (report["redis_connected"], report["redis"]["detail"]) == (True, None)


def test_a_redis_that_is_away_makes_it_unhealthy(
    home: Path, dagster: DagsterAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_REDIS__URL", "redis://user:hush-hush@localhost:1/0")
    with served(load_settings(), dagster=dagster) as client:
        report = until_it_says(client, lambda report: report["redis_connected"] is False)
        assert report["status"] == "unhealthy"
        assert report["redis"]["detail"].startswith("Redis at localhost:1 cannot be used: ")
        assert "hush" not in str(report)


@pytest.mark.timeout(600)
def test_a_real_dagster_is_asked(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    use_dagster_home(settings)
    with dg.DagsterInstance.get():
        pass
    with real_dagster(tmp_path / "dagster.log") as address, served(settings, dagster=address) as client:
        report = until_it_says(client, is_healthy)
        assert report["active_workers"] == 0
        assert report["dagster"]["daemon_healthy"] is None
        assert "no daemon has run" in report["dagster"]["detail"]


@contextmanager
def real_dagster(log: Path) -> Iterator[DagsterAddress]:
    """Dagster's web server below its path, once it answers."""
    port = free_port()
    options = ["-h", "127.0.0.1", "-p", str(port), "--path-prefix", PATH_PREFIX]
    command = [sys.executable, "-m", "dagster_webserver", *options, "-w", str(PROJECT_ROOT / "workspace.yaml")]
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return requests.get(f"{address}{PATH_PREFIX}/server_info", timeout=5).ok
        except requests.ConnectionError:
            return False

    with log.open("w") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            until(f"the web server ({log})", answers)
            yield DagsterAddress(address)
        finally:
            process.terminate()


# ---- what is away, or does not answer


def test_each_part_that_is_away_is_named(settings: Settings) -> None:
    with served(settings) as client:
        report = until_it_says(client, lambda report: report["store"]["connected"])
    assert report["status"] == "unhealthy"
    assert report["dagster"]["connected"] is False
    assert report["dagster"]["daemon_healthy"] is None
    assert report["active_workers"] is None
    assert report["queue_size"] == 0


def test_brokers_that_stand_still_are_away_until_they_answer_again(
    kafka_program: None, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, dagster: DagsterAddress
) -> None:
    with kafka.Server(tmp_path / "kafka") as broker:
        monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", broker.bootstrap_servers)
        settings = load_settings()
        with served(settings, dagster=dagster) as client:
            report = until_it_says(client, lambda report: report["store"]["connected"] and report["kafka_connected"])
            assert report["status"] == "unhealthy"
            assert "vectorize topics create" in report["kafka"]["detail"]
            assert report["queue_size"] is None
            create_topics(settings.kafka)
            until_it_says(client, is_healthy)
            with broker.standing_still():
                report = until_it_says(client, lambda report: report["kafka_connected"] is False)
                assert report["status"] == "unhealthy"
                assert report["store"]["connected"] is True
                assert report["queue_size"] is None
                for _ in range(3):
                    health(client)
                names = [thread.name for thread in threading.enumerate()]
                assert sum(name.startswith("health-kafka") for name in names) == 1
            until_it_says(client, is_healthy)


@pytest.mark.parametrize("kind", ["weaviate", "qdrant"])
@pytest.mark.slow
def test_a_store_server_that_says_nothing_holds_nothing_up(
    home: Path, monkeypatch: pytest.MonkeyPatch, dagster: DagsterAddress, kind: str
) -> None:
    with silence() as port:
        monkeypatch.setenv("VECTORIZE_STORE__KIND", kind)
        monkeypatch.setenv("VECTORIZE_STORE__URL", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("VECTORIZE_STORE__GRPC_PORT", str(port))
        monkeypatch.setenv("VECTORIZE_STORE__API_KEY", "hush-hush")
        with served(load_settings(), dagster=dagster) as client:
            report = health(client)
            assert report["status"] == "unhealthy"
            assert report["store"]["connected"] is False
            assert report["store"]["detail"]
            assert report["weaviate_connected"] is (False if kind == "weaviate" else None)
            assert report["dagster"]["connected"] is True
            assert "hush-hush" not in json.dumps(report)


@pytest.mark.slow
def test_a_web_server_of_dagster_that_says_nothing_holds_nothing_up(settings: Settings) -> None:
    with silence() as port, served(settings, dagster=DagsterAddress(f"http://127.0.0.1:{port}")) as client:
        report = until_it_says(client, lambda report: report["store"]["connected"])
        assert report["status"] == "unhealthy"
        assert "no answer within 2 s" in report["dagster"]["detail"]
        assert report["database"]["connected"] is True


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"data": null}', b'{"data": {"instance": 1}}', b'{"errors": [{"message": "broken"}]}']
)
def test_something_else_in_dagsters_place_is_no_dagster(settings: Settings, body: bytes) -> None:
    with (
        web.serving(lambda handler: web.answer(handler, body=body)) as server,
        served(settings, dagster=DagsterAddress(server.url(""))) as client,
    ):
        report = health(client)
        assert report["dagster"]["connected"] is False
        assert report["dagster"]["detail"]
        assert "Traceback" not in json.dumps(report)


def test_many_who_ask_at_once_are_answered_by_one_check(settings: Settings) -> None:
    asked, answering = threading.Event(), threading.Event()
    data = {
        "instance": {"daemonHealth": {"allDaemonStatuses": [daemon()]}},
        "runsOrError": {"__typename": "Runs", "count": 0},
    }

    def slow(handler: BaseHTTPRequestHandler) -> None:
        asked.set()
        answering.wait(10)
        web.answer(handler, body=json.dumps({"data": data}).encode())

    with (
        web.serving(slow) as server,
        served(settings, dagster=DagsterAddress(server.url(""))) as client,
        ThreadPoolExecutor(20) as threads,
    ):
        answers = [threads.submit(health, client) for _ in range(20)]
        assert asked.wait(30)
        until("all requests", lambda: all(answer.running() for answer in answers))
        answering.set()
        reports = [answer.result() for answer in answers]
        # Another one only for those who came after it had grown old.
        assert len({report["timestamp"] for report in reports}) == len(server.asked) < 20


# ---- the daemon


part = partial(daemon, now=NOW)


@pytest.mark.parametrize(
    ("statuses", "healthy", "said"),
    [
        ([], None, "no daemon has run"),
        ([part(heard=None)], None, "no daemon has run"),
        ([part(heard=5)], True, None),
        ([part(heard=5), part("BACKFILL", heard=DAEMON_SECONDS * 2)], True, None),
        ([part(heard=DAEMON_SECONDS + 10)], False, "not been heard of for 100 s"),
        ([part(heard=5), part("BACKFILL", heard=None)], False, "BACKFILL"),
        ([part(heard=5), part("BACKFILL", heard=None, required=False, healthy=None)], True, None),
        ([part(heard=None, required=False)], None, "no daemon has run"),
    ],
)
def test_the_daemon_is_known_by_what_it_says(
    statuses: list[dict[str, Any]], healthy: bool | None, said: str | None
) -> None:
    found, detail = daemon_health(statuses, NOW)
    assert found is healthy
    assert (said is None) == (detail is None)
    assert said is None or said in str(detail)


def test_a_daemon_that_has_ended_makes_it_unhealthy(settings: Settings) -> None:
    runs = {"__typename": "PythonError", "message": "the run storage is broken"}
    for daemons, answered in (([daemon(heard=DAEMON_SECONDS * 3)], {"__typename": "Runs", "count": 1}), ([], runs)):
        with (
            dagster_that_says(daemons, answered) as server,
            served(settings, dagster=DagsterAddress(server.url(""))) as client,
        ):
            report = until_it_says(client, lambda report: report["store"]["connected"])
            assert report["status"] == "unhealthy"
            assert report["dagster"]["connected"] is True
            assert report["dagster"]["detail"]
            assert report["active_workers"] == answered.get("count")
