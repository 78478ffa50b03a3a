"""Rows that a store has of files, held against what the manifest says."""

from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.pipeline.checks.rows import compare_rows, sources_of_days
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.findings import MOST_SUBJECTS
from vectorize_pipelines.state.manifest import ManifestEntry
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.conformance.records import COLLECTION, row, spec, table

ROWS = st.dictionaries(st.text(max_size=3), st.integers(1, 5))


class Holding:
    """A store that has so many rows of each source, in several batches."""

    def __init__(self, rows: dict[str, int]):
        self._sources = [name for turn in range(5) for name, number in rows.items() if turn < number]

    def scan(self, *_: Any) -> Iterator[pa.RecordBatch]:
        for start in range(0, len(self._sources), 4):
            yield pa.record_batch([pa.array(self._sources[start : start + 4], pa.string())], ["source_id"])


def entry(source_id: str, rows: int, day: date = date(2024, 3, 1)) -> ManifestEntry:
    at = datetime(day.year, day.month, day.day, 23, 59, tzinfo=UTC)
    return ManifestEntry(source_id, 1, round(at.timestamp()) * 10**9 + 999, "", "", "", rows=rows)


@given(stored=ROWS, expected=ROWS, sources=st.one_of(st.none(), st.lists(st.text(max_size=3))))
def test_sources_differ_that_are_expected_and_stored_otherwise(
    stored: dict[str, int], expected: dict[str, int], sources: list[str] | None
) -> None:
    store = cast("VectorStore", Holding(stored))
    entries = [entry(name, rows) for name, rows in expected.items()]
    report = compare_rows(store, "any", entries, None if sources is None else iter(sources))
    looked_at = {name: rows for name, rows in expected.items() if sources is None or name in sources}
    assert (report.sources, report.expected) == (len(looked_at), sum(looked_at.values()))
    assert report.stored == sum(stored.get(name, 0) for name in looked_at)
    differing = {name: (stored.get(name, 0), rows) for name, rows in looked_at.items() if stored.get(name, 0) != rows}
    assert (report.examples, report.differing) == (differing, len(differing))


def test_of_many_that_differ_only_some_are_held() -> None:
    entries = (entry(f"{n}.md", 1) for n in range(2 * MOST_SUBJECTS))
    report = compare_rows(cast("VectorStore", Holding({})), "any", entries, None)
    assert (report.differing, len(report.examples)) == (2 * MOST_SUBJECTS, MOST_SUBJECTS + 1)


def test_a_file_without_rows_is_not_looked_at() -> None:
    report = compare_rows(cast("VectorStore", Holding({"a.md": 1})), "any", [entry("a.md", 0)], None)
    assert (report.sources, report.differing) == (0, 0)


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        ((date(2024, 3, 1), date(2024, 3, 2)), {"moved.txt", "lost.txt"}),
        ((date(2024, 1, 1), date(2024, 1, 1)), {"ancient.txt"}),
    ],
)
def test_sources_of_days_are_those_of_the_store_and_those_of_the_manifest(
    settings: Settings, window: tuple[date, date], expected: set[str]
) -> None:
    stored = {"moved.txt": "2024-03-01", "before.txt": "2024-02-29", "after.txt": "2024-03-03"}
    store = open_store(settings.store, settings.home)
    store.ensure_collection(COLLECTION, spec())
    store.upsert(COLLECTION, table([row(name, partition=day) for name, day in stored.items()]))
    days = {"moved.txt": date(2024, 5, 5), "lost.txt": date(2024, 3, 2), "ancient.txt": date(1999, 1, 1)}
    entries = [entry(name, 1, day) for name, day in {**days, "before.txt": date(2024, 2, 29)}.items()]
    known = Days(date(2024, 1, 1), date(2024, 12, 31))
    assert set(sources_of_days(store, COLLECTION, entries, known, window)) == expected
