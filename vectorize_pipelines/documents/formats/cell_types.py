"""Values of a column whose type the user states (`documents.column_types`). Called by `table.TableBuilder`."""

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.core.numerals import number_in
from vectorize_pipelines.settings.content import ColumnType

_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def as_type(value: JsonValue, kind: ColumnType) -> JsonValue:
    """Return the value as one of this type, None where it is none.

    A number may have a sign and zeros before it; a boolean is `true`, `yes` or `1`, or `false`, `no` or `0`, in any
    case; a date, or date and time, is in ISO 8601, and stays a text.
    """
    return _AS[kind](value)


def _text(value: JsonValue) -> JsonValue:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(value: JsonValue) -> JsonValue:
    if isinstance(value, str):
        return number_in(value.strip().removeprefix("+"))
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _boolean(value: JsonValue) -> JsonValue:
    if isinstance(value, bool):
        return value
    return _BOOLEANS.get(str(value).strip().lower()) if isinstance(value, str | int) else None


def _date(value: JsonValue) -> JsonValue:
    if not isinstance(value, str):
        return None
    for kind in (date, datetime):
        try:
            return kind.fromisoformat(value.strip()).isoformat()
        except ValueError:
            continue
    return None


_AS: Mapping[ColumnType, Callable[[JsonValue], JsonValue]] = {
    "text": _text,
    "number": _number,
    "boolean": _boolean,
    "date": _date,
}
