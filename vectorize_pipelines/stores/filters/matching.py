"""The meaning of a filter in plain Python: for stores that have no condition of their own for some filter, or for any.

Called by `stores.qdrant.filters`, and by stores of others (`docs/adding-a-store.md`).
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_never

from vectorize_pipelines.core.numerals import number_in
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
from vectorize_pipelines.stores.filters.metadata_terms import compared_term, entries_of
from vectorize_pipelines.stores.filters.operands import NUMBERS, in_metadata, metadata_name, moment, record_field


def check_filter(where: Filter) -> None:
    """Raise `StoreError` for a field that no record has, a timestamp without a time zone or against metadata."""
    while isinstance(where, Not):
        where = where.filter
    if isinstance(where, And | Or):
        for part in where.filters:
            check_filter(part)
        return
    of_user = in_metadata(where.field)
    if not of_user:
        record_field(where.field)
    for value in _operands(where):
        if of_user:
            compared_term(value)
        else:
            moment(value)


def matches(where: Filter, record: Mapping[str, Any]) -> bool:
    """Return whether a record matches a filter that `check_filter` lets through.

    `record` has the fields that the filter names, in the types of the record's schema, null ones may be missing;
    `metadata` is JSON.
    """
    match where:
        case Not():
            return not matches(where.filter, record)
        case And():
            return all(matches(part, record) for part in where.filters)
        case Or():
            return any(matches(part, record) for part in where.filters)
    value = value_of(record, where.field)
    match where:
        case Exists():
            return value is not None
        case Equal() | In():
            return any(_kind(value) == _kind(wanted) and bool(value == wanted) for wanted in _operands(where))
        case Prefix():
            return isinstance(value, str) and value.startswith(where.prefix)
        case Range():
            return value is not None and _lies_within(value, where)
    assert_never(where)


def value_of(record: Mapping[str, Any], field: str) -> Any:
    """Return what a record has in a field of its own or of its metadata; None where it has nothing."""
    if not in_metadata(field):
        return record.get(field)
    value = entries_of(record["metadata"]).get(metadata_name(field))
    if field.startswith(NUMBERS):
        return number_in(value) if isinstance(value, str) else None
    return value


def _lies_within(value: Any, where: Range) -> bool:
    if any(_kind(bound) != _kind(value) for bound in _operands(where)):
        return False
    return (where.at_least is None or value >= where.at_least) and (where.below is None or value < where.below)


def _operands(where: Equal | In | Range | Prefix | Exists) -> tuple[Scalar, ...]:
    match where:
        case Equal():
            return (where.value,)
        case In():
            return where.values
        case Range():
            return tuple(bound for bound in (where.at_least, where.below) if bound is not None)
    return ()


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "text"
        case datetime():
            return "timestamp"
    return "other"
