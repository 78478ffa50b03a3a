"""A web server in the place of Dagster's: it notes what it gets, and answers as a test says, or as Dagster would."""

import json
import re
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import JSONResponse, PlainTextResponse
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


#: A field that Dagster does not have.
UNKNOWN_FIELD = "nothing"
#: What is answered to the operations of the gateway itself, by their names: no daemon has run, and no run goes on.
_ANSWERS: dict[str, Any] = {
    "Health": {
        "instance": {"daemonHealth": {"allDaemonStatuses": []}},
        "runsOrError": {"__typename": "Runs", "count": 0},
    },
    "RunOfTask": {"runOrError": {"__typename": "Run", "status": "QUEUED", "tags": []}},
    "TerminateRequest": {"terminateRun": {"__typename": "TerminateRunSuccess"}},
    "RequestRun": {"runOrError": {"status": "CANCELED"}},
}


def standing_in() -> Upstream:
    """A server that takes every run that the gateway launches, runs none of them, and says that all is well."""
    upstream = Upstream()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        got = upstream.got[-1]
        await _graphql(json.loads(got.body) if got.method == "POST" else {})(scope, receive, send)

    upstream.answer = answer
    return upstream


def _graphql(asked: dict[str, Any]) -> JSONResponse:
    document = asked.get("query", "")
    if UNKNOWN_FIELD in document:
        return JSONResponse({"errors": [{"message": f"Cannot query field '{UNKNOWN_FIELD}' on type 'Query'."}]}, 400)
    found = re.match(r"\s*(?:query|mutation)\s+(\w+)", document)
    name = found[1] if found else ""
    if name == "LaunchRequests":
        return JSONResponse({"data": {"launchMultipleRuns": _launched(len(asked["variables"]["params"]))}})
    return JSONResponse({"data": _ANSWERS.get(name, {"version": "1"})})


def _launched(number: int) -> dict[str, Any]:
    runs = [{"__typename": "LaunchRunSuccess", "run": {"runId": str(uuid.uuid4())}} for _ in range(number)]
    return {"__typename": "LaunchMultipleRunsResult", "launchMultipleRunsResult": runs}
