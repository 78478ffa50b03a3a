"""The manifest held against the store: how many rows it has of each source.

Called by `folder` before a run compares its folder with the manifest. Neither side is held in memory.
"""

import logging
from collections.abc import Iterator
from contextlib import closing
from itertools import islice

from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.pipeline.files.context import FolderRun
from vectorize_pipelines.pipeline.row_counts import RowCounts
from vectorize_pipelines.sources.files import FileSource
from vectorize_pipelines.state.manifest import Manifest
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
    known = (entry for entry in manifest.below(source.root) if shard.owns_source(entry.source_id))
    with closing(RowCounts()) as counts:
        counts.expect((entry.source_id, None if entry.is_in_doubt else entry.rows) for entry in known)
        counts.count(run.store, run.physical, _below(source), shard.owns_source)
        doubted = _doubt(run, manifest, (source_id for source_id, *_ in counts.differing()))
    if doubted:
        logger.warning(
            "%d files have other rows in %s than the manifest says; they are read again", doubted, run.collection
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
    names = (entry.source_id for entry in manifest.below(source.root))
    _doubt(run, manifest, filter(run.request.shard.owns_source, names))


def _doubt_everything(run: FolderRun, source: FileSource, manifest: Manifest) -> None:
    """Have every file read and compared with its rows: the store lost some that it had, and may hold earlier ones."""
    logger.warning(
        "%s has lost rows that were in it; every file is read again and compared with what is there", run.physical
    )
    run.lock.check()
    manifest.doubt_everything()
    run.lock.check()
    run.store.trust(run.physical)


def _doubt(run: FolderRun, manifest: Manifest, source_ids: Iterator[str]) -> int:
    """Put sources into doubt, some at a time, as long as the lock is held; return how many."""
    doubted = 0
    while some := list(islice(source_ids, DOUBTED_TOGETHER)):
        run.lock.check()
        manifest.doubt(some)
        doubted += len(some)
    return doubted


def _below(source: FileSource) -> Filter:
    return Or((Equal("source_id", source.root), Prefix("source_id", source.root.rstrip("/") + "/")))
