"""The checks of the assets from files, and what those of the assets from Kafka (`requests.py`) share with them.

But for `index_recall`, each blocks what is downstream of it when it fails. In a run of the asset, `sound_vectors` and
`canary_recall` look at the rows that it wrote, or, where it wrote none, at those of a replay's days.
`rows_match_manifest` looks at the sources of the rows that it wrote and at those of a replay's days; at everything
where the run reconciles. `index_recall` compares a bounded sample of the collection after a run that wrote rows.
Executed on their own, all look at the whole collection (`index_recall`: at a larger sample). What one of them has found
it looks at again in every run, until it is mended (`findings.py`); as long as only that fails, it is a warning.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeAlias

import dagster as dg

from vectorize_pipelines.assets.checks.findings import Examined, Look, examine
from vectorize_pipelines.assets.files import CORPUS, GALLERY, FolderAsset, FolderConfig
from vectorize_pipelines.core.days import Days
from vectorize_pipelines.core.shards import WHOLE as WHOLE_SHARD
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.encoders.configured import describe_options
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.partitions import Window, days_in, window_of
from vectorize_pipelines.pipeline.checks import vectors as stored_vectors
from vectorize_pipelines.pipeline.checks.index_recall import BYTES_ALONE, IndexReport
from vectorize_pipelines.pipeline.checks.index_recall import LEAST_RECALL as LEAST_INDEX_RECALL
from vectorize_pipelines.pipeline.checks.index_recall import index_recall as measured_recall
from vectorize_pipelines.pipeline.checks.rows import RowsReport, compare_rows, in_words, sources_of_days, stored_sources
from vectorize_pipelines.pipeline.checks.vectors import CanaryReport, VectorReport
from vectorize_pipelines.pipeline.mending import CANARY_RECALL, SOUND_VECTORS
from vectorize_pipelines.resources.encoder import EncoderResource
from vectorize_pipelines.resources.vector_store import VectorStoreResource
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.sources.rereading import listed_roots
from vectorize_pipelines.state.findings import MOST_SUBJECTS, WHOLE
from vectorize_pipelines.state.generations import EmbeddingConfig, resolve_embedding_config
from vectorize_pipelines.state.manifest import Manifest, open_manifest
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.filters.expressions import Filter, In

SHOWN = 20
LEAST_RECALL = 1.0
#: Of vectors, that a run which embeds compares to measure indexes.
BYTES_IN_RUN = 64 * 2**20
RECONCILE = (
    "{count} files have other rows in the store than the manifest says; "
    "`vectorize ingest PATH --reconcile` reads them again."
)
ENCODE_AGAIN = (
    "The next `vectorize ingest` of their folder embeds them again; requests are embedded again by a replay of their "
    "days with `force`."
)


@dataclass(frozen=True, slots=True)
class CheckedCollection:
    """A collection that is looked at, and the model that it was made with; `dimension` None is the model's own."""

    collection: str
    model: str
    dimension: int | None


@dataclass(frozen=True, slots=True)
class Scope:
    """The rows that the checks of a run look at.

    owner   whose findings these are: see `Findings`
    embeds  whether the run embeds too; else its checks were executed on their own
    window  first and last day of a replay, None for any other run
    most    about so many rows of a collection are looked at; None: all of them
    read    gives the bytes of an image by its row
    """

    settings: Settings
    owner: str
    targets: Sequence[CheckedCollection]
    run_id: str
    embeds: bool
    window: Window | None
    most: int | None = None
    read: Callable[[Mapping[str, Any]], bytes] = stored_vectors.read_listed_image

    def rows(self, store: VectorStore) -> list[tuple[CheckedCollection, Filter | None]]:
        """Return the collections to look at, each with a filter; None is the whole collection."""
        if not self.embeds:
            return [(target, None) for target in self.targets]
        written = stored_vectors.written_by(self.run_id)
        days = In("partition", tuple(days_in(self.window))) if self.window else None
        found = [(target, written if store.count(target.collection, written) else days) for target in self.targets]
        return [(target, where) for target, where in found if where is not None]

    def found_before(
        self, store: VectorStore, before: Mapping[str, Collection[str]], field: str
    ) -> list[tuple[CheckedCollection, Filter | None]]:
        """Return what a check has found, by a record's field, in collections that are still there; None: all of one."""
        return [
            (target, None if WHOLE in before[target.collection] else In(field, tuple(before[target.collection])))
            for target in standing_targets(self.settings, store, sorted(before))
        ]


