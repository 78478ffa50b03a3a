"""What became of tasks, over HTTP: from a real ledger, a real store, real runs, and a real Dagster web server."""

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import numpy as np
import pytest
import requests

from tests.gateway.running import as_caller, running
from tests.pipeline.requests.installation import DIMENSION, HashEncoder, vector_of
from tests.servers.dagster import free_port, until
from tests.state.rows import START, row
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.base import Encoder, Purpose, Vectors
from vectorize_pipelines.encoders.configured import lease_configured
from vectorize_pipelines.gateway.app import create_routes
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.gateway.paths import PATH_PREFIX
from vectorize_pipelines.pipeline.encoding import LeaseEncoder
from vectorize_pipelines.pipeline.requests import advance
from vectorize_pipelines.pipeline.requests.runs import open_single
from vectorize_pipelines.pipeline.requests.single import SingleRequest
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.ledger import LISTED_METADATA_CHARACTERS, RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow
from vectorize_pipelines.stores import open_store

pytestmark = pytest.mark.slow

NOBODY = DagsterAddress("http://127.0.0.1:1")
READER = Caller.of("reader", Scope.READ)
TEXT = "text_vectorization"
#: Its own, its vectors, and whether they are there: as `Get` returns them.
Answer = tuple[int, Any]
Get = Callable[..., Answer]


@contextmanager
def serving(settings: Settings, dagster: DagsterAddress = NOBODY, caller: Caller = READER) -> Iterator[Get]:
    """Serve an installation; the value gets a path and returns status and JSON."""
    with running(as_caller(create_routes(settings, dagster), caller)) as url, requests.Session() as session:

        def get(path: str, **query: Any) -> Answer:
            answer = session.get(f"{url}{path}", params=query, timeout=60)
            kind = "application/json" if answer.ok else "application/problem+json"
            assert answer.headers["content-type"] == kind, answer.text
            return answer.status_code, answer.json()

        yield get


@pytest.fixture
def get(settings: Settings) -> Iterator[Get]:
    with serving(settings) as found:
        yield found


@pytest.fixture
def ledger(settings: Settings) -> Iterator[RequestLedger]:
    with closing(RequestLedger.open(settings)) as opened:
        yield opened


@dataclass(frozen=True)
class Shared:
    """A server and its ledger, for tests that ask for tasks of their own alone."""

    get: Get
    ledger: RequestLedger


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    settings = load_settings({}, home=tmp_path_factory.mktemp("home"))
    with serving(settings) as get, closing(RequestLedger.open(settings)) as ledger:
        yield Shared(get, ledger)


def path_of(task_id: str, end: str = "") -> str:
    return f"/tasks/{quote(task_id, safe='/')}{end}"


def texts(task_id: str, number: int) -> dict[str, Any]:
    """The JSON of a request for several texts."""
    return {
        "task_id": task_id,
        "task_type": "batch_vectorization",
        "data": [f"text number {n}" for n in range(number)],
        "metadata": {"tenant": "x"},
    }


# ---- one task


def test_a_completed_task(get: Get, ledger: RequestLedger) -> None:
    warning = {"kind": "omitted", "what": "44 tokens", "remedy": "cut it"}
    noted = replace(row("one", submitted=1, finished=3), task_type=TEXT, metadata={"tenant": "x", "n": [1, None]})
    noted = replace(noted, truncated=44, warnings=[warning])
    ledger.record([noted])
    assert get("/tasks/one") == (
        200,
        {
            "task_id": "one",
            "task_type": TEXT,
            "status": "completed",
            "progress": 1.0,
            "created_at": "2026-03-01T12:00:01+00:00",
            "started_at": "2026-03-01T12:00:01+00:00",
            "completed_at": "2026-03-01T12:00:03+00:00",
            "processing_time": 2.0,
            "estimated_processing_time": None,
            "error": None,
            "result": {"collection": "texts", "vector_count": 3},
            "warnings": [warning],
            "truncated": 44,
            "metadata": {"tenant": "x", "n": [1, None]},
            "run_id": "run",
            "run_url": "/dagster/runs/run",
            "modality": "text",
            "collection": "texts",
            "items": 2,
        },
    )


