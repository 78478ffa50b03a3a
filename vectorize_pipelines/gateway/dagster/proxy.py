"""Sends requests on to Dagster's web server, and its answers back; a field of the gateway's `Services`.

Called by `routes.dagster`, which decides what may be sent. Bodies pass as they come, piece by piece, compressed or not.
Dagster never sees who calls: neither cookies nor tokens are sent on, and nothing comes back of what it says of cookies
or of other origins.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import aiohttp
import anyio
from multidict import CIMultiDict
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import WebSocketException
from websockets.typing import Origin, Subprotocol
from yarl import URL

from vectorize_pipelines.gateway.dagster.client import ADDRESS_BYTES, DagsterAddress
from vectorize_pipelines.gateway.paths import PATH_PREFIX
from vectorize_pipelines.gateway.problems import Problem
from vectorize_pipelines.settings import GatewaySettings

logger = logging.getLogger(__name__)

GRAPHQL = f"{PATH_PREFIX}/graphql"
SUBPROTOCOL = "graphql-ws"

_CONNECT_SECONDS = 5.0
#: A message of Dagster may hold a thousand events of a run.
_SOCKET_BYTES = 64 * 2**20
_PING_SECONDS = 20.0
_CLOSE_SECONDS = 2.0
_STARTING_SECONDS = 2

#: What is not among the headers of a request is not added to it.
_ADDED_BY_CLIENT = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")

#: Headers of one connection, not of the message (RFC 9110, 7.6.1, and older ones).
_OF_THE_CONNECTION = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    )
)  # fmt: skip
#: Not for Dagster: who calls, and from which page, is decided here; so is what a proxy in front of this server says.
_OF_THE_CALLER = frozenset((b"authorization", b"cookie", b"expect", b"forwarded", b"host", b"origin", b"referer"))
_OF_THE_CALLER_PREFIXES = (b"sec-", b"x-forwarded-", b"x-real-")
_OF_THE_BODY = frozenset((b"content-length", b"content-type", b"content-encoding"))
#: Said by this server itself: dates, cookies, and what pages of other origins may do. An address is translated.
_OF_THE_SERVER = frozenset((b"date", b"server", b"set-cookie", b"location"))
_OF_THE_SERVER_PREFIXES = (b"access-control-",)
_PATH_SAFE = "/:@!$&'()*+,;=~"
_QUERY_SAFE = _PATH_SAFE + "%?[]"

_STARTING = f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta http-equiv="refresh" content="{_STARTING_SECONDS}"><title>Dagster is starting</title>
<style>:root {{color-scheme: light dark}} body {{font: 1rem system-ui, sans-serif; margin: 4rem auto; max-width: 34rem}}
</style></head>
<body><h1>Dagster is starting</h1><p>Its web server does not answer yet. This page tries again by itself.</p></body>
</html>
"""


