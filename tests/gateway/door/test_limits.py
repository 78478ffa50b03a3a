"""What one caller may take: size and time of a body, time of the work, requests at once; and what nobody awaits."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, suppress
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import httpx2
import pytest
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.gateway.asking import JSON, Exchange, ask, asking, handling, open_socket, scope_of
from tests.gateway.running import serving, until
from vectorize_pipelines.gateway import problems
from vectorize_pipelines.gateway.door.limits import Limits
from vectorize_pipelines.settings import GatewaySettings

LIMIT = 2000
SHORT = 0.3


class Work:
    """What goes on in the routes below."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.cancelled = threading.Event()
        self.may_end = threading.Event()
        self.after = threading.Event()
        self.seen: list[str] = []

    async def wait(self) -> None:
        """Wait for `may_end`, as a route that asks another server does."""
        self.begun.set()
        try:
            while not self.may_end.is_set():
                await anyio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.ended.set()

    def block(self) -> None:
        """The same in a thread."""
        self.begun.set()
        self.may_end.wait(60)
        self.ended.set()


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.may_end.set()


class Typed(BaseModel):
    """The body of a route."""

    data: Any


def routes(work: Work) -> FastAPI:
    app = FastAPI()
    problems.install(app)

    @app.post("/echo")
    async def echo(request: Request) -> PlainTextResponse:
        return PlainTextResponse(await request.body())

    @app.post("/early")
    async def early() -> str:
        return "read nothing"

    @app.post("/typed")
    async def typed(content: Typed) -> str:
        return "taken"

    @app.get("/wait")
    async def wait() -> str:
        await work.wait()
        return "waited"

    @app.post("/wait")
    async def wait_with_body(content: Typed) -> str:
        await work.wait()
        return "waited"

    @app.get("/thread")
    async def thread() -> str:
        await anyio.to_thread.run_sync(work.block)
        return "waited"

    @app.get("/events")
    async def events() -> StreamingResponse:
        async def lines() -> AsyncIterator[bytes]:
            yield b": begun\n\n"
            await work.wait()
            yield b": ended\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.get("/background")
    async def background(tasks: BackgroundTasks) -> str:
        async def later() -> None:
            await anyio.sleep(0.05)
            work.after.set()

        tasks.add_task(later)
        return "begun"

    @app.get("/livez")
    async def livez() -> str:
        return "alive"

    @app.websocket("/socket")
    async def echoing(socket: WebSocket) -> None:
        await socket.accept()
        async for text in socket.iter_text():
            await socket.send_text(text)

    return app


def limited(work: Work, **settings: Any) -> ASGIApp:
    return Limits(routes(work), GatewaySettings(max_body_bytes=LIMIT, **settings))


