"""The checks of the asset `reembedding`: the new generation held against the live one.

`vectorize collections switch` looks at the same before it turns readers to it.
"""

from collections.abc import Callable, Sequence
from contextlib import closing

import dagster as dg

from vectorize_pipelines.assets.checks.vectors import op_config, run_window
from vectorize_pipelines.assets.reembedding import ASSET
from vectorize_pipelines.partitions import days_in
from vectorize_pipelines.pipeline.checks.vectors import LARGEST_CANARY_BYTES, canary_recall
from vectorize_pipelines.pipeline.generations.comparison import differences, neighbour_overlap
from vectorize_pipelines.pipeline.generations.lifecycle import MAKING
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.vector_store import VectorStoreResource
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.sources.rereading import ContentReader
from vectorize_pipelines.state.generations import Generation, Generations
from vectorize_pipelines.stores.filters.expressions import In

SHOWN = 20


def _pairs(context: dg.AssetCheckExecutionContext, generations: Generations) -> list[tuple[Generation, Generation]]:
    """The live generation and the one in the making: of the run's collection, else of every one that has both."""
    named = op_config(context.run, ASSET).get("collection")
    making = [each for each in generations.all() if each.state in MAKING and named in (None, each.collection)]
    pairs = [(generations.live(new.collection), new) for new in making]
    return [(live, new) for live, new in pairs if live is not None]


def _days(context: dg.AssetCheckExecutionContext) -> Sequence[str] | None:
    """The days of a replay; None: all of them."""
    config, window = op_config(context.run, ASSET), run_window(context.run)
    if not config or config.get("mode", "replay") == "drain" or window is None:
        return None
    return days_in(window)


def _checked(
    context: dg.AssetCheckExecutionContext, look: Callable[[Generations, Generation, Generation], dg.AssetCheckResult]
) -> dg.AssetCheckResult:
    """Return one result of what `look` says of each pair; of several, the figures carry the collections' names."""
    with translate_errors(), closing(Generations.open(load_settings())) as generations:
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


@dg.asset_check(asset=ASSET)
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


@dg.asset_check(asset=ASSET)
def canary_recall_of_new(
    context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource, encoder: EncoderResource
) -> dg.AssetCheckResult:
    """A row's own content, encoded anew with the new model, finds it at rank 1 in the new generation."""
    days = _days(context)
    where = None if days is None else In("partition", tuple(days))

    def look(generations: Generations, live: Generation, new: Generation) -> dg.AssetCheckResult:
        with encoder.lease(new.model, new.dimension) as loaded:
            read = ContentReader(load_settings(), LARGEST_CANARY_BYTES).read
            report = canary_recall(vector_store.open(), new.physical, loaded, where, read=read)
        return dg.AssetCheckResult(
            passed=report.sampled == 0 or report.recall >= load_settings().reembedding.least_recall,
            metadata={
                "sampled": report.sampled,
                **({"recall": report.recall} if report.sampled else {}),
                "missed": list(report.missed[:SHOWN]),
            },
        )

    return _checked(context, look)


@dg.asset_check(asset=ASSET)
def neighbour_overlap_at_10(
    context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource, encoder: EncoderResource
) -> dg.AssetCheckResult:
    """Return how many of the ten nearest are in both generations. Reported, never failed: another model differs."""

    def look(generations: Generations, live: Generation, new: Generation) -> dg.AssetCheckResult:
        with encoder.lease(new.model, new.dimension) as loaded:
            report = neighbour_overlap(vector_store.open(), live, new, loaded)
        figures = {"sampled": report.sampled, **({} if report.overlap is None else {"overlap": report.overlap})}
        return dg.AssetCheckResult(passed=True, metadata=figures)

    return _checked(context, look)


CHECKS = [same_rows, canary_recall_of_new, neighbour_overlap_at_10]
