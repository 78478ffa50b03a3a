"""Assets from files: `corpus_embeddings` (documents), `corpus_report` (the example downstream of it) and
`gallery_embeddings` (images).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import dagster as dg
import pandas as pd
from pydantic import Field

from vectorize_pipelines.assets.report import report_day, report_plot
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.documents.chunking import chunker_fingerprint
from vectorize_pipelines.errors import SettingsError, SourceError
from vectorize_pipelines.images.items import READER_VERSION
from vectorize_pipelines.partitions import Window, daily_partitions, days_in, window_of
from vectorize_pipelines.pipeline.aliases import current_embedding_config
from vectorize_pipelines.pipeline.files.context import FolderRequest
from vectorize_pipelines.pipeline.files.documents import DocumentReader, corpus_default, corpus_path, corpus_source
from vectorize_pipelines.pipeline.files.folder import open_folder
from vectorize_pipelines.pipeline.files.images import ImageReader, gallery_default, gallery_path, gallery_source
from vectorize_pipelines.pipeline.files.reader import FileReader
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.vector_store import COLLECTION_METADATA, VectorStoreResource
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.settings import (
    COLLECTION_NAME,
    COLLECTION_RULE,
    CorpusSettings,
    GallerySettings,
    Settings,
    load_settings,
)
from vectorize_pipelines.sources.files import FileSource, normalised_root
from vectorize_pipelines.state.generations import EmbeddingConfig
from vectorize_pipelines.stores.base import VectorStore

OWNERS = ("team:embeddings",)


class FolderConfig(dg.Config):
    """The config of a run of an asset from files; empty fields take what the settings say."""

    mode: Literal["replay", "drain"] = Field(
        "replay", description="replay: the files of the run's days; drain: whatever differs from the manifest"
    )
    force: bool = Field(False, description="encode also what has not changed")
    reconcile: bool = Field(False, description="hold the manifest against the store first")
    compare_contents: bool = Field(
        False, description="hold the manifest against the contents of all files, which are read, whatever their times"
    )
    path: str = Field("", description="a folder, a file or any fsspec URL")
    shard: str = Field("0/1", description="the part of the files that the run owns: 0/4 is the first of four")
    follow_links: bool | None = Field(
        None, description="follow links that lead out of the folder; null: as corpus.follow_links, gallery.follow_links"
    )
    allow_empty: bool | None = Field(
        None,
        description="delete the rows of a folder that holds nothing any more; null: as corpus.allow_empty, "
        "gallery.allow_empty",
    )
    collection: str = Field("", description="the collection it is stored in")
    model: str = Field(
        "", description="the model it is embedded with; a collection that was embedded again has its own"
    )

    def request(
        self, section: CorpusSettings | GallerySettings, model: str, window: Window, run_id: str
    ) -> FolderRequest:
        """Return the work that this configuration makes of a run, the settings of its asset and the model being given.

        Raises `SettingsError` where no collection can be named so, or the shard is none.
        """
        collection = self.collection or section.collection
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
            compare_contents=self.compare_contents,
            allow_empty=section.allow_empty if self.allow_empty is None else self.allow_empty,
            shard=Shard.parse(self.shard),
        )


class _OpenSource(Protocol):
    def __call__(self, settings: Settings, path: str, *, follow_links: bool | None) -> FileSource: ...


@dataclass(frozen=True, slots=True)
class FolderAsset:
    """An asset from the files of a folder.

    section  its settings
    path     the configured folder; raises `SettingsError` where there is none
    default  what its collection is embedded with where that was never embedded again
    version  model and reader, as the settings name them: a model is not looked for just to load the definitions
    """

    name: str
    description: str
    section: Callable[[Settings], CorpusSettings | GallerySettings]
    path: Callable[[Settings], str]
    source: _OpenSource
    reader: Callable[[Settings, EmbeddingConfig], FileReader]
    default: Callable[[Settings], EmbeddingConfig]
    version: Callable[[Settings], str]

    def open(
        self,
        config: FolderConfig,
        window: Window,
        run_id: str,
        store: VectorStore,
        encoder: EncoderResource,
    ) -> EmbeddingStream:
        """Open the folder for one run."""
        settings = load_settings()
        section = self.section(settings)
        now = current_embedding_config(
            settings, store, config.collection or section.collection, config.model, self.default(settings)
        )
        request = config.request(section, now.model, window, run_id)
        source = self.source(settings, config.path or self.path(settings), follow_links=config.follow_links)
        reader = self.reader(settings, now)
        lease_encoder = partial(encoder.lease, dimension=reader.spec.dimension)
        return open_folder(settings, request, source, reader, store, lease_encoder)


def _corpus_version(settings: Settings) -> str:
    documents = settings.documents
    return f"{settings.models.text} {chunker_fingerprint(documents.chunk_tokens or 0, documents.overlap_tokens)}"


CORPUS = FolderAsset(
    "corpus_embeddings",
    "The documents of the configured folder or bucket as vectors, one row a chunk.",
    section=lambda settings: settings.corpus,
    path=corpus_path,
    source=corpus_source,
    reader=DocumentReader,
    default=corpus_default,
    version=_corpus_version,
)
GALLERY = FolderAsset(
    "gallery_embeddings",
    "The images of the configured folder or bucket as vectors, one row an image.",
    section=lambda settings: settings.gallery,
    path=gallery_path,
    source=gallery_source,
    reader=ImageReader,
    default=gallery_default,
    version=lambda settings: f"{settings.models.image} reader=image/{READER_VERSION}",
)

RETRIES = dg.RetryPolicy(max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)


def file_assets(settings: Settings) -> list[dg.AssetsDefinition]:
    """Return the assets from files."""
    return [_embeddings(settings, CORPUS), _corpus_report(settings), _embeddings(settings, GALLERY)]


def _shown_path(path: str | None) -> str:
    """Return the path as the UI may show it: one that holds credentials fails the run, not the definitions."""
    try:
        return normalised_root(path) if path is not None else "not set"
    except SourceError:
        return "refused; `vectorize doctor` says why"


def _embeddings(settings: Settings, folder: FolderAsset) -> dg.AssetsDefinition:
    section = folder.section(settings)

    @dg.asset(
        name=folder.name,
        description=folder.description,
        partitions_def=daily_partitions(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        io_manager_key="vector_store_io_manager",
        metadata={COLLECTION_METADATA: section.collection, "path": _shown_path(section.path)},
        code_version=folder.version(settings),
        pool="gpu",
        retry_policy=RETRIES,
        kinds={"python", settings.store.kind},
        owners=OWNERS,
        group_name="files",
    )
    def embeddings(
        context: dg.AssetExecutionContext,
        config: FolderConfig,
        encoder: EncoderResource,
        vector_store: VectorStoreResource,
    ) -> EmbeddingStream:
        """Opens the folder for this run's window; the IO manager reads the stream and writes it."""
        with translate_errors():
            window = window_of(context.partition_key_range)
            return folder.open(config, window, context.run.run_id, vector_store.open(), encoder)

    return embeddings


def _corpus_report(settings: Settings) -> dg.AssetsDefinition:
    @dg.asset(
        description="What each day's documents are: how many, in which languages, near-duplicates, the largest ones.",
        partitions_def=daily_partitions(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        ins={CORPUS.name: dg.AssetIn()},
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

    return corpus_report
