"""Whatever a mutation is written like, the gate knows it; what it lets through says to Dagster what it said here."""

import asyncio
import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from graphql import (
    ExecutionResult,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    build_schema,
    execute,
    get_introspection_query,
    get_operation_ast,
    parse,
    subscribe,
)
from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.gateway.dagster import graphql_gate as gate
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.gateway.problems import Problem

READER = Caller.of("reader", Scope.READ)
SUBMITTER = Caller.of("submitter", Scope.SUBMIT)
ADMIN = Caller.of("admin", Scope.ADMIN)

SCHEMA = build_schema("""
    type Query { a(text: String): Int  q: Query }
    type Mutation { m(text: String): Int  a: Int  q: Query }
    type Subscription { s: Int  a: Int }
""")

MUTATIONS = {
    "anonymous": "mutation { m }",
    "named": "mutation Change { m }",
    "named like a query": "mutation query { m }",
    "under another name": "mutation { query: m }",
    "second of two": "query Read { a } mutation Change { m }",
    "first of two": "mutation Change { m } query Read { a }",
    "in a fragment": "mutation { ...F } fragment F on Mutation { m }",
    "in an inline fragment": "mutation { ... on Mutation { ... { m } } }",
    "skipped": "mutation { m @skip(if: true) }",
    "behind a comment": "# query { a }\nmutation { m }",
    "without spaces": "mutation{m}",
    "between commas": ",,,mutation,{,m,}",
    "behind a byte order mark": "\ufeffmutation { m }",
    "with variables": "mutation($text: String) { m(text: $text) }",
    "with a directive": "mutation @include(if: true) { m }",
}
QUERIES = {
    "shorthand": "{ a }",
    "named": "query Read { a }",
    "named like a mutation": "query mutation { a }",
    "under another name": "{ mutation: a }",
    "with a fragment": "{ ...mutation } fragment mutation on Query { a }",
    "with a mutation in a comment": "{ a # mutation { m }\n}",
    "with a mutation in a text": '{ a(text: "} mutation { m }") }',
    "with a mutation in a block": '{ a(text: """} mutation { m }""") }',
    "two": "query A { a } query B { a }",
    "a subscription too": "query A { a } subscription B { s }",
}


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


@pytest.mark.parametrize("document", [*MUTATIONS.values(), "subscription { s }", QUERIES["a subscription too"]])
def test_nothing_but_queries_comes_by_get(document: str) -> None:
    request = gate.read_parameters(urlencode({"query": document}))
    assert request is not None
    with refused(HTTPStatus.METHOD_NOT_ALLOWED, "GET is for queries"):
        gate.require_queries(request)


def test_a_query_comes_by_get() -> None:
    request = gate.read_parameters(urlencode({"query": QUERIES["two"], "operationName": "A"}))
    assert request is not None
    gate.require_queries(request)


# Documents of every shape, in which keywords are names too, and mutations stand in texts and comments.
BETWEEN = st.sampled_from([" ", "\n", ",", "\t", "\ufeff", " # mutation { m }\n", " #}\r"])
LEAVES = [
    "a", "m", "s", "__typename", "mutation: m", "query: a", "a: m", "...F", "...mutation", "a @include(if: true)",
    "m @skip(if: false)", "m @skip(if: true)", 'a(text: "} mutation { m }")', 'm(text: """{ query""")',
]  # fmt: skip
FRAGMENTS = [
    "fragment F on Mutation { m }",
    "fragment F on Query { a }",
    "fragment mutation on Query { a }",
    "fragment mutation on Mutation { x: m a }",
    "fragment query on Subscription { s }",
]
NAMES = ["A", "B", "query", "mutation", "subscription", "fragment", "on"]
KINDS = ["query", "mutation", "subscription"]


@st.composite
def selections(draw: st.DrawFn, depth: int = 3) -> str:
    parts = []
    for _ in range(draw(st.integers(1, 3))):
        wrapped = draw(st.sampled_from(["", "q ", "...", "... on Mutation", "... on Query "])) if depth else ""
        parts.append(wrapped + draw(selections(depth - 1)) if wrapped else draw(st.sampled_from(LEAVES)))
        parts.append(draw(BETWEEN))
    return "{" + "".join(parts) + "}"


