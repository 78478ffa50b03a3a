"""The fields that filters name and the values that they compare: checked, and brought into one form for all stores.

Called by the stores' filters and by `matching`. What a value is in a store's own language is the store's affair.
"""

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeGuard, TypeVar

import pyarrow as pa

from vectorize_pipelines.core.records import record_schema
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.filters.expressions import Filter, In, Range, Scalar

#: What a store makes of a value.
Written = TypeVar("Written")

#: What follows is one name of the users' metadata.
METADATA = "metadata."
#: What follows is one name of the users' metadata: the number that its text is written as, where it is one.
NUMBERS = "numbers."

# DataFusion's parser (LanceDB) gives up at about fifty levels of brackets. Protobuf, by which Qdrant and Weaviate get
# their filters, takes a hundred levels of messages, of which And and Or take two each.
_DEEPEST_NESTING = 32

_FIELDS = {field.name: field for field in record_schema(1) if field.name not in ("metadata", "vector")}


def record_field(field: str) -> pa.Field:
    """Return the record's own field of this name; raises `StoreError` for one that no record has, and for vectors."""
    if field not in _FIELDS:
        raise StoreError(f"the filter names {field!r}; fields are {', '.join(_FIELDS)} and metadata.NAME")
    return _FIELDS[field]


def in_metadata(field: str) -> bool:
    """Return whether a field is one of the users' metadata, or a number in one."""
    return field.startswith((METADATA, NUMBERS))


def metadata_name(field: str) -> str:
    """Return the name that a field of which `in_metadata` holds has in the metadata: all after the first dot."""
    return field.partition(".")[2]


def check_text_field(field: str) -> None:
    """Raise `StoreError` where values of a field cannot be counted, because no record has it or it holds no text."""
    if not field.startswith(METADATA) and not pa.types.is_string(record_field(field).type):
        raise StoreError(f"values of {field!r} cannot be counted: it is not a text field")


def check_depth(depth: int) -> None:
    """Raise `StoreError` for more than 32 levels; called for each And and Or with the number of those around it."""
    if depth >= _DEEPEST_NESTING:
        raise StoreError(f"the filter nests And and Or more than {_DEEPEST_NESTING} deep; flatten it")


def is_number(value: Any) -> TypeGuard[int | float]:
    """Return whether a filter's value is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_text(value: Any) -> TypeGuard[str]:
    """Return whether a value is a text that a store can have. Half characters, as in some file names, are none."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def moment(value: Scalar) -> datetime | None:
    """Return a timestamp in UTC, None for what is none; raises `StoreError` for one without a time zone."""
    if not isinstance(value, datetime):
        return None
    if value.tzinfo is None:
        raise StoreError(f"the filter's timestamp {value} has no time zone; give one, e.g. datetime.UTC")
    return value.astimezone(UTC)


def integer(largest: int, value: Scalar) -> int | None:
    """Return the value for a field that holds integers of at most this magnitude; None for what it cannot hold."""
    return int(value) if is_number(value) and abs(value) <= largest and value == int(value) else None


def integer_bounds(largest: int, where: Range) -> tuple[int, int] | None:
    """Return the bounds of a range for such a field; None where nothing lies between.

    A bound between two integers moves up to the next one, one that is open or outside to the end of the type.
    """
    ends: list[int] = []
    for bound, opened in ((where.at_least, -largest), (where.below, largest + 1)):
        if bound is None:
            ends.append(opened)
        elif not is_number(bound) or math.isnan(bound):
            return None
        else:
            ends.append(math.ceil(min(max(bound, -largest), largest + 1)))
    lower, upper = ends
    return (lower, upper) if lower < upper else None


def written_bounds(
    write: Callable[[Scalar], Written | None], where: Range
) -> tuple[Written | None, Written | None] | None:
    """Return the bounds of a range as `write` writes them, None for an open side.

    None altogether where it returns None for a bound: the field holds no such values, and nothing lies in the range.
    """
    lower, upper = (None if bound is None else write(bound) for bound in (where.at_least, where.below))
    unmatched = (where.at_least is not None and lower is None) or (where.below is not None and upper is None)
    return None if unmatched else (lower, upper)


def parts(where: Filter, most_values: int) -> Iterator[Filter]:
    """Yield filters that together match the same rows, each row once, none with a longer list of values than this."""
    if not isinstance(where, In) or len(where.values) <= most_values:
        yield where
        return
    for first in range(0, len(where.values), most_values):
        yield In(where.field, where.values[first : first + most_values])