def test_a_task_that_failed_and_one_of_an_earlier_version(get: Get, ledger: RequestLedger) -> None:
    failed = replace(row("bad", RequestState.FAILED), error_class="CorruptImageError", error_message="is cut short")
    ledger.record([failed, replace(row("old", RequestState.CANCELLED), run_id=None)])
    status, bad = get("/tasks/bad")
    assert status == 200
    assert (bad["status"], bad["progress"], bad["result"]) == ("failed", 1.0, None)
    assert bad["error"] == {"class": "CorruptImageError", "message": "is cut short"}
    _, old = get("/tasks/old")
    assert (old["status"], old["error"], old["result"]) == ("cancelled", None, None)
    assert (old["task_type"], old["metadata"], old["run_id"], old["run_url"]) == (None, None, None, None)


def test_a_task_that_nobody_knows(shared: Shared) -> None:
    status, problem = shared.get("/tasks/nobody")
    assert (status, problem["status"], problem["title"]) == (404, 404, "Not Found")
    assert "'nobody'" in problem["detail"]
    assert shared.get("/tasks/nobody/result")[0] == 404
    assert shared.get("/tasks/")[0] == 404


@pytest.mark.parametrize(
    "task_id", ["vectorize.text/0/17", "灯塔 🚢", "a%2Fb", "50% ?&=#;+", "'quoted\"", "x" * 512, "submit"]
)
def test_any_id_can_be_asked_for(shared: Shared, task_id: str) -> None:
    shared.ledger.record([replace(row(task_id), vectors=0)])
    status, found = shared.get(path_of(task_id))
    assert (status, found["task_id"]) == (200, task_id)
    assert shared.get(path_of(task_id, "/result")) == (
        200,
        {"task_id": task_id, "collection": "texts", "rows": [], "next_cursor": None},
    )


def test_an_id_that_ends_as_a_route_does_is_found_in_the_list(get: Get, ledger: RequestLedger) -> None:
    ledger.record([row("a"), replace(row("a/result", RequestState.FAILED), vectors=0)])
    ledger.record([replace(row("a", offset=1), vectors=0)])
    assert get("/tasks/a/result")[1]["task_id"] == "a"
    assert {each["task_id"] for each in get("/tasks")[1]["tasks"]} == {"a", "a/result"}


def test_a_task_that_waits_is_given_an_estimate(get: Get, ledger: RequestLedger) -> None:
    """Two a second; three of its type wait before it, one of another type does not count, nor one behind it."""
    waiting = [replace(row(f"w{n}", RequestState.PENDING, submitted=n), task_type=TEXT) for n in range(5)]
    other = replace(row("other", RequestState.PENDING), task_type="batch_vectorization")
    ledger.record([*waiting, other])
    assert get("/tasks/w3")[1]["estimated_processing_time"] is None
    ledger.record([row(f"d{n}", submitted=n / 2, finished=n / 2 + 0.5) for n in range(10)])
    status, found = get("/tasks/w3")
    assert (status, found["status"], found["progress"]) == (200, "pending", 0.0)
    assert found["estimated_processing_time"] == 2.0
    assert (found["started_at"], found["completed_at"], found["processing_time"]) == (None, None, None)


def test_only_who_may_read_is_told(settings: Settings) -> None:
    with serving(settings, caller=Caller.of("nothing")) as get:
        for path in ("/tasks", "/tasks/one", "/tasks/one/result"):
            status, problem = get(path)
            assert status == 403
            assert "'nothing' lacks the scope read" in problem["detail"]


# ---- the list


