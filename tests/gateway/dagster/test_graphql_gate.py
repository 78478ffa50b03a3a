"""Who may send which GraphQL; what is let through says to Dagster what it said here."""

import asyncio
import json
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from graphql import ExecutionResult, parse, subscribe
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.graphql_documents import MUTATIONS, QUERIES, SCHEMA, Root
from vectorize_pipelines.gateway.dagster import graphql_gate as gate
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.gateway.problems import Problem

READER = Caller.of("reader", Scope.READ)
SUBMITTER = Caller.of("submitter", Scope.SUBMIT)
ADMIN = Caller.of("admin", Scope.ADMIN)


def body(query: Any, **more: Any) -> bytes:
    return json.dumps({"query": query, **more}).encode()


def refused(status: HTTPStatus = HTTPStatus.BAD_REQUEST, match: str = "") -> Any:
    return pytest.raises(Problem, match=match or None, check=lambda problem: problem.status is status)


@pytest.mark.parametrize("document", MUTATIONS.values(), ids=MUTATIONS)
def test_a_mutation_is_for_administrators(document: str) -> None:
    request = gate.read_body(body(document, operationName="Read"))
    for caller in (READER, SUBMITTER):
        with refused(HTTPStatus.FORBIDDEN, f"{caller.name}.* lacks the scope admin"):
            gate.require_right(request, caller)
    gate.require_right(request, ADMIN)


@pytest.mark.parametrize("document", QUERIES.values(), ids=QUERIES)
def test_a_query_is_for_everybody(document: str) -> None:
    gate.require_right(gate.read_body(body(document)), READER)


def test_a_careless_server_mutates_at_each_event_of_a_subscription() -> None:
    """Why nobody may send a mutation by WebSocket: this is how Dagster's web server executes what it is sent."""
    document, root = "mutation { s m }", Root()

    async def first() -> ExecutionResult:
        events = await subscribe(SCHEMA, parse(document), root)
        assert not isinstance(events, ExecutionResult)
        return await anext(events)

    asyncio.run(first())
    assert root.mutations == 1
    answer = gate.read_socket_message(json.dumps({"type": "start", "id": "1", "payload": {"query": document}}))
    assert isinstance(answer, gate.Refusal)


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        (b"", None),
        (b"{", None),
        (b"\xff\xfe{", None),
        (b"null", None),
        (b'"{ a }"', None),
        (b'[{"query": "{ a }"}]', None),
        (b"[]", None),
        (b"{}", "query"),
        (b'{"query": null}', "query"),
        (b'{"query": ["{ a }"]}', "query"),
        (b'{"query": {"a": 1}}', "query"),
        (b'{"query": "{ a }", "variables": []}', "variables"),
        (b'{"query": "{ a }", "variables": 0}', "variables"),
        (b'{"query": "{ a }", "variables": "{"}', "variables"),
        (b'{"query": "{ a }", "variables": "[]"}', "variables"),
        (b'{"query": "{ a }", "variables": {"x": NaN}}', None),
        (b'{"query": "{ a }", "variables": {"x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}", None),
        (b'{"query": "{ a }", "variables": {"x": ' + b"9" * 10_000 + b"}}", None),
        (b'{"query": "{ a }", "operationName": 3}', "operationName"),
    ],
)
def test_a_body_that_is_no_request_is_refused(sent: bytes, field: str | None) -> None:
    with refused() as raised:
        gate.read_body(sent)
    assert [each.field for each in raised.value.errors or []] == ([] if field is None else [field])


def test_of_two_equal_keys_the_one_that_was_judged_is_sent() -> None:
    sent = b'{"query": "mutation { m }", "query": "{ a }", "extensions": {"x": 1}, "id": "1", "variables": {"v": 1}}'
    request = gate.read_body(sent)
    gate.require_right(request, READER)
    assert request.json.count('"query"') == 1
    assert json.loads(request.json)["query"] == "{ a }"
    other = gate.read_body(b'{"query": "{ a }", "query": "mutation { m }"}')
    with refused(HTTPStatus.FORBIDDEN):
        gate.require_right(other, READER)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.none() | st.dictionaries(st.text(), JSON_VALUES, max_size=3), st.none() | st.text())
def test_what_is_sent_on_says_the_same(variables: dict[str, Any] | None, name: str | None) -> None:
    document = "query A { a } query B { a }"
    expected = {"query": document, "variables": variables, "operationName": name, "operation_name": name}
    by_post = gate.read_body(body(document, variables=variables, operationName=name))
    assert json.loads(by_post.json) == expected
    given_parameters = {"query": document, "variables": json.dumps(variables), "operationName": name}
    by_get = gate.read_parameters(
        urlencode({key: value for key, value in given_parameters.items() if value is not None})
    )
    assert by_get == by_post
    found = dict(parse_qsl(by_post.query_string, keep_blank_values=True, strict_parsing=True))
    assert (found["query"], json.loads(found["variables"])) == (document, variables)
    assert found.get("operationName") == name