def standing_targets(settings: Settings, store: VectorStore, names: Sequence[str]) -> list[CheckedCollection]:
    """Return the collections that are there, and what each is embedded with."""
    targets = []
    for name in names:
        with suppress(CollectionNotFoundError):
            model = store.collection(name).model
            cut = settings.models.dimension if model == settings.models.text else None
            now = resolve_embedding_config(settings, name, "", EmbeddingConfig(model=model, dimension=cut))
            targets.append(CheckedCollection(name, now.model, now.dimension))
    return targets


ScopeOf: TypeAlias = Callable[[dg.AssetCheckExecutionContext, VectorStore], Scope]


@dataclass(frozen=True, slots=True)
class _FileScope(Scope):
    """The scope of a run over files: one target, the collection of its config."""

    reconcile: bool = False
    shard: Shard = WHOLE_SHARD

    @property
    def collection(self) -> str:
        """The collection."""
        return self.targets[0].collection

    def compared_rows(self, store: VectorStore) -> RowsReport:
        """Compare the rows of the sources that the run is about with what the manifest says."""
        with closing(open_manifest(self.settings, self.collection)) as manifest:
            entries = manifest.entries()
            if not self.embeds:
                return compare_rows(store, self.collection, entries, None)
            if self.reconcile:  # others are at work on the other shards
                entries = (entry for entry in entries if self.shard.owns_source(entry.source_id))
                return compare_rows(store, self.collection, entries, None)
            # What is in doubt still was not this run's to deal with.
            entries = (entry for entry in entries if not entry.is_in_doubt)
            return compare_rows(store, self.collection, entries, self._sources(store, manifest))

    def _sources(self, store: VectorStore, manifest: Manifest) -> Iterator[str]:
        """Yield the sources that a run wrote, and those of the days of a replay."""
        yield from stored_sources(store, self.collection, stored_vectors.written_by(self.run_id))
        if self.window is not None:
            days = Days(self.settings.partitions.start, datetime.now(UTC).date())
            yield from sources_of_days(store, self.collection, manifest.entries(), days, self.window)


def _file_scope(context: dg.AssetCheckExecutionContext, folder: FolderAsset) -> _FileScope:
    settings = load_settings()
    config = FolderConfig(**op_config(context.run, folder.name))
    collection = config.collection or folder.section(settings).collection
    now = resolve_embedding_config(settings, collection, config.model, folder.default(settings))
    return _FileScope(
        settings,
        folder.name,
        [CheckedCollection(collection, now.model, now.dimension)],
        context.run.run_id,
        embeds_too(context.run, folder.name),
        replay_window(context.run, folder.name),
        read=partial(stored_vectors.read_listed_image, roots=listed_roots(settings)),
        reconcile=config.reconcile,
        shard=Shard.parse(config.shard),
    )


_FileScopeOf: TypeAlias = Callable[[dg.AssetCheckExecutionContext, VectorStore], _FileScope]


def op_config(run: dg.DagsterRun, asset: str) -> dict[str, Any]:
    """Return what a run was told for an asset."""
    ops: Mapping[str, Any] = dict(run.run_config).get("ops", {})  # type: ignore[assignment]
    return dict(ops.get(asset, {}).get("config", {}))


def run_window(run: dg.DagsterRun) -> Window | None:
    """The days of a run, by its tags: to a check, which has no partitions, Dagster does not give them otherwise."""
    first = run.tags.get("dagster/asset_partition_range_start") or run.tags.get("dagster/partition")
    last = run.tags.get("dagster/asset_partition_range_end") or first
    return window_of(dg.PartitionKeyRange(first, last)) if first and last else None


def replay_window(run: dg.DagsterRun, asset: str) -> Window | None:
    """The days that a run was to replay; None where it was to do something else.

    A drain takes what waits, whatever its day; a run may also only check.
    """
    replays = embeds_too(run, asset) and op_config(run, asset).get("mode", "replay") == "replay"
    return run_window(run) if replays else None


