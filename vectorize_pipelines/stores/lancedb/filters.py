"""Filters as LanceDB's SQL, and the column that makes the users' metadata filterable. Called by `store`.

LanceDB has JSON columns, but their functions convert silently (2024 equals "2024", true equals "true"), fail
on a list where a text is asked for, and lose integers beyond 64 bits. So `metadata` stays the text that was
written, and beside it stands `metadata_terms`: name and value of each top-level entry, here with ␟ for the
separator U+001F:

    {"author": "Le Guin", "year": 1974, "tags": ["a", "b"], "price": "12.50"}
    ␟.author␟sLe Guin␟.year␟n2500031974␟.tags␟x␟.price␟s12.50␟#price␟n250001125␟

Values are terms (see `metadata_terms`), so every filter on metadata is a comparison of texts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import assert_never

import pyarrow as pa

from vectorize_pipelines.core.records import TIMESTAMP
from vectorize_pipelines.stores.filters.expressions import (
    And,
    Equal,
    Exists,
    Filter,
    In,
    Not,
    Or,
    Prefix,
    Range,
    Scalar,
)
from vectorize_pipelines.stores.filters.metadata_terms import (
    SEPARATOR,
    compared_term,
    entries_of,
    escape,
    number_term,
    term,
    term_bounds,
    term_prefix,
    text_of,
)
from vectorize_pipelines.stores.filters.operands import (
    METADATA,
    NUMBERS,
    check_depth,
    check_text_field,
    in_metadata,
    integer,
    integer_bounds,
    is_text,
    metadata_name,
    moment,
    record_field,
    written_bounds,
)

METADATA_TERMS = "metadata_terms"


def to_sql(where: Filter) -> str:
    """Return the filter as an expression of LanceDB's SQL that is true or false, never null.

    Raises `StoreError` for a field that no record has, a timestamp without a time zone or against metadata,
    and for And and Or nested more than 32 deep.
    """
    return _expression(where, negated=False, depth=0)


def terms_column(metadata: pa.ChunkedArray) -> pa.Array:
    """Return `metadata_terms` for a column of JSON objects; raises `StoreError` for a text that is not one."""
    distinct = metadata.combine_chunks().dictionary_encode()
    terms = pa.array([_terms(text) for text in distinct.dictionary.to_pylist()], pa.string())
    return terms.take(distinct.indices)


def text_value_sql(field: str) -> tuple[str, Callable[[str], str | None]]:
    """Return the SQL for a text field's value, and what turns a row's result into the value: None where there is none.

    Raises `StoreError` for a field that no record has or that holds no text.
    """
    check_text_field(field)
    if field.startswith(METADATA):
        return _metadata_value(field), text_of
    return f"`{field}`", lambda value: value


# ---- filters


def _expression(where: Filter, negated: bool, depth: int) -> str:
    """Push `Not` down to the comparisons: DataFusion's parser takes exponential time on nested `NOT (…)`."""
    while isinstance(where, Not):
        negated, where = not negated, where.filter
    if isinstance(where, And | Or):
        check_depth(depth)
        conjunction = isinstance(where, And) != negated
        parts = [_expression(part, negated, depth + 1) for part in where.filters]
        return _joined(parts, conjunction)
    return _operand(where.field).compare(where, negated)


def _joined(parts: list[str], conjunction: bool) -> str:
    if not parts:
        return "TRUE" if conjunction else "FALSE"
    return f"({(' AND ' if conjunction else ' OR ').join(parts)})"


