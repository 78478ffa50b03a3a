"""The checks of `corpus_embeddings`. Each blocks what is downstream of it when it fails.

In the run of the asset they look at the rows that it wrote, or, where it wrote none, at those of a replay's days;
executed on their own they look at the whole collection.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import dagster as dg

from vectorize_pipelines import home
from vectorize_pipelines.assets.from_files import CorpusConfig, corpus_embeddings
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.partitions import days_in, window_of
from vectorize_pipelines.pipeline import quality
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.failures import explained
from vectorize_pipelines.resources.vector_store import VectorStoreResource
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.sources.manifest import Manifest
from vectorize_pipelines.stores.filters import Filter, In
from vectorize_pipelines.stores.protocol import VectorStore

SHOWN = 20
LEAST_RECALL = 1.0


@dataclass(frozen=True, slots=True)
class _Scope:
    """What a check looks at; `where` None is the whole collection, `nothing` that there is nothing new to look at."""

    settings: Settings
    collection: str
    model: str
    where: Filter | None
    nothing: bool


def _scope(context: dg.AssetCheckExecutionContext, store: VectorStore) -> _Scope:
    settings = load_settings()
    ops: Mapping[str, Any] = dict(context.run.run_config).get("ops", {})  # type: ignore[assignment]
    config = CorpusConfig(**ops.get("corpus_embeddings", {}).get("config", {}))
    collection = config.collection or settings.corpus.collection
    where: Filter | None = quality.written_by(context.run.run_id)
    nothing = False
    if store.count(collection, where) == 0:
        nothing = config.mode == "drain"
        where = None
        if not nothing and context.op_execution_context.has_partition_key_range:
            days = days_in(window_of(context.op_execution_context.partition_key_range))
            where = In("partition", tuple(days))
    return _Scope(settings, collection, config.model or settings.models.text, where, nothing)


@dg.asset_check(asset=corpus_embeddings, blocking=True)
def sound_vectors(context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource) -> dg.AssetCheckResult:
    """Every vector has the model's dimension, finite numbers and, for a normalising model, length 1."""
    with explained():
        store = vector_store.open()
        scope = _scope(context, store)
        if scope.nothing:
            return _nothing_written()
        spec = describe_model(scope.model, cache_directory=home.model_cache(scope.settings))
        report = quality.inspect_vectors(
            store, scope.collection, scope.where, spec.dimension, normalized=spec.normalized
        )
    return dg.AssetCheckResult(
        passed=report.bad == 0,
        metadata={
            "rows": report.rows,
            "wrong_dimension": report.wrong_dimension,
            "not_finite": report.not_finite,
            "not_unit": report.not_unit,
        },
    )


@dg.asset_check(asset=corpus_embeddings, blocking=True)
def rows_match_manifest(
    context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource
) -> dg.AssetCheckResult:
    """The store has as many rows of every file as the manifest says."""
    with explained():
        store = vector_store.open()
        scope = _scope(context, store)
        with closing(Manifest.open(home.manifest_file(scope.settings, scope.collection))) as manifest:
            expected = manifest.rows_by_source()
        stored = store.count_by(scope.collection, "source_id")
    differing = quality.differing_sources(stored, expected)
    return dg.AssetCheckResult(
        passed=not differing,
        description="Run `vectorize ingest` with reconcile to read these files again." if differing else None,
        metadata={
            "sources": len(expected),
            "rows_expected": sum(expected.values()),
            "rows_stored": sum(stored.get(name, 0) for name in expected),
            "differing": len(differing),
            "examples": [f"{name}: {rows[0]} instead of {rows[1]}" for name, rows in sorted(differing.items())[:SHOWN]],
        },
    )


@dg.asset_check(asset=corpus_embeddings, blocking=True)
def canary_recall(
    context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource, encoder: EncoderResource
) -> dg.AssetCheckResult:
    """A passage's own text finds it at rank 1."""
    with explained():
        store = vector_store.open()
        scope = _scope(context, store)
        if scope.nothing:
            return _nothing_written()
        with encoder.lease(scope.model) as loaded:
            report = quality.canary_recall(store, scope.collection, loaded, scope.where)
    return dg.AssetCheckResult(
        passed=report.sampled == 0 or report.recall >= LEAST_RECALL,
        metadata={
            "sampled": report.sampled,
            **({"recall": report.recall} if report.sampled else {}),
            "missed": list(report.missed[:SHOWN]),
        },
    )


def _nothing_written() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True, description="The run wrote nothing: nothing new to check.")
