"""Connections that cost more than a request: slow and large headers, answers that nobody takes, too many of them."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from typing import Any

import psutil
import pytest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from tests.gateway.door.test_limits import Client, problem
from tests.gateway.running import serving, until
from vectorize_pipelines.gateway.door.connections import BoundedConnection, bounded_connections
from vectorize_pipelines.settings import GatewaySettings

SHORT = 0.3


class App:
    """Answers at once, without reading what is sent; `/large` with more than any buffer holds.

    By WebSocket it waits for the end and, at `/large`, sends meanwhile without one.
    """

    def __init__(self) -> None:
        self.ended = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._talk(receive, send, endless=scope["path"] == "/large")
            return
        if scope["type"] != "http":
            return
        if scope["path"] != "/large":
            await PlainTextResponse("answered")(scope, receive, send)
            return
        try:
            await StreamingResponse(pieces())(scope, receive, send)
        finally:
            self.ended.set()

    async def _talk(self, receive: Receive, send: Send, *, endless: bool) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            while endless:
                await send({"type": "websocket.send", "bytes": b"a" * 2**16})
            await receive()
        finally:
            self.ended.set()


async def pieces() -> Any:
    for _ in range(500):
        yield b"a" * 2**20


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def server(app: App) -> Iterator[str]:
    with serving(lambda at: app, GatewaySettings(request_seconds=SHORT)) as url:
        yield url


@pytest.mark.parametrize(
    "beginning", ["", "\r\n", "GET", "GET / HTTP/1.1\r\n", "GET / HTTP/1.1\r\nHost: localhost\r\nX: y"]
)
def test_a_header_has_to_come_in_time(server: str, beginning: str) -> None:
    with closing(Client(server)) as client:
        client.send(beginning)
        assert client.is_closed()


@pytest.mark.parametrize("piece", ["\r\n", "X-More: more\r\n"])
def test_a_header_that_drips_has_no_more_time(server: str, piece: str) -> None:
    with closing(Client(server)) as client:
        client.send("" if piece == "\r\n" else "GET / HTTP/1.1\r\n")
        closed = threading.Event()

        def drip() -> None:
            while not closed.wait(SHORT / 6):
                try:
                    client.send(piece)
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert client.is_closed()
        finally:
            closed.set()
            dripping.join()


def test_a_second_header_has_to_come_in_time_too(server: str) -> None:
    with closing(Client(server)) as client:
        for _ in range(3):
            client.request("GET /")
            assert client.answer()[0] == 200
        client.send("GET / HTTP/1.1\r\nHost:")
        assert client.is_closed()


def test_a_header_without_end_is_refused(app: App) -> None:
    with serving(lambda at: app) as url, closing(Client(url)) as client:
        client.send("GET / HTTP/1.1\r\nHost: localhost\r\n")
        with suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(100):
                client.send("X-Large: " + "a" * 1000 + "\r\n")
        said = client.rest()
        assert not said or said.startswith(b"HTTP/1.1 431 "), "what it said may be lost where more was sent meanwhile"


def test_a_large_header_within_bounds_is_taken(server: str) -> None:
    with closing(Client(server)) as client:
        client.request("GET /", *("X-Large: " + "a" * 1000 for _ in range(30)))
        assert client.answer()[0] == 200


def test_the_rest_of_a_body_that_nobody_wants_has_to_come_in_time(server: str) -> None:
    with closing(Client(server)) as client:
        client.request("POST /", "Content-Length: 1000000")
        assert client.answer()[0] == 200
        client.send("a")
        assert client.is_closed()
    with closing(Client(server)) as client:
        client.request("POST /", "Content-Length: 10")
        assert client.answer()[0] == 200
        client.send("a" * 10)
        client.request("GET /")
        assert client.answer()[0] == 200, "the connection goes on with the next request"


def test_an_answer_that_nobody_takes_is_thrown_away(server: str, app: App) -> None:
    with closing(Client(server)) as client:
        client.request("GET /large")
        assert app.ended.wait(30)


def test_there_are_only_so_many_connections(app: App) -> None:
    connections = bounded_connections(GatewaySettings(max_requests=1))
    assert issubclass(connections, BoundedConnection)
    most = connections.most_connections
    with serving(lambda at: app, GatewaySettings(max_requests=1)) as url, ExitStack() as held:
        for _ in range(most):
            client = held.enter_context(closing(Client(url)))
            client.request("GET /")
            assert client.answer()[0] == 200
        with closing(Client(url)) as one_more:
            assert problem(one_more.answer())[0] == 503
            assert one_more.is_closed()
        client.close()

        def is_served() -> bool:
            with closing(Client(url)) as another, suppress(BrokenPipeError, ConnectionResetError):
                another.request("GET /")
                return another.answer()[0] == 200
            return False

        until(is_served)


UPGRADE = (
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: " + "A" * 22 + "==",
)


@pytest.mark.parametrize("path", ["/", "/large"])
def test_a_websocket_whose_client_is_gone_without_a_word_is_ended(app: App, path: str) -> None:
    """It answers no ping and takes nothing of what is sent to it, as one does whose network is gone."""
    with (
        serving(lambda at: app, ws_ping_interval=0.1, ws_ping_timeout=0.1) as url,
        closing(Client(url)) as client,
    ):
        client.request(f"GET {path}", *UPGRADE)
        assert app.ended.wait(30)


def test_a_websocket_that_was_closed_by_a_client_that_takes_nothing_is_ended(app: App) -> None:
    """What was sent to it before waits in front of the answer, which closing would wait for."""
    with (
        serving(lambda at: app, ws_ping_interval=0.1, ws_ping_timeout=0.1) as url,
        closing(Client(url)) as client,
    ):
        place = client.socket.getsockname()
        client.request("GET /large", *UPGRADE)
        until(lambda: is_held(place))
        client.send(b"\x88\x80\0\0\0\0")  # a closing frame, masked
        assert app.ended.wait(30)
        until(lambda: not is_held(place))


def is_held(place: tuple[str, int]) -> bool:
    """Return whether the server, which runs in this process, has the connection of this client."""
    return any(each.raddr == place for each in psutil.Process().net_connections("tcp"))
