"""Compaction and indexes of a LanceDB table: when they are due, and how they are made.

Called by `LanceDBStore.maintain`, which holds the table's lock.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.lancedb_connection import connect

#: Column -> kind of index, a class of `lancedb.index`.
SCALAR_INDEXES: Mapping[str, str] = {"id": "BTree", "source_id": "BTree", "partition": "Bitmap"}
#: A vector index's name goes on with the rows that it was trained on: its partitions suit a table of that size.
VECTOR_INDEX = "vector_of_"

#: Compaction rewrites files of fewer rows, for which writers wait; every call looks at each file that there is.
_FRAGMENT_ROWS = 2**14
_FRAGMENTS = 64

_DONE = "done\n"
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
    if work.compact:
        table.optimize(cleanup_older_than=timedelta(seconds=work.keep_seconds))
    _index(table, work)


def _carry_out_large(table: Any, work: Work) -> None:
    """Does what is due to a large table.

    LanceDB's own `optimize` fills each file with a million rows, so a table of fewer is rewritten whole every time,
    while its writers wait. pylance takes the size of files as an argument.
    """
    if work.compact:
        dataset = table.to_lance()
        rows = max(_FRAGMENT_ROWS, dataset.count_rows() // _FRAGMENTS)
        dataset.optimize.compact_files(target_rows_per_fragment=rows)
        dataset.optimize.optimize_indices()
        dataset.cleanup_old_versions(timedelta(seconds=work.keep_seconds), error_if_tagged_old_versions=False)
        table.checkout_latest()
    _index(table, work)


def _index(table: Any, work: Work) -> None:
    from lancedb import index

    for column in work.scalar_indexes:
        table.create_index(column, config=getattr(index, SCALAR_INDEXES[column])(), name=f"{column}_idx")
    if work.vector_index is not None:
        table.create_index("vector", config=index.IvfSq(distance_type="cosine"), name=work.vector_index)
    for outgrown in work.outgrown:
        table.drop_index(outgrown)


class Apart:
    """Does what is due in processes of their own, each used once. Used by the threads of one process.

    LanceDB does not give back all the memory that compaction takes: a run of 100,000 passages grew to twice its size.
    """

    def __init__(self, location: str) -> None:
        self._location = location
        self._lock = threading.Lock()
        self._prepared: _Process | None = None
        self._ending: list[_Process] = []

    def prepare(self) -> None:
        """Starts the next process, so that writers need not wait until it is ready, which takes a second or two."""
        with self._lock:
            self._ending = [process for process in self._ending if process.is_alive()]
            if self._prepared is None or not self._prepared.is_alive():
                self._prepared = _Process(self._location)

    def carry_out(self, physical: str, work: Work) -> None:
        """Raises `StoreError` with what the process said; the table is then as it was or as it was to be."""
        self.prepare()
        with self._lock:
            process, self._prepared = self._prepared, None
        process = process or _Process(self._location)
        try:
            process.carry_out(physical, work)
        except BaseException:
            process.kill()
            raise
        with self._lock:
            self._ending.append(process)

    def close(self) -> None:
        """Ends the process that waits, if one does."""
        with self._lock:
            for process in [*self._ending, *([] if self._prepared is None else [self._prepared])]:
                process.kill()
            self._prepared, self._ending = None, []


class _Process:
    """Connects to a location, waits for one task, does it, says so, and ends."""

    def __init__(self, location: str) -> None:
        pipe = subprocess.PIPE
        # A file, since nobody reads a pipe while the process works, and a full one would stop it.
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        # A group of its own: a terminal's Ctrl-C is for the run, which ends what it has begun.
        self._popen = subprocess.Popen(
            [sys.executable, "-P", "-c", _COMMAND],
            stdin=pipe,
            stdout=pipe,
            stderr=self._said,
            text=True,
            process_group=0,
        )
        # Not by arguments, which everyone on the machine can see: a location may hold credentials.
        self._say(location)

    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def carry_out(self, physical: str, work: Work) -> None:
        """Raises `StoreError`."""
        self._say({"physical": physical, "work": asdict(work)})
        assert self._popen.stdout is not None, "it is a pipe"
        if all(line != _DONE for line in iter(self._popen.stdout.readline, "")):
            self._popen.wait()
            self._said.seek(0)
            said = self._said.read().decode("utf-8", "replace").strip().splitlines()
            raise StoreError(
                f"maintaining {physical!r} failed: {(said or [f'exit status {self._popen.returncode}'])[-1]}"
            )

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate()
        self._said.close()

    def _say(self, what: object) -> None:
        assert self._popen.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):  # it has died: what it does not answer tells
            self._popen.stdin.write(json.dumps(what) + "\n")
            self._popen.stdin.flush()


def _end_with_parent() -> None:
    """Standard input ends when whoever holds its other end does."""
    # Not through `sys.stdin`, whose lock this thread would still hold when the process ends as it should.
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


def main() -> None:
    """What that process runs; without a task, because whoever started it has gone, nothing."""
    import lance  # noqa: F401 (takes most of a second, for which nobody waits yet)

    database = connect(json.loads(sys.stdin.readline()))
    given = sys.stdin.readline()
    if given:
        # The table's lock goes with its holder, and without it nothing may go on. Whenever it ends, no commit is half.
        threading.Thread(target=_end_with_parent, daemon=True).start()
        task = json.loads(given)
        _carry_out_large(database.open_table(task["physical"]), Work(**task["work"]))
        print(_DONE, end="", flush=True)
