"""Callers of the HTTP server who send what no client would: too much, too deep, too slowly, and by crooked paths.

The server is a whole one, with all its layers and every route, and tokens in use.
"""

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.gateway.door.test_connections import UPGRADE
from tests.gateway.door.test_limits import Client, problem
from tests.gateway.door.test_origins import TRICKS
from tests.gateway.running import until
from tests.gateway.whole import Whole, whole_server
from vectorize_pipelines.gateway.door.tokens import Scope

FIFTY_MEGABYTES = 50 * 2**20
FORM = "application/x-www-form-urlencoded"
REQUESTS = [
    "%s",
    '{"task_type": %s, "data": "a boat"}',
    '{"task_type": "batch_vectorization", "data": %s}',
    '{"task_type": "text_vectorization", "data": "a boat", "metadata": {"a": %s}}',
    '{"task_type": "document_vectorization", "data": {"content": "a boat", "metadata": {"a": %s}}}',
]
#: JSON for each route that takes it, with a place for what is nested.
PLACES = {
    "/tasks/submit": REQUESTS,
    "/api/v1/diagnosis/tasks/boat/submit": REQUESTS,
    "/tasks/batch": [
        "%s",
        '{"tasks": %s}',
        '[{"task_type": "text_vectorization", "data": "a", "metadata": {"a": %s}}]',
    ],
    "/collections/articles/search": ["%s", '{"query": %s}', '{"vector": %s}', '{"query": "a", "filter": %s}'],
    "/v1/embeddings": ["%s", '{"model": %s, "input": "a boat"}', '{"model": "m", "input": %s}'],
    "/graphql": ["%s", '{"query": %s}', '{"query": "{a}", "variables": {"a": %s}}'],
    "/dagster/graphql": ['{"query": "{a}", "variables": {"a": %s}}'],
}
#: Around the depths at which parsers, models and writers of JSON give up, each at one of its own.
DEPTHS = (60, 190, 250, 500, 900, 990, 1_100, 20_000, 100_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    with whole_server(tmp_path_factory.mktemp("attacked")) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Whole) -> Iterator[httpx2.Client]:
    """An administrator, to whom everything is open."""
    headers = {**server.as_caller(), "Content-Type": "application/json"}
    with httpx2.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client
        assert client.get("/livez").status_code == 200


def routes_with_a_body(client: httpx2.Client) -> dict[str, str]:
    """The paths of all routes that take a body, and the content type that each takes."""
    found = {"/dagster/graphql": "application/json"}
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for operation in methods.values():
            for kind in operation.get("requestBody", {}).get("content", ()):
                found[path.replace("{name}", "articles").replace("{task_id}", "boat")] = kind
    return found


def test_every_route_is_attacked(client: httpx2.Client) -> None:
    assert set(routes_with_a_body(client)) == {*PLACES, "/signin"}


