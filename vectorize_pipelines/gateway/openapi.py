"""The description of the API: what FastAPI says of the routes, and what is answered in the place of any of them.

The layers in front of the routes (`gateway.door`), the connection and the handlers of errors answer by themselves,
whatever the route. What they answer is written down here, and not at each route; a route documents what is its own.

Left out is what no client of a route gets: 405, which only a method gets that is no route, and 499, which nobody hears.
Called by `gateway.app`.
"""

from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from vectorize_pipelines.gateway.door.auth import is_open
from vectorize_pipelines.gateway.door.limits import UNLIMITED
from vectorize_pipelines.gateway.door.origins import FORMS
from vectorize_pipelines.gateway.problems import ProblemModel, documented_problem

_DESCRIPTIONS = {
    HTTPStatus.BAD_REQUEST: "A header is there more than once, the path has a trick in it (`//`, `..`, a backslash, an "
    "encoded slash), or the body cannot be read",
    HTTPStatus.UNAUTHORIZED: "There is no token, or none that counts",
    HTTPStatus.FORBIDDEN: "The token lacks the scope; or the request came under a name that is none of the server's, "
    "or from a page of another origin",
    HTTPStatus.REQUEST_TIMEOUT: "The body did not arrive in time (setting `gateway.request_seconds`)",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large (setting `gateway.max_body_bytes`)",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body is not sent as `application/json`",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: "The header has more than 64 KiB",
    HTTPStatus.INTERNAL_SERVER_ERROR: "The server failed; its log has the reason",
    HTTPStatus.SERVICE_UNAVAILABLE: "Too much is open at once (setting `gateway.max_requests`), or something is away "
    "that the server needs",
    HTTPStatus.GATEWAY_TIMEOUT: "There was no answer in time (setting `gateway.request_seconds`)",
}
#: What a browser gets that was sent to an address without a session.
_PAGE = {"text/html": {"schema": {"type": "string"}}}
_SIGN_IN = {
    "description": "A browser without a session is sent to the sign-in page",
    "headers": {"Location": {"required": True, "schema": {"type": "string"}}},
}
#: FastAPI's own answer to a request that is not as its model says; here such a request gets a problem.
_OWN_SCHEMAS = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Have the app describe its routes as they are served behind all layers."""
    plain = app.openapi
    completed: dict[str, Any] | None = None

    def described() -> dict[str, Any]:
        nonlocal completed
        description = plain()
        if description is not completed:  # it is made again after routes were added
            _complete(description)
            completed = description
        return description

    app.openapi = described  # type: ignore[method-assign]


def _complete(description: dict[str, Any]) -> None:
    components = description.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    problem = ProblemModel.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs"), ProblemModel=problem)
    for name in _OWN_SCHEMAS:
        schemas.pop(name, None)
    shared = components.setdefault("responses", {})
    shared.update({_name(status): _answer(status) for status in (*_DESCRIPTIONS, HTTPStatus.SEE_OTHER)})
    for path, operations in description["paths"].items():
        for method, operation in operations.items():
            _add_answers(operation, _of_any_route(method, path, has_body="requestBody" in operation))


def _of_any_route(method: str, path: str, *, has_body: bool) -> Iterator[HTTPStatus]:
    """Yield what a request for a route may be answered with before it gets there, or in the route's place."""
    yield HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE  # connections
    yield HTTPStatus.SERVICE_UNAVAILABLE  # connections, limits, auth
    yield HTTPStatus.INTERNAL_SERVER_ERROR  # problems
    yield HTTPStatus.BAD_REQUEST  # origins, auth
    yield HTTPStatus.FORBIDDEN  # origins, auth
    if method == "post" and path not in FORMS:
        yield HTTPStatus.UNSUPPORTED_MEDIA_TYPE  # origins
    if path != UNLIMITED:
        yield HTTPStatus.REQUEST_ENTITY_TOO_LARGE  # limits
        yield HTTPStatus.GATEWAY_TIMEOUT  # limits
        if has_body:
            yield HTTPStatus.REQUEST_TIMEOUT  # limits
    if not is_open(path):
        yield HTTPStatus.UNAUTHORIZED  # auth
        yield HTTPStatus.SEE_OTHER  # auth


def _add_answers(operation: dict[str, Any], statuses: Iterator[HTTPStatus]) -> None:
    """Add the answers with these statuses; where the route has one of its own, both are described in it."""
    answers = operation["responses"]
    if _OWN_SCHEMAS[0] in str(answers.get("422")):
        del answers["422"]
    for status in statuses:
        own = answers.setdefault(str(status.value), {"$ref": f"#/components/responses/{_name(status)}"})
        if "$ref" not in own:
            for kind, content in _answer(status).get("content", {}).items():
                own.setdefault("content", {}).setdefault(kind, content)
    operation["responses"] = dict(sorted(answers.items()))


def _answer(status: HTTPStatus) -> dict[str, Any]:
    if status is HTTPStatus.SEE_OTHER:
        return _SIGN_IN
    answer = documented_problem(status, _DESCRIPTIONS[status])
    if status is HTTPStatus.UNAUTHORIZED:
        answer["content"] |= _PAGE
    return answer


def _name(status: HTTPStatus) -> str:
    return f"Answer{status.value}"
