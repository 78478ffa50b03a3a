"""The asset `reembedding`: a collection embedded again with another model or other passages, while it is used.

`checks/generations.py` has its checks. The job `drop_old_generations` drops what a switch left behind once its time is
over.
"""

from contextlib import closing
from typing import Literal

import dagster as dg
from pydantic import Field

from vectorize_pipelines.assets.files import OWNERS, RETRIES
from vectorize_pipelines.errors import CollectionNotFoundError, SettingsError
from vectorize_pipelines.partitions import daily_partitions, days_in, window_of
from vectorize_pipelines.pipeline.generations.begin import Wanted
from vectorize_pipelines.pipeline.generations.lifecycle import drop_expired
from vectorize_pipelines.pipeline.generations.stream import open_reembedding
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.vector_store import VectorStoreResource
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.generations import Generations, State

ASSET = "reembedding"


class ReembeddingConfig(dg.Config):
    """The config of a run of `reembedding`."""

    collection: str = Field(description="the collection that is embedded again, by its alias")
    model: str = Field("", description="the model that it gets; empty: that of the generation in the making")
    dimension: int | None = Field(None, description="vectors are cut to so many dimensions; null: all")
    chunk_tokens: int | None = Field(None, description="documents are cut anew to so many tokens; null: as they are")
    overlap_tokens: int | None = Field(None, description="overlap of documents that are cut anew; null: as before")
    mode: Literal["replay", "drain"] = Field("replay", description="replay: the run's days; drain: all days there are")

    def wanted(self) -> Wanted:
        """Return what the collection is to be embedded with."""
        return Wanted(self.model, self.dimension, self.chunk_tokens, self.overlap_tokens)


def reembedding_asset(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset `reembedding`."""

    @dg.asset(
        name=ASSET,
        description="A collection embedded again with another model or in other passages, beside the one that is read.",
        partitions_def=daily_partitions(settings),
        backfill_policy=dg.BackfillPolicy.single_run(),
        io_manager_key="vector_store_io_manager",
        # Not the pool of the embedding runs: they go on meanwhile.
        pool="reembedding",
        retry_policy=RETRIES,
        kinds={"python", settings.store.kind},
        owners=OWNERS,
        group_name="reembedding",
    )
    def reembedding(
        context: dg.AssetExecutionContext,
        config: ReembeddingConfig,
        encoder: EncoderResource,
        vector_store: VectorStoreResource,
    ) -> EmbeddingStream:
        """Opens the new generation for this run's window; the IO manager reads the stream and writes it."""
        with translate_errors():
            settings = load_settings()
            days = None if config.mode == "drain" else days_in(window_of(context.partition_key_range))
            store = vector_store.open()
            try:
                return open_reembedding(
                    settings, store, config.collection, config.wanted(), days, context.run.run_id, encoder.lease
                )
            except CollectionNotFoundError as error:  # no further attempt finds it
                raise SettingsError(str(error)) from error

    return reembedding


@dg.op(description="Drops the generations that were kept after a switch, once their time is over.")
def drop_expired_generations(context: dg.OpExecutionContext, vector_store: VectorStoreResource) -> None:
    """Drop them; the names of what was dropped are the op's metadata."""
    settings = load_settings()
    with translate_errors(), closing(Generations.open(settings)) as generations:
        kept = [each for each in generations.all() if each.state in (State.KEPT, State.DROPPING)]
        dropped = drop_expired(settings, vector_store.open(), generations) if kept else []
    context.add_output_metadata({"dropped": [each.physical for each in dropped], "kept": len(kept) - len(dropped)})


@dg.job(description="Drops the generations that were kept after a switch, once their time is over.")
def drop_old_generations() -> None:
    """Launched by the schedule of the same name."""
    drop_expired_generations()