def embeds_too(run: dg.DagsterRun, asset: str) -> bool:
    """Checks run on their own when they alone are selected, or are all that a re-execution has to do again."""
    if run.step_keys_to_execute is not None:
        return asset in run.step_keys_to_execute
    if not run.asset_selection:
        return not run.asset_check_selection  # neither: the whole job
    return dg.AssetKey(asset) in run.asset_selection


def sound_vectors_check(asset: str, scope_of: ScopeOf) -> dg.AssetChecksDefinition:
    """The check of an asset's vectors."""

    @dg.asset_check(asset=asset, blocking=True)
    def sound_vectors(context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource) -> dg.AssetCheckResult:
        """Every vector has the model's dimension, finite numbers and, for a normalising model, length 1."""
        with translate_errors():
            store = vector_store.open()
            scope = scope_of(context, store)
            options = describe_options(scope.settings)

            def look(
                places: Sequence[tuple[CheckedCollection, Filter | None]], most: int | None
            ) -> list[Look[VectorReport]]:
                looks = []
                for target, where in places:
                    spec = describe_model(target.model, dimension=target.dimension, **options)
                    found = stored_vectors.inspect_vectors(
                        store, target.collection, where, spec.dimension, normalized=spec.normalized, most=most
                    )
                    looks.append(Look(target.collection, found, found.sources))
                return looks

            examined = examine(
                scope.settings,
                scope.owner,
                SOUND_VECTORS,
                lambda: look(scope.rows(store), scope.most),
                lambda before: look(scope.found_before(store, before, "source_id"), None),
            )
        if not examined.reports:
            return _nothing_written(examined)
        report = sum(examined.reports, VectorReport(0, 0, 0, 0))
        return dg.AssetCheckResult(
            passed=examined.passed,
            severity=examined.severity,
            description=examined.description(None, ENCODE_AGAIN),
            metadata={
                "rows": report.rows,
                "wrong_dimension": report.wrong_dimension,
                "not_finite": report.not_finite,
                "not_unit": report.not_unit,
            },
        )

    return sound_vectors


def _rows_match_manifest(asset: str, scope_of: _FileScopeOf) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset, blocking=True)
    def rows_match_manifest(
        context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource
    ) -> dg.AssetCheckResult:
        """The store has as many rows of a file as the manifest says."""
        with translate_errors():
            store = vector_store.open()
            scope = scope_of(context, store)

            def again(before: Mapping[str, Collection[str]]) -> list[Look[RowsReport]]:
                there = [target.collection for target in standing_targets(scope.settings, store, sorted(before))]
                return [_look(name, _rows_found_before(scope.settings, store, name, before[name])) for name in there]

            examined = examine(
                scope.settings,
                scope.owner,
                "rows_match_manifest",
                lambda: [_look(scope.collection, scope.compared_rows(store))],
                again,
            )
        examples = {name: rows for report in examined.reports for name, rows in report.examples.items()}
        failing = sum(look.report.differing for look in examined.own)
        return dg.AssetCheckResult(
            passed=examined.passed,
            severity=examined.severity,
            description=examined.description(
                RECONCILE.format(count=failing) if failing else None, "`vectorize ingest PATH --reconcile` mends it."
            ),
            metadata={
                "sources": sum(report.sources for report in examined.reports),
                "rows_expected": sum(report.expected for report in examined.reports),
                "rows_stored": sum(report.stored for report in examined.reports),
                "differing": sum(report.differing for report in examined.reports),
                "examples": in_words(examples)[:SHOWN],
            },
        )

    return rows_match_manifest


def _rows_found_before(settings: Settings, store: VectorStore, collection: str, found: Collection[str]) -> RowsReport:
    """Compare the rows of what a check has found in a collection with what the manifest says."""
    with closing(open_manifest(settings, collection)) as manifest:
        return compare_rows(store, collection, manifest.entries(), None if WHOLE in found else found)


def _look(collection: str, report: RowsReport) -> Look[RowsReport]:
    return Look(collection, report, report.examples.keys())


