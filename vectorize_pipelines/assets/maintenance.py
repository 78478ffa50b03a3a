"""`maintained_collections`: the store's collections, compacted and indexed, and the check of what their indexes find.

Schedules materialize the one and execute the other, once a day each.
"""

from collections.abc import Mapping

import dagster as dg

from vectorize_pipelines.errors import CollectionNotFoundError, StoreError
from vectorize_pipelines.pipeline.checks.index_recall import BYTES_ALONE, LEAST_RECALL, IndexReport
from vectorize_pipelines.pipeline.checks.index_recall import index_recall as measured_recall
from vectorize_pipelines.resources.vector_store import VectorStoreResource
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.held_locks import check_run
from vectorize_pipelines.stores.base import VectorStore

ASSET = "maintained_collections"


def maintained_collections_asset(settings: Settings) -> dg.AssetsDefinition:
    """Return the asset `maintained_collections`."""

    @dg.asset(
        name=ASSET,
        description="Every collection of the store, compacted and indexed; the metadata says what was done, "
        "by collection.",
        kinds={settings.store.kind},
        owners=("team:embeddings",),
        group_name="store",
    )
    def maintained_collections(
        context: dg.AssetExecutionContext, vector_store: VectorStoreResource
    ) -> dg.MaterializeResult[None]:
        """Maintain one after another; one that fails does not keep the others from it, but fails the run at its end."""
        metadata: dict[str, int | float] = {}
        failures: dict[str, StoreError] = {}
        with translate_errors():
            store = vector_store.open()
            for physical, name in _collections(store).items():
                check_run()
                try:
                    metadata |= _figures(name, store.maintain(physical))
                except StoreError as error:
                    failures[name] = error
                    context.log.warning(f"{name} was not maintained: {error}")
            metadata["collections"] = len(store.collections())
        if failures:
            description = "; ".join(f"{name}: {error}" for name, error in failures.items())
            raise dg.Failure(description, metadata={**metadata, "failed": len(failures)})
        return dg.MaterializeResult(metadata=metadata)

    return maintained_collections


@dg.asset_check(asset=ASSET)
def index_recall(context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource) -> dg.AssetCheckResult:
    """Searches in every collection find the ten nearest rows, as comparing every vector does."""
    reports: dict[str, IndexReport] = {}
    problems: list[str] = []
    with translate_errors():
        store = vector_store.open()
        collections = _collections(store)
        for physical, name in collections.items():
            try:
                if not store.searches_exactly(physical):
                    reports[name] = measured_recall(store, physical, BYTES_ALONE)
            except CollectionNotFoundError:
                context.log.info(f"{name} was dropped meanwhile")
            except StoreError as error:
                problems.append(f"{name} cannot be searched: {error}")
    problems += [
        f"{name}: of {each.nearest} nearest rows {each.nearest - each.found} are not found"
        for name, each in reports.items()
        if not each.reaches(LEAST_RECALL)
    ]
    return dg.AssetCheckResult(
        passed=not problems,
        description="; ".join(problems) or None,
        metadata={
            "collections": len(collections),
            "indexed": len(reports),
            **{f"{name}/recall": each.recall for name, each in reports.items() if each.nearest},
            **{f"{name}/rows_compared": each.compared for name, each in reports.items()},
        },
    )


CHECKS = [index_recall]


def _collections(store: VectorStore) -> dict[str, str]:
    """Physical name -> one that people know it by."""
    return {each.physical: each.name for each in store.collections()}


def _figures(name: str, did: Mapping[str, int | float]) -> dict[str, int | float]:
    """What `VectorStore.maintain` says it did, as numbers that the UI plots for each collection."""
    return {f"{name}/{figure}": round(value, 3) for figure, value in did.items()}
