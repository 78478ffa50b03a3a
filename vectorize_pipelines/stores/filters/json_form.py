"""Filters as JSON -> `expressions`: what programs send to the HTTP server.

    {"and": [{"field": "language", "equals": "en"}, {"not": {"field": "title", "exists": true}}]}

An object has one of these forms, where FIELD is a name as in `parsing`:

    {"and": [filter, …]}                 every one holds
    {"or": [filter, …]}                  at least one holds
    {"not": filter}
    {"field": FIELD, "equals": value}
    {"field": FIELD, "in": [value, …]}
    {"field": FIELD, "range": {"gte": value, "lt": value}}      or gt, lte; one bound is enough
    {"field": FIELD, "prefix": text}
    {"field": FIELD, "exists": boolean}

Values keep their type: 2024 is not "2024". A time is a text, in UTC where it has no zone.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import TypeVar

from vectorize_pipelines.stores.filters.comparisons import (
    ORDERINGS,
    Budget,
    Field,
    InvalidFilterError,
    beginning,
    field_named,
    one_of,
    shown,
)
from vectorize_pipelines.stores.filters.expressions import And, Exists, Filter, In, Not, Or, Scalar
from vectorize_pipelines.stores.filters.operands import is_number

_FORMS = "and, or, not; or field with equals, in, range, prefix or exists"
_BOUNDS = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}

_SHOWN_KEYS = 5

_Read = TypeVar("_Read")


def filter_of_json(value: object) -> Filter:
    """Return what a filter that was read from JSON means. Raises `InvalidFilterError`."""
    return _Reader().read(value, "", 0)


class _Reader:
    """The reader of one filter. `place` is the path to what it reads: `and[1].range.gte`."""

    def __init__(self) -> None:
        self._budget = Budget()

    def read(self, value: object, place: str, level: int) -> Filter:
        self._budget.check_level(level, place)
        content = _object(value, place)
        match content:
            case {"and": parts, **others} if not others:
                return And(self._several(parts, _inside(place, "and"), level + 1))
            case {"or": parts, **others} if not others:
                return Or(self._several(parts, _inside(place, "or"), level + 1))
            case {"not": part, **others} if not others:
                return Not(self.read(part, _inside(place, "not"), level + 1))
            case {"field": name, **others} if len(others) == 1:
                (operator,) = others
                return self._comparison(name, operator, others[operator], place)
        raise InvalidFilterError(place, f"expected {_FORMS}; found {_keys(content)}")

    def _several(self, parts: object, place: str, level: int) -> tuple[Filter, ...]:
        return tuple(self.read(part, f"{place}[{n}]", level) for n, part in enumerate(_list(parts, place)))

    def _comparison(self, name: object, operator: str, operand: object, place: str) -> Filter:
        if not isinstance(name, str) or not name:
            raise InvalidFilterError(_inside(place, "field"), "expected the name of a field")
        self._budget.take_comparison(place)
        field, inside = field_named(name), _inside(place, operator)
        match operator:
            case "equals":
                return one_of(field, [_placed(inside, partial(field.value, operand))])
            case "in":
                return In(field.name, tuple(self._listed(field, operand, inside)))
            case "range":
                return _range(field, _object(operand, inside), inside)
            case "prefix" if isinstance(operand, str):
                return _placed(inside, lambda: beginning(field, operand))
            case "prefix":
                raise InvalidFilterError(inside, "expected a text")
            case "exists" if isinstance(operand, bool):
                return Exists(field.name) if operand else Not(Exists(field.name))
            case "exists":
                raise InvalidFilterError(inside, "expected true or false")
        raise InvalidFilterError(place, f"expected {_FORMS}; found 'field' with {shown(operator)}")

    def _listed(self, field: Field, operand: object, place: str) -> list[Scalar]:
        values: list[Scalar] = []
        for number, each in enumerate(_list(operand, place)):
            inside = f"{place}[{number}]"
            self._budget.take_value(inside)
            values.append(_placed(inside, partial(field.value, each)))
        return values


def _range(field: Field, bounds: Mapping[str, object], place: str) -> Filter:
    """Return the range within one bound on either side at most, both of one type: otherwise nothing could lie there."""
    unknown = [name for name in bounds if name not in _BOUNDS]
    if unknown or not bounds or {"gt", "gte"} <= bounds.keys() or {"lt", "lte"} <= bounds.keys():
        raise InvalidFilterError(place, "expected gt or gte, and lt or lte; one of them is enough")
    given = {name: _placed(f"{place}.{name}", partial(field.value, bound)) for name, bound in bounds.items()}
    if len({"number" if is_number(bound) else type(bound).__name__ for bound in given.values()}) > 1:
        raise InvalidFilterError(place, "its bounds are of different types")
    parts = tuple(ORDERINGS[_BOUNDS[name]](field.name, bound) for name, bound in given.items())
    return parts[0] if len(parts) == 1 else And(parts)


def _object(value: object, place: str) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise InvalidFilterError(place, f"expected an object, found {shown(value)}")
    return value


def _list(value: object, place: str) -> list[object]:
    if not isinstance(value, list):
        raise InvalidFilterError(place, f"expected a list, found {shown(value)}")
    return value


def _keys(content: Mapping[str, object]) -> str:
    names = [shown(name) for name in islice(content, _SHOWN_KEYS)]
    return ", ".join(names + ["…"] * (len(content) > _SHOWN_KEYS)) or "an empty object"


def _inside(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def _placed(place: str, read: Callable[[], _Read]) -> _Read:
    """Return what a value means; raise an error that says where it stands where it means nothing."""
    try:
        return read()
    except ValueError as error:
        raise InvalidFilterError(place, str(error)) from None
