"""The sign-in page of the HTTP server: a form without a script, whose token becomes a session in a cookie."""

import logging
import time
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import parse_qsl

import anyio
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.requests import HTTPConnection

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.gateway.door.auth import Access, local_path, unreadable_tokens, wants_page
from vectorize_pipelines.gateway.door.origins import is_own_origin
from vectorize_pipelines.gateway.door.sessions import COOKIE, SESSION_SECONDS, session_id_in
from vectorize_pipelines.gateway.door.tokens import Token
from vectorize_pipelines.gateway.page import answer_signin
from vectorize_pipelines.gateway.problems import FieldProblem, Problem, documented_problem

logger = logging.getLogger(__name__)

router = APIRouter(tags=["sign-in"])

_FORM = "application/x-www-form-urlencoded"
_MAX_BODY = 16 * 1024
_MAX_FIELDS = 8
#: Anybody may send a form, so that whoever does it slowly gets less time than a caller.
_BODY_SECONDS = 10.0
_MOST_AT_ONCE = 16
#: Wrong tokens that are answered as such: so many at once, and so many each second.
_FAILURES = 10
_FAILURES_PER_SECOND = 1.0


class FailureRate:
    """A limit on wrong tokens; whoever sends more is told to come later.

    It is one rate for everybody, as addresses can be borrowed, and a right token is never held up by it: there is
    nothing to guess, and nobody keeps others out. It bounds what is logged, and tells a script that it is wrong.
    """

    def __init__(self, burst: int = _FAILURES, per_second: float = _FAILURES_PER_SECOND) -> None:
        self._burst, self._per_second = burst, per_second
        self._left, self._counted_at = float(burst), time.monotonic()

    def take(self) -> bool:
        """Return whether this one is within the rate."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._counted_at) * self._per_second)
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class SignIn:
    """The state of the sign-in of one server."""

    def __init__(self, access: Access) -> None:
        self.access, self.failures = access, FailureRate()
        self.forms_at_once = 0

    def is_free(self) -> bool:
        """Return whether nobody has to sign in. Raises `Problem`."""
        try:
            return self.access.is_free()
        except VectorizeError:
            raise unreadable_tokens() from None

    def token(self, text: str) -> Token | None:
        """Return the token with a text, None where there is none. Raises `Problem`."""
        try:
            return self.access.tokens.find(text.encode())
        except VectorizeError:
            raise unreadable_tokens() from None


def sign_in_of(connection: HTTPConnection) -> SignIn:
    """Return the sign-in of the server that a request came to."""
    sign_in: SignIn = connection.app.state.sign_in
    return sign_in


def _documented_redirect(description: str) -> dict[str, Any]:
    return {"description": description, "headers": {"Location": {"required": True, "schema": {"type": "string"}}}}


def _documented_refusal(status: HTTPStatus, description: str) -> dict[str, Any]:
    """The documentation of an answer that a program gets to read, and a browser to see."""
    answer = documented_problem(status, description)
    answer["content"]["text/html"] = {"schema": {"type": "string"}}
    return answer


_SEE_OTHER: dict[int | str, dict[str, Any]] = {303: _documented_redirect("Signed in, or nobody has to")}


@router.get(
    "/signin",
    summary="The sign-in page",
    response_class=HTMLResponse,
    responses=_SEE_OTHER,
)
async def form(
    request: Request,
    place: Annotated[str, Query(alias="next", description="path of the page to go to afterwards")] = "/",
) -> Response:
    """Show the form; where no token has been made there is nothing to sign in with, and the page is shown at once."""
    place = _checked(place)
    if sign_in_of(request).is_free():
        return RedirectResponse(place, HTTPStatus.SEE_OTHER)
    return answer_signin(place)


@router.post(
    "/signin",
    summary="Begin a session",
    status_code=HTTPStatus.SEE_OTHER,
    response_class=RedirectResponse,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                _FORM: {
                    "schema": {
                        "type": "object",
                        "properties": {"token": {"type": "string"}, "next": {"type": "string", "default": "/"}},
                        "required": ["token"],
                    }
                }
            },
        }
    },
    responses={
        **_SEE_OTHER,
        401: _documented_refusal(HTTPStatus.UNAUTHORIZED, "There is no such token"),
        415: documented_problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"The body is not sent as `{_FORM}`"),
        429: _documented_refusal(HTTPStatus.TOO_MANY_REQUESTS, "Too many wrong tokens, or too many at once"),
    },
)
async def begin(request: Request) -> Response:
    """Set a cookie that stands for the token, for twelve hours or until it is revoked."""
    sign_in = sign_in_of(request)
    _check_origin(request)
    fields = await _fields(request, sign_in)
    place = _checked(fields.get("next") or "/")
    token = sign_in.token(fields.get("token", "").strip())
    if token is None:
        return _refused(request, place, within_rate=sign_in.failures.take())
    logger.info("%r has signed in", token.name)
    earlier = session_id_in(request.headers)
    if earlier is not None:
        sign_in.access.sessions.end(earlier)
    answer = RedirectResponse(place, HTTPStatus.SEE_OTHER)
    _set_cookie(answer, request, sign_in.access.sessions.begin(token.digest), SESSION_SECONDS)
    return answer


@router.post(
    "/signout",
    summary="End a session",
    status_code=HTTPStatus.SEE_OTHER,
    response_class=RedirectResponse,
    responses={303: _documented_redirect("The session is over; the sign-in page")},
)
async def end(request: Request) -> Response:
    """End the session of the cookie, and take the cookie away."""
    session_id = session_id_in(request.headers)
    if session_id is not None:
        sign_in_of(request).access.sessions.end(session_id)
    answer = RedirectResponse("/signin", HTTPStatus.SEE_OTHER)
    _set_cookie(answer, request, "", 0)
    return answer


def _checked(place: str) -> str:
    try:
        return local_path(place)
    except ValueError as error:
        problem = FieldProblem(field="next", problem=str(error))
        raise Problem(HTTPStatus.BAD_REQUEST, f"next: {error}", errors=[problem]) from None


def _check_origin(request: Request) -> None:
    """Refuse a form of another page, also of one that may call the routes. Raises `Problem`.

    It could sign somebody in with a token of its own, and see what they then do.
    """
    origin = request.headers.get("origin")
    if origin is not None and not is_own_origin(origin, request.headers.get("host", "")):
        raise Problem(HTTPStatus.FORBIDDEN, "the form of another page (Origin) signs nobody in")


async def _fields(request: Request, sign_in: SignIn) -> dict[str, str]:
    """Return the fields of the form. Raises `Problem`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"/signin takes the content type {_FORM} only")
    body = await _body(request, sign_in)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=_MAX_FIELDS, errors="strict")
    except ValueError:
        raise Problem(HTTPStatus.BAD_REQUEST, f"the body is no form of at most {_MAX_FIELDS} fields") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise Problem(HTTPStatus.BAD_REQUEST, "a field of the form is there more than once")
    return fields


