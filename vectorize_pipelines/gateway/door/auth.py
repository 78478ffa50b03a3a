"""Authentication by tokens with scopes, sent as `Authorization: Bearer …` or by a browser's session.

`Door` stands in front of the routes and finds out who calls; `requires` and `caller_of` are for the routes. Called by
`gateway.app`.
"""

import html
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote, unquote

import anyio
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Connection

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.gateway.door.origins import is_own_origin
from vectorize_pipelines.gateway.door.sessions import Sessions, session_id_in
from vectorize_pipelines.gateway.door.tokens import Scope, Token, Tokens
from vectorize_pipelines.gateway.problems import POLICY_VIOLATION, Problem, refuse

__all__ = ["Access", "Caller", "Door", "Scope", "caller_of", "is_open", "local_path", "requires"]

#: Paths for everybody; below `_STATIC` lie the files of the pages.
_OPEN = frozenset(("/livez", "/signin"))
_STATIC = "/static/"
_OPENAI = "/v1/"
#: A request by one of these changes nothing.
_READING = frozenset(("GET", "HEAD", "OPTIONS"))
#: How long a `next` may be; a longer one is not worth the way back.
_MAX_NEXT = 2048
_ORDER = list(Scope)


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request: the token's name, and its scopes with those that they include."""

    name: str
    scopes: frozenset[Scope]

    @classmethod
    def of(cls, name: str, *scopes: Scope) -> "Caller":
        """The caller with a token that was made with these scopes."""
        highest = max(map(_ORDER.index, scopes), default=-1)
        return cls(name, frozenset(_ORDER[: highest + 1]))

    def may(self, scope: Scope) -> bool:
        """Return whether the caller has a scope."""
        return scope in self.scopes


ANYBODY = Caller.of("anonymous", Scope.ADMIN)


def is_open(path: str) -> bool:
    """Return whether everybody may ask for a path, whoever they are."""
    return path in _OPEN or path.startswith(_STATIC)


def caller_of(connection: HTTPConnection) -> Caller:
    """Return who sent a request; the layer in front of the routes has found out."""
    caller: Caller = connection.scope["state"]["caller"]
    return caller


def requires(scope: Scope) -> Callable[[HTTPConnection], Awaitable[Caller]]:
    """Return a dependency of a route, or of a router, that lets only callers with a scope through."""
    return _Requirement(scope)


class _Requirement(SecurityBase):
    """What `requires` returns. FastAPI takes it for a security scheme, so that OpenAPI says how to send a token."""

    def __init__(self, scope: Scope) -> None:
        self.model = HTTPBearer(description="a token that `vectorize tokens create` made")
        self.scheme_name = "token"
        self._scope = scope

    async def __call__(self, connection: HTTPConnection) -> Caller:
        caller = caller_of(connection)
        if not caller.may(self._scope):
            raise Problem(HTTPStatus.FORBIDDEN, f"the token {caller.name!r} lacks the scope {self._scope}")
        return caller


@dataclass(frozen=True, slots=True)
class Admission:
    """What a request was let in with: the digest of a token, or None where no token is asked for."""

    caller: Caller
    token: bytes | None


class Access:
    """The tokens and sessions of one server, and what it makes of what requests bring."""

    def __init__(self, tokens: Tokens, *, loopback: bool) -> None:
        self.tokens, self.sessions, self._loopback = tokens, Sessions(), loopback

    def is_free(self) -> bool:
        """Return whether everybody may do everything: only this machine gets here, and no token has been made."""
        return not self.tokens.any_ever() and self._loopback

    def admit(self, connection: HTTPConnection) -> Admission:
        """Return who sent a request. Raises `Problem`."""
        given = connection.headers.getlist("authorization")
        if len(given) > 1:
            raise Problem(HTTPStatus.BAD_REQUEST, "the header Authorization is there more than once")
        try:
            if self.is_free():
                return Admission(ANYBODY, None)
            token = self._by_header(given[0]) if given else self._by_session(connection)
        except VectorizeError:
            raise unreadable_tokens() from None
        return Admission(Caller.of(token.name, *token.scopes), token.digest)

    def holds(self, admission: Admission) -> bool:
        """Return whether somebody who was let in would be let in now."""
        try:
            if admission.token is None:
                return self.is_free()
            return self.tokens.with_digest(admission.token) is not None
        except VectorizeError:
            return False

    def _by_header(self, value: str) -> Token:
        scheme, _, text = value.partition(" ")
        if scheme.lower() != "bearer":
            raise _unauthorized("the header Authorization has to be `Bearer` and a token")
        token = self.tokens.find(text.strip(" ").encode("latin-1"))
        if token is None:
            raise _unauthorized("there is no such token: it was revoked, or never made")
        return token

    def _by_session(self, connection: HTTPConnection) -> Token:
        session_id = session_id_in(connection.headers)
        if session_id is None:
            raise _unauthorized("a token is asked for: send the header `Authorization: Bearer …`")
        digest = self.sessions.token_of(session_id)
        token = None if digest is None else self.tokens.with_digest(digest)
        if token is None:
            self.sessions.end(session_id)
            raise _unauthorized("the session is over: sign in again")
        _check_own_page(connection)
        return token


