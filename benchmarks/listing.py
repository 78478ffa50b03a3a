"""Compare a bucket of millions of objects with its manifest, and that with a store: how long, and how much memory.

    python -m benchmarks.listing --files 5000000 --shards 8

Bucket and store are simulated: names are made as they are listed, and no object is read. Each shard's files are noted
in the manifest; the first pass finds all unchanged, the second one a bucket that has lost a tenth of its folders, and
the third is a run's check of rows, in a store that lacks as many. The peak is that of a process of its own, and has to
stay within `BOUND_MIB` of what it had before.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa

from tests.sources.simulated_bucket import PROTOCOL, SimulatedBucket, register
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.pipeline.checks.rows import RowsReport, compare_rows
from vectorize_pipelines.pipeline.files.comparison import FolderComparison, compare, known_entries
from vectorize_pipelines.pipeline.files.reader import FileReader
from vectorize_pipelines.sources.files import FileSource, SourceFile
from vectorize_pipelines.state.manifest import ManifestEntry
from vectorize_pipelines.state.manifest.sqlite import SQLiteManifest
from vectorize_pipelines.stores.base import VectorStore

FILES_IN_FOLDER = 1000
BOUND_MIB = 64
NOTED_TOGETHER = 1000
ROWS_TOGETHER = 8192
READER = cast(
    FileReader, SimpleNamespace(fingerprint="model", equivalent_fingerprints=frozenset[str](), limits="limits")
)


def main() -> int:
    """Print a line for each pass; return 1 where the memory is not bounded."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--files", type=int, default=5_000_000)
    arguments.add_argument("--shards", type=int, default=8)
    arguments.add_argument("--only", type=int, help="measure one shard")
    given = arguments.parse_args()
    folders = max(1, given.files // FILES_IN_FOLDER)
    shards = Shard.layout(given.shards)
    most = 0.0
    with tempfile.TemporaryDirectory() as place:
        for shard in shards if given.only is None else shards[given.only : given.only + 1]:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                most = max(most, pool.apply(measure, (Path(place) / "manifest.sqlite", folders, str(shard))))
    print(f"most memory beyond the start: {most:.0f} MiB, at most {BOUND_MIB} MiB")
    return int(most > BOUND_MIB)


def measure(file: Path, folders: int, shard_text: str) -> float:
    """Carry out the passes of one shard; return the peak of the memory beyond what there was before, in MiB."""
    register()
    pa.array([""])  # Arrow takes 48 MiB at first, however little it holds
    shard, before = Shard.parse(shard_text), _peak_mib()
    note_all(file, folders, FILES_IN_FOLDER, shard)
    for what, standing in (("unchanged", folders), ("a tenth gone", folders - folders // 10)):
        started = time.perf_counter()
        found = compared(file, folders, standing, FILES_IN_FOLDER, shard)
        seconds = time.perf_counter() - started
        rate = folders * FILES_IN_FOLDER / seconds
        print(
            f"{shard} {what}: {found.unchanged:,} unchanged, {found.changed:,} changed, {found.vanished:,} gone, "
            f"{seconds:.1f} s ({rate:,.0f} listed/s), {_peak_mib() - before:.0f} MiB more",
            flush=True,
        )
    started = time.perf_counter()
    rows = compared_rows(file, folders, folders - folders // 10, shard)
    print(
        f"{shard} rows: {rows.sources:,} files looked at, {rows.differing:,} without rows, "
        f"{time.perf_counter() - started:.1f} s, {_peak_mib() - before:.0f} MiB more",
        flush=True,
    )
    return _peak_mib() - before


def note_all(file: Path, folders: int, files_in_folder: int, shard: Shard) -> None:
    """Note every file of a shard in a manifest, as a run does that has embedded them."""
    source = bucket(folders, files_in_folder)
    with closing(SQLiteManifest.open(file)) as manifest:
        owned = (each for each in source.ordered() if shard.owns_source(each.source_id))
        while some := [_entry(each) for each in islice(owned, NOTED_TOGETHER)]:
            manifest.record(some)


def compared(file: Path, folders: int, standing: int, files_in_folder: int, shard: Shard) -> FolderComparison:
    """Compare a shard of the bucket, of which the first `standing` folders are still there, with a manifest."""
    source, comparison = bucket(folders, files_in_folder), FolderComparison()
    SimulatedBucket.standing = standing
    with closing(SQLiteManifest.open(file)) as manifest:
        for each in compare(source.ordered(), known_entries(manifest, source, READER), READER, shard):
            comparison.add(each)
    return comparison


class SimulatedRows:
    """A store with a row of each file that is there."""

    def __init__(self, source: FileSource):
        self._source = source

    def scan(self, *_: Any) -> Iterator[pa.RecordBatch]:
        names = (file.source_id for file in self._source.ordered())
        while some := list(islice(names, ROWS_TOGETHER)):
            yield pa.record_batch([pa.array(some)], ["source_id"])


def compared_rows(file: Path, folders: int, standing: int, shard: Shard) -> RowsReport:
    """Hold the manifest's entries of a shard against a store that has rows of the first `standing` folders."""
    source = bucket(folders, FILES_IN_FOLDER)
    SimulatedBucket.standing = standing
    store = cast(VectorStore, SimulatedRows(source))
    with closing(SQLiteManifest.open(file)) as manifest:
        owned = (entry for entry in manifest.entries() if shard.owns_source(entry.source_id))
        return compare_rows(store, "simulated", owned, None)


def bucket(folders: int, files_in_folder: int) -> FileSource:
    """Return the source of a simulated bucket, of which all folders are there."""
    SimulatedBucket.standing = None
    return FileSource(f"{PROTOCOL}://{folders}x{files_in_folder}", (".md",), (), ())


def _entry(file: SourceFile) -> ManifestEntry:
    values: dict[str, Any] = {"content_hash": "0" * 32, "fingerprint": READER.fingerprint, "rows": 1}
    return ManifestEntry(file.source_id, file.size, file.modified_ns, file.version, **values)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
