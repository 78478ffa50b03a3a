"""What `/openapi.json` says is what a whole server answers, to requests made up from it and to known ones.

Left out are the streams of events, which do not end, Dagster's own pages, which are not described, and the risks of
cameras, which this server without Kafka has none of.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis.config import HealthCheck
from schemathesis.engine import from_schema
from schemathesis.engine.events import FatalError, NonFatalError, ScenarioFinished
from starlette.types import ASGIApp

from tests.gateway.asking import JSON, Answer, ask
from tests.gateway.dagster.upstream import UNKNOWN_FIELD
from tests.gateway.encoding.held_encoder import DIMENSION, vector_of
from tests.gateway.installations import NO_DAGSTER, ended, new_row, taken_up
from tests.gateway.whole import TEXT_ENCODER, Whole, whole_server
from vectorize_pipelines.core.records import record_id
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.app import create_app
from vectorize_pipelines.gateway.door.auth import is_open
from vectorize_pipelines.gateway.door.origins import ServerAddress
from vectorize_pipelines.gateway.door.tokens import Scope, Tokens, TokensFile
from vectorize_pipelines.gateway.problems import MEDIA_TYPE
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, Settings, load_settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.conformance.records import row, table

pytestmark = pytest.mark.slow

#: Made up for each operation, beside those that its examples and the bounds of its schemas ask for.
EXAMPLES = 15
CHECKS = [
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
]
LEFT_OUT = ("/events", "/tasks/{task_id}/events", "/risk/cameras")

TEXTS = "articles"
DONE, WAITS, FAILED, ENDS = "done", "waits", "failed", "ends/with a slash"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """A server with a collection of one row, and a task in each state."""
    with whole_server(tmp_path_factory.mktemp("contract")) as server:
        store_row(server.settings)
        done = replace(ended(new_row(DONE)), collection=TEXTS)
        failed = ended(new_row(FAILED, sent=1), RequestState.FAILED)
        server.ledger.record([done, failed, *(taken_up(new_row(each, sent=2)) for each in (WAITS, ENDS))])
        yield server


def store_row(settings: Settings) -> None:
    store = open_store(settings.store, settings.home)
    store.ensure_collection(TEXTS, TEXT_ENCODER.spec)
    store.upsert(TEXTS, table([row(DONE, vector=vector_of("a boat"), metadata={"year": 1970})], DIMENSION))
    store.flush((TEXTS,))
    store.close()


@pytest.fixture(scope="module")
def session(server: Whole) -> Iterator[requests.Session]:
    """An administrator. These headers come before those of a case, so that no others are among them."""
    with requests.Session() as session:
        session.trust_env = False
        session.headers.clear()
        session.headers.update(server.as_caller())
        yield session


@pytest.fixture(scope="module")
def api(server: Whole) -> schemathesis.BaseSchema:
    """The description as it is served."""
    config = schemathesis.Config(seed=1)
    api = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config, headers=server.as_caller())
    api.config.update(headers=server.as_caller(), suppress_health_check=[HealthCheck.all])
    api.config.generation.update(max_examples=EXAMPLES, deterministic=True, database="none")
    api.config.checks.update(included_check_names=CHECKS)
    api.config.phases.coverage.unexpected_methods = set()  # what is answered to other methods is not described
    api.config.phases.stateful.enabled = False
    return api


@pytest.fixture(scope="module")
def operations(server: Whole, session: requests.Session) -> set[str]:
    """The operations that are described, as `GET /tasks`."""
    paths = session.get(f"{server.url}/openapi.json").json()["paths"]
    return {f"{method.upper()} {path}" for path in paths.keys() - LEFT_OUT for method in paths[path]}


# ---- requests made up


def test_every_answer_is_as_described(api: schemathesis.BaseSchema, operations: set[str]) -> None:
    """Requests of each operation that its schemas allow, and such as they do not."""
    asked: Counter[str] = Counter()
    wrong: list[str] = []
    for event in from_schema(api.exclude(path=list(LEFT_OUT))).execute():
        if isinstance(event, ScenarioFinished):
            asked[event.recorder.label] += len(event.recorder.interactions)
            checks = (check for each in event.recorder.checks.values() for check in each)
            wrong += [
                f"{check.name}: {check.failure_info.failure}\n{check.failure_info.code_sample}"
                for check in checks
                if check.failure_info is not None
            ]
        elif isinstance(event, NonFatalError):
            wrong.append(f"{event.label}: {event.value}")
        elif isinstance(event, FatalError):
            raise event.exception
    assert not wrong, "\n\n".join(wrong)
    assert {operation for operation, times in asked.items() if times} == operations


# ---- known requests


@dataclass(frozen=True)
class Known:
    """A request of an operation, and the status that it gets."""

    operation: str
    status: int = 200
    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    media_type: str = "application/json"


HTML = {"Accept": "text/html"}
NAME = {"name": TEXTS}
ROW = {**NAME, "row_id": record_id(TEXTS, DONE, 0)}
TEXT = {"task_type": "text_vectorization", "data": "a boat at sea"}
BY_HAND = "POST /api/v1/diagnosis/tasks/{task_id}/submit"
FORM = "application/x-www-form-urlencoded"
KNOWN = [
    Known("GET /"),
    Known("GET /", headers=HTML),
    Known("GET /livez"),
    Known("GET /health"),
    Known("GET /metrics"),
    Known("GET /metrics", headers={"Accept": "text/plain"}),
    Known("GET /metrics", headers={"Accept": "application/openmetrics-text"}),
    Known("POST /tasks/submit", body=TEXT),
    Known("POST /tasks/submit", body={**TEXT, "priority": "high", "metadata": {"tenant": "a"}, "task_id": "mine"}),
    Known("POST /tasks/submit", 422, body={**TEXT, "task_type": "no type"}),
    Known("POST /tasks/batch", body=[TEXT, TEXT]),
    Known("POST /tasks/batch", body={"tasks": [TEXT]}),
    Known("POST /tasks/batch", 422, body=[TEXT] * 101),
    Known(BY_HAND, path={"task_id": "mine"}, body=TEXT),
    Known(BY_HAND, 422, path={"task_id": "mine"}, body={**TEXT, "task_id": "another"}),
    Known("GET /api/v1/diagnosis/workers/distributed"),
    Known("GET /api/v1/diagnosis/workers/status"),
    Known("GET /tasks"),
    Known("GET /tasks", query={"status_filter": "FAILED", "page": 1, "page_size": 2}),
    Known("GET /tasks", 422, query={"cursor": "none"}),
    Known("GET /tasks/{task_id}", path={"task_id": DONE}),
    Known("GET /tasks/{task_id}", path={"task_id": FAILED}),
    Known("GET /tasks/{task_id}", path={"task_id": ENDS}),
    Known("GET /tasks/{task_id}", 404, path={"task_id": "nobody"}),
    Known("GET /tasks/{task_id}/result", path={"task_id": DONE}, query={"vectors": "true"}),
    Known("GET /tasks/{task_id}/result", 409, path={"task_id": WAITS}),
    Known("DELETE /tasks/{task_id}", path={"task_id": WAITS}),
    Known("DELETE /tasks/{task_id}", 409, path={"task_id": DONE}),
    Known("DELETE /tasks/{task_id}", 404, path={"task_id": "nobody"}),
    Known("GET /collections"),
    Known("GET /collections/{name}", path=NAME),
    Known("GET /collections/{name}", 404, path={"name": "nowhere"}),
    Known("POST /collections/{name}/search", path=NAME, body={"query": "a boat", "filter": "year = 1970"}),
    Known("POST /collections/{name}/search", path=NAME, body={"vector": [1.0] * DIMENSION, "limit": 3}),
    Known("POST /collections/{name}/search", 422, path=NAME, body={"query": "a", "image": "data:,"}),
    Known("GET /collections/{name}/rows/{row_id}", path=ROW),
    Known("GET /collections/{name}/rows/{row_id}/thumbnail", 404, path=ROW),
    Known("POST /v1/embeddings", body={"model": DEFAULT_TEXT_MODEL, "input": ["a boat", "a lamp"]}),
    Known("POST /v1/embeddings", body={"model": DEFAULT_TEXT_MODEL, "input": "a", "encoding_format": "base64"}),
    Known("POST /v1/embeddings", 404, body={"model": "no model", "input": "a"}),
    Known("POST /v1/embeddings", 400, body={"model": DEFAULT_TEXT_MODEL, "input": []}),
    Known("GET /v1/models"),
    Known("GET /v1/models/{model}", path={"model": DEFAULT_TEXT_MODEL}),
    Known("GET /v1/models/{model}", 404, path={"model": "none"}),
    Known("GET /risk/picture", 404, query={"task_id": "nobody's"}),
    Known("GET /graphql", query={"query": "{version}"}),
    Known("GET /graphql", 405, query={"query": "mutation {m}"}),
    Known("GET /graphql", 400),
    Known("POST /graphql", body={"query": "{version}"}),
    Known("POST /graphql", 400, body={"query": f"{{{UNKNOWN_FIELD}}}"}),
    Known("GET /signin"),
    Known("GET /signin", 400, query={"next": "//elsewhere.example"}),
    Known("POST /signin", 401, body={"token": "none"}, media_type=FORM),
    Known("POST /signin", 401, body={"token": "none"}, media_type=FORM, headers=HTML),
    Known("POST /signout", 303),
]


def call(api: schemathesis.BaseSchema, session: requests.Session, known: Known) -> int:
    """The status of the answer, which is as described."""
    method, path = known.operation.split()
    sent: dict[str, Any] = {} if known.body is None else {"body": known.body, "media_type": known.media_type}
    case = api[path][method].Case(
        path_parameters=dict(known.path), query=dict(known.query), headers=dict(known.headers), **sent
    )
    return case.call_and_validate(session=session).status_code


@pytest.mark.parametrize("known", KNOWN, ids=[f"{each.operation} {each.status}" for each in KNOWN])
def test_a_known_request_gets_the_answer_described(
    api: schemathesis.BaseSchema, session: requests.Session, known: Known
) -> None:
    assert call(api, session, known) == known.status


def test_signing_in_is_as_described(api: schemathesis.BaseSchema, server: Whole) -> None:
    with requests.Session() as browser:  # which keeps the cookie
        form = {"token": server.tokens[Scope.READ], "next": "/docs"}
        assert call(api, browser, Known("POST /signin", body=form, media_type=FORM)) == HTTPStatus.SEE_OTHER


def test_every_operation_has_a_request_that_succeeds(operations: set[str]) -> None:
    succeed = {each.operation for each in KNOWN if each.status < HTTPStatus.BAD_REQUEST}
    # A picture is drawn by a confined process, where thumbnails are tested; one of a camera comes by Kafka.
    pictures = {"GET /collections/{name}/rows/{row_id}/thumbnail", "GET /risk/picture"}
    assert operations - succeed == {"POST /signin", *pictures}


# ---- what is answered in the place of any route


@dataclass(frozen=True)
class Served:
    """The app alone, whose layers answer without what its routes stand on, and the description of its API."""

    app: ASGIApp
    description: dict[str, Any]
    token: str

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Each operation with its method and a path of it."""
        for path, methods in self.description["paths"].items():
            for method, operation in methods.items():
                yield method.upper(), re.sub(r"\{\w+\}", "x", path), operation

    def is_described(self, operation: dict[str, Any], answer: Answer) -> bool:
        """Return whether an operation says that it may have this answer."""
        described = operation["responses"].get(str(answer.status), {})
        if "$ref" in described:
            described = self.description["components"]["responses"][described["$ref"].rpartition("/")[2]]
        kind = answer.headers.get("content-type", "").partition(";")[0]
        return bool(described) and (not kind or kind in described["content"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    settings = load_settings({"VECTORIZE_HOME": str(tmp_path_factory.mktemp("layers"))})
    token = TokensFile.of(settings).add("admin", [Scope.ADMIN])
    app = create_app(settings, NO_DAGSTER, Tokens.open(settings), ServerAddress("127.0.0.1", 8000))
    described = ask(app, "/openapi.json", [("Authorization", f"Bearer {token}")])
    return Served(app, described.json, token)


#: Headers that have a layer answer, whatever the route, and the status that it answers with.
ANSWERED = {
    "a header twice": (400, [("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "none")]),
    "another name": (403, [("Host", "elsewhere.example")]),
    "a page of another origin": (403, [("Origin", "http://elsewhere.example")]),
    "a body that is too large": (413, [("Content-Length", "50000000")]),
    "no token": (401, []),
    "a token of nobody": (401, [("Authorization", "Bearer vec_none")]),
    "a browser without a session": (303, [("Accept", "text/html")]),
}


@pytest.mark.parametrize("what", ANSWERED)
def test_what_layers_answer_is_described_at_every_route(served: Served, what: str) -> None:
    status, headers = ANSWERED[what]
    for method, path, operation in served.operations():
        answer = ask(served.app, path, [*headers, JSON], method)
        assert served.is_described(operation, answer), (method, path, answer.status)
        if not is_open(path) or status in (400, 403):
            assert answer.status == status, (method, path)


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data; boundary=x", "application/graphql"])
def test_another_content_type_is_described_at_every_route_that_takes_a_body(served: Served, kind: str) -> None:
    refused = []
    for method, path, operation in served.operations():
        if method == "POST":
            answer = ask(served.app, path, [("Content-Type", kind)] if kind else [], method)
            assert served.is_described(operation, answer), (method, path, answer.status)
            refused += [path] if answer.status == HTTPStatus.UNSUPPORTED_MEDIA_TYPE else []
    assert {"/tasks/submit", "/tasks/batch", "/v1/embeddings", "/graphql", "/signin"} < set(refused)


def test_tokens_that_cannot_be_read_are_described_at_every_route(tmp_path: Path, served: Served) -> None:
    (tmp_path / "tokens.json").write_text("{")
    tokens = Tokens(TokensFile(tmp_path / "tokens.json"))
    settings = load_settings({"VECTORIZE_HOME": str(tmp_path)})
    app = create_app(settings, NO_DAGSTER, tokens, ServerAddress("127.0.0.1", 8000))
    for method, path, operation in served.operations():
        answer = ask(app, path, [JSON], method)
        assert served.is_described(operation, answer), (method, path, answer.status)
        if not is_open(path):
            assert (answer.status, answer.headers["retry-after"]) == (503, "5")


def test_what_goes_on_too_long_is_described(served: Served) -> None:
    """That it is answered so is seen in `door.test_limits` and `door.test_connections`."""
    for method, path, operation in served.operations():
        assert {"431", "500", "503"} <= operation["responses"].keys()
        assert ("504" in operation["responses"]) == (path != "/livez")
        assert ("408" in operation["responses"]) == ("requestBody" in operation), (method, path)


def test_every_error_has_a_form_of_this_server(served: Served) -> None:
    """FastAPI has one of its own for requests that are not as their model says, which nothing here answers."""
    assert "HTTPValidationError" not in json.dumps(served.description)
    for _, path, operation in served.operations():
        for status, each in operation["responses"].items():
            if status >= "400" and "$ref" not in each:
                in_openai_form = path.startswith("/v1/") and set(each["content"]) == {"application/json"}
                assert MEDIA_TYPE in each["content"] or in_openai_form, (path, status)


def test_everything_that_is_referred_to_is_there(served: Served) -> None:
    for reference in set(re.findall(r'"\$ref": "#/components/(\w+/\w+)"', json.dumps(served.description))):
        kind, name = reference.split("/")
        assert name in served.description["components"][kind]