class DagsterProxy:
    """One pool of connections to Dagster's web server. An async context manager, open as long as the server runs."""

    def __init__(self, address: DagsterAddress, settings: GatewaySettings) -> None:
        self.max_body_bytes = settings.max_body_bytes
        self._socket = address.socket
        self._base = URL(address.url).origin()
        #: As clients write it into the header `Host`.
        self._host = self._base.host_port_subcomponent or ""
        self._seconds = settings.request_seconds
        timeout = aiohttp.ClientTimeout(total=None, connect=_CONNECT_SECONDS, sock_read=self._seconds)
        self._session = address.session(timeout)

    async def send(
        self,
        request: Request,
        path: str,
        query_string: str = "",
        content: AsyncIterator[bytes] | None = None,
        json: str | None = None,
    ) -> Response:
        """Return the answer to a request that is sent to this path. Raises `Problem` where there is none.

        `content` is the body of the request, `json` one in its place; without either none is sent.
        """
        body = content if json is None else json.encode()
        headers = _outgoing_headers(request.headers.raw, with_body=content is not None, is_json=json is not None)
        try:
            incoming = await self._session.request(
                request.method,
                self._url(path, query_string),
                headers=CIMultiDict((name.decode("ascii"), value.decode(errors="replace")) for name, value in headers),
                skip_auto_headers=_ADDED_BY_CLIENT,
                data=body,
                allow_redirects=False,
            )
        except aiohttp.ClientConnectorError:
            return _away(request)
        except aiohttp.ConnectionTimeoutError:
            detail = "Dagster's web server takes no connection, or too many requests wait for it"
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": "5"}) from None
        except TimeoutError:
            detail = f"Dagster's web server did not answer within {self._seconds:g} s"
            raise Problem(HTTPStatus.GATEWAY_TIMEOUT, detail) from None
        except aiohttp.ClientError as error:
            logger.warning("Dagster's web server failed: %s %s: %s", request.method, path, type(error).__name__)
            raise Problem(HTTPStatus.BAD_GATEWAY, "Dagster's web server ended the connection") from None
        return _PassedOn(incoming, self._incoming_headers(incoming))

    async def connect(self) -> ClientConnection:
        """Return a WebSocket to Dagster's GraphQL. Raises `Problem` where there is none."""
        uri = str(self._base.with_path(GRAPHQL)).replace("http", "ws", 1)
        options: dict[str, Any] = {
            "origin": Origin(f"{self._base.scheme}://{self._host}"),
            "subprotocols": [Subprotocol(SUBPROTOCOL)],
            "compression": None,
            "user_agent_header": None,
            "open_timeout": _CONNECT_SECONDS,
            "close_timeout": _CLOSE_SECONDS,
            "ping_interval": _PING_SECONDS,
            "ping_timeout": _PING_SECONDS,
            "max_size": _SOCKET_BYTES,
        }
        try:
            if self._socket is not None:
                return await unix_connect(str(self._socket), uri, **options)
            return await connect(uri, proxy=None, **options)
        except (OSError, WebSocketException):
            raise _away_problem() from None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    def _url(self, path: str, query_string: str) -> URL:
        """The address of what is asked for: of the path that was judged, not as it was spelt. Raises `Problem`."""
        target = quote(path, safe=_PATH_SAFE)
        if query_string:
            target += "?" + quote(query_string.encode("latin-1"), safe=_QUERY_SAFE)
        if len(target) > ADDRESS_BYTES:
            raise Problem(HTTPStatus.REQUEST_URI_TOO_LONG, "the address is too long")
        return URL(f"{self._base.scheme}://{self._host}{target}", encoded=True)

    def _incoming_headers(self, incoming: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
        raw = [(name.lower(), value) for name, value in incoming.raw_headers]
        dropped = _named_by_connection(raw) | _OF_THE_CONNECTION | _OF_THE_SERVER
        headers = _without(raw, dropped, _OF_THE_SERVER_PREFIXES)
        location = incoming.headers.get("location")
        if location is not None:
            headers.append((b"location", self._location(location).encode("latin-1", "replace")))
        return headers

    def _location(self, location: str) -> str:
        """An address of Dagster's web server as one of this server, any other as it is."""
        parts = urlsplit(location)
        if parts.netloc.lower() != self._host:
            return location
        return parts._replace(scheme="", netloc="", path="/" + parts.path.lstrip("/")).geturl()


async def race(*parts: Awaitable[None]) -> None:
    """Run these until the first of them ends, which ends the others."""

    async def run(part: Awaitable[None], end: Callable[[], None]) -> None:
        await part
        end()

    async with anyio.create_task_group() as group:
        for part in parts:
            group.start_soon(run, part, group.cancel_scope.cancel)


class _PassedOn(Response):
    """An answer of Dagster, sent on piece by piece."""

    def __init__(self, incoming: aiohttp.ClientResponse, headers: list[tuple[bytes, bytes]]) -> None:
        self.status_code = incoming.status
        self.raw_headers = headers
        self.background = None
        self._incoming = incoming

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await race(self._pass_on(send), _until_gone(receive))
        finally:
            self._incoming.close()

    async def _pass_on(self, send: Send) -> None:
        try:
            async for part in self._incoming.content.iter_any():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except (aiohttp.ClientError, TimeoutError) as error:
            # Without its end the client's connection is closed, and the client knows that something is missing.
            logger.warning("Dagster's web server ended in the middle of an answer: %s", type(error).__name__)
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive) -> None:
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


def _outgoing_headers(raw: list[tuple[bytes, bytes]], *, with_body: bool, is_json: bool) -> list[tuple[bytes, bytes]]:
    dropped = _named_by_connection(raw) | _OF_THE_CONNECTION | _OF_THE_CALLER
    headers = _without(raw, dropped if with_body else dropped | _OF_THE_BODY, _OF_THE_CALLER_PREFIXES)
    if is_json:
        headers.append((b"content-type", b"application/json"))
    if not any(name == b"accept-encoding" for name, _ in headers):
        headers.append((b"accept-encoding", b"identity"))  # nobody here decodes what comes back
    return headers


def _without(
    raw: Iterable[tuple[bytes, bytes]], names: Iterable[bytes], prefixes: tuple[bytes, ...]
) -> list[tuple[bytes, bytes]]:
    return [(name, value) for name, value in raw if name not in names and not name.startswith(prefixes)]


def _named_by_connection(raw: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    """The names that the header `Connection` says are of this connection alone."""
    values = [value for name, value in raw if name == b"connection"]
    return {token.strip().lower() for value in values for token in value.split(b",")}


def _away(request: Request) -> Response:
    """The answer while nothing listens there: a person gets a page that tries again. Raises `Problem` for the rest."""
    if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
        headers = {"Retry-After": str(_STARTING_SECONDS), "Cache-Control": "no-store"}
        return HTMLResponse(_STARTING, HTTPStatus.SERVICE_UNAVAILABLE, headers)
    raise _away_problem()


def _away_problem() -> Problem:
    detail = "Dagster's web server is starting, or away"
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, headers={"Retry-After": str(_STARTING_SECONDS)})
