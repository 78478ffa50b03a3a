"""Filters as users write them: what they mean, where they go on as before, and what is said of a bad one."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.stores.filters.written import as_json, as_text, filters, records
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores.conformance.records import COLLECTION, row, spec, table
from vectorize_pipelines.stores.filters.comparisons import (
    MAX_COMPARISONS,
    MAX_LEVELS,
    MAX_VALUES,
    InvalidFilterError,
)
from vectorize_pipelines.stores.filters.expressions import And, Equal, Exists, Filter, In, Not, Or, Prefix, Range
from vectorize_pipelines.stores.filters.json_form import filter_of_json
from vectorize_pipelines.stores.filters.matching import check_filter, matches
from vectorize_pipelines.stores.filters.parsing import MAX_CHARACTERS, parse_filter
from vectorize_pipelines.stores.lancedb.filters import to_sql
from vectorize_pipelines.stores.lancedb.store import LanceDBStore

LANGUAGE, YEAR, YEAR_WRITTEN = "metadata.language", "metadata.year", "numbers.year"
THE_NUMBER_2024 = And((Equal(YEAR_WRITTEN, 2024), Not(Prefix(YEAR, "0"))))
A, B, C = (Equal(f"metadata.{name}", name) for name in "abc")


@hypothesis_settings(max_examples=400)
@given(where=filters, rows=st.lists(records, min_size=1, max_size=6))
@pytest.mark.slow
def test_what_is_written_means_the_same_when_it_is_read(where: Filter, rows: list[dict[str, Any]]) -> None:
    read = parse_filter(as_text(where))
    of_json = filter_of_json(json.loads(json.dumps(as_json(where))))
    for each in rows:
        assert matches(read, each) == matches(of_json, each) == matches(where, each), as_text(where)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("language=en", Equal(LANGUAGE, "en")),
        ("metadata.language = en", Equal(LANGUAGE, "en")),
        (" page=3 ", Equal("page", 3)),
        (
            "metadata.page=3",
            Or((In("metadata.page", ("3", 3)), And((Equal("numbers.page", 3), Not(Prefix("metadata.page", "0")))))),
        ),
        ("year=2024", Or((In(YEAR, ("2024", 2024)), THE_NUMBER_2024))),
        ("zip=02134", Equal("metadata.zip", "02134")),
        ("draft=true", In("metadata.draft", ("true", "True", "TRUE", True))),
        ("draft=False", In("metadata.draft", ("False", "false", "FALSE", False))),
        ("draft='true'", Equal("metadata.draft", "true")),
        ("year='2024'", Equal(YEAR, "2024")),
        ("year >= 2024", Or((Range(YEAR, at_least=2024), Range(YEAR_WRITTEN, at_least=2024)))),
        ('year >= "2024"', Range(YEAR, at_least="2024")),
        ("year < 2024", Or((Range(YEAR, below=2024), Range(YEAR_WRITTEN, below=2024)))),
        ("year <= 2024", Or(tuple(Or((Range(each, below=2024), Equal(each, 2024))) for each in (YEAR, YEAR_WRITTEN)))),
        (
            "year > 2024",
            Or(tuple(And((Range(each, at_least=2024), Not(Equal(each, 2024)))) for each in (YEAR, YEAR_WRITTEN))),
        ),
        ("language != en", Not(Equal(LANGUAGE, "en"))),
        ("language in (en, 'zh')", In(LANGUAGE, ("en", "zh"))),
        ("year in (2024, x)", Or((In(YEAR, ("2024", 2024, "x")), THE_NUMBER_2024))),
        ("language in (en)", In(LANGUAGE, ("en",))),
        ("page in (1,2)", In("page", (1, 2))),
        ("page in ()", In("page", ())),
        ("language NOT IN (en)", Not(In(LANGUAGE, ("en",)))),
        ("source_id prefix /books/", Prefix("source_id", "/books/")),
        ("year prefix 20", Prefix(YEAR, "20")),
        ("title exists", Exists("metadata.title")),
        ("a=a or b=b and not c=c", Or((A, And((B, Not(C)))))),
        ("(a=a OR b=b) AND c=c", And((Or((A, B)), C))),
        ("not (a=a and b=b)", Not(And((A, B)))),
        ("not not a=a", Not(Not(A))),
        ("a=a and b=b and c=c", And((A, B, C))),
        ('"year built" = "a\\n\\u00e9"', Equal("metadata.year built", "a\né")),
        ("'it\\'s \"x\"' = 'it\\'s'", Equal('metadata.it\'s "x"', "it's")),
        ("not = x", Equal("metadata.not", "x")),
        ("in in (in)", In("metadata.in", ("in",))),
        ("vector=x", Equal("metadata.vector", "x")),
        ("width=1e999", Equal("metadata.width", "1e999")),
        ("width=NaN", Equal("metadata.width", "NaN")),
    ],
)
def test_expressions(text: str, where: Filter) -> None:
    assert parse_filter(text) == where


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("title=a b c", "title", "a b c"),
        ("title=", "title", ""),
        ("title=war and peace", "title", "war and peace"),
        ("title=rock or not", "title", "rock or not"),
        ("title=a, b (c)", "title", "a, b (c)"),
        ("title=smile :)", "title", "smile :)"),
        ("title=it's", "title", "it's"),
        ("title=x 'y", "title", "x 'y"),
        ("url=http://host/?a=b&c=d", "url", "http://host/?a=b&c=d"),
        ("year built=in the past", "year built", "in the past"),
        ("research and development=yes", "research and development", "yes"),
        ("language=en adn=x", "language", "en adn=x"),
    ],
)
def test_the_value_of_a_single_comparison_runs_to_the_end(text: str, field: str, value: str) -> None:
    assert parse_filter(text) == Equal(f"metadata.{field}", value)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("2026-11-22", datetime(2026, 11, 22, tzinfo=UTC)),
        ("2026-11-22T10:30", datetime(2026, 11, 22, 10, 30, tzinfo=UTC)),
        ("2026-11-22T10:30+02:00", datetime(2026, 11, 22, 8, 30, tzinfo=UTC)),
    ],
)
def test_a_time_without_a_zone_is_in_utc(text: str, time: datetime) -> None:
    assert parse_filter(f"occurred_at={text}") == Equal("occurred_at", time)
    assert parse_filter(f"occurred_at >= '{text}'") == Range("occurred_at", at_least=time)
    assert filter_of_json({"field": "occurred_at", "equals": text}) == Equal("occurred_at", time)


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("", "character 1", "expected the name of a field, found the end"),
        ("language", "character 9", "FIELD=VALUE"),
        ("(a=a and", "character 9", "expected the name of a field, found the end"),
        ("(a=a and b", "character 11", "expected =, !=, <"),
        ("a=a and b=", "character 11", "expected a value, found the end"),
        ("a=a b and c=c", "character 5", "expected and, or or the end, found 'b'; a value with blanks"),
        ("(a=a", "character 5", "expected and, or or ), found the end"),
        ("a in (x y)", "character 9", "expected a comma or ), found 'y'"),
        ("a in x", "character 6", "expected ( and a list of values"),
        ("a not b", "character 7", "expected in, found 'b'"),
        ("a = 'x", "character 5", "the quote is not closed"),
        ('a = "\\x"', "character 5", "a backslash escapes as in JSON"),
        ("page=three", "character 6", "'three' is no value of 'page', which is a whole number"),
        ("page >= 2.5", "character 9", "'2.5' is no value of 'page'"),
        ("page = 99999999999999999999", "character 8", "is no value of 'page'"),
        ("page prefix 1", "character 13", "`prefix` is for texts"),
        ("occurred_at<tomorrow", "character 13", "which is a time, such as 2026-11-22T10:30"),
        ("occurred_at=0001-01-01T00:00+02:00", "character 13", "is no value of 'occurred_at'"),
        ('""=x', "character 1", "expected the name of a field"),
        ("=x", "character 1", "expected the name of a field"),
        ("x < y=z", "character 6", "expected and, or or the end, found '='"),
        ("note=see (a) and b=c", "character 10", "found '('; a value with blanks stands in quotes"),
    ],
)
def test_a_bad_filter_is_said_to_be_so_and_where(text: str, place: str, said: str) -> None:
    with pytest.raises(InvalidFilterError) as caught:
        parse_filter(text)
    assert (caught.value.place, said in caught.value.problem) == (place, True), caught.value


@pytest.mark.parametrize(
    ("value", "place", "said"),
    [
        (None, "", "expected an object, found None"),
        ([], "", "expected an object, found a list"),
        ({}, "", "found an empty object"),
        ({"field": "a"}, "", "expected and, or, not; or field with equals"),
        ({"field": "a", "equals": 1, "in": []}, "", "expected and, or, not"),
        ({"field": "a", "like": "x"}, "", "found 'field' with 'like'"),
        ({"and": [], "or": []}, "", "expected and, or, not"),
        ({"and": {}}, "and", "expected a list, found a dict"),
        ({"or": [{"not": {"and": [1]}}]}, "or[0].not.and[0]", "expected an object, found 1"),
        ({"field": 1, "equals": 1}, "field", "expected the name of a field"),
        ({"field": "", "exists": True}, "field", "expected the name of a field"),
        ({"field": "a", "exists": 1}, "exists", "expected true or false"),
        ({"field": "a", "equals": None}, "equals", "None is no value of 'metadata.a'"),
        ({"field": "a", "equals": [1]}, "equals", "a list is no value"),
        ({"field": "page", "equals": "3"}, "equals", "'3' is no value of 'page', which is a whole number"),
        ({"field": "page", "equals": True}, "equals", "True is no value of 'page'"),
        ({"field": "page", "equals": 2.5}, "equals", "2.5 is no value of 'page'"),
        ({"field": "page", "range": {"gte": 10**400}}, "range.gte", "is no value of 'page'"),
        ({"field": "source_id", "in": ["x", 1]}, "in[1]", "1 is no value of 'source_id', which is a text"),
        ({"field": "a", "equals": float("nan")}, "equals", "nan is no value"),
        ({"field": "a", "prefix": 1}, "prefix", "expected a text"),
        ({"field": "page", "prefix": "1"}, "prefix", "`prefix` is for texts"),
        ({"field": "a", "range": {}}, "range", "expected gt or gte"),
        ({"field": "a", "range": {"gt": 1, "gte": 1}}, "range", "expected gt or gte"),
        ({"field": "a", "range": {"from": 1}}, "range", "expected gt or gte"),
        ({"field": "a", "range": {"gt": 1, "lt": "2"}}, "range", "different types"),
        ({"field": "occurred_at", "equals": 5}, "equals", "5 is no value of 'occurred_at'"),
    ],
)
def test_bad_json_is_said_to_be_so_and_where(value: object, place: str, said: str) -> None:
    with pytest.raises(InvalidFilterError) as caught:
        filter_of_json(value)
    assert (caught.value.place, said in caught.value.problem) == (place, True), caught.value


def test_ranges_in_json_have_either_kind_of_bound_and_keep_its_type() -> None:
    assert filter_of_json({"field": "year", "range": {"gt": 1, "lte": 2.5}}) == And(
        (And((Range(YEAR, at_least=1), Not(Equal(YEAR, 1)))), Or((Range(YEAR, below=2.5), Equal(YEAR, 2.5))))
    )
    assert filter_of_json({"field": "a", "exists": False}) == Not(Exists("metadata.a"))


PRICES: Mapping[str, object] = {
    "a": "9.50", "b": "10", "c": "12.00", "d": "100", "e": 11,
    "f": "free", "g": "0012", "h": "+12", "i": True, "j": ".5",
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("price >= 10", "bcdeg"),
        ("price > 10 and price < 100", "ceg"),
        ("price <= 10", "abj"),
        ("price = 12", "c"),
        ("price = 12.000", "c"),
        ("price = 0012", "g"),
        ("price = .50", "j"),
        ("price < .6", "j"),
        ("price in (10, 0.5, free)", "bfj"),
        ("price != 10", "acdefghij"),
        ("price not in (10, 12)", "adefghij"),
        ("price = TRUE", "i"),
        ("price >= 'f'", "f"),
        ("not price >= 0", "fhi"),
    ],
)
def test_texts_that_are_numbers_compare_as_numbers(text: str, found: str) -> None:
    where = parse_filter(text)
    check_filter(where)
    rows = {name: {"metadata": json.dumps({"price": price})} for name, price in PRICES.items()}
    assert "".join(name for name, each in rows.items() if matches(where, each)) == found


@pytest.mark.parametrize("written", ["True", "true", "TRUE"])
@pytest.mark.parametrize("asked", ["True", "true", "TRUE"])
def test_booleans_compare_however_they_are_written(asked: str, written: str) -> None:
    for value, matching in ((written, True), (True, True), ("false", False), (False, False), (None, False), (1, False)):
        assert matches(parse_filter(f"checked={asked}"), {"metadata": json.dumps({"checked": value})}) is matching


pieces = st.sampled_from(
    ("and", "or", "not", "in", "prefix", "exists", "=", "!=", "<=", ">", "(", ")", ",", "'", '"', "\\", "a", "page",
     "occurred_at", "2024", "2026-11-22", " ", " ", "\n", "é", "!", "[[", "\ud800")
) | st.text(max_size=5)  # fmt: skip


def outcome(read: Callable[[Any], Filter], given: Any) -> Filter | str:
    """The filter, or what is said of a bad one."""
    try:
        return read(given)
    except InvalidFilterError as error:
        return str(error)


def check(found: Filter | str) -> None:
    if isinstance(found, str):
        assert found.isprintable()
    else:
        check_filter(found)
        to_sql(found)


@hypothesis_settings(max_examples=600)
@given(text=st.lists(pieces, max_size=24).map("".join))
def test_any_text_is_a_filter_that_stores_take_or_the_named_error(text: str) -> None:
    check(outcome(parse_filter, text))


_words = st.sampled_from(
    ("and", "or", "not", "field", "equals", "in", "range", "prefix", "exists", "gte", "lt", "page")
)
_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _words | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=12,
)


@hypothesis_settings(max_examples=600)
@given(value=_anything)
@pytest.mark.slow
def test_any_json_is_a_filter_that_stores_take_or_the_named_error(value: Any) -> None:
    check(outcome(filter_of_json, value))


def nested_text(parentheses: int) -> str:
    """Where each pair holds an `and` within an `or`."""
    text = "year <= 1"
    for _ in range(parentheses):
        text = f"a=a or b=b and ({text})"
    return text


def nested_json(levels: int) -> Mapping[str, Any]:
    value: dict[str, Any] = {"field": "year", "range": {"gt": 1, "lte": 2}}
    for level in range(levels):
        value = {"or" if level % 2 else "and": [{"field": "a", "exists": level % 3 == 0}, value]}
    return value


def test_a_filter_is_bounded() -> None:
    deepest = MAX_LEVELS // 2 - 1
    parse_filter(nested_text(deepest))
    with pytest.raises(InvalidFilterError, match="nested too deeply"):
        parse_filter(nested_text(deepest + 1))
    filter_of_json(nested_json(MAX_LEVELS))
    with pytest.raises(InvalidFilterError, match="nested too deeply"):
        filter_of_json(nested_json(MAX_LEVELS + 1))
    for many in ("(" * 10_000, "not " * 10_000 + "a=a"):
        with pytest.raises(InvalidFilterError, match="nested too deeply"):
            parse_filter(many)
    parse_filter(" or ".join(["a=a"] * MAX_COMPARISONS))
    with pytest.raises(InvalidFilterError, match="100 comparisons at most"):
        parse_filter(" or ".join(["a=a"] * (MAX_COMPARISONS + 1)))
    with pytest.raises(InvalidFilterError, match="100 comparisons at most"):
        filter_of_json({"or": [{"field": "a", "exists": True}] * (MAX_COMPARISONS + 1)})
    listed = ", ".join(map(str, range(MAX_VALUES)))
    parse_filter(f"year in ({listed})")
    with pytest.raises(InvalidFilterError, match="1,000 values at most"):
        parse_filter(f"year in ({listed}, x)")
    with pytest.raises(InvalidFilterError, match="1,000 values at most"):
        filter_of_json({"field": "year", "in": list(range(MAX_VALUES + 1))})
    with pytest.raises(InvalidFilterError, match="65,536 are allowed"):
        parse_filter("a" * (MAX_CHARACTERS + 1))


def test_what_is_refused_is_not_repeated_at_length() -> None:
    for bad in (f"page={'9' * 5000}", f"{'x' * 5000}", f"a=a {'y' * 5000} and b=b"):
        with pytest.raises(InvalidFilterError) as caught:
            parse_filter(bad)
        assert len(str(caught.value)) < 300
    with pytest.raises(InvalidFilterError) as caught:
        filter_of_json({f"{'z' * 500}{number}": 1 for number in range(1000)})
    assert len(str(caught.value)) < 600


def test_the_largest_filters_are_answered(tmp_path: Path) -> None:
    store = LanceDBStore.open(StoreSettings(), tmp_path)
    rows = [row(item_index=year, metadata={"year": year, "a": "a"}) for year in range(4)]
    store.ensure_collection(COLLECTION, spec())
    store.upsert(COLLECTION, table(rows))
    halves = range(MAX_COMPARISONS // 2)
    largest = [
        parse_filter(" or ".join(f"year > {bound} and year <= {bound + 1}" for bound in halves)),
        parse_filter(f"year in ({', '.join(map(str, range(2, MAX_VALUES + 2)))})"),
        And((Exists("id"), parse_filter(nested_text(MAX_LEVELS // 2 - 1)))),
        *(filter_of_json(nested_json(MAX_LEVELS - less)) for less in range(4)),
    ]
    counts = [sum(matches(where, each) for each in rows) for where in largest]
    assert [store.count(COLLECTION, where) for where in largest] == counts
    assert counts[:3] == [3, 2, 4]
    assert sum(counts[3:])
    store.close()
