"""What passes between a client and Dagster's web server, of which a small server of the tests' own takes the place."""

import gzip
import http.client
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import anyio.to_thread
import httpx2
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse, Response
from starlette.types import Message, Receive, Send
from starlette.types import Scope as ASGIScope
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.http11 import Request
from websockets.server import ServerProtocol
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.gateway.dagster.upstream import CLOSE, CLOSED, Upstream
from tests.gateway.running import as_caller, running
from tests.servers.dev import until
from tests.servers.ports import free_ports
from tests.servers.web import serving
from vectorize_pipelines.gateway.app import create_routes
from vectorize_pipelines.gateway.dagster import proxy as dagster_proxy
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.gateway.problems import MEDIA_TYPE
from vectorize_pipelines.settings import Settings, load_settings

GRAPHQL_WS = Subprotocol("graphql-ws")

READER = Caller.of("reader", Scope.READ)
ADMIN = Caller.of("admin", Scope.ADMIN)
NOBODY = Caller.of("nobody")
MUTATION = "mutation { m }"
JSON = "application/json"
_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Gateway:
    """A gateway at a port of its own, for one caller."""

    url: str
    client: httpx2.Client

    def websocket(self, path: str = "/graphql", **options: Any) -> ClientConnection:
        connection: ClientConnection = connect(self.url.replace("http", "ws") + path, proxy=None, **options)
        return connection

    def ask(self, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b"") -> int:
        """The status of the answer to a request whose address is sent as it is."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=_WAIT_SECONDS)
        try:
            connection.request(method, target, body or None, headers or {})
            return connection.getresponse().status
        finally:
            connection.close()


@contextmanager
def gateway(settings: Settings, address: DagsterAddress, caller: Caller = ADMIN, **more: Any) -> Iterator[Gateway]:
    own = settings.model_copy(update={"gateway": settings.gateway.model_copy(update=more)})
    with (
        running(as_caller(create_routes(own, address), caller)) as url,
        httpx2.Client(base_url=url, timeout=_WAIT_SECONDS, trust_env=False) as client,
    ):
        yield Gateway(url, client)


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return load_settings({"VECTORIZE_HOME": str(tmp_path_factory.mktemp("home"))})


@pytest.fixture(scope="module")
def app() -> Upstream:
    return Upstream()


@pytest.fixture(scope="module")
def address(app: Upstream) -> Iterator[DagsterAddress]:
    with running(app) as url:
        yield DagsterAddress(url)


@pytest.fixture
def upstream(app: Upstream) -> Upstream:
    """The server in Dagster's place, which knows of no earlier test."""
    vars(app).update(vars(Upstream()))
    return app


@pytest.fixture(scope="module")
def admin(installation: Settings, address: DagsterAddress) -> Iterator[Gateway]:
    with gateway(installation, address) as admin:
        yield admin


@pytest.fixture(scope="module")
def reader(installation: Settings, address: DagsterAddress) -> Iterator[Gateway]:
    with gateway(installation, address, READER) as reader:
        yield reader


