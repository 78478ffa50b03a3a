"""Mends what checks found wrong in the rows of sources, as far as the next run can.

Called at the start of a run: by `pipeline.files.folder` for sources that it can read again, by `pipeline.requests.runs`
for requests, whose rows can only be indexed again.
"""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import closing

from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.findings import WHOLE, Findings
from vectorize_pipelines.state.versions import SourceVersions
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.filters.expressions import In

logger = logging.getLogger(__name__)

#: Names of checks: of the vectors themselves, and whether a search finds them.
SOUND_VECTORS, CANARY_RECALL = "sound_vectors", "canary_recall"
IDS_TOGETHER = 500


def sources_to_mend(
    settings: Settings, store: VectorStore, collection: str, physical: str, holds: Callable[[str], bool]
) -> set[str]:
    """Return the sources among those that `holds` accepts whose vectors a check found wrong: to be embedded again.

    Their rows are indexed again before. Called by the only writer of these sources. Raises `LedgerError`, `StoreError`.
    """
    with closing(Findings.open(settings)) as findings:
        sources = findings.subjects(collection, SOUND_VECTORS)
        rows = findings.subjects(collection, CANARY_RECALL)
    found = {name for name in sources if holds(name)}
    ours = []
    for some in _some(rows):
        for row in store.fetch(physical, In("id", some), ("id", "source_id")).to_pylist():
            if holds(row["source_id"]):
                found.add(row["source_id"])
                ours.append(row["id"])
    if found:
        logger.warning("%d sources of %s failed a check; they are embedded again", len(found), collection)
        _repair(store, physical, ours)
    return found


def repair_requests(settings: Settings, store: VectorStore, versions: SourceVersions, owner: str) -> None:
    """Have the rows of requests indexed again which a search did not find. Raises `LedgerError`, `StoreError`.

    `owner` is whose checks found them, see `Findings`: the modality of the requests.
    """
    if not store.needs_repair:
        return
    with closing(Findings.open(settings)) as findings:
        found = findings.of_check(owner, CANARY_RECALL)
    for collection, subjects in found.items():
        named = subjects - {WHOLE}
        try:
            physical = store.collection(collection).physical
        except CollectionNotFoundError:
            continue  # dropped since, and nothing of it is left to be found
        if not named:
            continue  # of the collection as a whole, which a replay with `force` has indexed again
        logger.warning("%d rows of %s were not found by a search; they are indexed again", len(named), collection)
        with versions.exclusive(collection) as lock:
            lock.check()
            _repair(store, physical, named)


def _repair(store: VectorStore, physical: str, ids: Collection[str]) -> None:
    if store.needs_repair:
        for some in _some(ids):
            store.repair(physical, some)


def _some(ids: Collection[str]) -> Iterator[tuple[str, ...]]:
    ordered = sorted(ids)
    for start in range(0, len(ordered), IDS_TOGETHER):
        yield tuple(ordered[start : start + IDS_TOGETHER])
