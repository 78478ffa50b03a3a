"""The checks of the assets from Kafka. Each but `index_recall` blocks what is downstream of it when it fails.

In a run of the asset they look at what it wrote, or, where a replay found everything there, at its days; executed on
their own, at the modality's default collection. A run may follow a topic for an hour, so each looks at some thousand
rows or requests only.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import TypeAlias

import dagster as dg

from vectorize_pipelines.assets.checks import (
    SHOWN,
    Scope,
    Target,
    canary_recall_check,
    embeds_too,
    index_recall_check,
    replay_window,
    sound_vectors_check,
)
from vectorize_pipelines.assets.from_kafka import document_embeddings, image_embeddings, text_embeddings
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.generations import InForce, in_force
from vectorize_pipelines.items import Modality
from vectorize_pipelines.ledger import RequestLedger
from vectorize_pipelines.partitions import Window
from vectorize_pipelines.pipeline import quality
from vectorize_pipelines.resources.failures import explained
from vectorize_pipelines.resources.vector_store import VectorStoreResource
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.sources.fetching import FetchPolicy, fetch
from vectorize_pipelines.stores.protocol import VectorStore
from vectorize_pipelines.versions import SourceVersions

#: Collection and request.
_Place: TypeAlias = tuple[str, str]

#: Rows of a collection that are looked at.
ROWS = 10_000
#: Requests whose rows are counted.
REQUESTS = 1_000
#: Events of an asset among which those of a run are looked for.
EVENTS = 100


def _read_image(settings: Settings) -> Callable[[str], bytes]:
    """Reads an image under the rules that it was fetched by."""
    policy = FetchPolicy.of(settings.uris)
    return partial(fetch, policy=policy, limit=quality.LARGEST_CANARY_BYTES)


def _scope(
    context: dg.AssetCheckExecutionContext, asset: dg.AssetsDefinition, modality: Modality, store: VectorStore
) -> Scope:
    settings, run = load_settings(), context.run
    embeds = embeds_too(run, asset)
    names = _written_collections(context.instance, asset.key, run.run_id) if embeds else set()
    return Scope(
        settings,
        _targets(settings, store, sorted(names) or [settings.kafka.collection(modality)]),
        run.run_id,
        embeds,
        replay_window(run, asset),
        most=ROWS,
        read=_read_image(settings),
    )


def _written_collections(instance: dg.DagsterInstance, asset: dg.AssetKey, run_id: str) -> set[str]:
    """As the run's materializations name them."""
    events = instance.fetch_materializations(asset, limit=EVENTS).records
    found = (each.asset_materialization for each in events if each.run_id == run_id)
    shown = (str(each.metadata["collection"].value) for each in found if each and "collection" in each.metadata)
    return {name for names in shown for name in names.split(", ")}


def _targets(settings: Settings, store: VectorStore, names: Sequence[str]) -> list[Target]:
    """Those of the collections that are there."""
    targets = []
    for name in names:
        with suppress(CollectionNotFoundError):
            model = store.collection(name).model
            cut = settings.models.dimension if model == settings.models.text else None
            now = in_force(settings, name, "", InForce(model=model, dimension=cut))
            targets.append(Target(name, now.model, now.dimension))
    return targets


def _rows_match_requests(asset: dg.AssetsDefinition, modality: Modality) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset, blocking=True)
    def rows_match_requests(
        context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource
    ) -> dg.AssetCheckResult:
        """The store has as many rows of a completed request as the ledger says."""
        with explained():
            run, store = context.run, vector_store.open()
            run_id = run.run_id if embeds_too(run, asset) else None
            look = partial(_expected, load_settings(), modality, run_id, replay_window(run, asset))
            expected = look()
            stored = _stored(store, expected)
            differing = {place: rows for place, rows in expected.items() if stored.get(place, 0) != rows}
            if differing:  # by what another run has done meanwhile?
                differing = {place: rows for place, rows in look().items() if differing.get(place) == rows}
        return dg.AssetCheckResult(
            passed=not differing,
            description=f"{len(differing)} completed requests have other rows in the store than the ledger says; "
            "a replay of their days writes them again."
            if differing
            else None,
            metadata={
                "requests": len(expected),
                "rows_expected": sum(expected.values()),
                "rows_stored": sum(stored.values()),
                "differing": len(differing),
                "examples": [
                    f"{place[1]} in {place[0]}: {stored.get(place, 0)} instead of {rows}"
                    for place, rows in sorted(differing.items())[:SHOWN]
                ],
            },
        )

    return rows_match_requests


def _expected(settings: Settings, modality: Modality, run_id: str | None, window: Window | None) -> dict[_Place, int]:
    """The rows that requests are to have, but for those that a later message has changed or deleted since."""
    with closing(RequestLedger.open(settings)) as ledger:
        rows = ledger.completed(modality, REQUESTS, run_id=run_id, days=window)
    expected: dict[_Place, int] = {}
    with closing(SourceVersions.open(settings)) as versions:
        for collection in {row.collection for row in rows if row.collection is not None}:
            own = [row for row in rows if row.collection == collection]
            known = versions.known(collection, [row.request_id for row in own])
            for row in own:
                newest = known.get(row.request_id)
                if newest is not None and newest.version == row.version and not newest.deleted:
                    expected[collection, row.request_id] = row.vectors
    return expected


def _stored(store: VectorStore, places: Iterable[_Place]) -> dict[_Place, int]:
    """The rows that they have."""
    names: dict[str, list[str]] = {}
    for collection, request_id in places:
        names.setdefault(collection, []).append(request_id)
    return {
        (collection, request_id): rows
        for collection, requests in names.items()
        for request_id, rows in quality.rows_of_sources(store, collection, requests).items()
    }


def _checks(asset: dg.AssetsDefinition, modality: Modality) -> list[dg.AssetChecksDefinition]:
    def scope_of(context: dg.AssetCheckExecutionContext, store: VectorStore) -> Scope:
        return _scope(context, asset, modality, store)

    return [
        sound_vectors_check(asset, scope_of),
        _rows_match_requests(asset, modality),
        canary_recall_check(asset, scope_of),
        index_recall_check(asset, scope_of),
    ]


CHECKS = [
    *_checks(text_embeddings, Modality.TEXT),
    *_checks(image_embeddings, Modality.IMAGE),
    *_checks(document_embeddings, Modality.DOCUMENT),
]
