"""A folder of files -> the stream that brings its collection up to date.

`open_folder` is called by the assets from files. What differs between the folder and what is known of it says
`comparison`; how a file becomes items is its `reader.FileReader`'s.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.encoders.base import Encoder, EncoderSpec
from vectorize_pipelines.pipeline.encoding import ItemEncoder
from vectorize_pipelines.pipeline.files.attempted import FileAttempts
from vectorize_pipelines.pipeline.files.comparison import (
    FolderComparison,
    compare,
    in_window,
    known_entries,
    trusted_entries,
)
from vectorize_pipelines.pipeline.files.context import FolderRequest, FolderRun
from vectorize_pipelines.pipeline.files.folder_changes import FolderChanges, FolderWork
from vectorize_pipelines.pipeline.files.planning import Planner
from vectorize_pipelines.pipeline.files.reader import FileReader
from vectorize_pipelines.pipeline.files.stream import SECONDS_PER_BATCH, ChangeStream
from vectorize_pipelines.pipeline.mending import sources_to_mend
from vectorize_pipelines.pipeline.reuse import configured_reuse
from vectorize_pipelines.pipeline.spill import configured_outage
from vectorize_pipelines.pipeline.writing import DirectWriter
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.files import FileSource, Listing
from vectorize_pipelines.state import home
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.held_locks import ExclusiveLock, LockTakenError
from vectorize_pipelines.state.locks import exclusive
from vectorize_pipelines.state.manifest import Manifest, open_manifest
from vectorize_pipelines.stores.base import VectorStore

logger = logging.getLogger(__name__)

OTHER_KINDS_SHOWN = 5


def open_folder(
    settings: Settings,
    request: FolderRequest,
    source: FileSource,
    reader: FileReader,
    store: VectorStore,
    lease_encoder: Callable[[str], AbstractContextManager[Encoder]],
) -> ChangeStream:
    """Return the stream that does what is asked for.

    `lease_encoder`, given the model's name, is called only where something has to be encoded.
    Holds the collection's lock until the stream is left, so that no two runs bring one collection up to date at
    once. Raises `SourceError` and `StoreError`.
    """
    with ExitStack() as resources:
        lock = _locked(settings, request.collection, resources)
        listing = source.list()  # not before: another run may have embedded files that came meanwhile
        lock.check()
        physical = store.ensure_collection(request.collection, reader.spec).physical
        manifest = open_manifest(settings, request.collection)
        resources.callback(manifest.close)
        with closing(DirectWriter(settings, store)) as writer:
            writer.repair_left(physical, "files")
        run = FolderRun(
            settings,
            store,
            request,
            physical,
            reader.model,
            Days(settings.partitions.start, datetime.now(UTC).date()),
            configured_outage(settings),
            lock,
            sources_to_mend(settings, store, request.collection, physical, source.holds),
        )
        work = _work(run, source, listing, reader, manifest)
        attempts = FileAttempts.open(manifest, request.run_id)
        resources.callback(attempts.close)
        resources.enter_context(reader)
        changes = FolderChanges(run, reader, work, manifest, attempts)
        planner = Planner(run)
        return ChangeStream(run, changes, planner, _item_encoder(run, reader.spec, lease_encoder), resources.pop_all())


def _work(run: FolderRun, source: FileSource, listing: Listing, reader: FileReader, manifest: Manifest) -> FolderWork:
    """Return what the run has to do, and log what a user may not have meant."""
    if run.store.is_doubtful(run.physical):
        _forget_everything(manifest, run.store, run.physical)
    known, stored = trusted_entries(run, known_entries(manifest, reader), source)
    # Not those that are gone from the folder, which are known of by their entries alone.
    known = {name: entry for name, entry in known.items() if name not in run.force_sources or name not in listing.files}
    comparison = compare(listing, known, stored, source, reader)
    if run.request.mode == "replay":
        comparison = in_window(comparison, known, run.days, run.request.window)
    _log_surprises(source, listing, comparison)
    if run.request.force:
        everything = [*comparison.changed, *(listing.files[entry.source_id] for entry in comparison.unchanged)]
        comparison = replace(comparison, changed=everything, unchanged=())
    return FolderWork(comparison, known, stored)


def _log_surprises(source: FileSource, listing: Listing, work: FolderComparison) -> None:
    """Log what a user may not have meant: files that are passed over, a folder that holds nothing any more."""
    if work.vanished and not listing.files:
        logger.warning(
            "%s holds none of the %d files that it had, and their rows go; was a disk not mounted, ingest it "
            "again once it is",
            source.root,
            len(work.vanished),
        )
    if not listing.other_kinds:
        return
    kinds = sorted(listing.other_kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    shown = ", ".join(f"{number} {suffix or 'without a suffix'}" for suffix, number in kinds[:OTHER_KINDS_SHOWN])
    others = sum(number for _, number in kinds[OTHER_KINDS_SHOWN:])
    logger.info("files of other kinds are left out: %s%s", shown, f", {others} others" if others else "")


def _item_encoder(
    run: FolderRun, spec: EncoderSpec, lease_encoder: Callable[[str], AbstractContextManager[Encoder]]
) -> ItemEncoder:
    force = run.request.force or bool(run.force_sources)
    return ItemEncoder(
        spec.dimension,
        lambda: lease_encoder(run.request.model),
        configured_reuse(run.settings, spec, force=force),
        most_rows=run.settings.pipeline.batch_items,
        seconds_per_batch=SECONDS_PER_BATCH,
    )


def _locked(settings: Settings, collection: str, resources: ExitStack) -> ExclusiveLock:
    """Return the lock of a collection's rows that come from files, held until `resources` are closed."""
    database = Database.open(settings)
    resources.callback(database.close)
    file = home.manifest_lock(settings, collection)
    take = partial(exclusive, database, f"files/{collection}", file, f"the files of collection {collection}")
    try:
        return resources.enter_context(take(timeout_seconds=0))
    except LockTakenError:
        logger.info("another run is bringing collection %s up to date; waiting for it to end", collection)
        return resources.enter_context(take())


def _forget_everything(manifest: Manifest, store: VectorStore, physical: str) -> None:
    """Have every file read and compared with its rows: the store lost some that it had, and may hold earlier ones."""
    logger.warning(
        "%s has lost rows that were in it; every file is read again and compared with what is there", physical
    )
    manifest.forget(list(manifest.entries()))
    store.trust(physical)