def problem(answer: httpx2.Response, status: int) -> str:
    """The detail of an answer that is an error."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == MEDIA_TYPE
    return str(answer.json()["detail"])


def test_what_is_asked_for_arrives_and_who_asks_does_not(
    admin: Gateway, upstream: Upstream, address: DagsterAddress
) -> None:
    headers = {
        "Authorization": "Bearer secret",
        "Cookie": "vectorize_session=secret",
        "Origin": admin.url,
        "Referer": f"{admin.url}/dagster/?token=secret",
        "Sec-Fetch-Site": "same-origin",
        "Forwarded": "for=192.0.2.1",
        "X-Forwarded-For": "192.0.2.1",
        "Connection": "keep-alive, X-Private",
        "X-Private": "secret",
        "TE": "trailers",
        "Accept": "text/plain",
        "Accept-Encoding": "br",
        "If-None-Match": '"1"',
    }
    answer = admin.client.get("/dagster/a%2Fb/c d?x=1&x=2&y=%2F&z", headers=headers)
    assert (answer.status_code, answer.text) == (200, "answered")
    (got,) = upstream.got
    assert (got.method, got.path, got.query_string) == ("GET", "/dagster/a/b/c d", b"x=1&x=2&y=%2F&z")
    assert got.headers["host"] == urlsplit(address.url).netloc
    kept = ("accept", "accept-encoding", "if-none-match")
    assert {name: got.headers[name] for name in kept} == {name: headers[name.title()] for name in kept}
    assert set(got.headers) - {*kept, "user-agent", "host", "connection"} == set()


def test_nobody_is_sent_what_he_cannot_decode(admin: Gateway, upstream: Upstream) -> None:
    connection = http.client.HTTPConnection(urlsplit(admin.url).netloc, timeout=_WAIT_SECONDS)
    connection.putrequest("GET", "/dagster/x", skip_accept_encoding=True)
    connection.endheaders()
    assert connection.getresponse().status == 200
    assert upstream.got[0].headers["accept-encoding"] == "identity"


def test_a_compressed_answer_stays_compressed(admin: Gateway, upstream: Upstream) -> None:
    packed = gzip.compress(b"x" * 10_000)
    upstream.answer = Response(packed, headers={"Content-Encoding": "gzip"}, media_type="text/plain")
    with admin.client.stream("GET", "/dagster/x") as answer:
        assert b"".join(answer.iter_raw()) == packed
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["content-length"] == str(len(packed))


def test_an_answer_comes_piece_by_piece(admin: Gateway, upstream: Upstream) -> None:
    go_on = threading.Event()

    async def answer(scope: ASGIScope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await anyio.to_thread.run_sync(go_on.wait, _WAIT_SECONDS)
        await send({"type": "http.response.body", "body": b"second"})

    upstream.answer = answer
    with admin.client.stream("GET", "/dagster/x") as answered:
        parts = answered.iter_raw()
        assert next(parts) == b"first"
        go_on.set()
        assert b"".join(parts) == b"second"


def test_a_body_is_sent_on_piece_by_piece(admin: Gateway, upstream: Upstream) -> None:
    answer = admin.client.post(
        "/dagster/report_asset_check/x?passed=true",
        content=iter([b'{"metadata"', b": {}}"]),
        headers={"Content-Type": JSON, "Authorization": "Bearer secret"},
    )
    assert answer.status_code == 200
    (got,) = upstream.got
    assert (got.method, got.query_string, got.body) == ("POST", b"passed=true", b'{"metadata": {}}')
    assert got.headers["content-type"] == JSON
    assert got.headers["transfer-encoding"] == "chunked"
    assert "authorization" not in got.headers


def test_headers_of_the_connection_and_of_other_servers_end_here(admin: Gateway, upstream: Upstream) -> None:
    upstream.answer = Response(
        headers={
            "Set-Cookie": "vectorize_session=another",
            "Access-Control-Allow-Origin": "*",
            "Connection": "X-Private",
            "X-Private": "1",
            "Keep-Alive": "timeout=1",
            "Content-Security-Policy": "base-uri 'none'",
            "X-Dagster-Call-Counts": "{}",
        }
    )
    answer = admin.client.get("/dagster/x")
    for name in ("set-cookie", "access-control-allow-origin", "connection", "x-private", "keep-alive"):
        assert name not in answer.headers
    assert answer.headers["content-security-policy"] == "base-uri 'none'"
    assert answer.headers["x-dagster-call-counts"] == "{}"
    assert len(answer.headers.get_list("date")) == 1


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("{url}/dagster/x/?a=1#b", "/dagster/x/?a=1#b"),
        ("{url}//elsewhere.example/x", "/elsewhere.example/x"),
        ("{url}", "/"),
        ("/dagster/x", "/dagster/x"),
        ("x", "x"),
        ("https://elsewhere.example/x", "https://elsewhere.example/x"),
    ],
)
def test_an_address_of_the_web_server_becomes_one_of_this(
    admin: Gateway, upstream: Upstream, address: DagsterAddress, location: str, expected: str
) -> None:
    upstream.answer = Response(status_code=307, headers={"Location": location.format(url=address.url)})
    assert admin.client.get("/dagster/x").headers["location"] == expected


def test_the_ui_has_one_address(admin: Gateway, upstream: Upstream) -> None:
    answer = admin.client.get("/dagster")
    assert (answer.status_code, answer.headers["location"]) == (307, "/dagster/")
    assert not upstream.got


@pytest.mark.parametrize("headers", [[(b"content-length", b"100")], []], ids=["with its length", "in chunks"])
def test_an_answer_that_breaks_off_is_not_taken_for_a_whole_one(
    admin: Gateway, upstream: Upstream, headers: list[tuple[bytes, bytes]]
) -> None:
    async def answer(scope: ASGIScope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})

    upstream.answer = answer
    with admin.client.stream("GET", "/dagster/x") as answered, pytest.raises(httpx2.RemoteProtocolError):
        answered.read()


def test_who_goes_away_ends_what_was_asked_for(admin: Gateway, upstream: Upstream) -> None:
    gone = threading.Event()

    async def answer(scope: ASGIScope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        message: Message = {}
        while message.get("type") != "http.disconnect":
            message = await receive()
        gone.set()

    upstream.answer = answer
    with admin.client.stream("GET", "/dagster/x") as answered:
        assert next(answered.iter_raw()) == b"first"
    assert gone.wait(_WAIT_SECONDS)


@pytest.mark.parametrize("at_socket", [True, False])
def test_without_dagster_a_program_is_told_and_a_person_waits(
    installation: Settings, tmp_path: Path, at_socket: bool
) -> None:
    port = free_ports(1)[0]
    missing = (
        DagsterAddress("http://localhost", tmp_path / "none")
        if at_socket
        else DagsterAddress(f"http://127.0.0.1:{port}")
    )
    with gateway(installation, missing) as admin:
        for path in ("/graphql?query=%7Bversion%7D", "/dagster/runs", "/dagster/server_info"):
            answer = admin.client.get(path)
            assert "is starting, or away" in problem(answer, 503)
            assert int(answer.headers["retry-after"]) > 0
        posted = admin.client.post("/graphql", json={"query": "{version}"}, headers={"Accept": "text/html"})
        assert problem(posted, 503)
        page = admin.client.get("/dagster/runs", headers={"Accept": "text/html,*/*;q=0.8"})
        assert (page.status_code, page.headers["cache-control"]) == (503, "no-store")
        assert re.search(r'<meta http-equiv="refresh" content="\d+">', page.text)
        with pytest.raises(InvalidStatus) as refused:
            admin.websocket(subprotocols=[GRAPHQL_WS])
        assert refused.value.response.status_code == 503


def greet(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 hello\r\n\r\n")


def test_a_web_server_that_speaks_no_http_is_a_bad_gateway(installation: Settings) -> None:
    with (
        serving(greet) as web,
        gateway(installation, DagsterAddress(web.url(""))) as admin,
    ):
        assert problem(admin.client.get("/dagster/x"), 502)


def test_a_web_server_that_does_not_answer_is_not_waited_for(
    installation: Settings, upstream: Upstream, address: DagsterAddress
) -> None:
    ended = threading.Event()

    async def answer(scope: ASGIScope, receive: Receive, send: Send) -> None:
        await anyio.to_thread.run_sync(ended.wait, _WAIT_SECONDS)
        await PlainTextResponse("late")(scope, receive, send)

    upstream.answer = answer
    with gateway(installation, address, request_seconds=0.2) as admin:
        assert "within 0.2 s" in problem(admin.client.get("/dagster/x"), 504)
    ended.set()


# Spellings of paths: what Dagster gets must be what was judged, and what only administrators may is not hidden in one.
PARTS = st.sampled_from(
    [
        "a", "", ".", "..", "%2e%2e", "%2E", ".%2e", "%2f", "%2F..", "%5c", "%5C..%5C", "notebook", "%6eotebook",
        "NoteBook", "dagit", "graphql", "%67raphql", "GraphQL", "graphql%0a", "%0anotebook", "%00", "%25",
        "%252e%252e", "%C3%A9", "%ff", "report_asset_check", "x;y", "a%20b", "%3f", "%23", "%zz",
    ]
)  # fmt: skip


@given(st.lists(PARTS, max_size=5).map("/".join), st.sampled_from(["GET", "HEAD"]))
@hypothesis_settings(max_examples=300)
def test_no_spelling_of_a_path_means_another_one_to_dagster(
    reader: Gateway, app: Upstream, path: str, method: str
) -> None:
    app.answer = PlainTextResponse("answered")
    del app.got[:]
    status = reader.ask(method, f"/dagster/{path}?query={quote(MUTATION)}")
    for got in app.got:
        assert status == 200
        assert got.path == unquote(f"/dagster/{path}")
        assert not {".", ".."} & set(got.path.split("/"))
        assert not re.fullmatch(r"/dagster/+(dagit/+)?notebook[/\s]*", got.path, re.IGNORECASE)
        assert "graphql" not in got.path.lower()
        assert not re.search(r"[\x00-\x1f\x7f\\]", got.path)
    assert app.got or status in (400, 403, 404, 405)


@pytest.mark.parametrize(
    "path",
    [
        "report_asset_materialization/graphql",
        "report_asset_check/a?check_name=b&passed=true",
        "report_asset_observation/a",
        "logs/a",
        "runs",
        "graphql/",
        "graphql/x",
        "/graphql",
        "",
    ],
)
def test_what_is_no_query_is_for_administrators(reader: Gateway, admin: Gateway, upstream: Upstream, path: str) -> None:
    body = json.dumps({"query": "{ version }"}).encode()
    assert reader.ask("POST", f"/dagster/{path}", {"Content-Type": JSON}, body) == 403
    assert not upstream.got
    assert admin.ask("POST", f"/dagster/{path}", {"Content-Type": JSON}, body) == 200
    assert [got.body for got in upstream.got] == [body]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "MUTATE"])
@pytest.mark.parametrize("path", ["/graphql", "/dagster/graphql", "/dagster/runs"])
def test_no_other_method_is_served(admin: Gateway, upstream: Upstream, method: str, path: str) -> None:
    assert admin.ask(method, path, {"Content-Type": JSON}, b'{"query": "{a}"}') in (400, 405)
    assert not upstream.got


def test_a_caller_without_any_scope_gets_nothing(
    installation: Settings, upstream: Upstream, address: DagsterAddress
) -> None:
    with gateway(installation, address, NOBODY) as nobody:
        for path in ("/graphql?query=%7Ba%7D", "/dagster", "/dagster/", "/dagster/runs", "/dagster/_next/x.js"):
            assert "lacks the scope read" in problem(nobody.client.get(path), 403)
        assert problem(nobody.client.post("/dagster/graphql", json={"query": "{a}"}), 403)
        for path in ("/graphql", "/dagster/graphql"):
            with pytest.raises(InvalidStatus) as refused:
                nobody.websocket(path)
            assert refused.value.response.status_code == 403
    assert not upstream.got


_BODY = json.dumps({"query": MUTATION}).encode()
_QUERY = quote(MUTATION)
#: Requests that would have some server mutate: (method, what follows the path, headers, body).
FORMS: dict[str, tuple[str, str, dict[str, str], bytes]] = {
    "JSON": ("POST", "", {"Content-Type": JSON}, _BODY),
    "JSON with a charset": ("POST", "", {"Content-Type": f"{JSON}; charset=utf-8"}, _BODY),
    "JSON in UTF-16": ("POST", "", {"Content-Type": JSON}, _BODY.decode().encode("utf-16")),
    "a batch": ("POST", "", {"Content-Type": JSON}, b"[" + _BODY + b"]"),
    "a batch behind a query": ("POST", "", {"Content-Type": JSON}, b'[{"query": "{a}"}, ' + _BODY + b"]"),
    "two keys": ("POST", "", {"Content-Type": JSON}, b'{"query": "{a}", "query": "mutation {m}"}'),
    "a name that picks the query": (
        "POST", "", {"Content-Type": JSON},
        b'{"query": "query Q {a} mutation M {m}", "operationName": "Q"}',
    ),
    "a fragment": ("POST", "", {"Content-Type": JSON}, b'{"query": "mutation {...F} fragment F on Mutation {m}"}'),
    "compressed": ("POST", "", {"Content-Type": JSON, "Content-Encoding": "gzip"}, gzip.compress(_BODY)),
    "no type": ("POST", "", {}, _BODY),
    "text": ("POST", "", {"Content-Type": "text/plain"}, _BODY),
    "text that passes for JSON": ("POST", "", {"Content-Type": f"text/plain; {JSON}"}, _BODY),
    "application/graphql": ("POST", "", {"Content-Type": "application/graphql"}, MUTATION.encode()),
    "a form": ("POST", "", {"Content-Type": "application/x-www-form-urlencoded"}, f"query={_QUERY}".encode()),
    "a form with parts": (
        "POST", "", {"Content-Type": "multipart/form-data; boundary=x"},
        b'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\nmutation {m}\r\n--x--\r\n',
    ),
    "in the address of a form": ("POST", f"?query={_QUERY}", {"Content-Type": "text/plain"}, b""),
    "in the address of JSON": ("POST", f"?query={_QUERY}", {"Content-Type": JSON}, b'{"query": "{a}"}'),
    "by GET": ("GET", f"?query={_QUERY}", {}, b""),
    "by GET, for a person": ("GET", f"?query={_QUERY}", {"Accept": "text/html"}, b""),
    "by GET with a body": ("GET", "?query=%7Ba%7D&x=1", {"Content-Type": JSON}, _BODY),
    "by GET, the second": ("GET", f"?query=%7Ba%7D&query={_QUERY}", {}, b""),
    "by GET, the first": ("GET", f"?query={_QUERY}&query=%7Ba%7D", {}, b""),
    "by GET, encoded": ("GET", f"?%71uery={_QUERY}", {}, b""),
    "by GET with a name": ("GET", "?query=query%20Q%7Ba%7D%20mutation%20M%7Bm%7D&operationName=Q", {}, b""),
    "by HEAD": ("HEAD", f"?query={_QUERY}", {}, b""),
    "not to be parsed": ("POST", "", {"Content-Type": JSON}, b'{"query": "mutation {"}'),
}  # fmt: skip


@pytest.mark.parametrize("path", ["/graphql", "/dagster/graphql", "/dagster/%67raphql"])
@pytest.mark.parametrize("form", FORMS)
def test_a_reader_mutates_in_no_form(reader: Gateway, upstream: Upstream, form: str, path: str) -> None:
    method, more, headers, body = FORMS[form]
    status = reader.ask(method, path + more, headers, body)
    if form == "by GET with a body":
        assert status == 200
        assert [(got.body, got.query_string) for got in upstream.got] == [(b"", b"query=%7Ba%7D&variables=null")]
    else:
        assert status in (400, 403, 405, 415)
        assert not upstream.got


@pytest.mark.parametrize("form", FORMS)
def test_an_administrator_mutates_by_json_alone(admin: Gateway, upstream: Upstream, form: str) -> None:
    method, more, headers, body = FORMS[form]
    allowed = ("JSON", "JSON with a charset", "JSON in UTF-16", "two keys", "a name that picks the query", "a fragment")
    assert (admin.ask(method, "/graphql" + more, headers, body) == 200) == (form in (*allowed, "by GET with a body"))
    for got in upstream.got:
        assert got.path == "/dagster/graphql"
        assert got.method == "GET" or got.headers["content-type"] == JSON
        assert got.method == "GET" or "mutation" in json.loads(got.body)["query"]


def test_a_query_is_sent_on_as_it_was_read(reader: Gateway, upstream: Upstream) -> None:
    body = {"query": "query A($x: Int) {a(x: $x)}", "variables": {"x": 1}, "operationName": "A", "extensions": {}}
    for path in ("/graphql", "/dagster/graphql"):
        assert reader.client.post(path, json=body).text == "answered"
    first, second = upstream.got
    assert first.path == second.path == "/dagster/graphql"
    assert first.body == second.body
    sent = json.loads(first.body)
    assert {name: sent[name] for name in ("query", "variables", "operationName")} == {
        name: value for name, value in body.items() if name != "extensions"
    }
    assert first.headers["content-length"] == str(len(first.body))


def test_a_large_request_is_read_too_and_a_larger_one_is_not(
    installation: Settings, upstream: Upstream, address: DagsterAddress
) -> None:
    large = {"query": "query A($x: String) {a(x: $x)}", "variables": {"x": "x" * 200_000}}
    with gateway(installation, address, READER, max_body_bytes=300_000) as reader:
        assert reader.client.post("/graphql", json=large).status_code == 200
        assert json.loads(upstream.got[0].body)["variables"] == large["variables"]
        larger = {**large, "variables": {"x": "x" * 300_000}}
        assert problem(reader.client.post("/graphql", json=larger), 413)
        whole = json.dumps(larger).encode()
        in_chunks = (whole[start : start + 1000] for start in range(0, len(whole), 1000))
        assert problem(reader.client.post("/graphql", content=in_chunks, headers={"Content-Type": JSON}), 413)
    assert len(upstream.got) == 1


def test_an_address_that_is_too_long_is_said_so(reader: Gateway, upstream: Upstream) -> None:
    target = "/dagster/runs?" + "{" * 30_000  # as it is sent on, each takes three characters
    assert reader.ask("GET", target) == 414
    assert not upstream.got


def start(query: str, name: str = "1") -> str:
    return json.dumps({"type": "start", "id": name, "payload": {"query": query}})


def test_messages_pass_both_ways(reader: Gateway, upstream: Upstream) -> None:
    for path in ("/graphql", "/dagster/graphql"):
        with reader.websocket(path, subprotocols=[GRAPHQL_WS], additional_headers={"Cookie": "a=b"}) as websocket:
            assert websocket.subprotocol == "graphql-ws"
            websocket.send(start("subscription { s }"))
            received = json.loads(websocket.recv(_WAIT_SECONDS))
            assert received["payload"]["query"] == "subscription { s }"
    for got in upstream.got:
        assert (got.method, got.path) == ("WEBSOCKET", "/dagster/graphql")
        assert got.headers["origin"] == f"http://{got.headers['host']}"
        assert "cookie" not in got.headers


def test_a_client_that_names_no_protocol_is_served_and_one_of_another_is_not(
    reader: Gateway, upstream: Upstream
) -> None:
    with reader.websocket() as websocket:
        assert websocket.subprotocol is None
        websocket.send('{"type": "connection_init"}')
        assert json.loads(websocket.recv(_WAIT_SECONDS)) == {"type": "connection_init"}
    del upstream.got[:]
    with pytest.raises(InvalidStatus) as refused:
        reader.websocket(subprotocols=["graphql-transport-ws"])
    assert refused.value.response.status_code == 400
    assert not upstream.got


@pytest.mark.parametrize("query", [MUTATION, "mutation {s m}", "subscription A {s} mutation B {m}", "{"])
def test_nobody_mutates_by_websocket(admin: Gateway, upstream: Upstream, query: str) -> None:
    with admin.websocket(subprotocols=[GRAPHQL_WS]) as websocket:
        websocket.send(start(query))
        told = json.loads(websocket.recv(_WAIT_SECONDS))
        assert (told["type"], told["id"]) == ("error", "1")
        websocket.send(start("subscription { s }", "2"))
        assert json.loads(websocket.recv(_WAIT_SECONDS))["id"] == "2"
    assert len(upstream.messages) == 1


@pytest.mark.parametrize("sent", ["no JSON", "[]", '{"type": "other"}', b'{"type": "connection_init"}', "[" * 50_000])
def test_who_speaks_another_protocol_is_cut_off(reader: Gateway, upstream: Upstream, sent: str | bytes) -> None:
    with reader.websocket(subprotocols=[GRAPHQL_WS]) as websocket:
        websocket.send(sent)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(_WAIT_SECONDS)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008
        assert closed.value.rcvd.reason
    assert not upstream.messages
    until("the end on the other side", lambda: upstream.closed_with)


def test_dagsters_end_ends_the_client(reader: Gateway, upstream: Upstream) -> None:
    with reader.websocket(subprotocols=[GRAPHQL_WS]) as websocket:
        websocket.send(json.dumps({"type": "stop", "id": CLOSE}))
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(_WAIT_SECONDS)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (CLOSED, CLOSE)


@pytest.mark.parametrize("code", [1000, 4002])
def test_the_clients_end_ends_dagster(reader: Gateway, upstream: Upstream, code: int) -> None:
    with reader.websocket(subprotocols=[GRAPHQL_WS]) as websocket:
        websocket.close(code)
    assert until("the end on the other side", lambda: upstream.closed_with) == [code]


def test_a_client_that_is_lost_ends_dagster(reader: Gateway, upstream: Upstream) -> None:
    with reader.websocket(subprotocols=[GRAPHQL_WS]) as websocket:
        websocket.socket.shutdown(socket.SHUT_RDWR)
        until("the end on the other side", lambda: upstream.closed_with)


def test_a_web_server_that_is_silent_is_given_up(installation: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has accepted the WebSocket and does nothing more, as one does that hangs, or whose network is gone."""
    monkeypatch.setattr(dagster_proxy, "_PING_SECONDS", 0.1)
    monkeypatch.setattr(dagster_proxy, "_CLOSE_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=partial(accept_and_be_silent, listening), daemon=True).start()
        silent = DagsterAddress(f"http://127.0.0.1:{listening.getsockname()[1]}")
        with (
            gateway(installation, silent) as admin,
            admin.websocket(subprotocols=[GRAPHQL_WS]) as websocket,
            pytest.raises(ConnectionClosed),
        ):
            websocket.recv(_WAIT_SECONDS)


def accept_and_be_silent(listening: socket.socket) -> None:
    connection, _ = listening.accept()
    protocol = ServerProtocol(subprotocols=[GRAPHQL_WS])
    while not (events := protocol.events_received()):
        protocol.receive_data(connection.recv(65536))
    request = events[0]
    assert isinstance(request, Request)
    protocol.send_response(protocol.accept(request))
    connection.sendall(b"".join(protocol.data_to_send()))
    while connection.recv(65536):
        pass
    connection.close()
