"""Compaction and indexes of a LanceDB table: when they are due, and how they are made.

Called by `LanceDBStore.maintain`, which holds the table's lock.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.lancedb_connection import connect

#: Column -> kind of index, a class of `lancedb.index`.
SCALAR_INDEXES: Mapping[str, str] = {"id": "BTree", "source_id": "BTree", "partition": "Bitmap"}
#: A vector index's name goes on with the rows that it was trained on: its partitions suit a table of that size.
VECTOR_INDEX = "vector_of_"

_COMMAND = "from vectorize_pipelines.stores.lancedb_maintenance import main; main()"


@dataclass(frozen=True, slots=True)
class Maintenance:
    """When `maintain` does what.

    Every call pays for each small fragment (0.1 ms), compaction for every row that it rewrites; hence a
    threshold that grows with the table, and work that stays a small part of what the writes themselves cost.

    fragments, rows_per_fragment  compact from `fragments + rows / rows_per_fragment` fragments on
    unindexed_rows                bring indexes up to date from so many rows on that they lack
    scalar_index_rows             index id, source and partition from so many rows on
    vector_index_rows             index the vectors from so many rows on; below, every search is exact
    retrain_growth                train the vector index anew when the table has grown by this factor
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
class Work:
    """What is due.

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
        """Whether there is something to do."""
        return bool(self.compact or self.scalar_indexes or self.vector_index)


def carry_out(table: Any, work: Work) -> None:
    """Does what is due, in this process."""
    from lancedb import index

    if work.compact:
        table.optimize(cleanup_older_than=timedelta(seconds=work.keep_seconds))
    for column in work.scalar_indexes:
        table.create_index(column, config=getattr(index, SCALAR_INDEXES[column])(), name=f"{column}_idx")
    if work.vector_index is not None:
        table.create_index("vector", config=index.IvfSq(distance_type="cosine"), name=work.vector_index)
    for outgrown in work.outgrown:
        table.drop_index(outgrown)


def carry_out_apart(location: str, physical: str, work: Work) -> None:
    """Does what is due in a process of its own.

    LanceDB does not give back all the memory that compaction takes: a run of 100,000 passages grew to twice its size.
    Raises `StoreError` with what the process said; the table is then as it was or as it was to be.
    """
    # Not by arguments, which everyone on the machine can see: a location may hold credentials.
    task = json.dumps({"location": location, "physical": physical, "work": asdict(work)})
    command = [sys.executable, "-P", "-c", _COMMAND]
    done = subprocess.run(command, input=task, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise StoreError(f"maintaining {physical!r} failed: {said[-1] if said else f'exit status {done.returncode}'}")


def main() -> None:
    """What that process runs."""
    task = json.load(sys.stdin)
    carry_out(connect(task["location"]).open_table(task["physical"]), Work(**task["work"]))
