"""Filters as records are generated for them, and written out in both forms that `parsing` and `json_form` read."""

import json
from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

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

TIMES = (datetime(1969, 7, 20, 20, 17, tzinfo=UTC), datetime(2026, 11, 22, tzinfo=UTC))
TEXTS = ("", "a", "and", "it's", '"quoted" \\ (x)', "2024", "true", "灯塔 ", "not in (", "\x00\n", "=")
NUMBERS = (0, 1, -1, 2024, 2**53 + 1, 10**30, 0.5, -1.25, 1e22, 5e-324)
NAMES = ("year", "page", "a b", "it's", "and", "", "metadata.x", 'say "hi"')

_texts = st.sampled_from(TEXTS) | st.text(max_size=4)
_numbers = st.sampled_from(NUMBERS) | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
_whole = st.sampled_from((0, 1, 7, 2**31 - 1)) | st.integers(-(2**63) + 1, 2**63 - 1)


@st.composite
def _leaves(draw: st.DrawFn) -> Filter:
    """A comparison with values of its field's type."""
    fields: tuple[tuple[str, st.SearchStrategy[Any]], ...] = (
        *(("source_id", _texts), ("text", _texts), ("page", _whole)),
        ("occurred_at", st.sampled_from(TIMES)),
        *((f"metadata.{name}", kind) for name in NAMES for kind in (_texts, _numbers, st.booleans())),
    )
    field, values = draw(st.sampled_from(fields))
    lower, upper = draw(st.none() | values), draw(st.none() | values)
    choices: list[st.SearchStrategy[Filter]] = [
        st.builds(Equal, st.just(field), values),
        st.builds(In, st.just(field), st.lists(values, max_size=4).map(tuple)),
        st.just(Range(field, lower, upper)),
        st.just(Exists(field)),
    ]
    if field not in ("page", "occurred_at"):
        choices.append(st.builds(Prefix, st.just(field), _texts))
    return draw(st.sampled_from(choices).flatmap(lambda choice: choice))


def _combined(parts: st.SearchStrategy[Filter]) -> st.SearchStrategy[Filter]:
    several = st.lists(parts, max_size=3).map(tuple)
    return st.builds(Not, parts) | st.builds(And, several) | st.builds(Or, several)


filters = st.recursive(_leaves(), _combined, max_leaves=6)

_values = st.none() | _texts | _numbers | st.booleans() | st.just([1]) | st.just({"a": 1})
records: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "source_id": _texts,
        "text": st.none() | _texts,
        "page": st.none() | _whole.filter(lambda page: abs(page) < 2**31),
        "occurred_at": st.sampled_from(TIMES),
        "metadata": st.dictionaries(st.sampled_from(NAMES), _values).map(json.dumps),
    }
)


def as_text(where: Filter) -> str:
    """The filter as an expression with the same meaning."""
    match where:
        case Not():
            return f"not ({as_text(where.filter)})"
        case And(filters=()):
            return "not source_id in ()"
        case And():
            return " and ".join(f"({as_text(part)})" for part in where.filters)
        case Or(filters=()):
            return "source_id in ()"
        case Or():
            return " OR ".join(f"({as_text(part)})" for part in where.filters)
        case Equal():
            return _equality(where.field, where.value)
        case In(values=()):
            return f"{_quoted(where.field)} in ()"
        case In():
            return " or ".join(_equality(where.field, value) for value in where.values)
        case Range(at_least=None, below=None) | Exists():
            return f"{_quoted(where.field)} exists"
        case Range():
            bounds = ((">=", where.at_least), ("<", where.below))
            comparisons = [
                f"{_quoted(where.field)}{sign}{_value(bound)}" for sign, bound in bounds if bound is not None
            ]
            return " and ".join([*comparisons, *_no_text(where.field, where.at_least, where.below)])
        case Prefix():
            return f"{_quoted(where.field)} prefix {_quoted(where.prefix)}"


def as_json(where: Filter) -> Any:
    """The filter as JSON with the same meaning."""
    match where:
        case Not():
            return {"not": as_json(where.filter)}
        case And():
            return {"and": [as_json(part) for part in where.filters]}
        case Or():
            return {"or": [as_json(part) for part in where.filters]}
        case Equal():
            return {"field": where.field, "equals": _json(where.value)}
        case In():
            return {"field": where.field, "in": [_json(value) for value in where.values]}
        case Range(at_least=None, below=None) | Exists():
            return {"field": where.field, "exists": True}
        case Range():
            bounds = {"gte": where.at_least, "lt": where.below}
            return {
                "field": where.field,
                "range": {key: _json(each) for key, each in bounds.items() if each is not None},
            }
        case Prefix():
            return {"field": where.field, "prefix": where.prefix}


def _equality(field: str, value: Scalar) -> str:
    """In metadata a word that is a number or a boolean means the text, too; a range means no other boolean."""
    if field.startswith("metadata.") and not isinstance(value, str):
        comparisons = [f"{_quoted(field)} {sign} {_value(value)}" for sign in (">=", "<=")]
        return f"({' and '.join([*comparisons, *_no_text(field, value)])})"
    return f"{_quoted(field)} = {_value(value)}"


def _no_text(field: str, *values: Scalar | None) -> list[str]:
    """In metadata a range of numbers means the texts that are written as numbers, too."""
    numbers = [value for value in values if value is not None and not isinstance(value, str | datetime)]
    return [f'not {_quoted(field)} prefix ""'] if numbers and field.startswith("metadata.") else []


def _value(value: Scalar) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    """In single quotes where it has a double one, with escapes of its own there."""
    if '"' not in text:
        return json.dumps(text)
    inner = json.dumps(text)[1:-1].replace('\\"', '"').replace("'", "\\'")
    return f"'{inner}'"


def _json(value: Scalar) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
