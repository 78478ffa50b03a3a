"""The asset `reembedding`: a collection embedded again with another model or other passages, while it is used.

Its checks hold the new generation against the live one; `vectorize collections switch` looks at the same before it
turns readers to it. The job `drop_old_generations` drops what a switch left behind once its time is over.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Literal

import dagster as dg
from pydantic import Field

from vectorize_pipelines.assets.checks import op_config, run_window
from vectorize_pipelines.assets.from_files import OWNERS, RETRIES
from vectorize_pipelines.errors import CollectionNotFoundError, SettingsError
from vectorize_pipelines.generations import Generation, Generations, State
from vectorize_pipelines.partitions import daily, days_in, window_of
from vectorize_pipelines.pipeline.comparison import differences, neighbour_overlap
from vectorize_pipelines.pipeline.quality import canary_recall
from vectorize_pipelines.pipeline.reembedding import open_reembedding
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.pipeline.switching import MAKING, Wanted, drop_expired
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.failures import explained
from vectorize_pipelines.resources.vector_store import VectorStoreResource
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores.filters import In

SHOWN = 20


class ReembeddingConfig(dg.Config):
    """What a run of `reembedding` is told."""

    collection: str = Field(description="the collection that is embedded again, by its alias")
    model: str = Field("", description="the model that it gets; empty: that of the generation in the making")
    dimension: int | None = Field(None, description="vectors are cut to so many dimensions; null: all")
    chunk_tokens: int | None = Field(None, description="documents are cut anew to so many tokens; null: as they are")
    overlap_tokens: int | None = Field(None, description="overlap of documents that are cut anew; null: as before")
    mode: Literal["replay", "drain"] = Field("replay", description="replay: the run's days; drain: all days there are")

    def wanted(self) -> Wanted:
        """What the collection is to be embedded with."""
        return Wanted(self.model, self.dimension, self.chunk_tokens, self.overlap_tokens)


@dg.asset(
    description="A collection embedded again with another model or in other passages, beside the one that is read.",
    partitions_def=daily,
    backfill_policy=dg.BackfillPolicy.single_run(),
    io_manager_key="vector_store_io_manager",
    # Not the pool of the embedding runs: they go on meanwhile.
    pool="reembedding",
    retry_policy=RETRIES,
    kinds={"python", load_settings().store.kind},
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
    with explained():
        settings = load_settings()
        days = None if config.mode == "drain" else days_in(window_of(context.partition_key_range))
        store = vector_store.open()
        try:
            return open_reembedding(
                settings, store, config.collection, config.wanted(), days, context.run.run_id, encoder.lease
            )
        except CollectionNotFoundError as error:  # no further attempt finds it
            raise SettingsError(str(error)) from error


def _pairs(context: dg.AssetCheckExecutionContext, generations: Generations) -> list[tuple[Generation, Generation]]:
    """The live generation and the one in the making: of the run's collection, else of every one that has both."""
    named = op_config(context.run, reembedding).get("collection")
    making = [each for each in generations.all() if each.state in MAKING and named in (None, each.collection)]
    pairs = [(generations.live(new.collection), new) for new in making]
    return [(live, new) for live, new in pairs if live is not None]


def _days(context: dg.AssetCheckExecutionContext) -> Sequence[str] | None:
    """The days of a replay; None: all of them."""
    config, window = op_config(context.run, reembedding), run_window(context.run)
    if not config or config.get("mode", "replay") == "drain" or window is None:
        return None
    return days_in(window)


def _checked(
    context: dg.AssetCheckExecutionContext, look: Callable[[Generations, Generation, Generation], dg.AssetCheckResult]
) -> dg.AssetCheckResult:
    """What `look` says of each pair, in one: where there are several, the figures carry the collections' names."""
    with explained(), closing(Generations.open(load_settings())) as generations:
        found = {new.collection: look(generations, live, new) for live, new in _pairs(context, generations)}
    if not found:
        said = "No generation is in the making: there is nothing to compare."
        return dg.AssetCheckResult(passed=True, description=said)
    if len(found) == 1:
        return next(iter(found.values()))
    failed = [name for name, each in found.items() if not each.passed]
    return dg.AssetCheckResult(
        passed=not failed,
        description=f"Not so in {', '.join(failed)}." if failed else None,
        metadata={f"{name}/{key}": value for name, each in found.items() for key, value in each.metadata.items()},
    )


@dg.asset_check(asset=reembedding)
def same_rows(context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource) -> dg.AssetCheckResult:
    """The new generation has the rows of the live one, day by day: of a run's days, or of all of them."""

    def look(generations: Generations, live: Generation, new: Generation) -> dg.AssetCheckResult:
        store = vector_store.open()
        found = differences(store, generations, live, new, days=_days(context))
        unequal = [f"{day}: {here} instead of {there}" for day, (there, here) in found.days.items()]
        return dg.AssetCheckResult(
            passed=found.total == 0,
            metadata={
                "rows_live": store.count(live.physical),
                "rows_new": store.count(new.physical),
                "missing": len(found.missing),
                "extra": len(found.extra),
                "changed": len(found.changed),
                "days": unequal[:SHOWN],
            },
        )

    return _checked(context, look)


@dg.asset_check(asset=reembedding)
def canary_recall_of_new(
    context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource, encoder: EncoderResource
) -> dg.AssetCheckResult:
    """A row's own content, encoded anew with the new model, finds it at rank 1 in the new generation."""
    days = _days(context)
    where = None if days is None else In("partition", tuple(days))

    def look(generations: Generations, live: Generation, new: Generation) -> dg.AssetCheckResult:
        with encoder.lease(new.model, new.dimension) as loaded:
            report = canary_recall(vector_store.open(), new.physical, loaded, where)
        return dg.AssetCheckResult(
            passed=report.sampled == 0 or report.recall >= load_settings().reembedding.least_recall,
            metadata={
                "sampled": report.sampled,
                **({"recall": report.recall} if report.sampled else {}),
                "missed": list(report.missed[:SHOWN]),
            },
        )

    return _checked(context, look)


@dg.asset_check(asset=reembedding)
def neighbour_overlap_at_10(
    context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource, encoder: EncoderResource
) -> dg.AssetCheckResult:
    """How many of the ten nearest are the same in both generations. Reported, never failed: another model differs."""

    def look(generations: Generations, live: Generation, new: Generation) -> dg.AssetCheckResult:
        with encoder.lease(new.model, new.dimension) as loaded:
            report = neighbour_overlap(vector_store.open(), live, new, loaded)
        figures = {"sampled": report.sampled, **({} if report.overlap is None else {"overlap": report.overlap})}
        return dg.AssetCheckResult(passed=True, metadata=figures)

    return _checked(context, look)


CHECKS = [same_rows, canary_recall_of_new, neighbour_overlap_at_10]


@dg.op(description="Drops the generations that were kept after a switch, once their time is over.")
def drop_expired_generations(context: dg.OpExecutionContext, vector_store: VectorStoreResource) -> None:
    """The names of what was dropped are the op's metadata."""
    settings = load_settings()
    with explained(), closing(Generations.open(settings)) as generations:
        kept = [each for each in generations.all() if each.state in (State.KEPT, State.DROPPING)]
        dropped = drop_expired(settings, vector_store.open(), generations) if kept else []
    context.add_output_metadata({"dropped": [each.physical for each in dropped], "kept": len(kept) - len(dropped)})


@dg.job(description="Drops the generations that were kept after a switch, once their time is over.")
def drop_old_generations() -> None:
    """Launched by the schedule of the same name."""
    drop_expired_generations()
