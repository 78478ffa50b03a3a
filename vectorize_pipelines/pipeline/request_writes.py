"""Decides, while nobody else writes to the collection, what of some requests still has to be written.

A topic is a history: what counts is the newest message of each `task_id`, whichever is processed last. So the decision
is made under the collection's lock, against the versions that earlier messages left (`versions.py`), and what is about
to change is noted there before it changes: a run that is killed in between finds it so and completes it.

`pipeline.request_stream` makes these; `announce` is called by `pipeline.stream.write_batch`, once for every try.
"""

import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.messaging.messages import Tombstone
from vectorize_pipelines.pipeline.planning import FIELDS_BUT_TEXT, is_right
from vectorize_pipelines.pipeline.requests import Work
from vectorize_pipelines.pipeline.stream import EmbeddingBatch
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.records import record_schema
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.stores.filters import In
from vectorize_pipelines.stores.protocol import VectorStore
from vectorize_pipelines.versions import EVERY_COLLECTION, Known, SourceVersions, Version

_Row: TypeAlias = dict[str, Any]

#: Noted of a collection that was empty when its first request came: all its rows' versions are known. No task has
#: this id.
_COMPLETE = ""
_COMPLETE_VERSION: Version = (0, "", 0, 0)


class KnownSources:
    """Which sources of a collection may have rows: asking the store for each of them would be slow.

    Every request's version is noted before its rows are written, so a source without a version has no rows, unless
    the table of versions was lost or others write to the collection: then every source is looked for.
    """

    def __init__(self, store: VectorStore, versions: SourceVersions):
        self._store = store
        self._versions = versions
        self._complete: dict[str, bool] = {}

    def known(self, collection: str, source_ids: Collection[str]) -> dict[str, Known]:
        """The newest message of each that has one."""
        return self._versions.known(collection, source_ids)

    def may_have_rows(
        self, collection: str, physical: str, source_ids: Sequence[str], known: Mapping[str, Known]
    ) -> list[str]:
        """Those of the sources that the store has to be asked for."""
        if collection not in self._complete:
            self._complete[collection] = self._is_complete(collection, physical)
        return [name for name in source_ids if name in known] if self._complete[collection] else list(source_ids)

    def _is_complete(self, collection: str, physical: str) -> bool:
        if _COMPLETE in self._versions.known(collection, [_COMPLETE]):
            return True
        if self._store.count(physical):
            return False
        self._versions.record(collection, {_COMPLETE: _COMPLETE_VERSION})
        return True