def _check_own_page(connection: HTTPConnection) -> None:
    """Refuse what changes something and may come from elsewhere: a cookie comes along whoever asks. Raises `Problem`.

    That it is SameSite=Strict keeps it from other sites, but not from another port or a neighbouring host.
    """
    if connection.scope["type"] == "http" and connection.scope["method"] in _READING:
        return
    if not is_own_origin(connection.headers.get("origin", ""), connection.headers.get("host", "")):
        raise Problem(HTTPStatus.FORBIDDEN, "with a cookie, changes are taken from pages of this server only (Origin)")


def _as_openai_says_it(problem: Problem) -> dict[str, str | None]:
    """Return what OpenAI's clients look for in an error; they show no other member."""
    code = "invalid_api_key" if problem.status is HTTPStatus.UNAUTHORIZED else None
    return {"message": problem.detail, "type": "invalid_request_error", "param": None, "code": code}


def _unauthorized(detail: str) -> Problem:
    return Problem(HTTPStatus.UNAUTHORIZED, detail, headers={"WWW-Authenticate": "Bearer"})


def unreadable_tokens() -> Problem:
    """Return the answer while the tokens cannot be read; why is in the log, as it is not for everybody."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "the server cannot read its tokens, and lets nobody in; its log has the reason",
        headers={"Retry-After": "5"},
    )


class Door:
    """The ASGI layer that lets callers in; routes find in `scope["state"]` who it is.

    What goes on for long, a stream of events or a WebSocket, ends once its token is revoked.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app, self._access = app, access

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI has it."""
        if scope["type"] == "lifespan" or is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            admission = self._access.admit(connection)
        except Problem as problem:
            if scope["path"].startswith(_OPENAI):
                problem.members["error"] = _as_openai_says_it(problem)
            await refuse(_way_to_sign_in(connection, problem) or problem.response, scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = admission.caller
        if scope["type"] == "websocket" or scope["method"] == "GET":  # what else there is does not go on for long
            await self._while_admitted(admission, scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _while_admitted(self, admission: Admission, scope: Connection, receive: Receive, send: Send) -> None:
        revoked = False

        async def end_if_revoked() -> None:
            nonlocal revoked
            if not self._access.holds(admission):
                revoked = True
                work.cancel()
                await anyio.sleep_forever()

        async def receiving() -> Message:
            message = await receive()
            if message["type"] == "websocket.receive":
                await end_if_revoked()
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "websocket.send" or (message["type"] == "http.response.body" and _more(message)):
                await end_if_revoked()
            await send(message)

        with anyio.CancelScope() as work:
            await self._app(scope, receiving if scope["type"] == "websocket" else receive, sending)
        if revoked and scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": "the token is revoked"})


def _more(message: Message) -> bool:
    return bool(message.get("more_body"))


def local_path(text: str) -> str:
    """Return the path of a page to go to after signing in. Raises `ValueError` for what a browser might take elsewhere.

    Browsers pass over tabs and line ends in an address, take backslashes for slashes, and go to another host where an
    address begins with two of these. So there is none of them, encoded neither.
    """
    path = unquote(text.partition("?")[0])
    if len(text) > _MAX_NEXT or not re.fullmatch(r"/[!-\[\]-~]*", text):
        raise ValueError("must be a path of this server, from its first slash on")
    if path.startswith("//") or "//" in text.partition("?")[0] or re.search(r"[\\\x00-\x1f\x7f]|/\.{1,2}(/|$)", path):
        raise ValueError("must be a plain path, without `//`, `..`, backslashes and control characters")
    return text


def _way_to_sign_in(connection: HTTPConnection, problem: Problem) -> Response | None:
    """Return how a browser gets to the sign-in page; None where no browser has been sent to a page."""
    headers = connection.headers
    if problem.status is not HTTPStatus.UNAUTHORIZED or connection.scope["type"] != "http":
        return None
    if "authorization" in headers or not wants_page(headers):
        return None
    if connection.scope["method"] != "GET":
        return RedirectResponse("/signin", HTTPStatus.SEE_OTHER)
    query = connection.scope["query_string"].decode("latin-1")
    place = connection.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
    try:
        local_path(place)
    except ValueError:
        place = "/"
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return _again(place)
    return RedirectResponse(f"/signin?next={quote(place, safe='/')}", HTTPStatus.SEE_OTHER)


def wants_page(headers: Headers) -> bool:
    """Return whether a browser shows the answer to a user, rather than a script reading it."""
    return "text/html" in headers.get("accept", "") and headers.get("sec-fetch-mode", "navigate") == "navigate"


def _again(place: str) -> Response:
    """The answer to a link in another site's page: the same page again, asked for from here.

    A cookie that is SameSite=Strict stays away from the first request, though its user may have signed in.
    """
    content = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="0; url={html.escape(place)}">
<title>vectorize</title></head><body><a href="{html.escape(place)}">Continue</a></body></html>
"""
    return HTMLResponse(content, HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": "Bearer"})
