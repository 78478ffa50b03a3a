"""Whether a store has as many rows of each file as the manifest says. Neither is held in memory.

Called by the check `rows_match_manifest` of the assets from files; `rows_match_requests` reports as it does.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import date, timedelta

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.pipeline.row_counts import RowCounts
from vectorize_pipelines.sources.files import time_of
from vectorize_pipelines.state.findings import MOST_SUBJECTS
from vectorize_pipelines.state.manifest import ManifestEntry
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.filters.expressions import Filter, Range


@dataclass(frozen=True, slots=True)
class RowsReport:
    """The number of sources that were looked at, of their rows, and of the sources that have others than expected.

    examples  source id -> (rows stored, rows expected) of the latter, as far as they are remembered
              (`findings.MOST_SUBJECTS`, and one more)
    """

    sources: int
    expected: int
    stored: int
    differing: int
    examples: Mapping[str, tuple[int, int]]


def in_words(examples: Mapping[str, tuple[int, int]]) -> list[str]:
    """Describe the examples of a report, or of several together, in the order of their names."""
    return [f"{name}: {stored} instead of {expected}" for name, (stored, expected) in sorted(examples.items())]


def compare_rows(
    store: VectorStore, collection: str, entries: Iterable[ManifestEntry], sources: Iterable[str] | None
) -> RowsReport:
    """Compare what entries of the manifest say with the store, of these sources only; None: of all.

    Raises `StoreError`.
    """
    with closing(RowCounts()) as counts:
        counts.note(sources or ())
        expected = ((entry.source_id, entry.rows) for entry in entries if entry.rows)
        counts.expect(expected, noted_only=sources is not None)
        counts.count(store, collection, None, noted_only=True)
        differing = 0
        examples: dict[str, tuple[int, int]] = {}
        for source_id, stored, wanted in counts.differing():
            if not wanted:
                continue  # it was noted, and the manifest knows of no rows
            differing += 1
            if len(examples) <= MOST_SUBJECTS:
                examples[source_id] = stored, wanted
        return RowsReport(*counts.totals(), differing, examples)


def stored_sources(store: VectorStore, collection: str, where: Filter) -> Iterator[str]:
    """Yield the sources of matching rows, some of them more than once."""
    for batch in store.scan(collection, ("source_id",), where):
        yield from set(batch.column("source_id").to_pylist())


def sources_of_days(
    store: VectorStore, collection: str, entries: Iterable[ManifestEntry], days: Days, window: tuple[date, date]
) -> Iterator[str]:
    """Yield the sources that the store or the manifest has under a day of the window, first and last included."""
    first, last = (day.isoformat() for day in window)
    after = (window[1] + timedelta(days=1)).isoformat()
    yield from stored_sources(store, collection, Range("partition", first, after))
    yield from (entry.source_id for entry in entries if first <= days.of(time_of(entry.modified_ns)) <= last)