def canary_recall_check(asset: str, scope_of: ScopeOf) -> dg.AssetChecksDefinition:
    """The check whether an asset's rows are found."""

    @dg.asset_check(asset=asset, blocking=True)
    def canary_recall(
        context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource, encoder: EncoderResource
    ) -> dg.AssetCheckResult:
        """A row's own content, encoded again, finds it at rank 1."""
        with translate_errors():
            store = vector_store.open()
            scope = scope_of(context, store)

            def look(
                places: Sequence[tuple[CheckedCollection, Filter | None]], most: int | None
            ) -> list[Look[CanaryReport]]:
                looks = []
                for target, where in places:
                    # What was found before is looked for row by row.
                    canaries = (
                        MOST_SUBJECTS if isinstance(where, In) and where.field == "id" else stored_vectors.CANARIES
                    )
                    with encoder.lease(target.model, target.dimension) as loaded:
                        found = stored_vectors.canary_recall(
                            store,
                            target.collection,
                            loaded,
                            where,
                            most=most,
                            canaries=canaries,
                            read=scope.read,
                        )
                    looks.append(Look(target.collection, found, found.missed_ids, found.left_out))
                return looks

            examined = examine(
                scope.settings,
                scope.owner,
                CANARY_RECALL,
                lambda: look(scope.rows(store), scope.most),
                lambda before: look(scope.found_before(store, before, "id"), None),
            )
        if not examined.reports:
            return _nothing_written(examined)
        report = sum(examined.reports, CanaryReport(0, ()))
        return dg.AssetCheckResult(
            passed=examined.passed,
            severity=examined.severity,
            description=examined.description(None, ENCODE_AGAIN),
            metadata={
                "sampled": report.sampled,
                **({"recall": report.recall} if report.sampled else {}),
                "missed": list(report.missed[:SHOWN]),
            },
        )

    return canary_recall


def index_recall_check(asset: str, scope_of: ScopeOf) -> dg.AssetChecksDefinition:
    """The check whether an asset's collections are searched well."""

    @dg.asset_check(asset=asset)
    def index_recall(context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource) -> dg.AssetCheckResult:
        """Searches find the ten nearest rows, as comparing every vector does."""
        with translate_errors():
            store = vector_store.open()
            scope = scope_of(context, store)
            there = {each.name for each in store.collections()}
            names = [target.collection for target, _ in scope.rows(store) if target.collection in there]

            def look(names: Sequence[str]) -> list[Look[IndexReport]]:
                indexed = [name for name in names if not store.searches_exactly(name)]
                most = BYTES_IN_RUN // max(1, len(indexed)) if scope.embeds else BYTES_ALONE
                reports = {name: measured_recall(store, name, most) for name in indexed}
                return [
                    Look(name, each, set() if each.reaches(LEAST_INDEX_RECALL) else {WHOLE})
                    for name, each in reports.items()
                ]

            examined = examine(
                scope.settings,
                scope.owner,
                "index_recall",
                lambda: look(names),
                lambda before: look([name for name in sorted(before) if name in there and name not in names]),
            )
            if not examined.reports:
                return _nothing_indexed(scope, sum(store.count(name) for name in names), bool(names))
        looks = [*examined.own, *examined.earlier]
        poor = [each.collection for each in looks if each.failing]
        first, *others = examined.reports
        report = sum(others, first)
        return dg.AssetCheckResult(
            passed=examined.passed,
            description=f"Too few of the nearest rows are found in {', '.join(poor)}." if poor else None,
            metadata={
                "rows": report.rows,
                "indexed": len(looks),
                "rows_compared": report.compared,
                "queries": report.queries,
                **({"recall": report.recall} if report.nearest else {}),
                "missed": report.nearest - report.found,
                **{f"{each.collection}/recall": each.report.recall for each in looks if others and each.report.nearest},
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


def _nothing_written(examined: Examined[Any] | None = None) -> dg.AssetCheckResult:
    said = "The run wrote nothing: nothing new to check."
    return dg.AssetCheckResult(
        passed=True, description=said if examined is None else examined.description(said, remedy="")
    )


def _checks(folder: FolderAsset) -> list[dg.AssetChecksDefinition]:
    def scope_of(context: dg.AssetCheckExecutionContext, store: VectorStore) -> _FileScope:
        return _file_scope(context, folder)

    return [
        sound_vectors_check(folder.name, scope_of),
        _rows_match_manifest(folder.name, scope_of),
        canary_recall_check(folder.name, scope_of),
        index_recall_check(folder.name, scope_of),
    ]


CHECKS = [*_checks(CORPUS), *_checks(GALLERY)]