class Client:
    """A connection of which the test says each byte."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        self.socket = socket.create_connection((address.hostname, address.port or 80), timeout=30)

    def send(self, text: str | bytes) -> None:
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def request(self, line: str, *headers: str) -> None:
        self.send("\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]))

    def chunk(self, size: int) -> None:
        self.send(b"%x\r\n" % size + b"a" * size + b"\r\n")

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer that has a length."""
        head = self._until(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
        body = b""
        while len(body) < int(headers["content-length"]):
            body += self._more()
        return int(status.split()[1]), headers, body

    def rest(self) -> bytes:
        """Everything until the other side closes, which is waited for."""
        said = b""
        with suppress(ConnectionResetError):
            while more := self.socket.recv(65536):
                said += more
        return said

    def is_closed(self) -> bool:
        """Wait for the other side to close without another word."""
        return self.rest() == b""

    def close(self) -> None:
        self.socket.close()

    def _until(self, end: bytes) -> bytes:
        found = b""
        while not found.endswith(end):
            found += self._more(1)
        return found

    def _more(self, size: int = 65536) -> bytes:
        more = self.socket.recv(size)
        assert more, "closed before the answer was whole"
        return more


def problem(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    status, headers, body = answer
    assert headers["content-type"] == "application/problem+json"
    return status, str(json.loads(body)["detail"])


# Size


@given(st.lists(st.binary(max_size=1200), max_size=6), st.booleans())
def test_a_body_is_taken_up_to_the_limit_however_it_is_cut(pieces: list[bytes], declared: bool) -> None:
    body = b"".join(pieces)
    headers = [("Content-Length", str(len(body)))] if declared else []
    answer = ask(limited(Work()), "/echo", headers, "POST", pieces or [b""])
    if len(body) <= LIMIT:
        assert (answer.status, answer.body) == (200, body)
    else:
        assert answer.status == 413
        assert "gateway.max_body_bytes" in answer.problem()


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_the_limit_itself_is_taken(work: Work, size: int) -> None:
    for headers in ([], [("Content-Length", str(size))]):
        answer = ask(limited(work), "/echo", headers, "POST", [b"a" * size])
        assert answer.status == (200 if size == LIMIT else 413)


@pytest.mark.parametrize("declared", ["50000000", "9" * 18, "9" * 5000])
def test_a_large_body_is_refused_before_it_is_sent(work: Work, declared: str) -> None:
    exchange = Exchange([b"a", b"b"])
    scope = scope_of("/echo", [("Content-Length", declared)], "POST")
    asyncio.run(handling(limited(work), scope, exchange))
    assert exchange.sent[0]["status"] == 413
    assert asyncio.run(exchange.receive())["body"] == b"a", "nothing of it was read"


@pytest.mark.parametrize("declared", ["-1", "x", "1_000_000", "１２", "", "+9999999"])
def test_what_is_no_length_does_no_harm(work: Work, declared: str) -> None:
    scope = scope_of("/echo", [], "POST")
    scope["headers"].append((b"content-length", declared.encode()))
    exchange = Exchange([b"a" * 1500, b"a" * 1500])
    asyncio.run(handling(limited(work), scope, exchange))
    assert exchange.sent[0]["status"] == 413, "it is counted"


@pytest.fixture
def server(work: Work, request: pytest.FixtureRequest) -> Iterator[str]:
    """A real server; `indirect` parameters are its settings."""
    settings = GatewaySettings(max_body_bytes=LIMIT, **getattr(request, "param", {}))
    with serving(lambda at: Limits(routes(work), settings), settings) as url:
        yield url


def test_a_real_server_refuses_fifty_megabytes(server: str) -> None:
    piece = b"a" * 2**20

    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield piece

    with httpx2.Client(base_url=server, trust_env=False, timeout=60) as client:
        assert client.post("/echo", content=piece * 50).status_code == 413
        assert client.post("/echo", content=pieces()).status_code == 413
        assert client.post("/early", content=pieces()).status_code == 200, "whoever reads nothing counts nothing"
        assert client.post("/echo", content=b"a" * LIMIT).text == "a" * LIMIT


def test_a_large_body_is_refused_at_once(server: str) -> None:
    with closing(Client(server)) as client:
        client.request("POST /echo", "Content-Length: 50000000")
        assert problem(client.answer())[0] == 413
    with closing(Client(server)) as client:
        client.request("POST /echo", "Content-Length: 50000000", "Expect: 100-continue")
        assert problem(client.answer())[0] == 413
    with closing(Client(server)) as client:
        client.request("POST /echo", "Transfer-Encoding: chunked")
        for _ in range(3):
            client.chunk(900)
        assert problem(client.answer())[0] == 413, "though its end has not come"


# Time

QUICK = pytest.mark.parametrize("server", [{"request_seconds": SHORT}], indirect=True)


@QUICK
@pytest.mark.parametrize("kind", ["Content-Length: 100", "Transfer-Encoding: chunked"])
def test_a_slow_sender_is_told_so_and_cut_off(server: str, kind: str) -> None:
    with closing(Client(server)) as client:
        client.request("POST /echo", kind)
        status, detail = problem(client.answer())
        assert status == 408
        assert "gateway.request_seconds" in detail
        assert client.is_closed()


@QUICK
def test_a_sender_of_single_bytes_is_slow_too(server: str) -> None:
    with closing(Client(server)) as client:
        client.request("POST /echo", "Content-Length: 1000")
        answered = threading.Event()

        def drip() -> None:
            while not answered.wait(SHORT / 6):
                try:
                    client.send("a")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert client.answer()[0] == 408
        finally:
            answered.set()
            dripping.join()


@QUICK
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_work_without_an_end_is_ended(server: str, work: Work, method: str) -> None:
    with httpx2.Client(base_url=server, trust_env=False, timeout=30) as client:
        answer = client.request(method, "/wait", json=None if method == "GET" else {"data": 1})
        assert answer.status_code == 504
        assert answer.headers["content-type"] == "application/problem+json"
        assert work.cancelled.wait(30)
        assert client.get("/livez").status_code == 200


@QUICK
def test_work_in_a_thread_holds_the_answer_up_no_longer(server: str, work: Work) -> None:
    with httpx2.Client(base_url=server, trust_env=False, timeout=30) as client:
        assert client.get("/thread").status_code == 504
        assert not work.ended.is_set(), "a thread cannot be ended"
        assert client.post("/echo", content=b"a").text == "a"
        work.may_end.set()
        assert work.ended.wait(30)


@QUICK
def test_a_stream_goes_on_beyond_the_time_of_a_request(server: str, work: Work) -> None:
    url = f"{server}/events"
    with httpx2.Client(trust_env=False, timeout=30) as client, client.stream("GET", url) as answer:
        lines = answer.iter_raw()
        assert next(lines) == b": begun\n\n"
        threading.Timer(3 * SHORT, work.may_end.set).start()
        assert b"".join(lines) == b": ended\n\n"
    assert not work.cancelled.is_set()


# At once


@pytest.mark.parametrize("server", [{"max_requests": 1}], indirect=True)
def test_one_request_too_many_is_told_to_come_later(server: str, work: Work) -> None:
    with closing(Client(server)) as busy, httpx2.Client(base_url=server, trust_env=False, timeout=30) as client:
        busy.request("GET /wait")
        assert work.begun.wait(30)
        refused = client.post("/echo", content=b"a")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "gateway.max_requests" in refused.json()["detail"]
        assert client.get("/livez").status_code == 200, "or the whole server would be started again"
        with client.stream("GET", "/events") as stream:
            assert stream.status_code == 503, "it begins as a request"
        work.may_end.set()
        assert busy.answer()[0] == 200
        for _ in range(20):
            assert client.post("/echo", content=b"a").status_code == 200, "one after the other is one at a time"


@pytest.mark.parametrize("server", [{"max_requests": 1}], indirect=True)
def test_streams_are_counted_by_themselves(server: str, work: Work) -> None:
    with httpx2.Client(base_url=server, trust_env=False, timeout=30) as client:
        with client.stream("GET", "/events") as stream:
            pieces = stream.iter_raw()  # without somebody to hold it, it would end the stream
            assert next(pieces) == b": begun\n\n"
            assert client.post("/echo", content=b"a").status_code == 200
            refused = client.get("/events")
            assert refused.status_code == 503
            assert "streams" in refused.json()["detail"]
            until(lambda: client.post("/echo", content=b"a").status_code == 200)
        assert work.cancelled.wait(30), "its client has gone"

        def opens() -> bool:
            with client.stream("GET", "/events") as stream:
                return bool(stream.status_code == 200)

        until(opens)


def test_websockets_are_counted_as_streams(work: Work) -> None:
    app = limited(work, max_requests=1)

    async def two() -> list[Message]:
        held = asyncio.Event()
        accepted = asyncio.Event()

        async def receive() -> Message:
            if accepted.is_set():
                await held.wait()
                return {"type": "websocket.disconnect", "code": 1000}
            return {"type": "websocket.connect"}

        async def send(message: Message) -> None:
            accepted.set()

        async def one() -> None:
            await app(scope_of("/socket", kind="websocket"), receive, send)

        async with anyio.create_task_group() as group:
            group.start_soon(one)
            await accepted.wait()
            second = await asyncio.to_thread(open_socket, app, "/socket")
            held.set()
        return second

    assert asyncio.run(two()) == [{"type": "websocket.close", "code": 1008}]
    assert open_socket(app, "/socket")[0]["type"] == "websocket.accept"


def test_what_failed_is_counted_no_longer(work: Work) -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise RuntimeError("a defect")

    app = Limits(failing, GatewaySettings(max_requests=1))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="a defect"):
            ask(app, "/")


# Clients that go


@pytest.mark.parametrize("request_line", ["GET /wait", "GET /events"])
def test_work_ends_with_its_client(server: str, work: Work, request_line: str) -> None:
    client = Client(server)
    client.request(request_line)
    assert work.begun.wait(30)
    assert not work.ended.is_set()
    client.close()
    assert work.cancelled.wait(30)


def test_work_for_a_body_ends_with_its_client(server: str, work: Work) -> None:
    client = Client(server)
    client.request("POST /wait", "Content-Type: application/json", "Content-Length: 11")
    client.send('{"data": 1}')
    assert work.begun.wait(30)
    client.close()
    assert work.cancelled.wait(30)


def test_a_client_that_goes_within_its_body_leaves_nothing(
    server: str, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    for path in ("/echo", "/typed"):
        client = Client(server)
        client.request(f"POST {path}", "Content-Type: application/json", "Content-Length: 100")
        client.send('{"data":')
        client.close()
    with closing(Client(server)) as client:
        client.request("GET /livez")
        assert client.answer()[0] == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_what_an_answer_leaves_to_be_done_is_done(server: str, work: Work) -> None:
    """The server says that a client has gone also when its answer is complete."""
    with httpx2.Client(base_url=server, trust_env=False, timeout=30) as client:
        assert client.get("/background").status_code == 200
    assert work.after.wait(30)


# JSON


@pytest.mark.parametrize(
    "body",
    ["[" * 100_000, '{"data":' * 100_000, "[" * 100_000 + "]" * 100_000, '{"data":' + "[" * 50_000 + "]" * 50_000],
)
def test_json_that_is_nested_without_end_is_a_bad_request(body: str) -> None:
    app = Limits(routes(Work()), GatewaySettings())
    answer = ask(app, "/typed", [JSON], "POST", [body.encode()])
    assert answer.status in (400, 422)
    assert answer.problem()
    assert ask(app, "/typed", [JSON], "POST", [b'{"data": [[1]]}']).status == 200


def test_a_refused_app_has_no_second_word(work: Work) -> None:
    """What it sends while it ends is not part of the answer that was given in its place."""

    async def stubborn(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await PlainTextResponse("too late")(scope, receive, send)

    app = Limits(stubborn, GatewaySettings(request_seconds=0.05))
    answer = asyncio.run(asking(app, "/"))
    assert answer.status == 504
    assert b"too late" not in answer.body
    assert answer.problem()
