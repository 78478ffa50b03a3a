"""The checks of the assets from files, and what those of the assets from Kafka (`request_checks.py`) share with them.

But for `index_recall`, each blocks what is downstream of it when it fails. In a run of the asset, `sound_vectors` and
`canary_recall` look at the rows that it wrote, or, where it wrote none, at those of a replay's days.
`rows_match_manifest` looks at the sources of the rows that it wrote and at those of a replay's days; at everything
where the run reconciles. `index_recall` compares a bounded sample of the collection after a run that wrote rows.
Executed on their own, all look at the whole collection (`index_recall`: at a larger sample).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

import dagster as dg

from vectorize_pipelines import home
from vectorize_pipelines.assets.from_files import FolderConfig, corpus_embeddings, gallery_embeddings
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.generations import InForce
from vectorize_pipelines.partitions import Window, days_in, window_of
from vectorize_pipelines.pipeline import quality
from vectorize_pipelines.pipeline.changes import Days
from vectorize_pipelines.pipeline.documents import corpus_default
from vectorize_pipelines.pipeline.images import gallery_default
from vectorize_pipelines.pipeline.index_recall import BYTES_ALONE
from vectorize_pipelines.pipeline.index_recall import LEAST_RECALL as LEAST_INDEX_RECALL
from vectorize_pipelines.pipeline.index_recall import index_recall as measured_recall
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.failures import explained
from vectorize_pipelines.resources.vector_store import VectorStoreResource
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.sources.manifest import Manifest, ManifestEntry
from vectorize_pipelines.stores.filters import Filter, In
from vectorize_pipelines.stores.protocol import VectorStore

SHOWN = 20
LEAST_RECALL = 1.0
#: Of vectors, that a run which embeds compares to measure indexes.
BYTES_IN_RUN = 64 * 2**20
RECONCILE = (
    "{count} files have other rows in the store than the manifest says; "
    "`vectorize ingest PATH --reconcile` reads them again."
)


#: Settings -> an asset's collection and what it is embedded with, where nothing else is known.
_FromSettings: TypeAlias = Callable[[Settings], tuple[str, InForce]]


def _corpus_defaults(settings: Settings) -> tuple[str, InForce]:
    return settings.corpus.collection, corpus_default(settings)


def _gallery_defaults(settings: Settings) -> tuple[str, InForce]:
    return settings.gallery.collection, gallery_default(settings)


@dataclass(frozen=True, slots=True)
class Target:
    """A collection that is looked at, and the model that it was made with; `dimension` None is the model's own."""

    collection: str
    model: str
    dimension: int | None


@dataclass(frozen=True, slots=True)
class Scope:
    """What the checks of a run look at.

    embeds  whether the run embeds too; else its checks were executed on their own
    window  first and last day of a replay, None for any other run
    most    about so many rows of a collection are looked at; None: all of them
    read    gives the bytes of an image by its URI
    """

    settings: Settings
    targets: Sequence[Target]
    run_id: str
    embeds: bool
    window: Window | None
    most: int | None = None
    read: Callable[[str], bytes] = quality.read_image

    def rows(self, store: VectorStore) -> list[tuple[Target, Filter | None]]:
        """Where there is anything to look at, and the filter of it; None is the whole collection."""
        if not self.embeds:
            return [(target, None) for target in self.targets]
        written = quality.written_by(self.run_id)
        days = In("partition", tuple(days_in(self.window))) if self.window else None
        found = [(target, written if store.count(target.collection, written) else days) for target in self.targets]
        return [(target, where) for target, where in found if where is not None]


ScopeOf: TypeAlias = Callable[[dg.AssetCheckExecutionContext, VectorStore], Scope]


@dataclass(frozen=True, slots=True)
class _FileScope(Scope):
    """Of a run over files there is one target, the collection of its config."""

    reconcile: bool = False

    @property
    def collection(self) -> str:
        """The collection."""
        return self.targets[0].collection

    def sources(self, store: VectorStore, entries: Collection[ManifestEntry]) -> set[str] | None:
        """The sources whose rows are counted; None is all of them."""
        if not self.embeds or self.reconcile:
            return None
        sources = quality.sources_of_run(store, self.collection, self.run_id)
        if self.window is not None:
            days = Days(self.settings.partitions.start, datetime.now(UTC).date())
            sources |= quality.sources_of_days(store, self.collection, entries, days, self.window)
        return sources


