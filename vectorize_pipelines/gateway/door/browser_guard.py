"""An ASGI layer that keeps web pages of other origins away from a server that does not ask who calls.

It stands before Dagster's web server where that is served by itself. Its rules are those of `door.origins`, which
says why; and one more: a GET request can be caused by an image or a link, so it must not change anything.
"""

from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders, QueryParams
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vectorize_pipelines.gateway.door.graphql_documents import operations_in, require_queries
from vectorize_pipelines.gateway.door.origins import (
    FRAME_POLICY,
    PROTECTION,
    Refusal,
    foreign_page,
    is_ui_page,
    notebook,
    other_than_json,
    repeated_header,
)
from vectorize_pipelines.gateway.problems import POLICY_VIOLATION, Problem


class BrowserGuard:
    """Lets through what a page of the server itself, or a program, may have sent; answers the rest with the reason."""

    def __init__(self, app: ASGIApp, hosts: Iterable[str], prefix: str = ""):
        """`hosts` are the allowed values of `Host`: `localhost:3000`, or a name alone for the ports 80 and 443.

        `prefix` is the path below which the UI lies.
        """
        self._app = app
        self._prefix = prefix
        self._hosts = {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI has it."""
        if scope["type"] == "http":
            refused = self._refusal(scope)
            app = self._app if refused is None else PlainTextResponse(f"refused: {refused.reason}\n", refused.status)
            await app(scope, receive, _protecting(send))
        elif scope["type"] == "websocket":
            refused = self._refusal(scope)
            if refused is None:
                await self._app(scope, receive, send)
            else:
                await receive()  # the request to connect
                await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": refused.reason})
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        scope = {**scope, "path": scope["path"].removeprefix(self._prefix) or "/"}
        headers = Headers(scope=scope)
        repeated = repeated_header(headers)
        if repeated is not None:
            return repeated
        host = headers.get("host", "").lower()
        if host not in self._hosts:
            return Refusal(403, f"{host!r} is not an address of this server; `--allow-host` adds one")
        refused = foreign_page(scope, headers, host, linked_to=is_ui_page(scope["path"])) or notebook(scope["path"])
        if refused is not None:
            return refused
        if scope["type"] == "websocket":
            return None if "origin" in headers else Refusal(403, "a WebSocket needs the header Origin")
        if scope["method"] in ("GET", "HEAD"):
            return _changing_get(scope)
        if scope["method"] != "POST":
            return Refusal(405, f"the method {scope['method']!r} is not served")
        return other_than_json(headers)


def _changing_get(scope: Scope) -> Refusal | None:
    """The refusal of a GET request to GraphQL with anything but queries in it."""
    # Any path with the word: routers may take `/graphql` with something behind it for the same.
    if "graphql" not in scope["path"].lower():
        return None
    try:
        for document in QueryParams(scope["query_string"]).getlist("query"):
            require_queries(operations_in(document))
    except Problem as problem:
        return Refusal(problem.status, problem.detail)
    return None


def _protecting(send: Send) -> Send:
    """The same `send`, with headers by which browsers keep the answer from other pages."""

    async def protecting(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in PROTECTION.items():
                headers.setdefault(name, value)
            headers.append("Content-Security-Policy", FRAME_POLICY)
        await send(message)

    return protecting
