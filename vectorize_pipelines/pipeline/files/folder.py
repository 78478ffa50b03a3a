"""A folder of files -> the stream that brings its collection up to date.

`open_folder` is called by the assets from files. What differs between the folder and what is known of it says
`comparison`; how a file becomes items is its `reader.FileReader`'s.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, closing
from datetime import UTC, datetime

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.encoders.base import Encoder, EncoderSpec
from vectorize_pipelines.pipeline.encoding import ItemEncoder
from vectorize_pipelines.pipeline.files.attempted import FileAttempts
from vectorize_pipelines.pipeline.files.context import FolderRequest, FolderRun
from vectorize_pipelines.pipeline.files.folder_changes import FolderChanges
from vectorize_pipelines.pipeline.files.planning import Planner
from vectorize_pipelines.pipeline.files.reader import FileReader
from vectorize_pipelines.pipeline.files.store_counts import check_sources, check_whole, doubt_shard
from vectorize_pipelines.pipeline.files.stream import SECONDS_PER_BATCH, ChangeStream
from vectorize_pipelines.pipeline.mending import sources_to_mend
from vectorize_pipelines.pipeline.reuse import configured_reuse
from vectorize_pipelines.pipeline.spill import configured_outage
from vectorize_pipelines.pipeline.writing import DirectWriter
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.files import FileSource
from vectorize_pipelines.state.collection_locks import hold
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.state.manifest import open_manifest
from vectorize_pipelines.stores.base import VectorStore


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

    Holds the lock of the collection, or of the request's shard of it, until the stream is left, so that no two runs
    bring one file up to date at once. Raises `SourceError`, `StateError` and `StoreError`.
    """
    with ExitStack() as resources:
        lock = resources.enter_context(hold(settings, request.collection, request.shard))
        listing = source.ordered()  # not before: another run may have embedded files that came meanwhile
        lock.check()
        physical = store.ensure_collection(request.collection, reader.spec).physical
        manifest, manifest_in_order = (
            resources.enter_context(closing(open_manifest(settings, request.collection)))
            for _ in range(2)  # the second one is read while the first one is written, by another thread
        )
        _repair_left(settings, store, physical, request)
        run = _run(settings, request, source, reader, store, physical, lock)
        if lock.is_alone:
            check_whole(run, source, manifest)
        elif store.is_doubtful(physical):
            doubt_shard(run, source, manifest)
        lock.let_others_begin()
        if request.reconcile:
            check_sources(run, source, manifest, request.shard)
        attempts = FileAttempts.open(manifest, request.run_id, lock, request.shard)
        resources.callback(attempts.close)
        resources.enter_context(reader)
        changes = resources.enter_context(
            closing(FolderChanges(run, source, listing, reader, manifest, manifest_in_order, attempts))
        )
        planner = Planner(run)
        return ChangeStream(run, changes, planner, _item_encoder(run, reader.spec, lease_encoder), resources.pop_all())


def _run(
    settings: Settings,
    request: FolderRequest,
    source: FileSource,
    reader: FileReader,
    store: VectorStore,
    physical: str,
    lock: ExclusiveLock,
) -> FolderRun:
    def owns(source_id: str) -> bool:
        return source.holds(source_id) and request.shard.owns_source(source_id)

    return FolderRun(
        settings,
        store,
        request,
        physical,
        reader.model,
        Days(settings.partitions.start, datetime.now(UTC).date()),
        configured_outage(settings),
        lock,
        sources_to_mend(settings, store, request.collection, physical, owns),
    )


def _repair_left(settings: Settings, store: VectorStore, physical: str, request: FolderRequest) -> None:
    """Repair what runs over the same files that were killed left unfinished in the store."""
    with closing(DirectWriter(settings, store)) as writer:
        for name in writer.unfinished_writers(physical):
            if request.wrote(name):
                writer.repair_left(physical, name)


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