class RequestWrite:
    """The rows of some requests for one collection; of each `task_id` there is one request.

    A batch for these has, when it is first announced, the rows of all of them, in their order, each with its vector.

    encoding   what making the vectors took
    cancelled  whether a request has been cancelled meanwhile
    """

    def __init__(
        self,
        store: VectorStore,
        versions: SourceVersions,
        sources: KnownSources,
        works: Sequence[Work],
        encoding: Totals,
        cancelled: Callable[[Work], bool],
    ):
        self._store = store
        self._versions = versions
        self._sources = sources
        self._works = works
        self._records: pa.Table | None = None
        self._encoding = encoding
        self._cancelled = cancelled
        # What earlier tries set out to do: another generation may not have it yet, whatever this one has by now.
        self._begun: set[str] = set()
        self._stale: dict[str, set[str]] = {}

    def announce(self, batch: EmbeddingBatch) -> None:
        """Narrows the batch to what has to be written, and adds what of the requests' earlier rows is stale."""
        if self._records is None:  # not before: a batch that waits may have been laid aside
            self._records = batch.records
        collection = batch.collection
        names = [work.request.task_id for work in self._works]
        known = self._sources.known(collection, names)
        asked = self._sources.may_have_rows(collection, batch.physical, names, known)
        existing = self._existing(batch.physical, asked)
        live = [work for work in self._works if self._counts(work, known, existing)]
        self._versions.record(collection, {work.request.task_id: work.request.origin.version for work in live})
        live = self._not_deleted(collection, live)
        batch.totals = Totals()
        batch.totals.merge(self._encoding)
        mask = self._mask(self._records, live, existing)
        batch.records = self._records if all(mask) else self._records.filter(pa.array(mask, pa.bool_()))
        _count(live, batch.totals)
        self._begun.update(batch.records["id"].to_pylist())
        for work in live if existing else ():
            gone = _stale(work, existing, batch.totals)
            self._stale.setdefault(work.request.task_id, set()).update(row["id"] for row in gone)
        stale = sorted(id_ for work in live for id_ in self._stale.get(work.request.task_id, ()))
        batch.stale = [In("id", tuple(stale))] if stale else []

    def _existing(self, physical: str, names: Sequence[str]) -> dict[str, dict[str, _Row]]:
        """Source id -> row id -> row, without vector and text."""
        found: dict[str, dict[str, _Row]] = {}
        if names:
            table = self._store.fetch(physical, In("source_id", tuple(names)), FIELDS_BUT_TEXT)
            for row in table.to_pylist():
                row["metadata"] = json.loads(row["metadata"])
                found.setdefault(row["source_id"], {})[row["id"]] = row
        return found

    def _counts(self, work: Work, known: Mapping[str, Known], existing: Mapping[str, Mapping[str, _Row]]) -> bool:
        """Whether the request's rows are to be in the store; sets its state."""
        name, version = work.request.task_id, work.request.origin.version
        work.state, work.vectors = RequestState.COMPLETED, 0
        if self._cancelled(work):
            work.state = RequestState.CANCELLED
            return False
        if name in known:
            if known[name].version > version:
                return False
        elif any(row["occurred_at"] > work.occurred_at for row in existing.get(name, {}).values()):
            return False  # the versions were lost; a message of the same millisecond is taken for the same one
        work.vectors = len(work.items)
        return True

    def _not_deleted(self, collection: str, works: list[Work]) -> list[Work]:
        """Those of the works, noted already, that no deletion has overtaken; ends the others.

        A deletion does not hold this collection's lock when it is noted, and looks for the source's collections after
        that. Either it finds the note of this one, or it is found here.
        """
        if not self._versions.has_any(EVERY_COLLECTION):
            return works
        known = self._sources.known(collection, [work.request.task_id for work in works])
        for work in works:
            if known[work.request.task_id].version > work.request.origin.version:
                work.vectors = 0
        return [work for work in works if work.vectors or not work.items]

    def _mask(self, records: pa.Table, live: Sequence[Work], existing: Mapping[str, Mapping[str, _Row]]) -> list[bool]:
        """Of each row, whether it has to be written: those that are right already are left alone."""
        if not existing and len(live) == len(self._works):
            return [True] * records.num_rows
        counted = set(map(id, live))
        mask: list[bool] = []
        ids = records["id"].to_pylist()
        for work in self._works:
            rows = existing.get(work.request.task_id)
            if id(work) not in counted or rows is None:
                mask.extend([id(work) in counted] * len(work.items))
                continue
            for item, model in zip(work.items, work.models, strict=True):
                row = rows.get(ids[len(mask)])
                right = row is not None and row["content_hash"] == item.content_hash and row["model"] == model
                begun = ids[len(mask)] in self._begun
                mask.append(row is None or begun or not right or not is_right(row, item, work.day))
        return mask


def _count(works: Sequence[Work], totals: Totals) -> None:
    """Counts requests and their rows, by day."""
    for day, requests in Counter(work.day for work in works).items():
        totals.of(day).documents += requests
    for work in works:
        totals[work.day].chunks += len(work.items)


def _stale(work: Work, existing: Mapping[str, Mapping[str, _Row]], totals: Totals) -> Sequence[_Row]:
    """Rows that the request's `task_id` has and should not have any more; counts them."""
    rows = existing.get(work.request.task_id)
    if not rows:
        return ()
    for row in rows.values():
        totals.of(row["partition"])  # a row that moves to another day changes that one too
    stale = [row for row in rows.values() if row["item_index"] >= len(work.items)]
    for row in stale:
        totals.of(row["partition"]).deleted += 1
    return stale


class Deletion:
    """Deletes the rows of tombstones' sources from one collection, unless a newer message wrote them."""

    def __init__(self, store: VectorStore, versions: SourceVersions, tombstones: Sequence[Tombstone]):
        self._store = store
        self._versions = versions
        self._newest: dict[str, Version] = {}
        for tombstone in tombstones:
            version = tombstone.origin.version
            self._newest[tombstone.task_id] = max(version, self._newest.get(tombstone.task_id, version))

    def noted(self, default: str) -> list[str]:
        """Notes the deletions, and gives the collections where the sources may have rows.

        In this order: what is on its way to a collection that is not found here finds the note (`RequestWrite`).
        """
        self._versions.record_deletions(self._newest)
        found = set().union(*self._versions.collections_of(self._newest).values())
        return [name for name in sorted({default, *found}) if self._exists(name)]

    def announce(self, batch: EmbeddingBatch) -> None:
        """Notes the deletions in this collection too, and puts what is to be deleted into the batch."""
        self._versions.record_deletions(self._newest)
        known = self._versions.known(batch.collection, self._newest)
        doomed = tuple(name for name in self._newest if known[name].deleted)
        where = In("source_id", doomed)
        batch.totals = Totals()
        if doomed:
            for day, rows in self._store.count_by(batch.collection, "partition", where).items():
                batch.totals.of(day).deleted += rows
        batch.stale = [where] if doomed else []

    def _exists(self, collection: str) -> bool:
        try:
            self._store.collection(collection)
        except CollectionNotFoundError:
            return False
        return True


#: Of a batch that only deletes or acknowledges.
NO_RECORDS = record_schema(1).empty_table()
