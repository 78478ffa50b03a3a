"""Filters on records, written once and translated by every store.

A field is one of the record's own (`source_id`, `partition`, `page`, …) or `metadata.NAME` for the user's.
Values keep their type: `Equal("metadata.year", 2024)` does not match the text "2024". For texts that are numbers, as
the cells of CSV files are, there is `numbers.NAME`: the number that the text `metadata.NAME` is written as (see
`core.numerals`), missing where it is another text or none. `Range("numbers.price", at_least=10)` matches "12.50".
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

Scalar: TypeAlias = str | int | float | bool | datetime


@dataclass(frozen=True, slots=True)
class Equal:
    """The field has this value."""

    field: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class In:
    """The field has one of these values; no values match nothing."""

    field: str
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Range:
    """The range `at_least <= field < below`; a bound left out is open. Bounds that are given have the field's type."""

    field: str
    at_least: Scalar | None = None
    below: Scalar | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """The (text) field starts with these characters, taken literally."""

    field: str
    prefix: str


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there and not null."""

    field: str


@dataclass(frozen=True, slots=True)
class Not:
    """The filter does not match; a record that lacks the field counts as not matching it, so `Not` does."""

    filter: "Filter"


@dataclass(frozen=True, slots=True)
class And:
    """Every filter matches; none at all matches everything."""

    filters: tuple["Filter", ...]


@dataclass(frozen=True, slots=True)
class Or:
    """At least one filter matches; none at all matches nothing."""

    filters: tuple["Filter", ...]


Filter: TypeAlias = Equal | In | Range | Prefix | Exists | Not | And | Or


def all_of(filters: Sequence["Filter | None"]) -> "Filter | None":
    """Return the conjunction of those that are not None; None where nothing restricts."""
    given = tuple(f for f in filters if f is not None)
    if not given:
        return None
    return given[0] if len(given) == 1 else And(given)
