"""A comparison as users write it -> an expression: which field its name means, and which values its texts stand for.

Called by `parsing` and `json_form`, which read the two forms of a filter. What both refuse is an `InvalidFilterError`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import NoReturn

import pyarrow as pa

from vectorize_pipelines.core.numerals import number_in
from vectorize_pipelines.core.records import RECORD_FIELDS, record_schema
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.stores.filters.expressions import And, Equal, Filter, In, Not, Or, Prefix, Range, Scalar
from vectorize_pipelines.stores.filters.operands import METADATA, NUMBERS, is_number, metadata_name

#: Comparisons of one filter. Each is a condition of its own that a store works out for every row.
MAX_COMPARISONS = 100
#: Values in the lists of one filter together.
MAX_VALUES = 1_000
#: How deep `and`, `or` and `not` may lie within each other. LanceDB's parser takes 20 levels, of which the command
#: line, which joins several filters, adds one, and a comparison with a number two others.
MAX_LEVELS = 17

_SHOWN_CHARACTERS = 60
_LARGEST_INTEGER = 2**63 - 1


class InvalidFilterError(VectorizeError):
    """A filter that cannot be read.

    place    a character of the text, counted from 1, or a path in the JSON; empty for the filter as a whole
    problem  what is wrong there, and what was expected
    """

    exit_code = 2

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}" if place else problem)
        self.place, self.problem = place, problem


class Budget:
    """The count of what one filter asks for, which refuses more than a store is to be asked."""

    def __init__(self) -> None:
        self._comparisons = self._values = 0

    def take_comparison(self, place: str) -> None:
        """Count one more comparison. Raises `InvalidFilterError`."""
        self._comparisons += 1
        if self._comparisons > MAX_COMPARISONS:
            raise InvalidFilterError(place, f"a filter has {MAX_COMPARISONS} comparisons at most; `in` takes a list")

    def take_value(self, place: str) -> None:
        """Count one more value of a list. Raises `InvalidFilterError`."""
        self._values += 1
        if self._values > MAX_VALUES:
            raise InvalidFilterError(place, f"the lists of a filter have {MAX_VALUES:,} values at most")

    def check_level(self, level: int, place: str) -> None:
        """Raise `InvalidFilterError` for what lies too deep within others."""
        if level > MAX_LEVELS:
            raise InvalidFilterError(place, "nested too deeply; flatten it")


class Kind(StrEnum):
    """The kind of value that a field holds, in the words of error messages."""

    TEXT = "a text"
    INTEGER = "a whole number"
    TIMESTAMP = "a time, such as 2026-11-22T10:30"
    METADATA = "a text, a number or a boolean"


def _kind_of(data_type: pa.DataType) -> Kind:
    if pa.types.is_timestamp(data_type):
        return Kind.TIMESTAMP
    return Kind.INTEGER if pa.types.is_integer(data_type) else Kind.TEXT


_OWN = {field.name: _kind_of(field.type) for field in record_schema(1) if field.name in {*RECORD_FIELDS} - {"metadata"}}


@dataclass(frozen=True, slots=True)
class Field:
    """A field as expressions name it, and what it holds."""

    name: str
    kind: Kind

    def readings(self, text: str, *, quoted: bool) -> tuple[Scalar, ...]:
        """Return the values that a text may stand for; the last one is what it is compared by in a range.

        In metadata `2024` may be the number and the text, `"2024"` in quotes is the text; `true` and `True` may be the
        boolean and the text, as any program writes it. Raises `ValueError`.
        """
        if self.kind is Kind.METADATA:
            if quoted:
                return (text,)
            if text.lower() in _BOOLEANS:
                return (*dict.fromkeys((text, *_spellings(text))), _BOOLEANS[text.lower()])
            number = _number(text)
            return (text,) if number is None else (text, number)
        if self.kind is Kind.TEXT:
            return (text,)
        try:
            return (self._integer(int(text)) if self.kind is Kind.INTEGER else _moment(text),)
        except (ValueError, OverflowError):
            raise self._refusal(text) from None

    def value(self, given: object) -> Scalar:
        """Return a value that was read from JSON: it keeps its type, a time is a text there. Raises `ValueError`."""
        match self.kind:
            case Kind.TIMESTAMP if isinstance(given, str):
                return self.readings(given, quoted=True)[0]
            case Kind.INTEGER if is_number(given) and not _is_infinite(given):
                return self._integer(given)
            case Kind.TEXT | Kind.METADATA if isinstance(given, str):
                return given
            case Kind.METADATA if isinstance(given, bool | int | float) and not _is_infinite(given):
                return given
        raise self._refusal(given)

    def _integer(self, value: float) -> int:
        if value != int(value) or abs(value) > _LARGEST_INTEGER:
            raise self._refusal(value)
        return int(value)

    def _refusal(self, value: object) -> ValueError:
        return ValueError(f"{shown(value)} is no value of {shown(self.name)}, which is {self.kind}")


def field_named(name: str) -> Field:
    """Return the record's own field of this name, such as `page`; any other name is one of the metadata.

    `metadata.page` is the metadata's, whatever the record has.
    """
    if name in _OWN:
        return Field(name, _OWN[name])
    return Field(name if name.startswith(METADATA) else METADATA + name, Kind.METADATA)


def one_of(field: Field, values: Sequence[Scalar]) -> Filter:
    """Return the filter that a field has one of the values."""
    return Equal(field.name, values[0]) if len(values) == 1 else In(field.name, tuple(values))


def or_written(found: Filter, field: Field, readings: Sequence[Scalar]) -> Filter:
    """Return the filter, or that a text of the field is a number of those among the values of `Field.readings`.

    `10` is also the text "10.00", but not the text "010": what begins with zeros is a code rather than a number.
    """
    numbers = [value for value in readings if is_number(value)] if field.kind is Kind.METADATA else []
    if not numbers:
        return found
    parts: list[Filter] = [found]
    for zeros, some in (
        ("00", [number for number in numbers if abs(number) < 1]),
        ("0", [number for number in numbers if abs(number) >= 1]),
    ):
        if some:
            parts.append(And((one_of(_in_texts(field), some), Not(Prefix(field.name, zeros)))))
    return Or(tuple(parts))


def compared(field: Field, operator: str, bound: Scalar) -> Filter:
    """Return the filter that a field lies on one side of a bound; a number also orders the texts that are numbers."""
    found = ORDERINGS[operator](field.name, bound)
    if field.kind is Kind.METADATA and is_number(bound):
        return Or((found, ORDERINGS[operator](_in_texts(field).name, bound)))
    return found


def _in_texts(field: Field) -> Field:
    """Return the field of the numbers that a field's texts are written as."""
    return Field(NUMBERS + metadata_name(field.name), Kind.METADATA)


