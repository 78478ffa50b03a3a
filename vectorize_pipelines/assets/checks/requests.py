"""The checks of the assets from Kafka. Each but `index_recall` blocks what is downstream of it when it fails.

In a run of the asset they look at what it wrote, or, where a replay found everything there, at its days; executed on
their own, at the modality's default collection. A run may follow a topic for an hour, so each looks at some thousand
rows or requests only.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TypeAlias

import dagster as dg

from vectorize_pipelines.assets.checks.findings import Look, examine
from vectorize_pipelines.assets.checks.vectors import (
    SHOWN,
    Scope,
    canary_recall_check,
    embeds_too,
    index_recall_check,
    replay_window,
    sound_vectors_check,
    standing_targets,
)
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.jobs import REQUEST_JOBS
from vectorize_pipelines.partitions import Window
from vectorize_pipelines.pipeline.checks import vectors as stored_vectors
from vectorize_pipelines.pipeline.checks.rows import RowsReport, in_words
from vectorize_pipelines.resources.vector_store import VectorStoreResource
from vectorize_pipelines.runs.failures import translate_errors
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.sources.rereading import ContentReader
from vectorize_pipelines.state.findings import WHOLE
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow
from vectorize_pipelines.state.versions import SourceVersions
from vectorize_pipelines.stores.base import VectorStore

#: Collection and request.
_Place: TypeAlias = tuple[str, str]

#: Rows of a collection that are looked at.
ROWS = 10_000
REPLAY = "a replay of their days writes them again."
#: Requests whose rows are counted.
REQUESTS = 1_000
#: Events of an asset among which those of a run are looked for.
EVENTS = 100


def _scope(context: dg.AssetCheckExecutionContext, asset: str, modality: Modality, store: VectorStore) -> Scope:
    settings, run = load_settings(), context.run
    embeds = embeds_too(run, asset)
    names = _written_collections(context.instance, dg.AssetKey(asset), run.run_id) if embeds else set()
    return Scope(
        settings,
        modality.value,
        standing_targets(settings, store, sorted(names) or [settings.kafka.collection(modality)]),
        run.run_id,
        embeds,
        replay_window(run, asset),
        most=ROWS,
        read=ContentReader(settings, stored_vectors.LARGEST_CANARY_BYTES).read,
    )


def _written_collections(instance: dg.DagsterInstance, asset: dg.AssetKey, run_id: str) -> set[str]:
    """As the run's materializations name them."""
    events = instance.fetch_materializations(asset, limit=EVENTS).records
    found = (each.asset_materialization for each in events if each.run_id == run_id)
    shown = (str(each.metadata["collection"].value) for each in found if each and "collection" in each.metadata)
    return {name for names in shown for name in names.split(", ")}


def _rows_match_requests(asset: str, modality: Modality) -> dg.AssetChecksDefinition:
    @dg.asset_check(asset=asset, blocking=True)
    def rows_match_requests(
        context: dg.AssetCheckExecutionContext, vector_store: VectorStoreResource
    ) -> dg.AssetCheckResult:
        """The store has as many rows of a completed request as the ledger says."""
        with translate_errors():
            run, store, settings = context.run, vector_store.open(), load_settings()
            run_id = run.run_id if embeds_too(run, asset) else None
            completed = partial(_completed, settings, modality, run_id, replay_window(run, asset))
            examined = examine(
                settings,
                modality.value,
                "rows_match_requests",
                lambda: _compared(settings, store, completed),
                lambda before: _compared(settings, store, partial(_found_before, settings, modality, before)),
            )
        failing = sum(len(look.failing) for look in examined.own)
        own = f"{failing} completed requests have other rows in the store than the ledger says; {REPLAY}"
        examples = [example for report in examined.reports for example in in_words(report.examples)]
        return dg.AssetCheckResult(
            passed=examined.passed,
            severity=examined.severity,
            description=examined.description(own if failing else None, REPLAY.capitalize()),
            metadata={
                "requests": sum(report.sources for report in examined.reports),
                "rows_expected": sum(report.expected for report in examined.reports),
                "rows_stored": sum(report.stored for report in examined.reports),
                "differing": sum(report.differing for report in examined.reports),
                "examples": examples[:SHOWN],
            },
        )

    return rows_match_requests


def _compared(
    settings: Settings, store: VectorStore, requests: Callable[[], Sequence[RequestRow]]
) -> list[Look[RowsReport]]:
    """Compare the rows of requests with what the ledger says, collection by collection."""
    expected = _expected(settings, requests())
    stored = _stored(store, expected)
    differing = {place: rows for place, rows in expected.items() if stored.get(place, 0) != rows}
    if differing:  # by what another run has done meanwhile?
        now = _expected(settings, requests())
        differing = {place: rows for place, rows in now.items() if differing.get(place) == rows}
    looks = []
    for collection in sorted({name for name, _ in expected}):
        own = {place: rows for place, rows in expected.items() if place[0] == collection}
        failing = {request_id for name, request_id in differing if name == collection}
        report = RowsReport(
            sources=len(own),
            expected=sum(own.values()),
            stored=sum(stored.get(place, 0) for place in own),
            differing=len(failing),
            examples={
                f"{request_id} in {collection}": (stored.get((collection, request_id), 0), own[collection, request_id])
                for request_id in failing
            },
        )
        looks.append(Look(collection, report, failing))
    return looks


def _completed(settings: Settings, modality: Modality, run_id: str | None, window: Window | None) -> list[RequestRow]:
    with closing(RequestLedger.open(settings)) as ledger:
        return ledger.completed(modality, REQUESTS, run_id=run_id, days=window)


def _found_before(settings: Settings, modality: Modality, before: Mapping[str, Collection[str]]) -> list[RequestRow]:
    """The requests that the check has found, as the ledger knows them now."""
    if any(WHOLE in names for names in before.values()):
        return _completed(settings, modality, None, None)
    with closing(RequestLedger.open(settings)) as ledger:
        found = [ledger.get(name) for names in before.values() for name in sorted(names)]
    return [row for row in found if row is not None and row.state is RequestState.COMPLETED]


def _expected(settings: Settings, rows: Sequence[RequestRow]) -> dict[_Place, int]:
    """The rows that requests are to have, but for those that a later message has changed or deleted since."""
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
        for request_id, rows in stored_vectors.rows_of_sources(store, collection, requests).items()
    }


def _checks(modality: Modality) -> list[dg.AssetChecksDefinition]:
    asset = REQUEST_JOBS[modality].asset

    def scope_of(context: dg.AssetCheckExecutionContext, store: VectorStore) -> Scope:
        return _scope(context, asset, modality, store)

    return [
        sound_vectors_check(asset, scope_of),
        _rows_match_requests(asset, modality),
        canary_recall_check(asset, scope_of),
        index_recall_check(asset, scope_of),
    ]


CHECKS = [*_checks(Modality.TEXT), *_checks(Modality.IMAGE), *_checks(Modality.DOCUMENT)]
