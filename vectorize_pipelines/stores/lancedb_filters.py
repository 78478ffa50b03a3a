"""Filters as LanceDB's SQL, and the column that makes the users' metadata filterable. Called by `lancedb`.

LanceDB has JSON columns, but their functions convert silently (2024 equals "2024", true equals "true"), fail
on a list where a text is asked for, and lose integers beyond 64 bits. So `metadata` stays the text that was
written, and beside it stands `metadata_terms`: name and value of each top-level entry, here with ␟ for the
separator U+001F:

    {"author": "Le Guin", "year": 1974, "tags": ["a", "b"]}
    ␟.author␟sLe Guin␟.year␟n2500031974␟.tags␟x␟

A value begins with its type, and within a type texts sort as the values do, so every filter on metadata is a
comparison of texts. A null has no entry; lists and objects are only known to exist.
"""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, TypeGuard, assert_never

import pyarrow as pa

from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.records import record_schema
from vectorize_pipelines.stores.filters import And, Equal, Exists, Filter, In, Not, Or, Prefix, Range, Scalar

METADATA_TERMS = "metadata_terms"

_METADATA = "metadata."
_SEPARATOR = "\x1f"
_ESCAPE = "\x1e"
_BOOLEAN, _NUMBER, _TEXT, _OTHER = "b", "n", "s", "x"
_RESERVED = re.compile("[\x1e\x1f\ud800-\udfff]")
_ESCAPED = re.compile(f"{_ESCAPE}([0-9a-f]{{4}})")

# DataFusion's parser gives up at about fifty levels of brackets.
_DEEPEST_NESTING = 32

_FIELDS = {field.name: field for field in record_schema(1) if field.name not in ("metadata", "vector")}


def to_sql(where: Filter) -> str:
    """The filter as an expression of LanceDB's SQL that is true or false, never null.

    Raises `StoreError` for a field that no record has, a timestamp without a time zone or against metadata,
    and for And and Or nested more than 32 deep.
    """
    return _expression(where, negated=False, depth=0)


def terms_column(metadata: pa.ChunkedArray) -> pa.Array:
    """`metadata_terms` for a column of JSON objects; raises `StoreError` for a text that is not one."""
    known: dict[str, str] = {}
    for text in metadata.to_pylist():
        if text not in known:
            known[text] = _terms(text)
    return pa.array([known[text] for text in metadata.to_pylist()], pa.string())


def text_value_sql(field: str) -> tuple[str, Callable[[str], str | None]]:
    """The SQL for a text field's value, and what turns a row's result into the value: None where there is none.

    Raises `StoreError` for a field that no record has or that holds no text.
    """
    if field.startswith(_METADATA):
        return _metadata_value(field), _decode_text
    if not pa.types.is_string(_record_field(field).type):
        raise StoreError(f"values of {field!r} cannot be counted: it is not a text field")
    return f"`{field}`", lambda value: value


# ---- filters


def _expression(where: Filter, negated: bool, depth: int) -> str:
    """`Not` is pushed down to the comparisons: DataFusion's parser takes exponential time on nested `NOT (…)`."""
    while isinstance(where, Not):
        negated, where = not negated, where.filter
    if isinstance(where, And | Or):
        if depth == _DEEPEST_NESTING:
            raise StoreError(f"the filter nests And and Or more than {_DEEPEST_NESTING} deep; flatten it")
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
        """The comparison and its opposite, for a value that is there."""
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
    if field.startswith(_METADATA):
        value = _metadata_value(field)
        # Missing entries read as the empty text, which no term is.
        return _Operand(value, (f"{value} <> ''", f"{value} = ''"), _term_literal, _term_bounds, _term_prefix)
    column = _record_field(field)
    exists = (f"`{field}` IS NOT NULL", f"`{field}` IS NULL") if column.nullable else None
    sql = f"`{field}`"
    if pa.types.is_string(column.type):
        return _Operand(sql, exists, _text_literal, partial(_plain_bounds, _text_literal), _text_literal)
    if pa.types.is_timestamp(column.type):
        return _Operand(sql, exists, _timestamp_literal, partial(_plain_bounds, _timestamp_literal), _no_prefix)
    # The least value is left out: as a literal it would overflow before its sign is applied.
    largest = 2 ** (column.type.bit_width - 1) - 1
    return _Operand(sql, exists, partial(_integer_literal, largest), partial(_integer_bounds, largest), _no_prefix)


def _record_field(field: str) -> pa.Field:
    if field not in _FIELDS:
        raise StoreError(f"the filter names {field!r}; fields are {', '.join(_FIELDS)} and metadata.NAME")
    return _FIELDS[field]


def _no_prefix(_: str) -> None:
    return None


def _plain_bounds(literal: Callable[[Scalar], str | None], where: Range) -> tuple[str | None, str | None] | None:
    lower, upper = (None if bound is None else literal(bound) for bound in (where.at_least, where.below))
    unmatched = (where.at_least is not None and lower is None) or (where.below is not None and upper is None)
    return None if unmatched else (lower, upper)