#: Operator -> the expression for a field and a bound that has its type.
ORDERINGS: Mapping[str, Callable[[str, Scalar], Filter]] = {
    "<": lambda field, bound: Range(field, below=bound),
    "<=": lambda field, bound: Or((Range(field, below=bound), Equal(field, bound))),
    ">": lambda field, bound: And((Range(field, at_least=bound), Not(Equal(field, bound)))),
    ">=": lambda field, bound: Range(field, at_least=bound),
}


def beginning(field: Field, prefix: str) -> Filter:
    """Return the filter that a text starts with these characters. Raises `ValueError` for a field without text."""
    if field.kind in (Kind.INTEGER, Kind.TIMESTAMP):
        raise ValueError(f"{shown(field.name)} is {field.kind}: `prefix` is for texts")
    return Prefix(field.name, prefix)


def shown(value: object) -> str:
    """Return a value of the user's as error messages repeat it: on one line, and not at length."""
    text = repr(value) if isinstance(value, str | bool | int | float) or value is None else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _moment(text: str) -> datetime:
    """Return the time that a text is; one without a zone is in UTC, as the days of the partitions are."""
    time = datetime.fromisoformat(text)
    return time.astimezone(UTC) if time.tzinfo is not None else time.replace(tzinfo=UTC)


_BOOLEANS = {"true": True, "false": False}


def _spellings(text: str) -> tuple[str, ...]:
    return text.lower(), text.capitalize(), text.upper()


def _number(text: str) -> float | None:
    """Return the number that a text is, as JSON or as `.5`; None for any other text."""
    if text.startswith((".", "-.")):
        return number_in(text)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    return value if is_number(value) and not _is_infinite(value) else None


def _is_infinite(value: float) -> bool:
    """Return whether a number is infinite or none; an integer is finite, however long, also if too long for a float."""
    return isinstance(value, float) and not math.isfinite(value)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
