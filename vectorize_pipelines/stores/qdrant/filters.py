"""Filters as Qdrant's conditions, and the payload keys that make them exact. Called by `store` and `points`.

Qdrant's own conditions on users' metadata would be wrong in places: a match on a list matches any of its elements,
numbers are compared as doubles, a key cannot hold a quote, texts have no order. So beside a record's fields a point's
payload has (␟ is the separator U+001F):

    metadata_terms     name␟ and name␟TERM of each entry of the metadata (see `metadata_terms`), and name␟#TERM of a
                       number in a text, as one keyword field: ["year␟", "year␟n2500031974"]
    partition_head, partition_tail
                       the first twelve bytes of the partition, as two numbers that sort as the text does

A filter on metadata is then a match of keywords, and a range of numbers a choice of prefixes. Two kinds of range have
no exact condition: of texts other than the partition, and of integers beyond 2**53. For these `translated` returns a
condition that holds for every row that matches and for others too, and says so; the store then reads those rows and
asks `lets_through` of each.

Conditions are written for the server. Where the client's local mode differs (it compares integers exactly where the
server compares doubles, and matches a float against no integer), no condition here depends on the difference.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_never

import pyarrow as pa

from vectorize_pipelines.core.records import RECORD_FIELDS, record_schema
from vectorize_pipelines.stores.contents import row_uuid
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
from vectorize_pipelines.stores.filters.matching import matches, value_of
from vectorize_pipelines.stores.filters.metadata_terms import (
    SEPARATOR,
    compared_term,
    entries_of,
    escape,
    number_term,
    term,
    term_bounds,
    term_prefix,
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
)

METADATA_TERMS = "metadata_terms"
METADATA_JSON = "metadata_json"
PARTITION_HEAD, PARTITION_TAIL = "partition_head", "partition_tail"

#: Before the term of a number that a text is written as.
_NUMBER = "#"
_BYTES_OF_A_NUMBER = 6
_EXACT_IN_A_DOUBLE = 2**53
# The characters of an ordered number, at its first place and at all others.
_SIGNS, _DIGITS = "/0123", "0123456789:"

_TIMESTAMPS = tuple(field.name for field in record_schema(1) if pa.types.is_timestamp(field.type))
_PLAIN_FIELDS = frozenset(RECORD_FIELDS) - {*_TIMESTAMPS, "metadata"}


@dataclass(frozen=True, slots=True)
class Translated:
    """A filter for Qdrant.

    filter    `qdrant_client.models.Filter`, None where nothing restricts
    rest      what the rows that the filter finds have to be asked by `lets_through`; None where the filter is exact
    payload   the payload keys that it reads
    """

    filter: Any
    rest: Filter | None
    payload: tuple[str, ...]


def translated(where: Filter | None, tenant_field: str | None = None) -> Translated:
    """Return the filter for Qdrant; an equality of the tenant field is also asked of the field itself, as indexed.

    Raises `StoreError` for a field that no record has, a timestamp without a time zone or against metadata,
    and for And and Or nested more than 32 deep.
    """
    from qdrant_client import models

    if where is None:
        return Translated(None, None, ())
    condition, exact = _Translator(tenant_field).condition(where, negated=False, depth=0)
    whole = condition if isinstance(condition, models.Filter) else models.Filter(must=[condition])
    return Translated(whole, None, ()) if exact else Translated(whole, where, tuple(sorted(_payload_keys(where))))


def text_payload_key(field: str) -> str:
    """Return the payload key that holds a text field, or the metadata.

    Raises `StoreError` for a field that no record has or that holds no text.
    """
    check_text_field(field)
    return METADATA_JSON if field.startswith(METADATA) else field


def text_value(field: str, payload: Mapping[str, Any]) -> str | None:
    """Return the text that a row has in a field; None where it has none, or none that is a text."""
    value = value_of(_record(payload), field)
    return value if isinstance(value, str) else None


def terms_of(metadata: str) -> list[str]:
    """Return the `metadata_terms` of a row; raises `StoreError` for metadata that is not a JSON object."""
    terms: list[str] = []
    for name, value in entries_of(metadata).items():
        if (of_value := term(value)) is not None:
            key = f"{escape(name)}{SEPARATOR}"
            terms += (key, key + of_value)
        if (of_number := number_term(value)) is not None:
            terms.append(f"{key}{_NUMBER}{of_number}")
    return terms


def ordered_numbers(partition: str) -> tuple[int, int]:
    """Return `partition_head` and `partition_tail`."""
    digits = partition.encode("utf-8", "surrogatepass")[: 2 * _BYTES_OF_A_NUMBER]
    return _number(digits[:_BYTES_OF_A_NUMBER]), _number(digits[_BYTES_OF_A_NUMBER:])


# ---- conditions


class _Translator:
    """The translator of a part of a filter: to a condition, and whether that matches those rows only."""

    def __init__(self, tenant_field: str | None):
        from qdrant_client import models

        self._models = models
        self._tenant_field = tenant_field
        self._everything = models.Filter()
        self._nothing = models.HasIdCondition(has_id=[])

    def condition(self, where: Filter, negated: bool, depth: int) -> tuple[Any, bool]:
        """Push `Not` down to the comparisons: the opposite of what matches too much would miss rows."""
        while isinstance(where, Not):
            negated, where = not negated, where.filter
        if isinstance(where, And | Or):
            check_depth(depth)
            parts = [self.condition(part, negated, depth + 1) for part in where.filters]
            conjunction = isinstance(where, And) != negated
            return self._joined([part for part, _ in parts], conjunction), all(exact for _, exact in parts)
        condition, exact = self._comparison(where)
        if not negated:
            return condition, exact
        return (self._models.Filter(must_not=[condition]), True) if exact else (self._everything, False)

    def _comparison(self, where: Equal | In | Range | Prefix | Exists) -> tuple[Any, bool]:
        if in_metadata(where.field):
            return self._metadata(where)
        column = record_field(where.field)
        if isinstance(where, Exists) or (isinstance(where, Range) and where.at_least is None and where.below is None):
            return self._exists(column), True
        if where.field == "id" and isinstance(where, Equal | In):
            ids = [row_uuid(value) for value in _texts(_values(where))]
            return self._models.HasIdCondition(has_id=ids), True
        if pa.types.is_string(column.type):
            return self._text(where, column)
        if pa.types.is_timestamp(column.type):
            return self._timestamp(where), True
        return self._integer(where, column)

    def _text(self, where: Equal | In | Range | Prefix, column: pa.Field) -> tuple[Any, bool]:
        if isinstance(where, Range):
            bounds = [bound for bound in (where.at_least, where.below) if bound is not None]
            if not all(isinstance(bound, str) for bound in bounds):
                return self._nothing, True
            if column.name == "partition" and all(_is_short(str(bound)) for bound in bounds):
                return self._partition_range(where), True
            return self._exists(column), False
        if isinstance(where, Prefix):
            prefixes = _texts([where.prefix])
            return (self._prefix(column.name, prefixes[0]) if prefixes else self._nothing), True
        return self._any_of(column.name, _texts(_values(where))), True

    def _partition_range(self, where: Range) -> Any:
        sides = []
        if where.at_least is not None:
            head, tail = ordered_numbers(str(where.at_least))
            sides.append(self._either(head, "gt", self._range(PARTITION_TAIL, gte=tail)))
        if where.below is not None:
            head, tail = ordered_numbers(str(where.below))
            sides.append(self._either(head, "lt", self._range(PARTITION_TAIL, lt=tail)))
        return self._joined(sides, conjunction=True)

    def _either(self, head: int, beyond: str, within: Any) -> Any:
        """Return the condition that the first bytes lie beyond the bound's, or equal them and the others lie within."""
        same = self._joined([self._range(PARTITION_HEAD, gte=head, lte=head), within], conjunction=True)
        return self._joined([self._range(PARTITION_HEAD, **{beyond: head}), same], conjunction=False)

    def _timestamp(self, where: Equal | In | Range | Prefix) -> Any:
        if isinstance(where, Prefix):
            return self._nothing
        if isinstance(where, Range):
            bounds = {"gte": where.at_least, "lt": where.below}
            given = {name: moment(bound) for name, bound in bounds.items() if bound is not None}
            if None in given.values():
                return self._nothing
            return self._moments(where.field, **given)
        moments = [time for value in _values(where) if (time := moment(value)) is not None]
        return self._joined([self._moments(where.field, gte=one, lte=one) for one in moments], conjunction=False)

    def _integer(self, where: Equal | In | Range | Prefix, column: pa.Field) -> tuple[Any, bool]:
        largest = 2 ** (column.type.bit_width - 1) - 1
        if isinstance(where, Prefix):
            return self._nothing, True
        if isinstance(where, Range):
            bounds = integer_bounds(largest, where)
            if bounds is None:
                return self._nothing, True
            lower, upper = bounds
            given = {"gte": lower} if lower > -largest else {}
            given |= {"lt": upper} if upper <= largest else {}
            if not given:
                return self._exists(column), True
            if all(abs(bound) <= _EXACT_IN_A_DOUBLE for bound in given.values()):
                return self._range(column.name, **given), True
            return self._exists(column), False
        whole = [number for value in _values(where) if (number := integer(largest, value)) is not None]
        return self._any_of(column.name, whole), True

    def _metadata(self, where: Equal | In | Range | Prefix | Exists) -> tuple[Any, bool]:
        """Return the condition on one entry of the metadata, or on the number in it."""
        key = f"{escape(metadata_name(where.field))}{SEPARATOR}"
        numbers = where.field.startswith(NUMBERS)
        key += _NUMBER if numbers else ""
        match where:
            case Exists() | Range(at_least=None, below=None) if numbers:
                return self._prefix(METADATA_TERMS, key), True
            case Exists() | Range(at_least=None, below=None):
                return self._any_of(METADATA_TERMS, [key]), True
            case Equal() | In():
                terms = [one for value in _values(where) if (one := compared_term(value)) is not None]
                found = self._any_of(METADATA_TERMS, [key + one for one in terms])
                return self._within_tenant(where, found), True
            case Prefix():
                return self._prefix(METADATA_TERMS, key + term_prefix(where.prefix)), True
            case Range():
                bounds = term_bounds(where)
                if bounds is None:
                    return self._nothing, True
                kind = bounds[0][:1]
                if kind == term_prefix(""):
                    return self._prefix(METADATA_TERMS, key + kind), False
                return self._number_range(key + kind, bounds[0][1:], bounds[1][1:]), True
        assert_never(where)

    def _within_tenant(self, where: Equal | In, found: Any) -> Any:
        if where.field != self._tenant_field:
            return found
        values = _values(where)
        texts = _texts(values)
        if len(texts) < len(values):
            return found
        return self._joined([self._any_of(where.field, texts), found], conjunction=True)

    def _number_range(self, key: str, at_least: str, below: str) -> Any:
        """Return the condition for numbers from one ordered number to before another; the empty text is no bound."""
        sides = [self._prefix(METADATA_TERMS, key)]
        if at_least:
            beyond = [at_least, *_branches(at_least, above=True)]
            sides = [self._joined([self._prefix(METADATA_TERMS, key + one) for one in beyond], conjunction=False)]
        if below:
            shorter = [key + below[:length] for length in range(1, len(below))]
            parts = [self._prefix(METADATA_TERMS, key + one) for one in _branches(below, above=False)]
            sides.append(self._joined([self._any_of(METADATA_TERMS, shorter), *parts], conjunction=False))
        return self._joined(sides, conjunction=True)

    # ---- Qdrant's own conditions

    def _joined(self, conditions: list[Any], conjunction: bool) -> Any:
        if not conditions:
            return self._everything if conjunction else self._nothing
        return self._models.Filter(must=conditions) if conjunction else self._models.Filter(should=conditions)

    def _exists(self, column: pa.Field) -> Any:
        if not column.nullable:
            return self._everything
        empty = self._models.IsEmptyCondition(is_empty=self._models.PayloadField(key=column.name))
        return self._models.Filter(must_not=[empty])

    def _any_of(self, key: str, values: list[Any]) -> Any:
        if not values:
            return self._nothing
        match = self._models.MatchValue(value=values[0]) if len(values) == 1 else self._models.MatchAny(any=values)
        return self._models.FieldCondition(key=key, match=match)

    def _prefix(self, key: str, prefix: str) -> Any:
        return self._models.FieldCondition(key=key, match=self._models.MatchPrefix(prefix=prefix))

    def _range(self, key: str, **bounds: int) -> Any:
        return self._models.FieldCondition(key=key, range=self._models.Range(**bounds))

    def _moments(self, key: str, **bounds: datetime | None) -> Any:
        return self._models.FieldCondition(key=key, range=self._models.DatetimeRange(**bounds))


