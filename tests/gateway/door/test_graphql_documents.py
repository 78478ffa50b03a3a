"""Whatever a mutation is written like, it is known."""

from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import pytest
from graphql import (
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    execute,
    get_introspection_query,
    get_operation_ast,
    parse,
)
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse

from tests.gateway.asking import HOST, ask
from tests.gateway.graphql_documents import MUTATIONS, QUERIES, SCHEMA, Root
from vectorize_pipelines.gateway.door.browser_guard import BrowserGuard
from vectorize_pipelines.gateway.door.graphql_documents import (
    MAX_CHARACTERS,
    MAX_DEPTH,
    MAX_TOKENS,
    Operations,
    operations_in,
    require_queries,
)
from vectorize_pipelines.gateway.problems import Problem


def refused(status: HTTPStatus = HTTPStatus.BAD_REQUEST, match: str = "") -> Any:
    return pytest.raises(Problem, match=match or None, check=lambda problem: problem.status is status)


#: Dagster's web server by itself, as far as the layer before it lets anything through.
GUARDED = BrowserGuard(PlainTextResponse("let through"), {HOST})


@pytest.mark.parametrize("document", [*MUTATIONS.values(), "subscription { s }", QUERIES["a subscription too"]])
def test_nothing_but_queries_comes_by_get(document: str) -> None:
    with refused(HTTPStatus.METHOD_NOT_ALLOWED, "GET is for queries"):
        require_queries(operations_in(document))
    by_itself = ask(GUARDED, f"/graphql?{urlencode([('query', '{ a }'), ('query', document)])}")
    assert by_itself.status == HTTPStatus.METHOD_NOT_ALLOWED
    assert by_itself.text.startswith("refused: GET is for queries")


def test_a_query_comes_by_get() -> None:
    require_queries(operations_in(QUERIES["two"]))
    by_itself = ask(GUARDED, f"/graphql?{urlencode({'query': QUERIES['two'], 'operationName': 'A'})}")
    assert by_itself.text == "let through"


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


def mutations_of(schema: GraphQLSchema, document: str, name: str | None) -> int:
    """How often executing a document mutates. Nothing validates it: a reader may be that careless."""
    root = Root()
    execute(schema, parse(document), root, operation_name=name)
    return root.mutations


@given(documents(ANY))
def test_what_is_let_through_mutates_under_no_name(document: str) -> None:
    if OperationType.MUTATION in operations_in(document):
        return
    assert not any(mutations_of(SCHEMA, document, name) for name in names_in(document)), document


@given(documents(VALID))
def test_nothing_is_kept_back_that_cannot_mutate(document: str) -> None:
    picked = [get_operation_ast(parse(document), name) for name in names_in(document)]
    kinds = {operation.operation for operation in picked if operation is not None}
    assert operations_in(document) == kinds


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


def judge(text: str) -> Operations | Problem:
    try:
        return operations_in(text)
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
        operations_in(document)
    assert ask(GUARDED, f"/graphql?{urlencode({'query': document}, errors='replace')}").status == HTTPStatus.BAD_REQUEST


def test_documents_have_bounds() -> None:
    operations_in(get_introspection_query(descriptions=True, input_value_deprecation=True))
    operations_in("{q" * (MAX_DEPTH - 1) + "{a}" + "}" * (MAX_DEPTH - 1))
    for nested in (
        "{q" * MAX_DEPTH + "{a}" + "}" * MAX_DEPTH,
        "{q" * 100_000,
        "{a(x: " + "[" * 20_000 + "]" * 20_000 + ")}",
        "query($x: " + "[" * 20_000 + "Int" + "]" * 20_000 + ") {a}",
    ):
        with refused():
            operations_in(nested)
    with refused(match="tokens"):
        operations_in("{" + "a " * MAX_TOKENS + "}")
    with refused(match="tokens"):
        operations_in("#\n" * (MAX_TOKENS + 1) + "{a}")
    with refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "characters"):
        operations_in('{a(text: "' + "x" * MAX_CHARACTERS + '")}')