def test_pages_by_number(get: Get, ledger: RequestLedger) -> None:
    assert get("/tasks") == (
        200,
        {
            "tasks": [],
            "total": 0,
            "page": 1,
            "page_size": 50,
            "pages": 0,
            "counts": dict.fromkeys(map(str, RequestState), 0),
            "next_cursor": None,
        },
    )
    ledger.record([row(f"t{n}", submitted=n) for n in range(7)])
    pages = [get("/tasks", page=n, page_size=3)[1] for n in (1, 2, 3, 4)]
    assert [[each["task_id"] for each in page["tasks"]] for page in pages] == [
        ["t6", "t5", "t4"], ["t3", "t2", "t1"], ["t0"], [],
    ]  # fmt: skip
    assert {(page["total"], page["pages"], page["page_size"]) for page in pages} == {(7, 3, 3)}
    assert [page["page"] for page in pages] == [1, 2, 3, 4]
    status, first = get("/tasks", page_size=1000)
    assert (status, len(first["tasks"]), first["next_cursor"]) == (200, 7, None)


def test_pages_by_cursor_have_every_task_once(get: Get, ledger: RequestLedger) -> None:
    ledger.record([row(f"t{n}", submitted=n // 3) for n in range(20)])
    seen: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        status, page = get("/tasks", page_size=6, **cursor)
        assert status == 200
        assert page["page"] == (None if cursor else 1)
        seen += [each["task_id"] for each in page["tasks"]]
        ledger.record([row(f"later {len(seen)}", submitted=100)])
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert sorted(seen) == sorted(f"t{n}" for n in range(20))


def test_filters_and_the_counts_behind_them(get: Get, ledger: RequestLedger) -> None:
    batch = "batch_vectorization"
    kinds = [(TEXT, RequestState.COMPLETED), (TEXT, RequestState.FAILED), (batch, RequestState.COMPLETED)]
    ledger.record([replace(row(f"t{n}", kinds[n % 3][1]), task_type=kinds[n % 3][0]) for n in range(9)])
    ledger.record([row("untyped")])

    def found(**query: object) -> tuple[set[str], int, Mapping[str, int]]:
        status, page = get("/tasks", **query)
        assert status == 200, page
        counts = {state: number for state, number in page["counts"].items() if number}
        return {each["task_id"] for each in page["tasks"]}, page["total"], counts

    everything = {"completed": 7, "failed": 3}
    assert found(status_filter="completed") == ({"t0", "t3", "t6", "t2", "t5", "t8", "untyped"}, 7, everything)
    assert found(status_filter="FAILED") == ({"t1", "t4", "t7"}, 3, everything)
    assert found(status_filter="Pending") == (set(), 0, everything)
    assert found(task_type=TEXT) == ({"t0", "t3", "t6", "t1", "t4", "t7"}, 6, {"completed": 3, "failed": 3})
    assert found(task_type=batch, status_filter="completed") == ({"t2", "t5", "t8"}, 3, {"completed": 3})
    assert found(task_type="image_vectorization") == (set(), 0, {})


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"status_filter": "lost"}, "status_filter"),
        ({"status_filter": ""}, "status_filter"),
        ({"task_type": "texts"}, "task_type"),
        ({"page": 0}, "page"),
        ({"page": "x"}, "page"),
        ({"page": 10**30}, "page"),
        ({"page": 201}, "page"),
        ({"page": 11, "page_size": 1000}, "page"),
        ({"page": 1, "cursor": "x"}, "page"),
        ({"page_size": 0}, "page_size"),
        ({"page_size": 1001}, "page_size"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": ""}, "cursor"),
        ({"cursor": "W10"}, "cursor"),
    ],
)
def test_a_list_that_cannot_be_had(shared: Shared, query: dict[str, object], field: str) -> None:
    status, problem = shared.get("/tasks", **query)
    assert status == 422
    assert [each["field"] for each in problem["errors"]] == [field]
    assert problem["detail"].startswith(f"{field}: ")


def test_the_last_page_that_is_counted_names_the_way_on(shared: Shared) -> None:
    assert shared.get("/tasks", page=10, page_size=1000)[0] == 200
    assert "next_cursor" in shared.get("/tasks", page=11, page_size=1000)[1]["detail"]


