"""A web server in the place of Dagster's: it notes what it gets, and answers as a test says."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

Answer = Callable[[Scope, Receive, Send], Awaitable[None]]
#: The id of a message of a WebSocket upon which this server closes, with the code `CLOSED` and this as reason.
CLOSE, CLOSED = "close", 4001


@dataclass(frozen=True)
class Got:
    """A request as it arrived."""

    method: str
    path: str
    query_string: bytes
    headers: Headers
    body: bytes


@dataclass
class Upstream:
    """The server as an ASGI application. `closed_with` are the codes with which WebSockets were closed."""

    answer: Answer = field(default_factory=lambda: PlainTextResponse("answered"))
    got: list[Got] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    closed_with: list[int] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI has it."""
        if scope["type"] == "http":
            body = await _body(receive)
            headers = Headers(raw=list(scope["headers"]))
            self.got.append(Got(scope["method"], scope["path"], scope["query_string"], headers, body))
            await self.answer(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._talk(WebSocket(scope, receive, send))

    async def _talk(self, websocket: WebSocket) -> None:
        """Send every message back."""
        messages, closed_with = self.messages, self.closed_with  # of this test, however late it is when it ends
        self.got.append(Got("WEBSOCKET", websocket.url.path, websocket.scope["query_string"], websocket.headers, b""))
        await websocket.accept("graphql-ws")
        try:
            while True:
                text = await websocket.receive_text()
                messages.append(text)
                if f'"{CLOSE}"' in text:
                    await websocket.close(CLOSED, CLOSE)
                    return
                await websocket.send_text(text)
        except WebSocketDisconnect as disconnect:
            closed_with.append(disconnect.code)


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)
