"""Filters as Weaviate's. Called by `store`.

Every field of a record but `metadata` and the vector is a property with an index: texts and timestamps as texts that
sort as they do, integers as integers. Each name of metadata has a property of its own, which holds the value's term
(see `metadata_terms`), since one property of Weaviate cannot hold texts and numbers; and one for the numbers that texts
of that name are written as, where there are any.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeAlias, assert_never

import pyarrow as pa

from vectorize_pipelines.stores.contents import timestamp_text
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
from vectorize_pipelines.stores.filters.metadata_terms import compared_term, term_bounds, term_prefix
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
from vectorize_pipelines.stores.weaviate.texts import after_prefix, number_property, property_name, written

if TYPE_CHECKING:
    from weaviate.collections.classes.filters import FilterReturn, _FilterByProperty

    #: True and False where the filter is known to match everything or nothing.
    Condition: TypeAlias = FilterReturn | bool

#: The property that holds a record's id; `id` is Weaviate's own, and always a UUID.
ID_PROPERTY = "record_id"

#: Weaviate keeps numbers as doubles.
LARGEST_INTEGER = 2**53


def condition(where: Filter, has_property: Callable[[str], bool]) -> "Condition":
    """Return the filter as Weaviate's; `has_property` says whether the collection has a property, and so such metadata.

    Raises `StoreError` for a field that no record has, a timestamp without a time zone or against metadata,
    and for And and Or nested more than 32 deep.
    """
    return _condition(where, has_property, 0)


def metadata_names(where: Filter) -> Iterator[str]:
    """Yield the names of metadata that the filter compares."""
    while isinstance(where, Not):
        where = where.filter
    if isinstance(where, And | Or):
        for part in where.filters:
            yield from metadata_names(part)
    elif in_metadata(where.field):
        yield metadata_name(where.field)


def native_filter(matching: "Condition") -> "FilterReturn | None":
    """Return the filter of a query for what can match, None where everything does."""
    return None if isinstance(matching, bool) else matching


def conjunction(conditions: "list[Condition]") -> "Condition":
    """Return the condition that all of them hold."""
    from weaviate.classes.query import Filter as Native

    if any(one is False for one in conditions):
        return False
    restricting = [one for one in conditions if not isinstance(one, bool)]
    if not restricting:
        return True
    return restricting[0] if len(restricting) == 1 else Native.all_of(restricting)


def text_property(field: str) -> str:
    """Return the property of a field whose values are texts; raises `StoreError` for any other field."""
    check_text_field(field)
    return property_name(metadata_name(field)) if field.startswith(METADATA) else property_of(field)


def property_of(field: str) -> str:
    """Return the property that holds a field of a record."""
    return ID_PROPERTY if field == "id" else field


def _condition(where: Filter, has_property: Callable[[str], bool], depth: int) -> "Condition":
    negated = False
    while isinstance(where, Not):
        negated, where = not negated, where.filter
    if isinstance(where, And | Or):
        check_depth(depth)
        parts = [_condition(part, has_property, depth + 1) for part in where.filters]
        matching = conjunction(parts) if isinstance(where, And) else _disjunction(parts)
    else:
        matching = _comparison(where, has_property)
    return _negation(matching) if negated else matching


def _disjunction(conditions: "list[Condition]") -> "Condition":
    from weaviate.classes.query import Filter as Native

    if any(one is True for one in conditions):
        return True
    possible = [one for one in conditions if not isinstance(one, bool)]
    if not possible:
        return False
    return possible[0] if len(possible) == 1 else Native.any_of(possible)


def _negation(matching: "Condition") -> "Condition":
    from weaviate.classes.query import Filter as Native

    return not matching if isinstance(matching, bool) else Native.not_(matching)


@dataclass(frozen=True, slots=True)
class _Operand:
    """The left side of a comparison.

    name      the property
    nullable  whether a record may lack it
    equal     how a value is written, None for a value that the field cannot hold
    bounds    (lower, upper) of a range as written, None for an open side; None altogether where nothing can match
    prefix    (lower, upper) of what starts with a text, None where the field holds no text
    """

    name: str
    nullable: bool
    equal: Callable[[Scalar], str | int | None]
    bounds: Callable[[Range], tuple[str | int | None, str | int | None] | None]
    prefix: Callable[[str], tuple[str, str | None] | None]

    def compare(self, where: Equal | In | Range | Prefix | Exists) -> "Condition":
        match where:
            case Equal():
                value = self.equal(where.value)
                return False if value is None else self._native.equal(value)
            case In():
                values = [value for one in where.values if (value := self.equal(one)) is not None]
                return self._native.contains_any(values) if values else False  # type: ignore[arg-type]
            case Range():
                if where.at_least is None and where.below is None:
                    return self._exists()
                return self._between(self.bounds(where))
            case Prefix():
                return self._between(self.prefix(where.prefix))
            case Exists():
                return self._exists()
        assert_never(where)

    @property
    def _native(self) -> "_FilterByProperty":
        from weaviate.classes.query import Filter as Native

        return Native.by_property(self.name)

    def _exists(self) -> "Condition":
        return self._native.is_none(False) if self.nullable else True

    def _between(self, bounds: tuple[str | int | None, str | int | None] | None) -> "Condition":
        if bounds is None:
            return False
        lower, upper = bounds
        sides: list[Condition] = []
        if lower is not None:
            sides.append(self._native.greater_or_equal(lower))
        if upper is not None:
            sides.append(self._native.less_than(upper))
        return conjunction(sides)


def _comparison(where: Equal | In | Range | Prefix | Exists, has_property: Callable[[str], bool]) -> "Condition":
    operand = _metadata_operand(where.field) if in_metadata(where.field) else _record_operand(where.field)
    matching = operand.compare(where)
    return matching if has_property(operand.name) else False


def _record_operand(field: str) -> _Operand:
    column = record_field(field)
    operand = partial(_Operand, property_of(field), column.nullable)
    if pa.types.is_string(column.type):
        return operand(_written_text, partial(written_bounds, _written_text), _text_prefix)
    if pa.types.is_timestamp(column.type):
        return operand(_written_timestamp, partial(written_bounds, _written_timestamp), _no_prefix)
    largest = min(2 ** (column.type.bit_width - 1) - 1, LARGEST_INTEGER)
    return operand(partial(integer, largest), partial(integer_bounds, largest), _no_prefix)


def _metadata_operand(field: str) -> _Operand:
    def bounds(where: Range) -> tuple[str, str] | None:
        terms = term_bounds(where)
        return None if terms is None else (written(terms[0]), written(terms[1]))

    def prefix(text: str) -> tuple[str, str | None] | None:
        return _text_prefix(term_prefix(text))

    name_of = number_property if field.startswith(NUMBERS) else property_name
    return _Operand(name_of(metadata_name(field)), True, _written_term, bounds, prefix)


def _written_text(value: Scalar) -> str | None:
    return written(value) if is_text(value) else None


def _written_timestamp(value: Scalar) -> str | None:
    time = moment(value)
    return None if time is None else timestamp_text(time)


def _written_term(value: Scalar) -> str | None:
    text = compared_term(value)
    return None if text is None else written(text)


def _text_prefix(prefix: str) -> tuple[str, str | None] | None:
    if _written_text(prefix) is None:
        return None
    following = after_prefix(prefix)
    return written(prefix), None if following is None else written(following)


def _no_prefix(_: str) -> None:
    return None
