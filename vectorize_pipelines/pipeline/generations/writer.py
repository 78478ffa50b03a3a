"""Writes batches to all generations of a collection that is being embedded again.

    batch ──▶ no generations known ──▶ the collection, and look again ──▶ acknowledge
          ──▶ several ──▶ vectors by each one's model ──▶ [lock] all of them, the live one last ──▶ acknowledge

`pipeline.writing.written` writes with it. Why nothing is lost: a writer that saw no generations
looks again once it has written, and before it acknowledges, and writes to those that have appeared. Who copies from
one generation to another does so under the lock. A write that fails in one generation fails as a whole: nothing is
acknowledged, and the run or the next one repeats it. The live one is written last, because the next run compares its
source with that one: what it finds there, the others have.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from vectorize_pipelines.core.items import Item
from vectorize_pipelines.errors import CollectionNotFoundError, ItemError, StoreError, VectorizeError
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.encoding import LeaseEncoder
from vectorize_pipelines.pipeline.generations.recutting import Recutter, can_be_cut
from vectorize_pipelines.pipeline.generations.rows import FIELDS, Refused, RowReembedder
from vectorize_pipelines.pipeline.stored_rows import StoredRow
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.pipeline.writing import Check, DirectWriter
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.rereading import listed_roots
from vectorize_pipelines.state.generations import Generation, Generations, Identity
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.filters.expressions import Filter, In, Or

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Prepared:
    """A batch as it is written to another generation.

    records   rows for the ids of the batch, and all rows of the documents that are cut anew
    without   ids of the batch's rows that have no counterpart there
    sources   of the batch's rows
    cut       source id -> ids of its rows, for the documents that are cut anew
    replaced  ids of stale rows of these documents, which may be ids of other passages there
    """

    records: pa.Table
    without: list[str]
    sources: set[str]
    cut: Mapping[str, Sequence[str]]
    replaced: set[str]


class GenerationWriter:
    """A `BatchWriter` that writes to every generation of a collection. Used by one thread; closed by it, too."""

    def __init__(self, settings: Settings, store: VectorStore, lease_encoder: LeaseEncoder):
        """Raises `LedgerError`. Loads no model before one is needed."""
        self._settings = settings
        self._roots = listed_roots(settings)
        self.store = store
        self._lease_encoder = lease_encoder
        self._generations = Generations.open(settings)
        self._direct = DirectWriter(settings, store)
        self._reembedders: dict[Identity, RowReembedder] = {}
        self._recutters: dict[Identity, Recutter] = {}
        self._standing: dict[str, str] = {}

    def close(self) -> None:
        """Give back encoders and connections; a second call does nothing."""
        for reembedder in self._reembedders.values():
            reembedder.close()
        for recutter in self._recutters.values():
            recutter.close()
        self._direct.close()
        self._generations.close()

    def physicals(self, collection: str) -> list[str]:
        """Return the collections that batches for this one are written to."""
        return [each.physical for each in self._generations.written(collection)] or [collection]

    def write(self, batch: EmbeddingBatch) -> list[str]:
        """Announce a batch and write it, under its own lock; return the generations that hold it, the live one last.

        Raises `StoreError` with nothing to be acknowledged.
        """
        own = batch.physical or self._standing_for(batch.collection)
        prepared: dict[Identity, _Prepared] = {}
        for generation in self._others(batch.collection, own):
            prepared[generation.identity] = self._prepare(batch, own, generation)
        with batch.exclusive() as lock:
            lock.check()
            batch.announce(batch)
            if prepared or not self._write_alone(batch, own, lock):
                holding = self._write_all(batch, own, prepared, lock)
            else:
                holding = [own]
        return holding

    def _write_alone(self, batch: EmbeddingBatch, own: str, lock: ExclusiveLock) -> bool:
        """Write to the one generation that was known; return false where another one has come meanwhile."""
        self._direct.put(own, batch.writer, batch.records, batch.stale, lock.check, reindex=batch.reindex)
        return not self._others(batch.collection, own)

    def _others(self, collection: str, own: str) -> list[Generation]:
        written = self._generations.written(collection)
        self._release_dropped(collection, written)
        return [each for each in written if each.physical != own]

    def _release_dropped(self, collection: str, written: Sequence[Generation]) -> None:
        """Give back the encoders and parsers of generations that were dropped meanwhile."""
        standing = {each.identity for each in written}
        for key, reembedder in list(self._reembedders.items()):
            if reembedder.generation.collection == collection and key not in standing:
                self._reembedders.pop(key).close()
                if key in self._recutters:
                    self._recutters.pop(key).close()

    def _standing_for(self, collection: str) -> str:
        """Return what the alias stood for when this run first wrote to it: its vectors are of that one's model."""
        if collection not in self._standing:
            try:
                self._standing[collection] = self.store.collection(collection).physical
            except CollectionNotFoundError:
                return collection  # nobody has made it yet, for a batch that has no rows and only acknowledges
        return self._standing[collection]

    def _write_all(
        self, batch: EmbeddingBatch, own: str, prepared: dict[Identity, _Prepared], lock: ExclusiveLock
    ) -> list[str]:
        """Write to all generations, under their lock, too; it had to be waited for."""
        while True:
            with self._generations.exclusive(batch.collection) as lock_of_generations:
                written = self._generations.written(batch.collection)
                _check_known(batch.collection, own, written)
                missing = [each for each in written if each.physical != own and each.identity not in prepared]
                if not missing:
                    self._put_all(batch, own, written, prepared, partial(_check_both, lock, lock_of_generations))
                    return [each.physical for each in written]
            for generation in missing:
                prepared[generation.identity] = self._prepare(batch, own, generation)

    def _put_all(
        self,
        batch: EmbeddingBatch,
        own: str,
        written: Sequence[Generation],
        prepared: dict[Identity, _Prepared],
        check: Check,
    ) -> None:
        for generation in written:
            if generation.physical == own:
                self._direct.put(own, batch.writer, batch.records, batch.stale, check, reindex=batch.reindex)
            else:
                self._put_prepared(batch, generation, prepared[generation.identity], check)

    def _put_prepared(self, batch: EmbeddingBatch, generation: Generation, prepared: _Prepared, check: Check) -> None:
        """Write what of a prepared batch is still to be written: announcing it may have taken rows out."""
        dropped = prepared.sources.difference(batch.records["source_id"].to_pylist())
        cut = {source_id: rows for source_id, rows in prepared.cut.items() if source_id not in dropped}
        passages = {id_ for rows in cut.values() for id_ in rows}
        ids = passages.union(batch.records["id"].to_pylist())
        records = prepared.records.filter(pc.is_in(prepared.records["id"], pa.array(sorted(ids), pa.string())))
        stale = [_without(filter_, prepared.replaced) for filter_ in batch.stale]
        gone = [id_ for id_ in prepared.without if id_ in ids]
        if cut:
            there = self.store.fetch(generation.physical, In("source_id", tuple(cut)), ("id",))["id"].to_pylist()
            gone += set(there) - passages  # the batch's own ids are those of other passages here
        stale += [In("id", tuple(gone))] if gone else []
        self._direct.put(generation.physical, batch.writer, records, stale, check, reindex=batch.reindex)

    # ---- what a batch comes to in another generation

    def _prepare(self, batch: EmbeddingBatch, own: str, generation: Generation) -> _Prepared:
        """Encode what a batch comes to in a generation; nothing is written."""
        reembedder = self._reembedder(generation)
        rows: list[StoredRow] = batch.records.select(FIELDS).to_pylist()
        stale = self._stale_rows(batch, own, generation)
        cut = self._cut_anew([*stale, *rows], own, generation)
        loaded, refused = reembedder.load([row for row in rows if row["source_id"] not in cut], batch.contents)
        for pairs in cut.values():
            loaded += pairs
        records, not_encoded, _ = reembedder.encode(loaded, Totals())
        _log_refused(generation, [*refused, *not_encoded])
        return _Prepared(
            records,
            without=[each.row["id"] for each in (*refused, *not_encoded)],
            sources={row["source_id"] for row in rows},
            cut={source_id: [row["id"] for row, _ in pairs] for source_id, pairs in cut.items()},
            replaced={row["id"] for row in stale if row["source_id"] in cut},
        )

    def _is_cut_otherwise(self, own: str, generation: Generation) -> bool:
        cuts = {each.physical: each.cut for each in self._generations.of(generation.collection)}
        return cuts.get(own, own) != generation.cut

    def _stale_rows(self, batch: EmbeddingBatch, own: str, generation: Generation) -> list[StoredRow]:
        """Return the rows that a batch deletes by id, where the other generation cuts their documents otherwise."""
        ids = tuple(filter_ for filter_ in batch.stale if isinstance(filter_, In) and filter_.field == "id")
        if not ids or not self._is_cut_otherwise(own, generation):
            return []
        found: list[StoredRow] = self.store.fetch(own, Or(ids), FIELDS).to_pylist()
        return found

    def _cut_anew(
        self, rows: Sequence[StoredRow], own: str, generation: Generation
    ) -> dict[str, list[tuple[StoredRow, Item]]]:
        """Return, by source, the passages that a generation with another cut has of these rows' documents."""
        documents = {row["source_id"]: row for row in rows if can_be_cut(row, self._roots)}
        if not documents or not self._is_cut_otherwise(own, generation):
            return {}
        if generation.identity not in self._recutters:
            self._recutters[generation.identity] = Recutter(self._settings, generation)
        found = self._recutters[generation.identity].cut(documents.values())
        return {source_id: cut for source_id, cut in found.items() if not isinstance(cut, ItemError)}

    def _reembedder(self, generation: Generation) -> RowReembedder:
        if generation.identity not in self._reembedders:
            try:
                self._reembedders[generation.identity] = RowReembedder(self._settings, generation, self._lease_encoder)
            except VectorizeError as error:
                raise StoreError(
                    f"nothing was written: {generation.collection} is also written to {generation.physical}, which "
                    f"cannot be: {error}; `vectorize collections drop {generation.physical}` does without it"
                ) from error
        return self._reembedders[generation.identity]


def _check_both(lock: ExclusiveLock, lock_of_generations: ExclusiveLock) -> None:
    lock.check()
    lock_of_generations.check()


def _check_known(collection: str, own: str, written: Sequence[Generation]) -> None:
    if own not in {each.physical for each in written}:
        raise StoreError(
            f"nothing was written: {own} is none of the generations of {collection!r} "
            f"({', '.join(each.physical for each in written) or 'there are none'}); where the run began before it was "
            "dropped, run again; where a collection was dropped by other means than `vectorize collections drop`, have "
            "this command forget it"
        )


def _without(filter_: Filter, ids: set[str]) -> Filter:
    """Return the filter without these ids, where it is one of ids."""
    if not ids or not isinstance(filter_, In) or filter_.field != "id":
        return filter_
    return In("id", tuple(value for value in filter_.values if value not in ids))


def _log_refused(generation: Generation, refused: Sequence[Refused]) -> None:
    for each in refused[:5]:
        logger.warning("%s has no row of %s: %s", generation.physical, each.row["source_id"], each.error)
    if len(refused) > 5:
        logger.warning("%s has no rows of %d further items", generation.physical, len(refused) - 5)
