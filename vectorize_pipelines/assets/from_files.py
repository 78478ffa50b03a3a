"""Assets from files: `corpus_embeddings` (documents), `corpus_report` (the example downstream of it) and
`gallery_embeddings` (images).
"""

import re
from functools import partial
from typing import Literal

import dagster as dg
import pandas as pd
from pydantic import Field

from vectorize_pipelines.assets.report import report_day, report_plot
from vectorize_pipelines.documents.chunking import chunker_fingerprint
from vectorize_pipelines.errors import SettingsError, SourceError
from vectorize_pipelines.generations import InForce, in_force
from vectorize_pipelines.partitions import Window, daily, days_in, window_of
from vectorize_pipelines.pipeline.documents import DocumentReader, corpus_default, corpus_source
from vectorize_pipelines.pipeline.folder import FolderRequest, open_folder
from vectorize_pipelines.pipeline.images import (
    READER_VERSION,
    ImageReader,
    gallery_default,
    gallery_path,
    gallery_source,
)
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.pipeline.switching import settle
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.failures import explained
from vectorize_pipelines.resources.vector_store import COLLECTION_METADATA, VectorStoreResource
from vectorize_pipelines.settings import COLLECTION_NAME, COLLECTION_RULE, Settings, load_settings
from vectorize_pipelines.sources.files import normalised_root

OWNERS = ("team:embeddings",)


class FolderConfig(dg.Config):
    """What a run of an asset from files may be told; empty fields take what the settings say."""

    mode: Literal["replay", "drain"] = Field(
        "replay", description="replay: the files of the run's days; drain: whatever differs from the manifest"
    )
    force: bool = Field(False, description="encode also what has not changed")
    reconcile: bool = Field(False, description="hold the manifest against the store first")
    path: str = Field("", description="a folder, a file or any fsspec URL")
    collection: str = Field("", description="the collection it is stored in")
    model: str = Field(
        "", description="the model it is embedded with; a collection that was embedded again has its own"
    )

    def in_force(self, settings: Settings, collection: str, default: InForce) -> InForce:
        """What the run embeds with; `collection` is the settings'."""
        return in_force(settings, self.collection or collection, self.model, default)

    def request(self, collection: str, model: str, window: Window, run_id: str) -> FolderRequest:
        """The request that this configuration makes of a run, the settings' collection and the model being given.

        Raises `SettingsError` where no collection can be named so.
        """
        collection = self.collection or collection
        if not re.fullmatch(COLLECTION_NAME, collection):
            raise SettingsError(f"collection {collection!r} in the run's config {COLLECTION_RULE}")
        return FolderRequest(
            collection=collection,
            model=model,
            mode=self.mode,
            window=window,
            run_id=run_id,
            force=self.force,
            reconcile=self.reconcile,
        )


def _code_version(settings: Settings) -> str:
    """Model and chunker, as the settings name them: a model is not looked for just to load this module."""
    documents = settings.documents
    return f"{settings.models.text} {chunker_fingerprint(documents.chunk_tokens or 0, documents.overlap_tokens)}"


def _shown_path(path: str | None) -> str:
    """The path as the UI may show it: one that holds credentials fails the run, not the loading of this module."""
    try:
        return normalised_root(path) if path is not None else "not set"
    except SourceError:
        return "refused; `vectorize doctor` says why"


_settings = load_settings()
RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


@dg.asset(
    description="The documents of the configured folder or bucket as vectors, one row a chunk.",
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    io_manager_key="vector_store_io_manager",
    metadata={COLLECTION_METADATA: _settings.corpus.collection, "path": _shown_path(_settings.corpus.path)},
    code_version=_code_version(_settings),
    pool="gpu",
    retry_policy=RETRIES,
    kinds={"python", _settings.store.kind},
    owners=OWNERS,
    group_name="files",
)
def corpus_embeddings(
    context: dg.AssetExecutionContext,
    config: FolderConfig,
    encoder: EncoderResource,
    vector_store: VectorStoreResource,
) -> EmbeddingStream:
    """Opens the corpus for this run's window; the IO manager reads the stream and writes it."""
    with explained():
        settings = load_settings()
        window = window_of(context.partition_key_range)
        store = vector_store.open()
        settle(settings, store, config.collection or settings.corpus.collection)
        now = config.in_force(settings, settings.corpus.collection, corpus_default(settings))
        request = config.request(settings.corpus.collection, now.model, window, context.run.run_id)
        source = corpus_source(settings, config.path or settings.corpus.path)
        reader = DocumentReader(settings, now)
        lease = partial(encoder.lease, dimension=reader.spec.dimension)
        return open_folder(settings, request, source, reader, store, lease)


@dg.asset(
    description="The images of the configured folder or bucket as vectors, one row an image.",
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    io_manager_key="vector_store_io_manager",
    metadata={COLLECTION_METADATA: _settings.gallery.collection, "path": _shown_path(_settings.gallery.path)},
    code_version=f"{_settings.models.image} reader=image/{READER_VERSION}",
    pool="gpu",
    retry_policy=RETRIES,
    kinds={"python", _settings.store.kind},
    owners=OWNERS,
    group_name="files",
)
def gallery_embeddings(
    context: dg.AssetExecutionContext,
    config: FolderConfig,
    encoder: EncoderResource,
    vector_store: VectorStoreResource,
) -> EmbeddingStream:
    """Opens the gallery for this run's window; the IO manager reads the stream and writes it."""
    with explained():
        settings = load_settings()
        window = window_of(context.partition_key_range)
        store = vector_store.open()
        settle(settings, store, config.collection or settings.gallery.collection)
        now = config.in_force(settings, settings.gallery.collection, gallery_default(settings))
        request = config.request(settings.gallery.collection, now.model, window, context.run.run_id)
        source = gallery_source(settings, config.path or gallery_path(settings))
        reader = ImageReader(settings, now)
        lease = partial(encoder.lease, dimension=reader.spec.dimension)
        return open_folder(settings, request, source, reader, store, lease)


@dg.asset(
    description="What each day's documents are: how many, in which languages, near-duplicates, the largest ones.",
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    ins={"corpus_embeddings": dg.AssetIn()},
    kinds={"pandas"},
    owners=OWNERS,
    group_name="files",
)
def corpus_report(context: dg.AssetExecutionContext, corpus_embeddings: pd.DataFrame) -> dg.MaterializeResult[None]:
    """Reports on the records of the run's partitions; the figures are the materialization's metadata."""
    for day in days_in(window_of(context.partition_key_range)):
        records = corpus_embeddings[corpus_embeddings["partition"] == day]
        context.add_asset_metadata(report_day(records), partition_key=day)
    return dg.MaterializeResult(metadata={"plot": report_plot(corpus_embeddings)})
