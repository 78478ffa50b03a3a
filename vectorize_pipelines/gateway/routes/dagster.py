"""Routes of Dagster's web server: its UI below `/dagster`, its GraphQL also at `/graphql`, by HTTP and by WebSocket.

Mounted by `gateway.app`. Whoever may read gets every page, log and query; what changes anything needs `admin`.
GraphQL is read and checked (`graphql_gate`) before `dagster_proxy` sends it on.
"""

import contextlib
import re
from http import HTTPStatus
from typing import Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Request, WebSocket
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect
from starlette.responses import RedirectResponse, Response
from starlette.websockets import WebSocketDisconnect, WebSocketState
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from vectorize_pipelines.gateway.dagster import graphql_gate
from vectorize_pipelines.gateway.dagster.proxy import GRAPHQL, SUBPROTOCOL, race
from vectorize_pipelines.gateway.door.auth import Scope, caller_of, requires
from vectorize_pipelines.gateway.door.graphql_documents import require_queries
from vectorize_pipelines.gateway.door.origins import notebook
from vectorize_pipelines.gateway.paths import PATH_PREFIX
from vectorize_pipelines.gateway.problems import FieldProblem, Problem, documented
from vectorize_pipelines.gateway.routes.direct import DirectRoute
from vectorize_pipelines.gateway.services import services_of

#: What is larger is read in a thread: on the event loop it would keep others waiting.
_SMALL_BYTES = 16 * 2**10
_CONTROL = re.compile(r"[\x00-\x1f\x7f\\]")
_NORMAL, _GOING_AWAY, _POLICY_VIOLATION = 1000, 1001, 1008
#: Codes that no close frame may have: there was none, or none with a code.
_WITHOUT_CODE = {None: _GOING_AWAY, 1005: _NORMAL, 1006: _GOING_AWAY, 1015: _GOING_AWAY}


class GraphQLBody(BaseModel):
    """A GraphQL request."""

    query: str = Field(description="the document", examples=["{version}"])
    variables: dict[str, Any] | None = Field(None, description="values of its variables")
    operationName: str | None = Field(None, description="which of its operations is meant")  # noqa: N815 -- GraphQL's


class GraphQLAnswer(BaseModel):
    """The answer of Dagster."""

    data: dict[str, Any] | None = None
    errors: list[dict[str, Any]] | None = None


router = APIRouter(tags=["dagster"], dependencies=[Depends(requires(Scope.READ))])
#: Those that programs and the UI call all the time.
direct = APIRouter(tags=["dagster"], dependencies=[Depends(requires(Scope.READ))], route_class=DirectRoute)

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "What is refused here or, with its `errors`, by Dagster", "model": GraphQLAnswer},
    500: {"description": "What failed here or, with its `errors`, in Dagster", "model": GraphQLAnswer},
    **documented(HTTPStatus.BAD_GATEWAY),
}
_PARAMETERS = {
    "query": "the document, with queries only",
    "variables": "values of its variables, as JSON",
    "operationName": "which of its operations is meant",
}
_BODY = {"required": True, "content": {"application/json": {"schema": GraphQLBody.model_json_schema()}}}


@router.get(GRAPHQL, include_in_schema=False)
@router.get(
    "/graphql",
    summary="Query Dagster, or open its playground",
    response_model=GraphQLAnswer,
    responses={
        200: {"description": "what Dagster answers; its playground for a browser", "content": {"text/html": {}}},
        503: {"description": "Dagster's web server is starting, or away", "content": {"text/html": {}}},
        **_ERRORS,
        **documented(HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.REQUEST_URI_TOO_LONG),
    },
    openapi_extra={
        "parameters": [
            {"name": name, "in": "query", "schema": {"type": "string"}, "description": description}
            for name, description in _PARAMETERS.items()
        ]
    },
)
async def graphql_by_get(request: Request) -> Response:
    """Send a query to Dagster's GraphQL. A document with anything but queries is refused, whoever sends it."""
    query_string = _checked_parameters(request)
    if "query" not in request.query_params and "text/html" not in request.headers.get("accept", ""):
        missing = FieldProblem(field="query", problem="is missing")
        raise Problem(HTTPStatus.BAD_REQUEST, "query: is missing", errors=[missing])
    return await services_of(request).dagster_proxy.send(request, GRAPHQL, query_string)


@direct.post(GRAPHQL, include_in_schema=False)
@direct.post(
    "/graphql",
    summary="Query Dagster, or have it do something",
    response_model=GraphQLAnswer,
    responses=_ERRORS,
    openapi_extra={"requestBody": _BODY},
)
async def graphql_by_post(request: Request) -> Response:
    """Send an operation to Dagster's GraphQL. A document with a mutation needs the scope `admin`."""
    _require_json(request)
    graphql_gate.refuse_parameters(_query_string(request))
    proxy = services_of(request).dagster_proxy
    body = await _read(request, proxy.max_body_bytes)
    if len(body) <= _SMALL_BYTES:
        checked = graphql_gate.read_body(body)
    else:
        checked = await anyio.to_thread.run_sync(graphql_gate.read_body, body)
    graphql_gate.require_right(checked, caller_of(request))
    return await proxy.send(request, GRAPHQL, json=checked.json)


