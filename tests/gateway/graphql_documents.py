"""GraphQL documents that change something however they are written, others that do not, and a schema for them."""

from collections.abc import AsyncIterator
from typing import Any

from graphql import build_schema

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
