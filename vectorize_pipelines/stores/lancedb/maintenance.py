"""Compaction and indexes of a LanceDB table: when they are due, and how they are made.

Called by `LanceDBStore.maintain`, which holds the table's lock, and for large tables by `maintenance_process`.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

#: Column -> kind of index, a class of `lancedb.index`.
SCALAR_INDEXES: Mapping[str, str] = {"id": "BTree", "source_id": "BTree", "partition": "Bitmap"}
#: A vector index's name goes on with the rows that it was trained on: its partitions suit a table of that size.
VECTOR_INDEX = "vector_of_"

#: Compaction rewrites files of fewer rows, for which writers wait; every call looks at each file that there is.
_FRAGMENT_ROWS = 2**14
_FRAGMENTS = 64

#: How long old versions are kept, for those who read them.
RETENTION = timedelta(hours=1)
#: The process that maintains a large table is started when the table is so near to needing it.
_SOON = 0.4

#: Before the first version of any table.
_NEVER = timedelta(days=36_500)


@dataclass(frozen=True, slots=True)
class Maintenance:
    """The limits from which `maintain` does what it does.

    Every call pays for each small fragment (0.1 ms), compaction for every row that it rewrites; hence a
    threshold that grows with the table, and work that stays a small part of what the writes themselves cost.

    fragments, rows_per_fragment  compact from `fragments + rows / rows_per_fragment` fragments on
    unindexed_rows                bring indexes up to date from so many rows on that they lack
    scalar_index_rows             index id, source and partition from so many rows on
    vector_index_rows             index the vectors from so many rows on; below, every search is exact
    retrain_growth                train the vector index again when the table has grown by this factor
    apart_rows                    do any of this in a process of its own from so many rows on
    """

    fragments: int = 64
    rows_per_fragment: int = 5_000
    unindexed_rows: int = 50_000
    scalar_index_rows: int = 200_000
    vector_index_rows: int = 200_000
    retrain_growth: int = 4
    apart_rows: int = 10_000


@dataclass(frozen=True, slots=True)
class MaintenanceWork:
    """Maintenance that is due.

    compact         merge small fragments, bring indexes up to date, remove old versions
    keep_seconds    versions younger than that are kept
    scalar_indexes  columns of `SCALAR_INDEXES` to index
    vector_index    name of the vector index to train, None where none is due
    outgrown        vector indexes that it replaces
    """

    compact: bool
    keep_seconds: float
    scalar_indexes: Sequence[str]
    vector_index: str | None
    outgrown: Sequence[str]

    @property
    def anything(self) -> bool:
        """True where there is something to do."""
        return bool(self.compact or self.scalar_indexes or self.vector_index)


class MaintenanceSchedule:
    """The schedule of what is due to the tables of a store, by its limits."""

    def __init__(self, limits: Maintenance) -> None:
        self._limits = limits
        self._versions_listed: dict[str, float] = {}

    def is_apart(self, rows: int) -> bool:
        """Return whether a table of so many rows is maintained in a process of its own."""
        return rows >= self._limits.apart_rows

    def is_soon(self, table: Any, stats: Mapping[str, Any], indexes: Mapping[str, Any]) -> bool:
        """Return whether a table is so near to its maintenance in a process of its own that this is to be started."""
        return self.is_apart(stats["num_rows"]) and self._compaction_is_due(table, stats, indexes, _SOON)

    def due(self, table: Any, stats: Mapping[str, Any], indexes: Mapping[str, Any]) -> MaintenanceWork:
        """Return what is due to a table with these statistics and indexes (by their names)."""
        limits, rows = self._limits, stats["num_rows"]
        columns = SCALAR_INDEXES if rows >= limits.scalar_index_rows else {}
        trained = {name: int(name.removeprefix(VECTOR_INDEX)) for name in indexes if name.startswith(VECTOR_INDEX)}
        enough = max((of * limits.retrain_growth for of in trained.values()), default=0)
        train = rows >= max(limits.vector_index_rows, enough)
        return MaintenanceWork(
            compact=self._compaction_is_due(table, stats, indexes),
            keep_seconds=RETENTION.total_seconds(),
            scalar_indexes=tuple(column for column in columns if f"{column}_idx" not in indexes),
            vector_index=f"{VECTOR_INDEX}{rows}" if train else None,
            outgrown=tuple(trained) if train else (),
        )

    def _compaction_is_due(
        self, table: Any, stats: Mapping[str, Any], indexes: Mapping[str, Any], share: float = 1.0
    ) -> bool:
        """Return whether it is; with a smaller `share`, whether the table has come so near to its limits."""
        limits = self._limits
        unindexed = max((index.num_unindexed_rows or 0 for index in indexes.values()), default=0)
        fragments = stats["fragment_stats"]["num_fragments"]
        return bool(
            fragments >= share * (limits.fragments + stats["num_rows"] // limits.rows_per_fragment)
            or unindexed >= share * limits.unindexed_rows
            or self._keeps_outlived_versions(table)
        )

    def _keeps_outlived_versions(self, table: Any) -> bool:
        """Return whether old versions are kept, which only compaction removes. Listing takes 0.1 ms each, so seldom."""
        if time.monotonic() - self._versions_listed.get(table.name, -math.inf) < RETENTION.total_seconds():
            return False
        self._versions_listed[table.name] = time.monotonic()
        versions = table.list_versions()
        # LanceDB returns the local time without its zone.
        outlived = versions[0]["timestamp"].astimezone() < datetime.now(UTC) - 2 * RETENTION
        return bool(len(versions) > 1 and outlived)


def carry_out(table: Any, work: MaintenanceWork, flush: Callable[[], None]) -> None:
    """Do what is due, in this process.

    `flush` makes it durable, which has to come before old versions go: with them go the files that were on the disk.
    """
    if work.compact:
        table.optimize(cleanup_older_than=_NEVER)
    _index(table, work)
    _clean_up(table, work, flush)


def _clean_up(table: Any, work: MaintenanceWork, flush: Callable[[], None]) -> None:
    flush()
    if work.compact:
        # Not by LanceDB's `optimize`, which commits another version first.
        keep = timedelta(seconds=work.keep_seconds)
        table.to_lance().cleanup_old_versions(keep, error_if_tagged_old_versions=False)


def carry_out_large(table: Any, work: MaintenanceWork, flush: Callable[[], None]) -> None:
    """Do what is due to a large table; see `carry_out`.

    LanceDB's own `optimize` fills each file with a million rows, so a table of fewer is rewritten whole every time,
    while its writers wait. pylance takes the size of files as an argument.
    """
    if work.compact:
        dataset = table.to_lance()
        rows = max(_FRAGMENT_ROWS, dataset.count_rows() // _FRAGMENTS)
        dataset.optimize.compact_files(target_rows_per_fragment=rows)
        dataset.optimize.optimize_indices()
        table.checkout_latest()
    _index(table, work)
    _clean_up(table, work, flush)


def _index(table: Any, work: MaintenanceWork) -> None:
    from lancedb import index

    for column in work.scalar_indexes:
        table.create_index(column, config=getattr(index, SCALAR_INDEXES[column])(), name=f"{column}_idx")
    if work.vector_index is not None:
        table.create_index("vector", config=index.IvfSq(distance_type="cosine"), name=work.vector_index)
    for outgrown in work.outgrown:
        table.drop_index(outgrown)