@pytest.mark.parametrize(
    "query_string",
    [
        "query=%7Ba%7D&query=mutation%7Bm%7D",
        "query=%7Ba%7D&%71uery=%7Ba%7D",
        "query=%7Ba%7D&operationName=A&operationName=B",
        "variables=1&variables=2",
        "query=",
        "query=%7Ba%7D&variables=%7B",
        "query=%7Ba%7D&variables=%5B%5D",
    ],
)
def test_parameters_with_two_meanings_are_refused(query_string: str) -> None:
    with refused():
        gate.read_parameters(query_string)


def test_parameters_without_a_query_are_none_of_graphql() -> None:
    assert gate.read_parameters("") is None
    assert gate.read_parameters("q=mutation%7Bm%7D&Query=x&other=1&other=2") is None


@pytest.mark.parametrize("name", ["query", "variables", "operationName"])
def test_a_post_has_nothing_in_its_address(name: str) -> None:
    gate.refuse_parameters("trace=1&trace=2")
    with refused(match=name):
        gate.refuse_parameters(f"{name}=")


def message(kind: Any, **more: Any) -> str:
    return json.dumps({"type": kind, **more})


@pytest.mark.parametrize("kind", ["start", "subscribe"])
def test_a_subscription_is_sent_on_by_websocket(kind: str) -> None:
    payload = {"query": "subscription S($x: Int) { s }", "variables": {"x": 1}, "operationName": "S", "extensions": {}}
    sent = gate.read_socket_message(message(kind, id="7", payload=payload, secret="x"))
    assert isinstance(sent, str)
    named = {"query": payload["query"], "variables": {"x": 1}, "operationName": "S", "operation_name": "S"}
    assert json.loads(sent) == {"type": kind, "id": "7", "payload": named}


@pytest.mark.parametrize("kind", ["start", "subscribe"])
@pytest.mark.parametrize("document", [*MUTATIONS.values(), "subscription S { s } mutation M { m }", "{", "", None, 3])
def test_no_mutation_is_sent_on_by_websocket(kind: str, document: Any) -> None:
    answer = gate.read_socket_message(message(kind, id="7", payload={"query": document, "operationName": "S"}))
    assert isinstance(answer, gate.Refusal)
    told = json.loads(answer.json)
    assert (told["type"], told["id"]) == ("error", "7")
    assert told["payload"]["message"]


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (message("connection_init", payload={"token": "secret"}), {"type": "connection_init"}),
        (message("connection_terminate"), {"type": "connection_terminate"}),
        (message("stop", id="7", payload={"query": "mutation {m}"}), {"type": "stop", "id": "7"}),
        (message("complete", id="7"), {"type": "complete", "id": "7"}),
        (message("ping", payload=1), {"type": "ping"}),
    ],
)
def test_other_messages_are_sent_on_without_what_nobody_reads(sent: str, expected: dict[str, Any]) -> None:
    answer = gate.read_socket_message(sent)
    assert isinstance(answer, str)
    assert json.loads(answer) == expected


@pytest.mark.parametrize(
    "sent",
    [
        "", "{", "[]", "null", "3", "NaN", '{"type": NaN}', "[" * 100_000, message(None), message(["start"]),
        message("data", id="1"), message("START", id="1", payload={"query": "{ a }"}), message("start"),
        message("start", id=1, payload={"query": "{ a }"}), message("start", id=["1"], payload={"query": "{ a }"}),
        message("start", id="1" * 10_000, payload={"query": "{ a }"}), message("start", id="1"),
        message("start", id="1", payload="{ a }"), message("start", id="1", payload=[{"query": "{ a }"}]),
        message("stop"), message("stop", id=None),
    ],
)  # fmt: skip
def test_a_message_of_no_protocol_ends_the_connection(sent: str) -> None:
    with pytest.raises(gate.InvalidSocketMessageError):
        gate.read_socket_message(sent)


@given(JSON_VALUES | st.fixed_dictionaries({"type": st.sampled_from(["start", "stop"]), "id": JSON_VALUES}))
def test_any_message_is_sent_on_or_refused(content: Any) -> None:
    try:
        answer = gate.read_socket_message(json.dumps(content))
    except gate.InvalidSocketMessageError:
        return
    assert isinstance(answer, gate.Refusal) or isinstance(json.loads(answer), dict)
