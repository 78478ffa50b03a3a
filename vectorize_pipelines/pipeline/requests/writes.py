"""Decides under the collection's lock which requests are still the newest, and which rows to write or delete.

A topic is a history: what counts is the newest message of each `task_id`, whichever is processed last. So the decision
is made under the collection's lock, against the versions that earlier messages left (`state/versions.py`), and what is
about to change is noted there before it changes: a run that is killed in between finds it so and completes it.

Made by `requests.encoding`; `announce` is called by `pipeline.writing.write_batch`, once for every try.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import pyarrow as pa

from vectorize_pipelines.core.records import record_schema
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.messaging.messages import Tombstone
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.requests.pending import PendingRequest
from vectorize_pipelines.pipeline.stored_rows import FIELDS_BUT_TEXT, StoredRow, has_fields_of
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.state.versions import EVERY_COLLECTION, Known, SourceVersions, Version
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.contents import rows_of
from vectorize_pipelines.stores.filters.expressions import In

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
        self.store = store
        self.versions = versions
        self._complete: dict[str, bool] = {}

    def known(self, collection: str, source_ids: Collection[str]) -> dict[str, Known]:
        """The newest message of each that has one."""
        return self.versions.known(collection, source_ids)

    def may_have_rows(
        self, collection: str, physical: str, source_ids: Sequence[str], known: Mapping[str, Known]
    ) -> list[str]:
        """The sources among these that the store has to be asked for."""
        if collection not in self._complete:
            self._complete[collection] = self._is_complete(collection, physical)
        return [name for name in source_ids if name in known] if self._complete[collection] else list(source_ids)

    def _is_complete(self, collection: str, physical: str) -> bool:
        if _COMPLETE in self.versions.known(collection, [_COMPLETE]):
            return True
        if self.store.count(physical):
            return False
        self.versions.record(collection, {_COMPLETE: _COMPLETE_VERSION})
        return True


class RequestWrite:
    """The rows of some requests for one collection; of each `task_id` there is one request.

    A batch for these has, when it is first announced, the rows of all of them, in their order, each with its vector.

    encoding   what making the vectors took
    cancelled  whether a request has been cancelled meanwhile
    """

    def __init__(
        self,
        sources: KnownSources,
        requests: Sequence[PendingRequest],
        encoding: Totals,
        cancelled: Callable[[PendingRequest], bool],
    ):
        self._store = sources.store
        self._versions = sources.versions
        self._sources = sources
        self._requests = requests
        self._records: pa.Table | None = None
        self._encoding = encoding
        self._cancelled = cancelled
        # What earlier tries set out to do: another generation may not have it yet, whatever this one has by now.
        self._begun: set[str] = set()
        self._stale: dict[str, set[str]] = {}

    def announce(self, batch: EmbeddingBatch) -> None:
        """Narrow the batch to what has to be written, and add what of the requests' earlier rows is stale."""
        if self._records is None:  # not before: a batch that waits may have been laid aside
            self._records = batch.records
        collection = batch.collection
        names = [pending.request.task_id for pending in self._requests]
        known = self._sources.known(collection, names)
        asked = self._sources.may_have_rows(collection, batch.physical, names, known)
        existing = self._existing(batch.physical, asked)
        live = [pending for pending in self._requests if self._counts(pending, known, existing)]
        self._versions.record(collection, {pending.request.task_id: pending.request.origin.version for pending in live})
        live = self._not_deleted(collection, live)
        batch.totals = Totals()
        batch.totals.merge(self._encoding)
        mask = self._mask(self._records, live, existing)
        batch.records = self._records if all(mask) else self._records.filter(pa.array(mask, pa.bool_()))
        _count(live, batch.totals)
        self._begun.update(batch.records["id"].to_pylist())
        for pending in live if existing else ():
            gone = _stale(pending, existing, batch.totals)
            self._stale.setdefault(pending.request.task_id, set()).update(row["id"] for row in gone)
        stale = sorted(id_ for pending in live for id_ in self._stale.get(pending.request.task_id, ()))
        batch.stale = [In("id", tuple(stale))] if stale else []

    def _existing(self, physical: str, names: Sequence[str]) -> dict[str, dict[str, StoredRow]]:
        """Source id -> row id -> row, without vector and text."""
        found: dict[str, dict[str, StoredRow]] = {}
        if names:
            table = self._store.fetch(physical, In("source_id", tuple(names)), FIELDS_BUT_TEXT)
            for row in rows_of(table):
                found.setdefault(row["source_id"], {})[row["id"]] = row
        return found

    def _counts(
        self, pending: PendingRequest, known: Mapping[str, Known], existing: Mapping[str, Mapping[str, StoredRow]]
    ) -> bool:
        """Return whether the request's rows are to be in the store, and set its state."""
        name, version = pending.request.task_id, pending.request.origin.version
        pending.state, pending.vectors = RequestState.COMPLETED, 0
        if self._cancelled(pending):
            pending.state = RequestState.CANCELLED
            return False
        if name in known:
            if known[name].version > version:
                return False
        elif any(row["occurred_at"] > pending.occurred_at for row in existing.get(name, {}).values()):
            return False  # the versions were lost; a message of the same millisecond is taken for the same one
        pending.vectors = len(pending.items)
        return True

    def _not_deleted(self, collection: str, requests: list[PendingRequest]) -> list[PendingRequest]:
        """Return the requests, noted already, that no deletion has overtaken; end the others.

        A deletion does not hold this collection's lock when it is noted, and looks for the source's collections after
        that. Either it finds the note of this one, or it is found here.
        """
        if not self._versions.has_any(EVERY_COLLECTION):
            return requests
        known = self._sources.known(collection, [pending.request.task_id for pending in requests])
        for pending in requests:
            if known[pending.request.task_id].version > pending.request.origin.version:
                pending.vectors = 0
        return [pending for pending in requests if pending.vectors or not pending.items]

    def _mask(
        self, records: pa.Table, live: Sequence[PendingRequest], existing: Mapping[str, Mapping[str, StoredRow]]
    ) -> list[bool]:
        """Return for each row whether it has to be written: those that are right already are left alone."""
        if not existing and len(live) == len(self._requests):
            return [True] * records.num_rows
        counted = set(map(id, live))
        mask: list[bool] = []
        ids = records["id"].to_pylist()
        for pending in self._requests:
            rows = existing.get(pending.request.task_id)
            if id(pending) not in counted or rows is None:
                mask.extend([id(pending) in counted] * len(pending.items))
                continue
            for item, model in zip(pending.items, pending.models, strict=True):
                row = rows.get(ids[len(mask)])
                right = row is not None and row["content_hash"] == item.content_hash and row["model"] == model
                begun = ids[len(mask)] in self._begun
                mask.append(row is None or begun or not right or not has_fields_of(row, item, pending.day))
        return mask


