"""Decides which GraphQL may be sent to Dagster: everybody who may read queries, administrators mutate as well.

Called by `routes.dagster`. It sends on what was read here and not the bytes that came, so that no other reader can find
another document in them: the last of two equal keys, a parameter that is there twice, a body beside a query string.
What a document can change is judged by `door.graphql_documents`.
"""

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, NoReturn
from urllib.parse import parse_qsl, urlencode

from graphql import OperationType

from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.gateway.door.graphql_documents import Operations, operations_in
from vectorize_pipelines.gateway.problems import FieldProblem, Problem

_ID_CHARACTERS = 256
_PARAMETERS = ("query", "variables", "operationName")


@dataclass(frozen=True, slots=True)
class GraphQLRequest:
    """A request as it is sent to Dagster.

    variables   their JSON: written once, since that recurses as reading does, and may fail in the same way
    operations  the kinds of all operations in the document
    """

    query: str
    variables: str
    operation_name: str | None
    operations: Operations

    @property
    def json(self) -> str:
        """The request as JSON. Dagster reads the name as `operationName` by HTTP, as `operation_name` by WebSocket."""
        query, name = json.dumps(self.query), json.dumps(self.operation_name)
        return f'{{"query": {query}, "variables": {self.variables}, "operationName": {name}, "operation_name": {name}}}'

    @property
    def query_string(self) -> str:
        """The request as parameters of a GET."""
        given = {"query": self.query, "variables": self.variables}
        return urlencode(given if self.operation_name is None else {**given, "operationName": self.operation_name})


def read_body(body: bytes) -> GraphQLRequest:
    """Return the request in the JSON body of a POST. Raises `Problem`."""
    content = _read_json(body, "the body")
    if isinstance(content, list):
        _refuse("batches are not served: send one operation a request")
    if not isinstance(content, dict):
        _refuse("the body must be a JSON object with `query`")
    return _request(content)


def read_parameters(query_string: str) -> GraphQLRequest | None:
    """Return the request in the parameters of a GET; None where they have no `query`. Raises `Problem`."""
    found = _parameters(query_string)
    return _request(found) if "query" in found else None


def refuse_parameters(query_string: str) -> None:
    """Raise `Problem` where a POST has parameters that belong into its body: some servers would read those instead."""
    name = next(iter(_parameters(query_string)), None)
    if name is not None:
        _refuse("a POST has its document in the body alone", name)


def require_right(request: GraphQLRequest, caller: Caller) -> None:
    """Raise `Problem` where the caller may not send the request by POST."""
    if OperationType.MUTATION in request.operations and not caller.may(Scope.ADMIN):
        detail = f"the document has a mutation, and the token {caller.name!r} lacks the scope {Scope.ADMIN}"
        raise Problem(HTTPStatus.FORBIDDEN, detail)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a message of a WebSocket that starts an operation which is not let through."""

    id: str
    reason: str

    @property
    def json(self) -> str:
        """The message that tells the client."""
        return json.dumps({"type": "error", "id": self.id, "payload": {"message": self.reason}})


class InvalidSocketMessageError(Exception):
    """A message that is none of the protocol; the connection ends with it."""


#: Messages of `graphql-ws` (and of the later `graphql-transport-ws`) that start an operation, end one, or neither.
_STARTS = ("start", "subscribe")
_STOPS = ("stop", "complete")
_OTHERS = ("connection_init", "connection_terminate", "ping", "pong")


def read_socket_message(text: str) -> str | Refusal:
    """Return what is sent on of a message that a client sent by WebSocket. Raises `InvalidSocketMessageError`.

    Nobody mutates here. Dagster subscribes by the first field of any operation, without validating it, and executes the
    whole operation at each event: a mutation is executed that has a field of a subscription in front.
    """
    message = _message(text)
    kind = message.get("type")
    if kind in _OTHERS:
        return json.dumps({"type": kind})
    name = message.get("id")
    if not isinstance(name, str) or len(name) > _ID_CHARACTERS:
        raise InvalidSocketMessageError("id must be a short string")
    if kind in _STOPS:
        return json.dumps({"type": kind, "id": name})
    if kind not in _STARTS:
        raise InvalidSocketMessageError("type is none of the protocol graphql-ws")
    payload = message.get("payload")
    if not isinstance(payload, dict):
        raise InvalidSocketMessageError("payload must be an object")
    try:
        request = _request(payload)
    except Problem as problem:
        return Refusal(name, problem.detail)
    if OperationType.MUTATION in request.operations:
        return Refusal(name, "mutations are not sent by WebSocket: use POST")
    return f'{{"type": {json.dumps(kind)}, "id": {json.dumps(name)}, "payload": {request.json}}}'


def _request(content: dict[str, Any]) -> GraphQLRequest:
    """Check what Dagster reads of a request; anything else is left out."""
    query, name = content.get("query"), content.get("operationName", content.get("operation_name"))
    if not isinstance(query, str):
        _refuse("must be a GraphQL document", "query")
    if name is not None and not isinstance(name, str):
        _refuse("must be a string", "operationName")
    variables = content.get("variables")
    if isinstance(variables, str):  # as in a query string
        variables = _read_json(variables, "it", "variables") if variables else None
    if variables is not None and not isinstance(variables, dict):
        _refuse("must be an object", "variables")
    try:
        written = json.dumps(variables)
    except RecursionError:
        _refuse("nested too deeply", "variables")
    return GraphQLRequest(query, written, name, operations_in(query))


def _parameters(query_string: str) -> dict[str, str]:
    """The parameters that GraphQL knows. Raises `Problem` where one is there twice: readers differ in which counts."""
    found: dict[str, str] = {}
    for name, value in parse_qsl(query_string, keep_blank_values=True):
        if name in found:
            _refuse("is there more than once", name)
        if name in _PARAMETERS:
            found[name] = value
    return found


def _message(text: str) -> dict[str, Any]:
    try:
        message = _read_json(text, "the message")
    except Problem as problem:
        raise InvalidSocketMessageError(problem.detail) from None
    if not isinstance(message, dict):
        raise InvalidSocketMessageError("a message must be a JSON object")
    return message


def _read_json(text: bytes | str, what: str, field: str | None = None) -> Any:
    """Read strict JSON. Raises `Problem`."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        _refuse(f"{what} is not JSON, or nested too deeply", field)


def _refuse_constant(name: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads and JSON does not know."""
    raise ValueError(name)


def _refuse(detail: str, field: str | None = None) -> NoReturn:
    errors = None if field is None else [FieldProblem(field=field, problem=detail)]
    raise Problem(HTTPStatus.BAD_REQUEST, detail if field is None else f"{field}: {detail}", errors=errors)