def _file_scope(
    context: dg.AssetCheckExecutionContext, asset: dg.AssetsDefinition, defaults: _FromSettings
) -> _FileScope:
    settings = load_settings()
    collection, default = defaults(settings)
    config = FolderConfig(**op_config(context.run, asset))
    embeds = embeds_too(context.run, asset)
    now = config.in_force(settings, collection, default)
    return _FileScope(
        settings,
        [Target(config.collection or collection, now.model, now.dimension)],
        context.run.run_id,
        embeds,
        replay_window(context.run, asset),
        reconcile=config.reconcile,
    )


_FileScopeOf: TypeAlias = Callable[[dg.AssetCheckExecutionContext, VectorStore], _FileScope]


def op_config(run: dg.DagsterRun, asset: dg.AssetsDefinition) -> dict[str, Any]:
    """What a run was told for an asset."""
    ops: Mapping[str, Any] = dict(run.run_config).get("ops", {})  # type: ignore[assignment]
    return dict(ops.get(asset.op.name, {}).get("config", {}))


def run_window(run: dg.DagsterRun) -> Window | None:
    """The days of a run, by its tags: to a check, which has no partitions, Dagster does not give them otherwise."""
    first = run.tags.get("dagster/asset_partition_range_start") or run.tags.get("dagster/partition")
    last = run.tags.get("dagster/asset_partition_range_end") or first
    return window_of(dg.PartitionKeyRange(first, last)) if first and last else None


def replay_window(run: dg.DagsterRun, asset: dg.AssetsDefinition) -> Window | None:
    """The days that a run was to replay; None where it was to do something else.

    A drain takes what waits, whatever its day; a run may also only check.
    """
    replays = embeds_too(run, asset) and op_config(run, asset).get("mode", "replay") == "replay"
    return run_window(run) if replays else None


def embeds_too(run: dg.DagsterRun, asset: dg.AssetsDefinition) -> bool:
    """Checks run on their own when they alone are selected, or are all that a re-execution has to do again."""
    if run.step_keys_to_execute is not None:
        return asset.op.name in run.step_keys_to_execute
    if not run.asset_selection:
        return not run.asset_check_selection  # neither: the whole job
    return asset.key in run.asset_selection


def sound_vectors_check(asset: dg.AssetsDefinition, scope_of: ScopeOf) -> dg.AssetChecksDefinition:
    """The check of an asset's vectors."""

    @dg.asset_check(asset=asset, blocking=True)
    def sound_vectors(context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource) -> dg.AssetCheckResult:
        """Every vector has the model's dimension, finite numbers and, for a normalising model, length 1."""
        report = None
        with explained():
            store = vector_store.open()
            scope = scope_of(context, store)
            cache = home.model_cache(scope.settings)
            for target, where in scope.rows(store):
                spec = describe_model(target.model, dimension=target.dimension, cache_directory=cache)
                found = quality.inspect_vectors(
                    store, target.collection, where, spec.dimension, normalized=spec.normalized, most=scope.most
                )
                report = found if report is None else report + found
        if report is None:
            return _nothing_written()
        return dg.AssetCheckResult(
            passed=report.bad == 0,
            metadata={
                "rows": report.rows,
                "wrong_dimension": report.wrong_dimension,
                "not_finite": report.not_finite,
                "not_unit": report.not_unit,
            },
        )

    return sound_vectors


def _rows_match_manifest(asset: dg.AssetsDefinition, scope_of: _FileScopeOf) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset, blocking=True)
    def rows_match_manifest(
        context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource
    ) -> dg.AssetCheckResult:
        """The store has as many rows of a file as the manifest says."""
        with explained():
            store = vector_store.open()
            scope = scope_of(context, store)
            with closing(Manifest.open(home.manifest_file(scope.settings, scope.collection))) as manifest:
                entries = manifest.entries()
            expected = {name: entry.rows for name, entry in entries.items() if entry.rows}
            looked_at = scope.sources(store, entries.values())
            if looked_at is not None:
                expected = {name: rows for name, rows in expected.items() if name in looked_at}
            stored = store.count_by(scope.collection, "source_id")
        differing = quality.differing_sources(stored, expected)
        return dg.AssetCheckResult(
            passed=not differing,
            description=RECONCILE.format(count=len(differing)) if differing else None,
            metadata={
                "sources": len(expected),
                "rows_expected": sum(expected.values()),
                "rows_stored": sum(stored.get(name, 0) for name in expected),
                "differing": len(differing),
                "examples": [
                    f"{name}: {rows[0]} instead of {rows[1]}" for name, rows in sorted(differing.items())[:SHOWN]
                ],
            },
        )

    return rows_match_manifest


