"""The users' metadata as texts that any store can compare. Called by the stores' filters and their writers.

A term is the text for one value of metadata. It begins with the value's type, and within a type terms sort, by code
point, as the values do; so every filter on metadata is a comparison of texts, whatever a store makes of numbers:

    "Le Guin"  sLe Guin        1974  n2500031974        true  b1        ["a", "b"]  x

A null has no term; lists and objects are only known to exist. A text that is a number has a second term, that of the
number, which a store keeps beside the first one under a name of its own (`numbers.NAME` in filters).
"""

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from vectorize_pipelines.core.numerals import number_in
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.filters.expressions import Range, Scalar

#: No term holds it: a store may set terms off by it.
SEPARATOR = "\x1f"
_ESCAPE = "\x1e"
_BOOLEAN, _NUMBER, _TEXT, _OTHER = "b", "n", "s", "x"
_RESERVED = re.compile("[\x1e\x1f\ud800-\udfff]")
_ESCAPED = re.compile(f"{_ESCAPE}([0-9a-f]{{4}})")


def entries_of(text: str) -> Mapping[str, Any]:
    """Return the metadata of a record; raises `StoreError` for a text that is not a JSON object."""
    try:
        entries = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise StoreError(f"metadata is not valid JSON ({error}): {text[:200]!r}") from error
    if not isinstance(entries, dict):
        raise StoreError(f"metadata is not a JSON object: {text[:200]!r}")
    return entries


def term(value: Any) -> str | None:
    """Return the term of a value that was read from JSON; None for null, and for a number that is none."""
    match value:
        case None:
            return None
        case bool():
            return f"{_BOOLEAN}{int(value)}"
        case int() | float():
            return None if value != value else _NUMBER + _ordered_number(value)
        case str():
            return _TEXT + escape(value)
        case _:
            return _OTHER


def number_term(value: Any) -> str | None:
    """Return the term of the number that a text is written as; None for any other value."""
    return term(number_in(value)) if isinstance(value, str) else None


def compared_term(value: Scalar) -> str | None:
    """Return the term of a filter's value; raises `StoreError` for a timestamp, which JSON does not have."""
    if isinstance(value, datetime):
        raise StoreError(
            f"the filter compares metadata with the timestamp {value}; metadata is JSON, which has none: "
            f"compare with the text that was written, e.g. {value.isoformat()!r}"
        )
    return term(value)


def term_prefix(prefix: str) -> str:
    """Return what the terms of all texts that start with these characters start with."""
    return _TEXT + escape(prefix)


def term_bounds(where: Range) -> tuple[str, str] | None:
    """Return the first term of the range and the first beyond it; None where nothing can lie in it."""
    terms = [compared_term(bound) for bound in (where.at_least, where.below) if bound is not None]
    if None in terms or len({term[0] for term in terms if term}) > 1:
        return None
    kind = next(term[0] for term in terms if term)
    after = iter(terms)
    lower = kind if where.at_least is None else next(after)
    upper = chr(ord(kind) + 1) if where.below is None else next(after)
    return lower or "", upper or ""


def text_of(term: str) -> str | None:
    """Return the text whose term this is; None where it is the term of something else."""
    if not term.startswith(_TEXT):
        return None
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), term[len(_TEXT) :])


def escape(text: str) -> str:
    """Escape reserved characters; order and prefixes stay: U+001E and digits sort between U+001D and U+0020."""
    return _RESERVED.sub(lambda match: f"{_ESCAPE}{ord(match[0]):04x}", text)


def _ordered_number(value: float) -> str:
    """Return a text that sorts as the number does, exactly, whatever its size; 1 and 1.0 are the same.

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


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