def test_large_metadata_are_left_to_the_task_itself(get: Get, ledger: RequestLedger) -> None:
    large = {"text": "x" * LISTED_METADATA_CHARACTERS}
    ledger.record([replace(row("small"), metadata={}), replace(row("large", submitted=1), metadata=large)])
    assert [each["metadata"] for each in get("/tasks")[1]["tasks"]] == [None, {}]
    assert get("/tasks/large")[1]["metadata"] == large


# ---- real runs


class Watched(Encoder):
    """A real encoder; `look` is called before each of its calls."""

    def __init__(self, encoder: Encoder, look: Callable[[], None]) -> None:
        self.spec, self.choice = encoder.spec, encoder.choice
        self._encoder = encoder
        self._look = look

    def encode(self, items: Sequence[str | Path | bytes], purpose: Purpose = "document") -> Vectors:
        self._look()
        return self._encoder.encode(items, purpose)

    def close(self) -> None:
        """It is not its own."""


def run(settings: Settings, content: Mapping[str, Any], lease: LeaseEncoder) -> None:
    """Do what the job `embed_request` does, without Dagster."""
    store = open_store(settings.store, settings.home)
    single = SingleRequest.of(content, str(uuid.uuid4()))
    with closing(store), open_single(settings, single, store, lease) as stream:
        for _ in written(DirectWriter(settings, store), stream):
            pass


@pytest.fixture
def hashed(home: Path) -> tuple[Settings, LeaseEncoder]:
    """Settings for an encoder that takes no time, and its lease."""
    settings = load_settings(models={"dimension": DIMENSION}, cache={"enabled": "off"})

    @contextmanager
    def lease(model: str, dimension: int | None) -> Iterator[Encoder]:
        yield HashEncoder(describe_model(model, dimension=dimension))

    return settings, lease