@dataclass(frozen=True, slots=True)
class _Operand:
    """The left side of a comparison.

    sql     the expression
    exists  (is there, is not there); None where the expression is never null or missing
    equal   SQL literal of a value to be equal to, None for a value of a type that the field cannot hold
    bounds  (lower, upper) literals of a range, None for an open side; None altogether where nothing can match
    prefix  literal of a prefix, None where the field holds no text
    """

    sql: str
    exists: tuple[str, str] | None
    equal: Callable[[Scalar], str | None]
    bounds: Callable[[Range], tuple[str | None, str | None] | None]
    prefix: Callable[[str], str | None]

    def compare(self, where: Equal | In | Range | Prefix | Exists, negated: bool) -> str:
        positive, negative = self._comparison(where)
        if self.exists is None or isinstance(where, Exists) or positive == "FALSE":
            return negative if negated else positive
        there, missing = self.exists
        return _joined([missing, negative], False) if negated else _joined([there, positive], True)

    def _comparison(self, where: Equal | In | Range | Prefix | Exists) -> tuple[str, str]:
        """Return the comparison and its opposite, for a value that is there."""
        nothing = ("FALSE", "TRUE")
        match where:
            case Equal():
                literal = self.equal(where.value)
                return nothing if literal is None else (f"{self.sql} = {literal}", f"{self.sql} <> {literal}")
            case In():
                literals = [literal for value in where.values if (literal := self.equal(value)) is not None]
                listed = ", ".join(literals)
                return (f"{self.sql} IN ({listed})", f"{self.sql} NOT IN ({listed})") if literals else nothing
            case Range():
                return self._range(where)
            case Prefix():
                prefix = self.prefix(where.prefix)
                begins = f"starts_with({self.sql}, {prefix})"
                return nothing if prefix is None else (begins, f"NOT {begins}")
            case Exists():
                return self.exists or ("TRUE", "FALSE")
        assert_never(where)

    def _range(self, where: Range) -> tuple[str, str]:
        if where.at_least is None and where.below is None:
            return self.exists or ("TRUE", "FALSE")
        bounds = self.bounds(where)
        if bounds is None:
            return "FALSE", "TRUE"
        lower, upper = bounds
        inside = [f"{self.sql} >= {lower}"] * (lower is not None) + [f"{self.sql} < {upper}"] * (upper is not None)
        outside = [f"{self.sql} < {lower}"] * (lower is not None) + [f"{self.sql} >= {upper}"] * (upper is not None)
        return _joined(inside, True), _joined(outside, False)


def _operand(field: str) -> _Operand:
    if in_metadata(field):
        value = _metadata_value(field)
        # Missing entries read as the empty text, which no term is.
        return _Operand(value, (f"{value} <> ''", f"{value} = ''"), _term_literal, _term_bounds, _term_prefix)
    column = record_field(field)
    exists = (f"`{field}` IS NOT NULL", f"`{field}` IS NULL") if column.nullable else None
    sql = f"`{field}`"
    if pa.types.is_string(column.type):
        return _Operand(sql, exists, _text_literal, partial(written_bounds, _text_literal), _text_literal)
    if pa.types.is_timestamp(column.type):
        return _Operand(sql, exists, _timestamp_literal, partial(written_bounds, _timestamp_literal), _no_prefix)
    # The least value is left out: as a literal it would overflow before its sign is applied.
    largest = 2 ** (column.type.bit_width - 1) - 1
    return _Operand(sql, exists, partial(_integer_literal, largest), partial(_integer_bounds, largest), _no_prefix)


def _no_prefix(_: str) -> None:
    return None


def _text_literal(value: Scalar) -> str | None:
    return "'" + value.replace("'", "''") + "'" if is_text(value) else None


def _timestamp_literal(value: Scalar) -> str | None:
    time = moment(value)
    return None if time is None else f"to_timestamp_micros({pa.scalar(time, TIMESTAMP).value})"


def _integer_literal(largest: int, value: Scalar) -> str | None:
    whole = integer(largest, value)
    return None if whole is None else str(whole)


def _integer_bounds(largest: int, where: Range) -> tuple[str | None, str | None] | None:
    bounds = integer_bounds(largest, where)
    if bounds is None:
        return None
    lower, upper = bounds
    return str(lower), str(upper) if upper <= largest else None


# ---- metadata


def _metadata_value(field: str) -> str:
    """Return SQL for the term of one entry, or of the number in it; the empty text where it is missing."""
    mark = "#" if field.startswith(NUMBERS) else "."
    name = _text_literal(f"{SEPARATOR}{mark}{escape(metadata_name(field))}{SEPARATOR}")
    return f"split_part(split_part({METADATA_TERMS}, {name}, 2), '{SEPARATOR}', 1)"


def _term_literal(value: Scalar) -> str | None:
    term = compared_term(value)
    return None if term is None else _text_literal(term)


def _term_prefix(prefix: str) -> str | None:
    return _text_literal(term_prefix(prefix))


def _term_bounds(where: Range) -> tuple[str | None, str | None] | None:
    bounds = term_bounds(where)
    return None if bounds is None else (_text_literal(bounds[0]), _text_literal(bounds[1]))


def _terms(text: str) -> str:
    written = [
        f"{SEPARATOR}{mark}{escape(name)}{SEPARATOR}{one}"
        for name, value in entries_of(text).items()
        for mark, one in ((".", term(value)), ("#", number_term(value)))
        if one is not None
    ]
    return "".join(written) + SEPARATOR if written else ""
