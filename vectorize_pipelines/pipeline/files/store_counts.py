"""The manifest held against the store: how many rows it has of each source.

Called by `folder` before a run compares its folder with the manifest. Which sources the store has is gathered in a
temporary file, so that neither side is held in memory.
"""

import logging
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.pipeline.files.context import FolderRun
from vectorize_pipelines.sources.files import FileSource
from vectorize_pipelines.state.manifest import UNKNOWN_ROWS, Manifest
from vectorize_pipelines.stores.filters.expressions import Equal, Filter, Or, Prefix

logger = logging.getLogger(__name__)

DOUBTED_TOGETHER = 1000


def check_whole(run: FolderRun, source: FileSource, manifest: Manifest) -> None:
    """Look whether the store has as many rows as the manifest says, and where it has not, at each source.

    Counting tells cheaply, and finds what a run that was killed left, and what others have deleted. Called while no
    other run is at work on the collection. Raises as `check_sources` does.
    """
    if run.store.is_doubtful(run.physical):
        _doubt_everything(run, source, manifest)
    elif run.store.count(run.physical, _below(source)) == manifest.rows_below(source.root):
        return
    check_sources(run, source, manifest, WHOLE)


def check_sources(run: FolderRun, source: FileSource, manifest: Manifest, shard: Shard) -> None:
    """Put into doubt every source of a shard of which the store has other rows than the manifest says.

    Raises `StoreError`, and `LockLostError` where the lock was lost meanwhile.
    """
    doubted: dict[str, int] = {}
    differing = 0
    with closing(_stored_rows(run, source, shard)) as stored:
        for source_id, expected, found in _differing(manifest, source, shard, stored):
            differing += expected is not None
            doubted[source_id] = found
            if len(doubted) >= DOUBTED_TOGETHER:
                run.lock.check()
                manifest.doubt(doubted)
                doubted = {}
    run.lock.check()
    manifest.doubt(doubted)
    if differing:
        logger.warning(
            "%d files have other rows in %s than the manifest says; they are read again", differing, run.collection
        )


def doubt_shard(run: FolderRun, source: FileSource, manifest: Manifest) -> None:
    """Have every file of a shard read and compared with its rows, as `_doubt_everything` does of all.

    Called while others are at work, which know nothing of it: the collection is trusted only by a run that is alone.
    """
    logger.warning(
        "%s has lost rows that were in it; every file of shard %s is read again and compared with what is there",
        run.physical,
        run.request.shard,
    )
    owned = (entry.source_id for entry in manifest.below(source.root) if run.request.shard.owns_source(entry.source_id))
    while some := list(islice(owned, DOUBTED_TOGETHER)):
        run.lock.check()
        manifest.doubt(dict.fromkeys(some, UNKNOWN_ROWS))


def _doubt_everything(run: FolderRun, source: FileSource, manifest: Manifest) -> None:
    """Have every file read and compared with its rows: the store lost some that it had, and may hold earlier ones."""
    logger.warning(
        "%s has lost rows that were in it; every file is read again and compared with what is there", run.physical
    )
    run.lock.check()
    manifest.doubt_everything()
    run.lock.check()
    run.store.trust(run.physical)


def _below(source: FileSource) -> Filter:
    return Or((Equal("source_id", source.root), Prefix("source_id", source.root.rstrip("/") + "/")))


def _stored_rows(run: FolderRun, source: FileSource, shard: Shard) -> sqlite3.Connection:
    """Return a table of the sources of a shard that the store has, in a file that goes when it is closed."""
    connection = sqlite3.connect("")
    connection.execute("create table stored (source_id text primary key, rows integer not null) without rowid")
    count = "insert into stored values (?, ?) on conflict (source_id) do update set rows = rows + excluded.rows"
    for batch in run.store.scan(run.physical, ("source_id",), _below(source)):
        rows = Counter(batch.column("source_id").to_pylist())
        connection.executemany(count, ((name, number) for name, number in rows.items() if shard.owns_source(name)))
    return connection


def _differing(
    manifest: Manifest, source: FileSource, shard: Shard, stored: sqlite3.Connection
) -> Iterator[tuple[str, int | None, int]]:
    """Yield sources with the rows that the manifest says, None where it says nothing, and those that the store has.

    What they agree on is left out. Changes what is in `stored`.
    """
    for entry in manifest.below(source.root):
        if not shard.owns_source(entry.source_id):
            continue
        row = stored.execute("delete from stored where source_id = ? returning rows", (entry.source_id,)).fetchone()
        found = row[0] if row is not None else 0
        if entry.rows != found:
            yield entry.source_id, None if entry.is_in_doubt else entry.rows, found
    for source_id, found in stored.execute("select source_id, rows from stored"):
        yield source_id, None, found
