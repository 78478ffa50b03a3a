"""`maintained_collections`: the store's collections, compacted and indexed. Materialized by a schedule, once a day."""

from collections.abc import Mapping

import dagster as dg

from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.resources.failures import explained
from vectorize_pipelines.resources.vector_store import VectorStoreResource
from vectorize_pipelines.settings import load_settings


@dg.asset(
    description="Every collection of the store, compacted and indexed; the metadata says what was done, by collection.",
    kinds={load_settings().store.kind},
    owners=("team:embeddings",),
    group_name="store",
)
def maintained_collections(
    context: dg.AssetExecutionContext, vector_store: VectorStoreResource
) -> dg.MaterializeResult[None]:
    """Maintains one after another; one that fails does not keep the others from it, but fails the run in the end."""
    metadata: dict[str, int | float] = {}
    failures: dict[str, StoreError] = {}
    with explained():
        store = vector_store.open()
        for physical, name in {each.physical: each.name for each in store.collections()}.items():
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


def _figures(name: str, did: Mapping[str, int | float]) -> dict[str, int | float]:
    """What `VectorStore.maintain` says it did, as numbers that the UI plots for each collection."""
    return {f"{name}/{figure}": round(value, 3) for figure, value in did.items()}
