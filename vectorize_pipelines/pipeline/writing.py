"""Writes batches into the store, one path for every stream.

`BatchWriter` is what `written` writes with. Runs have a `pipeline.generations.writer.GenerationWriter`, since a
collection may be several physical ones; for each of these it has a `DirectWriter`.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Protocol, TypeAlias

import pyarrow as pa

from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.held_locks import check_run
from vectorize_pipelines.state.write_journal import WriteJournal
from vectorize_pipelines.stores.base import VectorStore, Written
from vectorize_pipelines.stores.filters.expressions import Filter

logger = logging.getLogger(__name__)

#: Every batch is a commit, and many small ones slow down those after them; where nothing is due, a call is cheap.
BATCHES_BETWEEN_MAINTENANCE = 16

#: Raises `LedgerError` where a lock is lost.
Check: TypeAlias = Callable[[], None]


class BatchWriter(Protocol):
    """Writes the batches of one run. Used by one thread; closed by it, too."""

    @property
    def store(self) -> VectorStore:
        """The store that is written to."""

    def write(self, batch: EmbeddingBatch) -> Sequence[str]:
        """Announce a batch and write it, under its own lock; return the physical collections that hold it.

        Raises `StoreError` with nothing to be acknowledged.
        """

    def physicals(self, collection: str) -> Sequence[str]:
        """Return the collections that batches for this one are written to."""


class DirectWriter:
    """Writes batches into the one collection that they name, and leaves no row behind that some query does not find.

    The latter matters for stores with `needs_repair`, as Weaviate, which may have parts of a row only when it or its
    writer is killed: there the ids of a batch are noted before it is written, and what an earlier write left unfinished
    is repaired. Of a store that needs no repair nothing is noted. Used by one thread; closed by it, too.
    """

    def __init__(self, settings: Settings, store: VectorStore):
        """Raises `LedgerError`."""
        self.store = store
        self._journal = WriteJournal.open(settings) if store.needs_repair else None
        #: (physical collection, writer) of which nothing is left in the journal.
        self._clean: set[tuple[str, str]] = set()

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        if self._journal is not None:
            self._journal.close()

    def write(self, batch: EmbeddingBatch) -> Sequence[str]:
        """Announce a batch and write it, under its own lock; return the collection that holds it.

        Raises `StoreError` with nothing to be acknowledged.
        """
        physical = batch.physical or batch.collection
        with batch.exclusive() as lock:
            lock.check()
            batch.announce(batch)
            self.put(physical, batch.writer, batch.records, batch.stale, lock.check, reindex=batch.reindex)
        return [physical]

    def physicals(self, collection: str) -> Sequence[str]:
        """Return the collection itself."""
        return [collection]

    def put(
        self,
        physical: str,
        writer: str,
        records: pa.Table,
        stale: Sequence[Filter],
        check: Check,
        *,
        reindex: bool = False,
    ) -> None:
        """Write records, if there are any, then delete what is stale; called under the lock of `writer`.

        `check`, called before each of these, raises `LedgerError` where that lock is lost.
        What an earlier write left unfinished is repaired, and so are these records where the store was away meanwhile,
        or where `reindex` says so. Raises `StoreError`; the next call then repairs what this one wrote.
        """
        if self._journal is None:
            self._write(physical, records, stale, check)
            return
        left = self._left(self._journal, physical, writer)
        self._clean.discard((physical, writer))
        ids = records["id"].to_pylist()
        self._journal.begin(physical, writer, ids)
        written = self._write(physical, records, stale, check)
        if reindex or written.resent:
            left = [*left, *ids]
        self._repair(physical, left)
        self._end(self._journal, physical, writer)

    def unfinished_writers(self, physical: str) -> list[str]:
        """Return those who have left a write to a collection unfinished, or are at it."""
        return [] if self._journal is None else self._journal.writers(physical)

    def repair_left(self, physical: str, writer: str) -> None:
        """Repair what an earlier run left unfinished; called under the lock of `writer`. Raises `StoreError`."""
        if self._journal is not None and (left := self._left(self._journal, physical, writer)):
            self._repair(physical, left)
            self._end(self._journal, physical, writer)

    def _left(self, journal: WriteJournal, physical: str, writer: str) -> list[str]:
        return [] if (physical, writer) in self._clean else journal.left(physical, writer)

    def _end(self, journal: WriteJournal, physical: str, writer: str) -> None:
        journal.end(physical, writer)
        self._clean.add((physical, writer))

    def _write(self, physical: str, records: pa.Table, stale: Sequence[Filter], check: Check) -> Written:
        check()
        written = self.store.upsert(physical, records) if records.num_rows else Written(0, 0)
        for filter_ in stale:
            check()
            self.store.delete(physical, filter_)
        return written

    def _repair(self, physical: str, ids: Sequence[str]) -> None:
        if ids:
            there = self.store.repair(physical, list(dict.fromkeys(ids)))
            logger.info("%d rows of %s were indexed again", there, physical)


def write_batch(writer: BatchWriter, batch: EmbeddingBatch) -> None:
    """Write a batch, delete what it made stale, have the store make its collections durable, and acknowledge it.

    Raises `StoreError` with nothing acknowledged. Killed between any two of these steps, or without power from then on,
    the next run finds the source announced and not acknowledged: it reads it again, finds the rows that are right, and
    completes the rest. Rows that it finds right may be of a run that was killed before it had them made durable: so the
    collections of a batch are flushed also where it wrote nothing.
    """
    started = time.perf_counter()
    writer.store.flush(writer.write(batch))
    batch.totals.spread("write", time.perf_counter() - started, batch.weights)
    check_run()  # a run that was declared lost while the store was at work leaves it to its successor
    batch.acknowledge()


def written(writer: BatchWriter, stream: EmbeddingStream) -> Iterator[EmbeddingBatch]:
    """Write the stream batch by batch, yield each once it is acknowledged, and keep the collections compact.

    A store that is away is waited for (`pipeline.outage`), and only the write is tried again. Raises as `write_batch`
    does; what was yielded before stays.
    """

    def maintain(collection: str) -> None:
        for name in writer.physicals(collection):
            check_run()
            with suppress(CollectionNotFoundError):  # nobody has made it: all that there was so far was refused
                stream.outage.call(partial(writer.store.maintain, name))

    collections: set[str] = set()
    for number, batch in enumerate(stream, 1):
        stream.outage.call(partial(write_batch, writer, batch), began=batch.cache_once)
        collections.add(batch.collection)
        if number % BATCHES_BETWEEN_MAINTENANCE == 0:
            maintain(batch.collection)
        yield batch
    if stream.touched:
        for collection in sorted(collections or {stream.collection}):
            maintain(collection)
