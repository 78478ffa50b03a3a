"""How many rows each source should have and has, in a temporary file: of more sources than memory holds.

Used by `files.store_counts`, which holds a manifest against the store before a run, and by `checks.rows`, which does so
after it. Both note what is expected before they count: what others write meanwhile is not missed then.
"""

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.filters.expressions import Filter

_SCHEMA = "create table counts (source_id text primary key, expected integer, stored integer not null) without rowid"
_NOTE = "insert or ignore into counts values (?, 0, 0)"
_EXPECT = "insert into counts values (?, ?, 0) on conflict (source_id) do update set expected = excluded.expected"
_EXPECT_OF_NOTED = "update counts set expected = ?2 where source_id = ?1"
_COUNT = "insert into counts values (?, 0, ?) on conflict (source_id) do update set stored = stored + excluded.stored"
_COUNT_NOTED = "update counts set stored = stored + ?2 where source_id = ?1"


class RowCounts:
    """Source id -> rows expected and stored. Used by one thread; the file goes when it is closed."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect("")
        self._connection.execute(_SCHEMA)

    def note(self, source_ids: Iterable[str]) -> None:
        """Note sources of which nothing is expected yet."""
        self._connection.executemany(_NOTE, ((name,) for name in source_ids))

    def expect(self, rows: Iterable[tuple[str, int | None]], *, noted_only: bool = False) -> None:
        """Expect so many rows of a source each, None: any number; `noted_only`: of those that have been noted."""
        self._connection.executemany(_EXPECT_OF_NOTED if noted_only else _EXPECT, rows)

    def count(
        self,
        store: VectorStore,
        collection: str,
        where: Filter | None,
        owns: Callable[[str], bool] = lambda _: True,
        *,
        noted_only: bool = False,
    ) -> None:
        """Count the matching rows of the sources that `owns` accepts; `noted_only`: of those that are here already.

        Raises `StoreError`.
        """
        statement = _COUNT_NOTED if noted_only else _COUNT
        for batch in store.scan(collection, ("source_id",), where):
            rows = Counter(batch.column("source_id").to_pylist())
            self._connection.executemany(statement, ((name, number) for name, number in rows.items() if owns(name)))

    def totals(self) -> tuple[int, int, int]:
        """Return the number of sources of which rows are expected, the sum of these, and how many they have."""
        query = "select count(*), coalesce(sum(expected), 0), coalesce(sum(stored), 0) from counts where expected > 0"
        sources, expected, stored = self._connection.execute(query).fetchone()
        return int(sources), int(expected), int(stored)

    def differing(self) -> Iterator[tuple[str, int, int]]:
        """Yield the sources that have other rows than expected, in order, with the rows stored and expected."""
        query = "select source_id, stored, expected from counts where stored != expected order by source_id"
        return iter(self._connection.execute(query))

    def close(self) -> None:
        """Remove the file."""
        self._connection.close()