@pytest.mark.timeout(600)
def test_the_progress_of_a_batch_while_it_is_encoded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the real model; each call of the encoder is a look at the task over HTTP."""
    monkeypatch.setattr(advance, "NOTED_SECONDS", 0.0)
    seen: list[Any] = []
    with serving(settings) as get:

        @contextmanager
        def lease(model: str, dimension: int | None) -> Iterator[Encoder]:
            with lease_configured(settings, model, dimension) as encoder:
                yield Watched(encoder, lambda: seen.append(get("/tasks/many")))

        run(settings, texts("many", 300), lease)
        status, last = get("/tasks/many")
    assert {status, *(code for code, _ in seen)} == {200}
    assert {each["status"] for _, each in seen} == {"processing"}
    progress = [each["progress"] for _, each in seen]
    assert len(progress) > 1
    assert progress[0] == 0
    assert all(0 < before < 1 for before in progress[1:])
    assert progress == sorted(progress)
    assert (last["status"], last["progress"], last["result"]["vector_count"]) == ("completed", 1.0, 300)
    assert last["metadata"] == {"tenant": "x"}
    assert last["task_type"] == "batch_vectorization"


def test_a_document_is_followed_by_its_passages(
    hashed: tuple[Settings, LeaseEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = hashed
    monkeypatch.setattr(advance, "NOTED_SECONDS", 0.0)
    paragraphs = [f"Paragraph {n} of the keeper's log: the lamp burnt from dusk to dawn. " * 12 for n in range(200)]
    content = {
        "task_id": "log",
        "task_type": "document_vectorization",
        "data": {"content": "\n\n".join(paragraphs), "content_type": "text/plain"},
    }
    seen: list[RequestRow | None] = []
    with closing(RequestLedger.open(settings)) as ledger:

        @contextmanager
        def lease(model: str, dimension: int | None) -> Iterator[Encoder]:
            spec = describe_model(model, dimension=dimension)
            yield HashEncoder(spec, on_encode=lambda items: seen.append(ledger.get("log")))

        run(settings, content, lease)
        done = ledger.get("log")
    assert done is not None
    assert (done.modality, done.items, done.state) == (Modality.DOCUMENT, 1, RequestState.COMPLETED)
    assert done.vectors > 128, "more passages than the first batch takes"
    rows = [each for each in seen if each is not None]
    assert {each.known for each in rows} == {done.vectors}
    assert [each.done for each in rows][:2] == [0, 128]
    assert 0 < rows[1].progress < 1


def test_the_rows_of_a_task(hashed: tuple[Settings, LeaseEncoder]) -> None:
    settings, lease = hashed
    run(settings, texts("many", 250), lease)
    run(settings, texts("other", 3), lease)
    with serving(settings) as get:
        rows: list[dict[str, Any]] = []
        cursor: dict[str, Any] = {}
        while True:
            status, page = get("/tasks/many/result", **cursor)
            assert status == 200, page
            assert page["task_id"] == "many"
            assert page["collection"] == "texts"
            rows += page["rows"]
            if page["next_cursor"] is None:
                break
            cursor = {"cursor": page["next_cursor"]}
        assert [each["item_index"] for each in rows] == list(range(250))
        assert [each["text"] for each in rows] == [f"text number {n}" for n in range(250)]
        assert {each["source_id"] for each in rows} == {"many"}
        assert rows[0]["metadata"] == {"tenant": "x"}
        assert "vector" not in rows[0]
        assert datetime.fromisoformat(rows[0]["embedded_at"]).tzinfo is not None
        status, page = get("/tasks/many/result", vectors="true", limit=1000)
        assert (status, len(page["rows"]), page["next_cursor"]) == (200, 250, None)
        for each in page["rows"]:
            assert np.array_equal(np.asarray(each["vector"], np.float32), vector_of(each["text"]))
        assert get("/tasks/many/result", cursor="250")[1]["rows"] == []
        assert get("/tasks/many/result", cursor="9999999999")[1]["rows"] == []
        for cursor_ in ("x", "-1", "", "1" * 11, "²"):
            status, problem = get("/tasks/many/result", cursor=cursor_)
            assert (status, problem["errors"][0]["field"]) == (422, "cursor")
        assert get("/tasks/many/result", limit=1001)[0] == 422


@pytest.mark.parametrize("state", [state for state in RequestState if state is not RequestState.COMPLETED])
def test_a_task_that_is_not_completed_has_no_rows(shared: Shared, state: RequestState) -> None:
    shared.ledger.record([row(f"is {state}", state)])
    status, problem = shared.get(f"/tasks/is {state}/result")
    assert status == 409
    assert state.value in problem["detail"]


def test_a_collection_that_is_gone(shared: Shared) -> None:
    shared.ledger.record([row("with rows")])
    status, problem = shared.get("/tasks/with rows/result")
    assert status == 404
    assert "texts" in problem["detail"]


# ---- runs that died


@pytest.fixture(scope="module")
def with_dagster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Settings, Shared]]:
    """An installation with a web server of Dagster's, below the path that the gateway has for it."""
    settings = load_settings({}, home=tmp_path_factory.mktemp("home"))
    with open_instance(settings):
        """What the web server looks for is made."""
    port = free_port()
    command = ["dagster_webserver", "-h", "127.0.0.1", "-p", str(port), "-l", PATH_PREFIX, "--empty-workspace"]
    log = settings.home / "web-server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env={**os.environ, "DAGSTER_HOME": str(settings.home / "dagster")},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return requests.get(f"{url}{PATH_PREFIX}/server_info", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        until(f"the web server (its log is {log})", answers)
        with serving(settings, DagsterAddress(url)) as get, closing(RequestLedger.open(settings)) as ledger:
            yield settings, Shared(get, ledger)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def launched(
    settings: Settings,
    status: dg.DagsterRunStatus,
    state: RequestState = RequestState.PENDING,
    tags: Mapping[str, str] | None = None,
) -> RequestRow:
    """Note a run with this status, and its task as the ledger has it."""
    run_id = str(uuid.uuid4())
    with open_instance(settings) as instance:
        instance.add_run(dg.DagsterRun(job_name="embed_request", run_id=run_id, status=status, tags=dict(tags or {})))
    return replace(row(run_id, state, run_id=run_id), topic="", submitted_at=START)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("status", "noted", "shown"),
    [
        ("NOT_STARTED", RequestState.PENDING, "pending"),
        ("STARTING", RequestState.PENDING, "pending"),
        ("STARTED", RequestState.PENDING, "processing"),
        ("CANCELING", RequestState.PROCESSING, "processing"),
        ("NOT_STARTED", RequestState.PROCESSING, "processing"),
        ("FAILURE", RequestState.PENDING, "failed"),
        ("FAILURE", RequestState.PROCESSING, "failed"),
        ("CANCELED", RequestState.PROCESSING, "cancelled"),
        ("SUCCESS", RequestState.PROCESSING, "completed"),
        ("FAILURE", RequestState.COMPLETED, "completed"),
    ],
)
def test_a_run_that_ended_without_a_word(
    with_dagster: tuple[Settings, Shared], status: str, noted: RequestState, shown: str
) -> None:
    settings, shared = with_dagster
    task = launched(settings, dg.DagsterRunStatus[status], noted)
    shared.ledger.record([task])
    code, found = shared.get(f"/tasks/{task.request_id}")
    assert (code, found["status"]) == (200, shown)
    assert (found["error"] is not None) is (shown == "failed")
    assert found["progress"] == (1.0 if shown in ("failed", "cancelled", "completed") else 0.0)
    assert found["run_url"] == f"/dagster/runs/{task.run_id}"