def _text_literal(value: Scalar) -> str | None:
    """Unpaired surrogates, which Python's file names may hold, are no text that a store can have."""
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        return None
    return "'" + value.replace("'", "''") + "'"


def _timestamp_literal(value: Scalar) -> str | None:
    if not isinstance(value, datetime):
        return None
    if value.tzinfo is None:
        raise StoreError(f"the filter's timestamp {value} has no time zone; give one, e.g. datetime.UTC")
    microseconds = pa.scalar(value.astimezone(UTC), pa.timestamp("us", tz="UTC")).value
    return f"to_timestamp_micros({microseconds})"


def _integer_literal(largest: int, value: Scalar) -> str | None:
    if not _is_number(value) or not abs(value) <= largest or value != int(value):
        return None
    return str(int(value))


def _integer_bounds(largest: int, where: Range) -> tuple[str | None, str | None] | None:
    """A bound between two integers moves up to the next one; a bound outside the type is open or unreachable."""
    ends: list[int] = []
    for bound, opened in ((where.at_least, -largest), (where.below, largest + 1)):
        if bound is None:
            ends.append(opened)
        elif not _is_number(bound) or math.isnan(bound):
            return None
        else:
            ends.append(math.ceil(min(max(bound, -largest), largest + 1)))
    lower, upper = ends
    if lower >= upper:
        return None
    return str(lower), str(upper) if upper <= largest else None


# ---- metadata


def _metadata_value(field: str) -> str:
    """SQL for the term of one entry, the empty text where it is missing. What follows `metadata.` is one name."""
    name = _text_literal(f"{_SEPARATOR}.{_escape(field.removeprefix(_METADATA))}{_SEPARATOR}")
    return f"split_part(split_part({METADATA_TERMS}, {name}, 2), '{_SEPARATOR}', 1)"


def _term_literal(value: Scalar) -> str | None:
    term = _term(_comparable(value))
    return None if term is None else _text_literal(term)


def _term_prefix(prefix: str) -> str | None:
    return _text_literal(_TEXT + _escape(prefix))


def _term_bounds(where: Range) -> tuple[str | None, str | None] | None:
    terms = [_term(_comparable(bound)) for bound in (where.at_least, where.below) if bound is not None]
    if None in terms or len({term[0] for term in terms if term}) > 1:
        return None
    kind = next(term[0] for term in terms if term)
    after = iter(terms)
    lower = kind if where.at_least is None else next(after)
    upper = chr(ord(kind) + 1) if where.below is None else next(after)
    return _text_literal(lower or ""), _text_literal(upper or "")


def _comparable(value: Scalar) -> Scalar:
    if isinstance(value, datetime):
        raise StoreError(
            f"the filter compares metadata with the timestamp {value}; metadata is JSON, which has none: "
            f"compare with the text that was written, e.g. {value.isoformat()!r}"
        )
    return value


def _terms(text: str) -> str:
    try:
        entries = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"metadata is not valid JSON ({error}): {text[:200]!r}") from error
    if not isinstance(entries, dict):
        raise StoreError(f"metadata is not a JSON object: {text[:200]!r}")
    written = [
        f"{_SEPARATOR}.{_escape(name)}{_SEPARATOR}{term}"
        for name, value in entries.items()
        if (term := _term(value)) is not None
    ]
    return "".join(written) + _SEPARATOR if written else ""


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _term(value: Any) -> str | None:
    """None for null, and for a number that is none."""
    match value:
        case None:
            return None
        case bool():
            return f"{_BOOLEAN}{int(value)}"
        case int() | float():
            return None if value != value else _NUMBER + _ordered_number(value)
        case str():
            return _TEXT + _escape(value)
        case _:
            return _OTHER


def _ordered_number(value: float) -> str:
    """A text that sorts as the number does, exactly, whatever its size; 1 and 1.0 are the same.

    Sign, decimal exponent, digits. For negative numbers exponent and digits are complemented, and closed by a
    character above all digits, so that of -1.2 and -1.23 the shorter one comes after.
    """
    if value in (math.inf, -math.inf):
        return "3" if value > 0 else "/"
    exact = Decimal(int(value)) if value == int(value) else Decimal(repr(value))
    if not exact:
        return "1"
    digits = "".join(map(str, exact.as_tuple().digits)).rstrip("0")
    magnitude = f"{exact.adjusted() + 50_000:05d}{digits}"
    if value > 0:
        return f"2{magnitude}"
    return "0" + "".join(str(9 - int(digit)) for digit in magnitude) + ":"


def _is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _escape(text: str) -> str:
    """Order and prefixes stay what they are: U+001E followed by digits sorts between U+001D and U+0020."""
    return _RESERVED.sub(lambda match: f"{_ESCAPE}{ord(match[0]):04x}", text)


def _decode_text(term: str) -> str | None:
    if not term.startswith(_TEXT):
        return None
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), term[len(_TEXT) :])
