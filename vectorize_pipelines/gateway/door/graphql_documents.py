"""Which operations a GraphQL document has: the one rule by which is known what may change something.

Called by `dagster.graphql_gate`, for what goes through this server, and by `door.browser_guard`, which stands before
Dagster's web server where that is served by itself.

What counts is every operation of a document, not the one that `operationName` picks. An alias or a fragment belongs to
the operation that it is used in, so the kinds of the operations tell whether anything can be changed.
"""

from functools import lru_cache
from http import HTTPStatus
from typing import NoReturn

from graphql import (
    DocumentNode,
    FragmentDefinitionNode,
    GraphQLError,
    OperationDefinitionNode,
    OperationType,
    TokenKind,
    parse,
)

from vectorize_pipelines.gateway.problems import FieldProblem, Problem

#: Bounds of a document: its length, its tokens with the comments, and how deep braces, brackets and parentheses go.
MAX_CHARACTERS = 256 * 2**10
MAX_TOKENS = 10_000
MAX_DEPTH = 64
#: Documents up to this length are judged once and remembered: the UI sends the same few again and again.
_SHORT_CHARACTERS = 8 * 2**10
_REMEMBERED = 512
_OPENING = frozenset((TokenKind.BRACE_L, TokenKind.BRACKET_L, TokenKind.PAREN_L))
_CLOSING = frozenset((TokenKind.BRACE_R, TokenKind.BRACKET_R, TokenKind.PAREN_R))

Operations = frozenset[OperationType]


def operations_in(document: str) -> Operations:
    """Return the kinds of all operations in a document. Raises `Problem` where Dagster could not run any of it."""
    return _remembered(document) if len(document) <= _SHORT_CHARACTERS else _operations_in(document)


def require_queries(operations: Operations) -> None:
    """Raise `Problem` where a document that came by GET has anything but queries: an image or a link can cause one."""
    if operations != {OperationType.QUERY}:
        detail = "GET is for queries: send anything else by POST, as application/json"
        raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, detail, headers={"Allow": "POST"})


def _operations_in(document: str) -> Operations:
    if len(document) > MAX_CHARACTERS:
        detail = f"query: the document has more than {MAX_CHARACTERS} characters"
        raise Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
    try:
        parsed = parse(document, max_tokens=MAX_TOKENS)
    except GraphQLError as error:
        _refuse(f"the document cannot be parsed: {error.message}")
    except RecursionError:
        _refuse("the document is nested too deeply")
    if _depth(parsed) > MAX_DEPTH:
        _refuse("the document is nested too deeply")
    kinds = set()
    for definition in parsed.definitions:
        if isinstance(definition, OperationDefinitionNode):
            kinds.add(definition.operation)
        elif not isinstance(definition, FragmentDefinitionNode):
            _refuse("the document has a definition that is neither an operation nor a fragment")
    if not kinds:
        _refuse("the document has no operation")
    return frozenset(kinds)


_remembered = lru_cache(maxsize=_REMEMBERED)(_operations_in)


def _depth(document: DocumentNode) -> int:
    deepest = depth = 0
    token = document.loc.start_token if document.loc else None
    while token is not None:
        if token.kind in _OPENING:
            depth += 1
            deepest = max(deepest, depth)
        elif token.kind in _CLOSING:
            depth -= 1
        token = token.next
    return deepest


def _refuse(detail: str) -> NoReturn:
    errors = [FieldProblem(field="query", problem=detail)]
    raise Problem(HTTPStatus.BAD_REQUEST, f"query: {detail}", errors=errors)