@pytest.mark.timeout(300)
def test_runs_of_which_nothing_is_concluded(with_dagster: tuple[Settings, Shared]) -> None:
    """One that Dagster starts again, one that it has forgotten, one of a message, and one that was only just noted."""
    settings, shared = with_dagster
    again = launched(settings, dg.DagsterRunStatus.FAILURE, tags={"dagster/will_retry": "true"})
    forgotten = replace(again, request_id="forgotten", run_id=str(uuid.uuid4()))
    drained = replace(launched(settings, dg.DagsterRunStatus.FAILURE), request_id="drained", topic="vectorize.text")
    soon = datetime.now(UTC) + timedelta(hours=1)
    recent = replace(launched(settings, dg.DagsterRunStatus.FAILURE), request_id="recent", submitted_at=soon)
    shared.ledger.record([again, forgotten, drained, recent])
    for task in (again, forgotten, drained, recent):
        assert shared.get(f"/tasks/{task.request_id}")[1]["status"] == "pending"


def test_without_dagster_the_ledger_is_all_that_is_known(settings: Settings, ledger: RequestLedger) -> None:
    ledger.record([replace(row("one", RequestState.PROCESSING), topic="")])
    with serving(settings, NOBODY) as get:
        status, found = get("/tasks/one")
    assert (status, found["status"]) == (200, "processing")


# ---- what is documented


def test_the_routes_are_documented(get: Get) -> None:
    _, schema = get("/openapi.json")
    asked = {path: operations.get("get") for path, operations in schema["paths"].items() if path.startswith("/tasks")}
    routes = {path: operation for path, operation in asked.items() if operation is not None}
    assert set(routes) == {"/tasks", "/tasks/{task_id}", "/tasks/{task_id}/events", "/tasks/{task_id}/result"}
    own = {
        path: [status for status, each in route["responses"].items() if "$ref" not in each]
        for path, route in routes.items()
    }
    assert own["/tasks"] == ["200", "422"]
    assert own["/tasks/{task_id}"] == ["200", "404"]
    assert own["/tasks/{task_id}/result"] == ["200", "404", "409", "422"]
    assert all(operation["summary"] for operation in routes.values())