@st.composite
def documents(draw: st.DrawFn, names: st.SearchStrategy[list[str]]) -> str:
    """Operations with these names, one of them without where its name is empty, and fragments among them."""
    definitions = draw(st.lists(st.sampled_from(FRAGMENTS), max_size=2))
    for name in draw(names):
        kind = draw(st.sampled_from(KINDS if name else [*KINDS, ""]))
        definitions.append(f"{kind} {name}{draw(BETWEEN) if kind else ''}{draw(selections())}")
    between = draw(BETWEEN)
    return between + between.join(draw(st.permutations(definitions))) + between


#: As the rules of GraphQL have it: one operation, or several with different names.
VALID = st.just([""]) | st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)
ANY = st.lists(st.sampled_from(["", *NAMES]), min_size=1, max_size=4)


def names_in(document: str) -> list[str | None]:
    """Everything that `operationName` could be."""
    operations = [each for each in parse(document).definitions if isinstance(each, OperationDefinitionNode)]
    return [None, "", "none of them", *(each.name.value for each in operations if each.name)]


class Root:
    """What resolves every field, and counts the mutations."""

    def __init__(self) -> None:
        self.mutations = 0

    def a(self, _info: Any, text: str = "") -> int:
        return len(text)

    def q(self, _info: Any) -> "Root":
        return self

    def m(self, _info: Any, text: str = "") -> int:
        self.mutations += 1
        return len(text)

    async def s(self, _info: Any) -> AsyncIterator["Root"]:
        yield self


def mutations_of(schema: GraphQLSchema, document: str, name: str | None) -> int:
    """How often executing a document mutates. Nothing validates it: a reader may be that careless."""
    root = Root()
    execute(schema, parse(document), root, operation_name=name)
    return root.mutations


@given(documents(ANY))
def test_what_is_let_through_mutates_under_no_name(document: str) -> None:
    if OperationType.MUTATION in gate.operations_in(document):
        return
    assert not any(mutations_of(SCHEMA, document, name) for name in names_in(document)), document


@given(documents(VALID))
def test_nothing_is_kept_back_that_cannot_mutate(document: str) -> None:
    picked = [get_operation_ast(parse(document), name) for name in names_in(document)]
    kinds = {operation.operation for operation in picked if operation is not None}
    assert gate.operations_in(document) == kinds


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


@given(st.text())
def test_any_text_is_judged_or_refused(text: str) -> None:
    judged = judge(text)
    try:
        parse(text)
    except GraphQLError:
        assert isinstance(judged, Problem)
    if isinstance(judged, Problem):
        assert judged.status is HTTPStatus.BAD_REQUEST
    else:
        assert judged


def judge(text: str) -> gate.Operations | Problem:
    try:
        return gate.operations_in(text)
    except Problem as problem:
        return problem


@pytest.mark.parametrize(
    "document",
    [
        "",
        " ",
        "{",
        "fragment F on Query { a }",
        "type Query { a: Int }",
        "{ a } extend type Query { m: Int }",
        "\ud800",
    ],
)
def test_a_document_that_cannot_run_is_refused(document: str) -> None:
    with refused():
        gate.read_body(body(document))


def test_documents_have_bounds() -> None:
    gate.operations_in(get_introspection_query(descriptions=True, input_value_deprecation=True))
    gate.operations_in("{q" * (gate.MAX_DEPTH - 1) + "{a}" + "}" * (gate.MAX_DEPTH - 1))
    for nested in (
        "{q" * gate.MAX_DEPTH + "{a}" + "}" * gate.MAX_DEPTH,
        "{q" * 100_000,
        "{a(x: " + "[" * 20_000 + "]" * 20_000 + ")}",
        "query($x: " + "[" * 20_000 + "Int" + "]" * 20_000 + ") {a}",
    ):
        with refused():
            gate.operations_in(nested)
    with refused(match="tokens"):
        gate.operations_in("{" + "a " * gate.MAX_TOKENS + "}")
    with refused(match="tokens"):
        gate.operations_in("#\n" * (gate.MAX_TOKENS + 1) + "{a}")
    with refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "characters"):
        gate.operations_in('{a(text: "' + "x" * gate.MAX_CHARACTERS + '")}')


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