def _count(requests: Sequence[PendingRequest], totals: Totals) -> None:
    """Count requests and their rows, by day."""
    for day, number in Counter(pending.day for pending in requests).items():
        totals.of(day).documents += number
    for pending in requests:
        totals[pending.day].chunks += len(pending.items)


def _stale(
    pending: PendingRequest, existing: Mapping[str, Mapping[str, StoredRow]], totals: Totals
) -> Sequence[StoredRow]:
    """Return, and count, the rows that the request's `task_id` has and should not have any more."""
    rows = existing.get(pending.request.task_id)
    if not rows:
        return ()
    for row in rows.values():
        totals.of(row["partition"])  # a row that moves to another day changes that one too
    stale = [row for row in rows.values() if row["item_index"] >= len(pending.items)]
    for row in stale:
        totals.of(row["partition"]).deleted += 1
    return stale


class Deletion:
    """The deletion of the rows of tombstones' sources from one collection, unless a newer message wrote them."""

    def __init__(self, store: VectorStore, versions: SourceVersions, tombstones: Sequence[Tombstone]):
        self._store = store
        self._versions = versions
        self._newest: dict[str, Version] = {}
        for tombstone in tombstones:
            version = tombstone.origin.version
            self._newest[tombstone.task_id] = max(version, self._newest.get(tombstone.task_id, version))

    def noted(self, default: str) -> list[str]:
        """Note the deletions, and return the collections where the sources may have rows.

        In this order: what is on its way to a collection that is not found here finds the note (`RequestWrite`).
        """
        self._versions.record_deletions(self._newest)
        found = set().union(*self._versions.collections_of(self._newest).values())
        return [name for name in sorted({default, *found}) if self._exists(name)]

    def announce(self, batch: EmbeddingBatch) -> None:
        """Note the deletions in this collection too, and put what is to be deleted into the batch."""
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


#: The records of a batch that only deletes or acknowledges.
NO_RECORDS = record_schema(1).empty_table()
