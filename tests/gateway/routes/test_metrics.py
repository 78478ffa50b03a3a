"""Figures over HTTP, as JSON and as Prometheus reads them."""

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.gateway.installations import NO_DAGSTER, NOBODY, READER, ended, ledger_of, new_row, served, taken_up
from tests.gateway.running import as_caller
from tests.servers.dev import until
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import LedgerError, SettingsError
from vectorize_pipelines.gateway.door.auth import Caller
from vectorize_pipelines.gateway.door.listening import bind_metrics
from vectorize_pipelines.gateway.door.origins import ServerAddress
from vectorize_pipelines.gateway.monitoring.exposition import wants_text
from vectorize_pipelines.gateway.monitoring.measuring import RequestFigures
from vectorize_pipelines.gateway.routes.metrics import serve_metrics
from vectorize_pipelines.gateway.services import open_services
from vectorize_pipelines.settings import GatewaySettings, Settings
from vectorize_pipelines.state.request_totals import RequestSums, RequestTotals

#: As Prometheus 3 asks.
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3"
)


def families(client: httpx2.Client, path: str = "/metrics") -> dict[str, Metric]:
    """What the text says, by the name of the family."""
    answer = client.get(path, headers={"Accept": "text/plain"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain")
    return {family.name: family for family in text_string_to_metric_families(answer.text)}


def value(family: Metric, name: str | None = None, **labels: str) -> float:
    """The value of one sample."""
    found = [s.value for s in family.samples if s.name == (name or family.name) and s.labels == labels]
    assert len(found) == 1, family.samples
    return float(found[0])


@pytest.fixture
def client(settings: Settings) -> Iterator[httpx2.Client]:
    """A client of a server whose ledger has six requests."""
    one = new_row("one")
    with ledger_of(settings) as ledger:
        ledger.record(
            [
                one,
                taken_up(new_row("two")),
                ended(new_row("three"), vectors=3, seconds=2),
                ended(new_row("four"), vectors=4, seconds=4),
                ended(new_row("five"), RequestState.FAILED, vectors=0),
                ended(new_row("six"), RequestState.CANCELLED, vectors=0),
            ]
        )
        with served(settings) as client:
            yield client


# ---- JSON


def test_the_figures_are_those_of_the_ledger(client: httpx2.Client) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    figures = answer.json()
    assert figures.pop("as_of")
    assert figures == {
        "total_tasks": 6,
        "pending_tasks": 1,
        "processing_tasks": 1,
        "completed_tasks": 2,
        "failed_tasks": 1,
        "cancelled_tasks": 1,
        "average_processing_time": 3.0,
        "total_vectors_generated": 7,
        "active_workers": None,  # Dagster is away
        "queue_size": 1,
    }


def test_an_empty_ledger_has_figures_too(settings: Settings) -> None:
    with served(settings) as client:
        figures = client.get("/metrics").json()
    assert figures["total_tasks"] == figures["total_vectors_generated"] == figures["average_processing_time"] == 0


def test_figures_follow_the_ledger(client: httpx2.Client, settings: Settings) -> None:
    assert client.get("/metrics").json()["total_tasks"] == 6
    with ledger_of(settings) as ledger:
        ledger.record([ended(new_row("seven"), vectors=5)])
    until("the new request", lambda: client.get("/metrics").json()["total_vectors_generated"] == 12)


def test_a_token_without_the_scope_gets_no_figures(settings: Settings) -> None:
    with served(settings, NOBODY) as client:
        assert client.get("/metrics").status_code == 403


def test_figures_that_cannot_be_had_are_an_error_and_prometheus_gets_the_others(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(totals: RequestTotals) -> RequestSums:
        raise LedgerError("the database is away")

    monkeypatch.setattr(RequestTotals, "sums", broken)
    answer: httpx2.Response = until("the error", lambda: failed(client))
    assert answer.status_code == 503
    assert answer.headers["content-type"] == "application/problem+json"
    found = families(client)
    assert "vectorize_tasks" not in found
    assert value(found["vectorize_part_up"], part="dagster") == 0


def failed(client: httpx2.Client) -> httpx2.Response | None:
    answer = client.get("/metrics")
    return None if answer.status_code == 200 else answer


# ---- Prometheus


def test_prometheus_reads_the_same_figures(client: httpx2.Client) -> None:
    found = families(client)
    tasks = {sample.labels["state"]: sample.value for sample in found["vectorize_tasks"].samples}
    assert tasks == {"pending": 1, "processing": 1, "completed": 2, "failed": 1, "cancelled": 1}
    assert value(found["vectorize_ledger_vectors"]) == 7
    assert value(found["vectorize_queue_messages"]) == 1
    assert value(found["vectorize_models_loaded"]) >= 0
    assert "vectorize_active_workers" not in found
    assert found["process_resident_memory_bytes"].samples
    parts = {sample.labels["part"]: sample.value for sample in found["vectorize_part_up"].samples}
    assert parts.pop("store") in (0, 1)  # it may still be opening
    assert parts == {"database": 1, "dagster": 0}


def test_counters_count_from_the_start_of_the_server(client: httpx2.Client, settings: Settings) -> None:
    found = families(client)
    assert value(found["vectorize_vectors"], "vectorize_vectors_total") == 0
    assert value(found["vectorize_task_duration_seconds"], "vectorize_task_duration_seconds_count") == 0
    with ledger_of(settings) as ledger:
        ledger.record([ended(new_row("seven"), vectors=5, seconds=3), ended(new_row("eight"), vectors=6, seconds=3000)])

    def counted() -> dict[str, Metric] | None:
        found = families(client)
        return found if value(found["vectorize_vectors"], "vectorize_vectors_total") else None

    found = until("the vectors", counted)
    assert value(found["vectorize_vectors"], "vectorize_vectors_total") == 11
    durations = found["vectorize_task_duration_seconds"]
    name = f"{durations.name}_bucket"
    assert [value(durations, name, le=str(bound)) for bound in (2.5, 5.0, 1800.0)] == [0, 1, 1]
    assert value(durations, name, le="+Inf") == value(durations, f"{durations.name}_count") == 2
    assert value(durations, f"{durations.name}_sum") == 3003


def test_prometheus_gets_the_format_that_it_asks_for(client: httpx2.Client) -> None:
    answer = client.get("/metrics", headers={"Accept": PROMETHEUS})
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    names = {family.name for family in openmetrics_families(answer.text)}  # type: ignore[no-untyped-call]
    assert {"vectorize_tasks", "vectorize_vectors", "vectorize_http_requests", "process_cpu_seconds"} <= names


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/plain, */*", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("text/plain;q=0", False),
        ("text/plain;q=0, */*", False),
        ("text/plain;q=nonsense", False),
        ("text/plain;q=0.5, application/json;q=0.9", False),
        ("text/plain", True),
        ("Text/Plain; version=0.0.4", True),
        ("text/plain, */*", True),
        ("text/*", True),
        ("text/plain;q=0.9, application/json;q=0.5", True),
        ("application/openmetrics-text", True),
        (PROMETHEUS, True),
    ],
)
def test_text_is_for_who_prefers_it(accept: str, text: bool) -> None:
    assert wants_text(accept) is text


@given(st.text())
def test_any_header_is_understood_somehow(accept: str) -> None:
    assert wants_text(accept) in (True, False)


def test_requests_are_counted_by_the_template_of_their_route(client: httpx2.Client) -> None:
    for path in ("/tasks/one-id/events", "/tasks/another-id/events", "/nowhere/a", "/nowhere/b", "/livez"):
        client.get(path)
    client.request("PROPFIND", "/livez")
    client.post("/livez")
    found = families(client)
    counted = {
        (s.labels["method"], s.labels["route"], s.labels["status"]): s.value
        for s in found["vectorize_http_requests"].samples
        if s.name == "vectorize_http_requests_total"
    }
    assert counted == {
        ("GET", "/tasks/{task_id}/events", "404"): 2,
        ("GET", "none", "404"): 2,
        ("GET", "/livez", "200"): 1,
        ("other", "/livez", "405"): 1,
        ("POST", "/livez", "405"): 1,
    }
    seconds = found["vectorize_http_request_seconds"]
    assert value(seconds, f"{seconds.name}_count", method="GET", route="/livez") == 1


def test_a_stream_is_counted_when_it_begins_and_has_no_duration(client: httpx2.Client) -> None:
    with client.stream("GET", "/events") as stream:
        assert stream.status_code == 200
        found = families(client)
        labels = {"method": "GET", "route": "/events"}
        assert value(found["vectorize_http_requests"], "vectorize_http_requests_total", status="200", **labels) == 1
        assert all(s.labels["route"] != "/events" for s in found["vectorize_http_request_seconds"].samples)


# ---- the port


@contextmanager
def metrics_port(
    settings: Settings, door: Callable[[ASGIApp, ServerAddress], ASGIApp], host: str = "127.0.0.1"
) -> Iterator[str]:
    """The address of the metrics port of a server, of which nothing else is served."""
    gateway = GatewaySettings(host=host, metrics_port=0)
    stopping, started = threading.Event(), threading.Event()
    bound = bind_metrics(gateway)
    assert bound is not None
    port = bound.getsockname()[1]

    @asynccontextmanager
    async def serving() -> AsyncIterator[None]:
        async with (
            open_services(settings, NO_DAGSTER) as services,
            serve_metrics(bound, services, RequestFigures(), door),
        ):
            yield

    async def serve() -> None:
        async with serving():
            started.set()
            while not stopping.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stopping.set()
        thread.join(60)
        assert not thread.is_alive()


def no_door(app: ASGIApp, at: ServerAddress) -> ASGIApp:
    raise AssertionError("nobody is asked who they are on a loopback address")


def door_by_header(app: ASGIApp, at: ServerAddress) -> ASGIApp:
    """One that lets in whoever says that they are a reader."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        is_reader = (b"authorization", b"Bearer reader") in scope["headers"]
        caller: Caller = READER if is_reader else NOBODY
        await as_caller(app, caller)(scope, receive, send)

    return called


def test_on_a_loopback_address_the_port_is_open_to_programs_and_not_to_other_pages(settings: Settings) -> None:
    with metrics_port(settings, no_door) as url, httpx2.Client(base_url=url) as client:
        assert "vectorize_tasks" in families(client)
        answer = client.get("/metrics", headers={"Accept": "application/json"})
        assert answer.headers["content-type"].startswith("text/plain")
        assert client.get("/metrics", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/metrics", headers={"Origin": "http://evil.example"}).status_code == 403
        for path in ("/", "/health", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 404


def test_elsewhere_the_port_asks_for_a_token(settings: Settings) -> None:
    with metrics_port(settings, door_by_header, "0.0.0.0") as url, httpx2.Client(base_url=url) as client:
        answer = client.get("/metrics")
        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"
        client.headers["Authorization"] = "Bearer reader"
        assert "vectorize_tasks" in families(client)


def test_a_port_that_is_taken_is_named_by_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(SettingsError, match=r"gateway\.metrics_port .*VECTORIZE_GATEWAY__METRICS_PORT") as refused:
            bind_metrics(GatewaySettings(metrics_port=port))
    assert str(port) in str(refused.value)
    assert "in use" in str(refused.value)


def test_there_need_be_no_port() -> None:
    assert bind_metrics(GatewaySettings(metrics_port=None)) is None