def canary_recall_check(asset: dg.AssetsDefinition, scope_of: ScopeOf) -> dg.AssetChecksDefinition:
    """The check whether an asset's rows are found."""

    @dg.asset_check(asset=asset, blocking=True)
    def canary_recall(
        context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource, encoder: EncoderResource
    ) -> dg.AssetCheckResult:
        """A row's own content, encoded anew, finds it at rank 1."""
        report = None
        with explained():
            store = vector_store.open()
            scope = scope_of(context, store)
            for target, where in scope.rows(store):
                with encoder.lease(target.model, target.dimension) as loaded:
                    found = quality.canary_recall(
                        store, target.collection, loaded, where, most=scope.most, read=scope.read
                    )
                report = found if report is None else report + found
        if report is None:
            return _nothing_written()
        return dg.AssetCheckResult(
            passed=report.sampled == 0 or report.recall >= LEAST_RECALL,
            metadata={
                "sampled": report.sampled,
                **({"recall": report.recall} if report.sampled else {}),
                "missed": list(report.missed[:SHOWN]),
            },
        )

    return canary_recall


def index_recall_check(asset: dg.AssetsDefinition, scope_of: ScopeOf) -> dg.AssetChecksDefinition:
    """The check whether an asset's collections are searched well."""

    @dg.asset_check(asset=asset)
    def index_recall(context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource) -> dg.AssetCheckResult:
        """Searches find the ten nearest rows, as comparing every vector does."""
        with explained():
            store = vector_store.open()
            scope = scope_of(context, store)
            there = {each.name for each in store.collections()}
            names = [target.collection for target, _ in scope.rows(store) if target.collection in there]
            indexed = [name for name in names if not store.searches_exactly(name)]
            if not indexed:
                return _nothing_indexed(scope, sum(store.count(name) for name in names), bool(names))
            most = BYTES_IN_RUN // len(indexed) if scope.embeds else BYTES_ALONE
            reports = {name: measured_recall(store, name, most) for name in indexed}
        poor = [name for name, each in reports.items() if not each.reaches(LEAST_INDEX_RECALL)]
        first, *others = reports.values()
        report = sum(others, first)
        return dg.AssetCheckResult(
            passed=not poor,
            description=f"Too few of the nearest rows are found in {', '.join(poor)}." if poor else None,
            metadata={
                "rows": report.rows,
                "indexed": len(indexed),
                "rows_compared": report.compared,
                "queries": report.queries,
                **({"recall": report.recall} if report.nearest else {}),
                "missed": report.nearest - report.found,
                **{f"{name}/recall": each.recall for name, each in reports.items() if others and each.nearest},
            },
        )

    return index_recall


def _nothing_indexed(scope: Scope, rows: int, any_collection: bool) -> dg.AssetCheckResult:
    if any_collection:
        said = "There is no index: every search compares all vectors."
    elif scope.embeds:
        return _nothing_written()
    else:
        said = "There is no collection yet."
    return dg.AssetCheckResult(passed=True, description=said, metadata={"rows": rows, "indexed": 0})


def _nothing_written() -> dg.AssetCheckResult:
    return dg.AssetCheckResult(passed=True, description="The run wrote nothing: nothing new to check.")


def _checks(asset: dg.AssetsDefinition, defaults: _FromSettings) -> list[dg.AssetChecksDefinition]:
    def scope_of(context: dg.AssetCheckExecutionContext, store: VectorStore) -> _FileScope:
        return _file_scope(context, asset, defaults)

    return [
        sound_vectors_check(asset, scope_of),
        _rows_match_manifest(asset, scope_of),
        canary_recall_check(asset, scope_of),
        index_recall_check(asset, scope_of),
    ]


CHECKS = [*_checks(corpus_embeddings, _corpus_defaults), *_checks(gallery_embeddings, _gallery_defaults)]