@pytest.mark.parametrize("declared", [True, False])
def test_no_route_takes_fifty_megabytes(client: httpx2.Client, declared: bool) -> None:
    piece = b"a" * 2**20
    for path, kind in routes_with_a_body(client).items():
        pieces = (piece for _ in range(FIFTY_MEGABYTES // len(piece)))
        content: Any = piece * 50 if declared else pieces
        answer = client.post(path, content=content, headers={"Content-Type": kind})
        assert answer.status_code == 413, path


def test_no_body_is_unpacked(client: httpx2.Client) -> None:
    packed = gzip.compress(b'{"query": "' + b"a" * FIFTY_MEGABYTES)
    for path, kind in routes_with_a_body(client).items():
        answer = client.post(path, content=packed, headers={"Content-Type": kind, "Content-Encoding": "gzip"})
        assert answer.status_code in (400, 413, 415, 422), path


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"not": ', "}"), ("[", "")])
@pytest.mark.parametrize("path", PLACES)
def test_nothing_is_nested_too_deeply_to_be_answered(
    client: httpx2.Client, path: str, opening: str, closing: str
) -> None:
    for depth in DEPTHS:
        nested = opening * depth + ("1" + closing * depth if closing else "")
        for place in PLACES[path]:
            answer = client.post(path, content=place % nested)
            assert answer.status_code in (200, 400, 413, 422), (place, depth, answer.text)
            assert answer.status_code == 200 or answer.headers["content-type"].endswith("json")
            if depth >= 20_000 or not closing:
                assert answer.status_code != 200, (place, depth)


class Caller(Client):
    """A connection of an administrator, of which the test says each byte."""

    def __init__(self, server: Whole) -> None:
        super().__init__(server.url)
        self._known = [f"Host: {urlsplit(server.url).netloc}", "Authorization: " + server.as_caller()["Authorization"]]

    def request(self, line: str, *headers: str) -> None:
        self.send("\r\n".join([f"{line} HTTP/1.1", *self._known, *headers, "", ""]))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_crooked_path_leads_anywhere(server: Whole, method: str) -> None:
    before = len(server.dagster.got)
    for target in TRICKS:
        with closing(Caller(server)) as caller:
            caller.request(f"{method} {target}", "Content-Type: application/json", "Content-Length: 2")
            caller.send("{}")
            assert caller.answer()[0] == 400, target
    assert len(server.dagster.got) == before


def test_a_body_of_two_lengths_is_no_second_request(server: Whole) -> None:
    for lengths in (("Content-Length: 4", "Transfer-Encoding: chunked"), ("Content-Length: 0", "Content-Length: 40")):
        with closing(Caller(server)) as caller:
            caller.request("POST /tasks/submit", "Content-Type: application/json", *lengths)
            caller.send(f"0\r\n\r\nGET /livez HTTP/1.1\r\nHost: {urlsplit(server.url).netloc}\r\n\r\n")
            assert caller.rest().count(b"HTTP/1.1 ") == 1


# ---- slowly


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """A server that gives a body, and a WebSocket that is silent, a moment."""
    pings = {"ws_ping_interval": 0.1, "ws_ping_timeout": 0.1}
    with whole_server(tmp_path_factory.mktemp("impatient"), options=pings, request_seconds=0.5) as server:
        yield server


def test_no_route_waits_for_a_slow_sender(impatient: Whole) -> None:
    with ExitStack() as held:
        callers = {path: held.enter_context(closing(Caller(impatient))) for path in (*PLACES, "/signin")}
        for path, caller in callers.items():
            kind = FORM if path == "/signin" else "application/json"
            caller.request(f"POST {path}", f"Content-Type: {kind}", "Content-Length: 1000")
            caller.send('{"query": ')
        for path, caller in callers.items():
            assert problem(caller.answer())[0] == 408, path
            assert caller.is_closed()


def test_who_has_no_token_is_not_waited_for_at_all(server: Whole) -> None:
    for path in PLACES:
        with closing(Client(server.url)) as stranger:
            host = urlsplit(server.url).netloc
            head = [f"POST {path} HTTP/1.1", f"Host: {host}", "Content-Type: application/json", "Content-Length: 1000"]
            stranger.send("\r\n".join([*head, "", '{"query": ']))
            assert problem(stranger.answer())[0] == 401, path


def test_a_websocket_that_is_half_open_ends_dagsters_too(impatient: Whole) -> None:
    with closing(Caller(impatient)) as caller:
        caller.request("GET /graphql", *UPGRADE, "Sec-WebSocket-Protocol: graphql-ws")
        until(lambda: impatient.dagster.closed_with)


# ---- with too few rights


def test_a_reader_submits_and_cancels_nothing(server: Whole) -> None:
    before = len(server.dagster.got)
    with httpx2.Client(base_url=server.url, headers=server.as_caller(Scope.READ), trust_env=False) as reader:
        text = {"task_type": "text_vectorization", "data": "a boat"}
        for answer in (
            reader.post("/tasks/submit", json=text),
            reader.post("/tasks/batch", json=[text]),
            reader.delete("/tasks/a"),
            reader.post("/graphql", json={"query": "mutation {m}"}),
            reader.post("/dagster/report_asset_materialization/a", json={}),
        ):
            assert answer.status_code == 403
            assert "lacks the scope" in json.loads(answer.content)["detail"]
    assert len(server.dagster.got) == before