async def _body(request: Request, sign_in: SignIn) -> bytes:
    if sign_in.forms_at_once >= _MOST_AT_ONCE:
        raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "too many sign in at once", headers={"Retry-After": "1"})
    sign_in.forms_at_once += 1
    body = bytearray()
    try:
        with anyio.fail_after(_BODY_SECONDS):
            async for piece in request.stream():
                body += piece
                if len(body) > _MAX_BODY:
                    raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a form has {_MAX_BODY} bytes at most")
    except TimeoutError:
        raise Problem(
            HTTPStatus.REQUEST_TIMEOUT, "the form did not arrive in time", headers={"Connection": "close"}
        ) from None
    finally:
        sign_in.forms_at_once -= 1
    return bytes(body)


def _refused(request: Request, place: str, *, within_rate: bool) -> Response:
    if within_rate:
        logger.warning("somebody at %s has tried to sign in with a wrong token", _address(request))
        status, headers = HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": "Bearer"}
        detail = "There is no such token: it was revoked, or never made."
    else:
        status, headers = HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": str(round(1 / _FAILURES_PER_SECOND))}
        detail = "Too many wrong tokens were sent: try again in a moment."
    if wants_page(request.headers):
        return answer_signin(place, detail, status, headers)
    return Problem(status, detail, headers=headers).response


def _address(request: Request) -> str:
    return "?" if request.client is None else request.client.host


def _set_cookie(answer: Response, request: Request, value: str, seconds: int) -> None:
    # A proxy in front may have TLS where this server has none; the page says by which scheme it was asked for.
    secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
    answer.set_cookie(COOKIE, value, max_age=seconds, path="/", secure=secure, httponly=True, samesite="strict")
