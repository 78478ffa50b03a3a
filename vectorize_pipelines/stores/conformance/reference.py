"""The meaning of a filter, in plain Python: the stores' translations are held against it."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, assert_never

from vectorize_pipelines.core.numerals import number_in
from vectorize_pipelines.stores.filters.expressions import And, Equal, Exists, Filter, In, Not, Or, Prefix, Range


def matches(where: Filter, row: Mapping[str, Any]) -> bool:
    """Return whether the filter matches `row`, a record whose `metadata` is a mapping."""
    match where:
        case Not():
            return not matches(where.filter, row)
        case And():
            return all(matches(part, row) for part in where.filters)
        case Or():
            return any(matches(part, row) for part in where.filters)
        case Exists():
            return _value(row, where.field) is not None
        case Equal():
            return _equal(_value(row, where.field), where.value)
        case In():
            return any(_equal(_value(row, where.field), value) for value in where.values)
        case Prefix():
            value = _value(row, where.field)
            return isinstance(value, str) and value.startswith(where.prefix)
        case Range():
            return _within(_value(row, where.field), where)
    assert_never(where)


def _within(value: Any, where: Range) -> bool:
    if value is None:
        return False
    bounds = [bound for bound in (where.at_least, where.below) if bound is not None]
    if any(_kind(bound) != _kind(value) for bound in bounds):
        return False
    return (where.at_least is None or value >= where.at_least) and (where.below is None or value < where.below)


def _value(row: Mapping[str, Any], field: str) -> Any:
    if field.startswith("metadata."):
        return row["metadata"].get(field.removeprefix("metadata."))
    if field.startswith("numbers."):
        value = row["metadata"].get(field.removeprefix("numbers."))
        return number_in(value) if isinstance(value, str) else None
    return row[field]


def _equal(value: Any, wanted: Any) -> bool:
    return value is not None and _kind(value) == _kind(wanted) and bool(value == wanted)


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "text"
    return "timestamp" if isinstance(value, datetime) else "other"