@router.websocket(GRAPHQL)
@router.websocket("/graphql")
async def graphql_by_websocket(websocket: WebSocket) -> None:
    """Subscribe to events of Dagster, by the protocol graphql-ws."""
    offered = websocket.scope["subprotocols"]
    if offered and SUBPROTOCOL not in offered:
        raise Problem(HTTPStatus.BAD_REQUEST, f"the subprotocol is {SUBPROTOCOL}")
    upstream = await services_of(websocket).dagster_proxy.connect()
    try:
        await websocket.accept(SUBPROTOCOL if offered else None)
        await race(_from_client(websocket, upstream), _from_dagster(websocket, upstream))
    finally:
        with anyio.CancelScope(shield=True):  # also where this was cancelled
            await upstream.close()


@router.get(PATH_PREFIX, include_in_schema=False)
async def ui() -> Response:
    """Lead to the UI."""
    return RedirectResponse(f"{PATH_PREFIX}/")


@router.api_route(f"{PATH_PREFIX}/{{path:path}}", methods=["GET", "HEAD", "POST"], include_in_schema=False)
async def page(request: Request, path: str) -> Response:
    """Send on everything else below `/dagster`: pages, static files, logs; reports of events from administrators."""
    _require_plain(path)
    proxy, target = services_of(request).dagster_proxy, f"{PATH_PREFIX}/{path}"
    if request.method in ("GET", "HEAD"):
        # Any path with the word: a router may take `/graphql` with something behind it for the same.
        query_string = _checked_parameters(request) if "graphql" in path.lower() else _query_string(request)
        return await proxy.send(request, target, query_string)
    caller = caller_of(request)
    if not caller.may(Scope.ADMIN):
        raise Problem(HTTPStatus.FORBIDDEN, f"the token {caller.name!r} lacks the scope {Scope.ADMIN}")
    return await proxy.send(request, target, _query_string(request), request.stream())


def _require_plain(path: str) -> None:
    """Raise `Problem` for a path that another server could take for another one, and for notebooks."""
    if _CONTROL.search(path) or {".", ".."} & set(path.split("/")):
        raise Problem(HTTPStatus.BAD_REQUEST, "the path has a segment . or .., a backslash or a control character")
    refused = notebook(f"/{path}")
    if refused is not None:
        raise Problem(HTTPStatus(refused.status), refused.reason)


def _require_json(request: Request) -> None:
    """Raise `Problem` for a body that is not JSON: any page can have a browser send other types unasked."""
    kinds = [value.partition(";")[0].strip().lower() for value in request.headers.getlist("content-type")]
    if kinds != ["application/json"] or "content-encoding" in request.headers:
        detail = "POST takes the content type application/json only, not compressed"
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)


def _query_string(request: Request) -> str:
    found: bytes = request.scope["query_string"]
    return found.decode("latin-1")


def _checked_parameters(request: Request) -> str:
    """Return the query string to send on: of a GraphQL document what was checked, else as it is. Raises `Problem`."""
    checked = graphql_gate.read_parameters(_query_string(request))
    if checked is None:
        return _query_string(request)
    require_queries(checked.operations)
    return checked.query_string


async def _read(request: Request, most: int) -> bytes:
    """Return the whole body. Raises `Problem` where it is longer than `most` bytes."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {most} bytes")
            parts.append(part)
    except ClientDisconnect:
        raise Problem(HTTPStatus.BAD_REQUEST, "the body ended before it was whole") from None
    return b"".join(parts)


async def _from_client(websocket: WebSocket, upstream: ClientConnection) -> None:
    """Send on what the client says, each message checked, until either side closes."""
    with contextlib.suppress(ConnectionClosed, WebSocketDisconnect):
        while True:
            message = await websocket.receive()
            if message["type"] == "websocket.disconnect":
                await upstream.close(_sendable(message.get("code")))
                return
            try:
                checked = await _checked_message(message.get("text"))
            except graphql_gate.InvalidSocketMessageError as error:
                await _close(websocket, _POLICY_VIOLATION, str(error))
                return
            if isinstance(checked, graphql_gate.Refusal):
                await websocket.send_text(checked.json)
            else:
                await upstream.send(checked)


async def _checked_message(text: str | None) -> str | graphql_gate.Refusal:
    if text is None:
        raise graphql_gate.InvalidSocketMessageError("messages are text")
    if len(text) <= _SMALL_BYTES:
        return graphql_gate.read_socket_message(text)
    return await anyio.to_thread.run_sync(graphql_gate.read_socket_message, text)


async def _from_dagster(websocket: WebSocket, upstream: ClientConnection) -> None:
    """Send on what Dagster says, until it closes, which closes the client's connection in the same way."""
    with contextlib.suppress(WebSocketDisconnect):
        with contextlib.suppress(ConnectionClosed):
            async for part in upstream:
                await (websocket.send_text(part) if isinstance(part, str) else websocket.send_bytes(part))
        await _close(websocket, _sendable(upstream.close_code), upstream.close_reason)


async def _close(websocket: WebSocket, code: int, reason: str | None) -> None:
    if websocket.application_state is WebSocketState.CONNECTED:
        await websocket.close(code, reason)


def _sendable(code: int | None) -> int:
    """The code to close one side with, after the other one was closed with this code."""
    return code if code is not None and code not in _WITHOUT_CODE else _WITHOUT_CODE[code]
