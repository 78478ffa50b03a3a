"""Errors as clients get them: `application/problem+json` (RFC 9457), with the field that is wrong, never a stack trace.

Called by `gateway.app`, which installs the handlers, and by the layers in front of it, which answer by themselves.
"""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from vectorize_pipelines.errors import (
    CollectionNotFoundError,
    DagsterUnavailableError,
    DeviceMemoryError,
    HubUnavailableError,
    ItemError,
    KafkaError,
    KafkaNotConfiguredError,
    KeysError,
    LedgerError,
    ModelTooLargeError,
    ProviderUnavailableError,
    StoreUnavailableError,
    UnanswerableFilterError,
    UnknownModelError,
    VectorizeError,
)
from vectorize_pipelines.messaging.messages import InvalidMessageError

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
#: Wrong fields of a request that are told in words beside the list of all.
_TOLD = 3
#: The code with which a WebSocket is closed that somebody may not have.
POLICY_VIOLATION = 1008
_SCHEMA = {"$ref": "#/components/schemas/ProblemModel"}
#: What comes with every answer of these statuses, and what it says.
_HEADERS = {
    HTTPStatus.UNAUTHORIZED: ("WWW-Authenticate", "how to say who calls"),
    HTTPStatus.METHOD_NOT_ALLOWED: ("Allow", "the methods that are served"),
    HTTPStatus.TOO_MANY_REQUESTS: ("Retry-After", "seconds after which to come again"),
    HTTPStatus.SERVICE_UNAVAILABLE: ("Retry-After", "seconds after which to come again"),
}

#: What an error of ours means to a client, the most special first. Anything else is a defect or a failing part: 500.
_STATUS_OF: tuple[tuple[type[VectorizeError], HTTPStatus], ...] = (
    (CollectionNotFoundError, HTTPStatus.NOT_FOUND),
    (UnanswerableFilterError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (ItemError, HTTPStatus.UNPROCESSABLE_ENTITY),
    (StoreUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (KafkaNotConfiguredError, HTTPStatus.SERVICE_UNAVAILABLE),
    (KafkaError, HTTPStatus.SERVICE_UNAVAILABLE),
    (LedgerError, HTTPStatus.SERVICE_UNAVAILABLE),
    (DagsterUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ModelTooLargeError, HTTPStatus.SERVICE_UNAVAILABLE),
    (DeviceMemoryError, HTTPStatus.SERVICE_UNAVAILABLE),
    (HubUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (ProviderUnavailableError, HTTPStatus.SERVICE_UNAVAILABLE),
    (KeysError, HTTPStatus.SERVICE_UNAVAILABLE),
    (UnknownModelError, HTTPStatus.NOT_FOUND),
)


class FieldProblem(BaseModel):
    """One thing that is wrong with a request: which field, as `tasks[3].priority`, and what is the matter with it."""

    field: str
    problem: str


class ProblemModel(BaseModel):
    """The body of every error answer."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None


class Problem(Exception):  # noqa: N818 -- the word of RFC 9457
    """An answer that is an error; raised by routes."""

    def __init__(
        self,
        status: HTTPStatus,
        detail: str,
        *,
        errors: list[FieldProblem] | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        """`members` are further ones of the body, as RFC 9457 allows."""
        super().__init__(detail)
        self.status, self.detail, self.errors, self.headers = status, detail, errors, dict(headers or {})
        self.members = dict(members or {})

    @property
    def response(self) -> JSONResponse:
        """The answer itself."""
        model = ProblemModel(title=self.status.phrase, status=self.status, detail=self.detail, errors=self.errors)
        content = {**model.model_dump(exclude_none=True), **self.members}
        return JSONResponse(content, self.status, self.headers, MEDIA_TYPE)


def documented(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may answer with these errors by itself, for OpenAPI.

    What the layers in front of all routes answer, such as 401, is added by `gateway.openapi`.
    """
    return {int(status): documented_problem(status, status.phrase) for status in statuses}


def documented_problem(
    status: HTTPStatus, description: str, members: Mapping[str, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Return the documentation of an error; `members` are the schemas of further members that its body may have."""
    further = {"type": "object", "properties": dict(members or {})}
    content = {MEDIA_TYPE: {"schema": {"allOf": [_SCHEMA, further]} if members else _SCHEMA}}
    if status not in _HEADERS:
        return {"description": description, "content": content}
    name, meaning = _HEADERS[status]
    header = {"description": meaning, "required": True, "schema": {"type": "string"}}
    return {"description": description, "headers": {name: header}, "content": content}


def invalid_fields(errors: list[FieldProblem]) -> Problem:
    """Return the answer to a request that is wrong in these places; the first few are told in words, too."""
    told = "; ".join(f"{each.field}: {each.problem}" for each in errors[:_TOLD])
    more = f"; and {len(errors) - _TOLD:,} more" if len(errors) > _TOLD else ""
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, told + more, errors=errors)


async def refuse(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in place of the app; a WebSocket is not opened then. Called by the layers in front of the routes."""
    if scope["type"] == "websocket":
        await receive()  # the request to connect
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close", "code": POLICY_VIOLATION})
            return
    await answer(scope, receive, send)


def problem_of(error: VectorizeError) -> Problem:
    """Return the answer that an error of ours becomes; its message is written for users."""
    status = next((status for kind, status in _STATUS_OF if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
    retry = {"Retry-After": "5"} if status is HTTPStatus.SERVICE_UNAVAILABLE else None
    field = error.field if isinstance(error, InvalidMessageError) else ""
    errors = [FieldProblem(field=field, problem=str(error).removeprefix(f"{field}: "))] if field else None
    return Problem(status, str(error), errors=errors, headers=retry)


def install(app: FastAPI) -> None:
    """Have the app answer every error as a problem."""

    @app.exception_handler(Problem)
    async def problem(request: Request, error: Problem) -> JSONResponse:
        return error.response

    @app.exception_handler(VectorizeError)
    async def known(request: Request, error: VectorizeError) -> JSONResponse:
        answer = problem_of(error)
        if answer.status is HTTPStatus.INTERNAL_SERVER_ERROR:
            logger.error("%s %s: %s", request.method, request.url.path, error)
        return answer.response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        errors = [FieldProblem(field=_field(each["loc"]), problem=each["msg"]) for each in error.errors()]
        return invalid_fields(errors).response

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        return Problem(status, error.detail or status.phrase, headers=error.headers).response

    @app.exception_handler(Exception)
    async def defect(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again for the server's log; the client is not told what it was.
        return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; its log has the reason").response


def _field(place: tuple[int | str, ...]) -> str:
    """`("body", "tasks", 3, "data")` -> `tasks[3].data`; `("query", "page")` -> `page`."""
    inner = place[1:] if place and place[0] in ("body", "query", "path", "header", "cookie") else place
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in inner).removeprefix(".")
    return path or str(place[0] if place else "body")