def _values(where: Equal | In) -> tuple[Scalar, ...]:
    return (where.value,) if isinstance(where, Equal) else where.values


def _texts(values: Iterable[Scalar]) -> list[str]:
    return [value for value in values if is_text(value)]


def _is_short(bound: str) -> bool:
    return len(bound.encode("utf-8", "surrogatepass")) <= 2 * _BYTES_OF_A_NUMBER


def _number(digits: bytes) -> int:
    """Return a number of at most 257**6, which a double holds exactly. A missing byte counts less than any."""
    number = 0
    for place in range(_BYTES_OF_A_NUMBER):
        number = number * 257 + (digits[place] + 1 if place < len(digits) else 0)
    return number


def _branches(bound: str, above: bool) -> list[str]:
    """Return the prefixes of the ordered numbers that leave the bound's text for a greater, or a smaller, character."""
    return [
        bound[:place] + character
        for place, of_bound in enumerate(bound)
        for character in (_DIGITS if place else _SIGNS)
        if (character > of_bound if above else character < of_bound)
    ]


# ---- what no condition of Qdrant's can say


def lets_through(rest: Filter, payload: Mapping[str, Any]) -> bool:
    """Return whether a row matches what `Translated` left over; the payload has the keys that it names."""
    return matches(rest, _record(payload))


def _record(payload: Mapping[str, Any]) -> dict[str, Any]:
    record = {name: value for name, value in payload.items() if name in _PLAIN_FIELDS}
    record |= {name: datetime.fromisoformat(payload[name]) for name in _TIMESTAMPS if name in payload}
    return record | {"metadata": payload.get(METADATA_JSON)}


def _payload_keys(where: Filter) -> set[str]:
    match where:
        case Not():
            return _payload_keys(where.filter)
        case And() | Or():
            return set().union(*(_payload_keys(part) for part in where.filters))
    return {METADATA_JSON if in_metadata(where.field) else where.field}
