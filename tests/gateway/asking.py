"""Requests made of an ASGI app itself, with paths and headers that no client would send."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Scope

HOST = "localhost:8000"
JSON = ("Content-Type", "application/json")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Headers
    body: bytes
    whole: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    def problem(self) -> str:
        """What it says is wrong; that it says so in the one form of errors."""
        assert self.headers["content-type"] == "application/problem+json"
        said = self.json
        assert said["status"] == self.status
        assert said["title"]
        return str(said["detail"])


@dataclass
class Exchange:
    """One request, with the pieces of its body, and what the app sends."""

    pieces: Sequence[bytes] = (b"",)
    sent: list[Message] = field(default_factory=list)
    complete: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._left = list(self.pieces)

    async def receive(self) -> Message:
        if self._left:
            return {"type": "http.request", "body": self._left.pop(0), "more_body": bool(self._left)}
        await self.complete.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            self.complete.set()


def scope_of(
    target: str, headers: Iterable[tuple[str, str]] = (), method: str = "GET", kind: str = "http", **more: Any
) -> Scope:
    """What a server says of a request for a target such as `/tasks/a%2Fb?x=1`."""
    path, _, query = target.partition("?")
    given = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    host = [] if any(name == b"host" for name, _ in given) else [(b"host", HOST.encode())]
    scope = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "root_path": "",
        "path": unquote(path),
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "headers": host + given,
    }
    own: dict[str, Any] = {}
    if kind == "http":
        own["method"] = method
    else:
        own["subprotocols"] = []
    return scope | own | more


async def handling(app: ASGIApp, scope: Scope, exchange: Exchange) -> None:
    """Have an app handle a request."""
    await app(scope, exchange.receive, exchange.send)


async def asking(
    app: ASGIApp,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    method: str = "GET",
    pieces: Sequence[bytes] | None = None,
) -> Answer:
    """Return what an app answers. A body is sent in pieces, and without its length unless a header says it."""
    given = list(headers)
    if pieces and not any(name.lower() == "content-length" for name, _ in given):
        given.append(("Transfer-Encoding", "chunked"))
    exchange = Exchange(pieces or (b"",))
    await handling(app, scope_of(target, given, method), exchange)
    start = next(message for message in exchange.sent if message["type"] == "http.response.start")
    body = b"".join(message.get("body", b"") for message in exchange.sent if message["type"] == "http.response.body")
    return Answer(start["status"], Headers(raw=start["headers"]), body, exchange.complete.is_set())


def ask(
    app: ASGIApp,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    method: str = "GET",
    pieces: Sequence[bytes] | None = None,
) -> Answer:
    """`asking`, for a test without an event loop."""
    return asyncio.run(asking(app, target, headers, method, pieces))


def open_socket(app: ASGIApp, target: str, headers: Iterable[tuple[str, str]] = (), **more: Any) -> list[Message]:
    """Return what an app sends to somebody who opens a WebSocket and leaves."""

    async def opening() -> list[Message]:
        incoming: list[Message] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
        sent: list[Message] = []

        async def receive() -> Message:
            return incoming.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        await app(scope_of(target, headers, kind="websocket", **more), receive, send)
        return sent

    return asyncio.run(opening())
