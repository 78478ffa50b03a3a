"""What a run hands to the store: batches of records, one stream a run, and how they are written.

    source ──▶ [thread] read ──▶ [thread] encode ──EmbeddingBatch──▶ `written` (who iterates)

An asset makes an `EmbeddingStream` and hands it to the IO manager as its output; the IO manager writes it with
`written`. `change_stream` has the stream of files, `request_stream` that of messages.
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from vectorize_pipelines.encoders.protocol import EngineChoice
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.exclusive import ExclusiveLock, unlocked
from vectorize_pipelines.pipeline.outage import Outage
from vectorize_pipelines.pipeline.totals import Failure, Totals
from vectorize_pipelines.stores.filters import Filter
from vectorize_pipelines.stores.protocol import VectorStore

if TYPE_CHECKING:
    from vectorize_pipelines.pipeline.mirroring import Mirrors

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_SECONDS = 10.0
#: Every batch is a commit, and many small ones slow down those after them; where nothing is due, a call is cheap.
BATCHES_BETWEEN_MAINTENANCE = 16


def _nothing() -> None:
    """What is called where there is nothing to do."""


@dataclass(slots=True)
class EmbeddingBatch:
    """What is written together into one collection.

    In this order: `announce(batch)`, `records`, deletion of what is `stale`, all while `exclusive()` is held; then
    `acknowledge()`.

    announce   tells the source which of its documents are about to change in the store; may still take rows out of
               the batch's `records` and put filters into `stale`. Called again where writing is tried again
    records    `records.record_schema`; may be empty
    stale      rows of earlier versions and of vanished sources, to be deleted once `records` are written
    totals     what the batch did, by day; its writer adds the time that writing took
    weights    rows written, by day
    exclusive  keeps other writers of the same sources away; a run that is the only one needs no lock for each batch
    physical   the collection whose model made the vectors, as the alias stood when the run looked; empty: `collection`
               as it stands now
    contents   by id, what rows without a text were made from, where it is at hand: for other generations' vectors
    keep       keeps the vectors where the next run finds them, should this one not get to write them
    """

    collection: str
    announce: Callable[["EmbeddingBatch"], None]
    records: pa.Table
    stale: Sequence[Filter]
    totals: Totals
    weights: Mapping[str, int]
    acknowledge: Callable[[], None]
    exclusive: Callable[[], AbstractContextManager[ExclusiveLock]] = unlocked
    physical: str = ""
    contents: Mapping[str, bytes] = field(default_factory=dict)
    keep: Callable[[], None] = _nothing

    def let_go(self) -> None:
        """Called once the batch has been written everywhere: what it was made from is not needed any more."""
        self.contents, self.keep = {}, _nothing

    def secure(self) -> None:
        """Calls `keep`, the first time only."""
        keep, self.keep = self.keep, _nothing
        keep()


class EmbeddingStream(ABC):
    """Batches of one run, and running totals of those acknowledged. Iterated once.

    A context manager: leaving it stops the threads and releases what the stream holds (locks, processes, connections),
    whether or not everything was read.

    collection  the collection that the run is for; batches may name further ones
    model       what the run encodes with, as its metadata shows it
    failures    sources that could not be embedded
    touched     days of which something was written, deleted or refused, by an earlier run that was killed too
    expected    the number of sources, where it is known
    outage      bears with a store that is away; without one such a store fails the run at once
    """

    collection: str
    model: str
    totals: Totals
    failures: list[Failure]
    touched: set[str]
    expected: int | None = None
    outage: Outage = Outage()

    @abstractmethod
    def __iter__(self) -> Iterator[EmbeddingBatch]:
        """The batches, in the order in which they have to be written. Called once, by `written`."""

    @abstractmethod
    def close(self) -> None:
        """Ends reading and encoding soon, and releases everything. A second call does nothing."""

    @abstractmethod
    def reported(self) -> None:
        """Called once the days in `touched` have been told to the user."""

    @property
    def choice(self) -> EngineChoice | None:
        """How the run encodes; None where it encoded nothing."""
        return None

    def figures(self) -> Mapping[str, int | float]:
        """Further figures of the run as a whole, for its metadata."""
        return {}

    def progress(self) -> str:
        """What there is to say of the run between two batches, beyond the totals; called now and then."""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_batch(store: VectorStore, batch: EmbeddingBatch, mirrors: "Mirrors | None" = None) -> None:
    """Writes a batch, deletes what it made stale, acknowledges it. Raises `StoreError` with nothing acknowledged.

    Killed between any two of these steps, the next run finds the source announced and not acknowledged: it reads it
    again, finds the rows that are right, and completes the rest. `mirrors` writes to every generation of a collection
    that is being embedded again; without, the collection has one.
    """
    started = time.perf_counter()
    if mirrors is not None:
        mirrors.write(batch)
    else:
        with batch.exclusive() as lock:
            batch.announce(batch)
            lock.check()
            if batch.records.num_rows:
                store.upsert(batch.physical or batch.collection, batch.records)
            for stale in batch.stale:
                store.delete(batch.physical or batch.collection, stale)
    batch.totals.spread("write", time.perf_counter() - started, batch.weights)
    batch.acknowledge()


def written(store: VectorStore, stream: EmbeddingStream, mirrors: "Mirrors | None" = None) -> Iterator[EmbeddingBatch]:
    """Writes the stream batch by batch, giving each once it is acknowledged, and keeps the collections compact.

    A store that is away is waited for (`pipeline.outage`), and only the write is tried again. Raises as `write_batch`
    does; what was given before stays.
    """

    def maintain(collection: str) -> None:
        for name in [collection] if mirrors is None else mirrors.physicals(collection):
            with suppress(CollectionNotFoundError):  # nobody has made it: all that there was so far was refused
                stream.outage.wait_out(partial(store.maintain, name))

    collections: set[str] = set()
    for number, batch in enumerate(stream, 1):
        stream.outage.wait_out(partial(write_batch, store, batch, mirrors), began=batch.secure)
        collections.add(batch.collection)
        if number % BATCHES_BETWEEN_MAINTENANCE == 0:
            maintain(batch.collection)
        yield batch
    if stream.touched:
        for collection in sorted(collections or {stream.collection}):
            maintain(collection)


class ProgressLog:
    """Says now and then how far a stream is: who writes it calls `show` after each batch.

    Every message carries the `stream` itself, for handlers that draw a bar; those between two intervals have level
    DEBUG.
    """

    def __init__(self, stream: EmbeddingStream):
        self._stream = stream
        self._started = self._shown = time.monotonic()

    def show(self, *, last: bool = False) -> None:
        """One log message."""
        now = time.monotonic()
        due = last or now - self._shown >= PROGRESS_INTERVAL_SECONDS
        if due:
            self._shown = now
        done = self._stream.totals.sum()
        further = self._stream.progress() if due else ""
        logger.log(
            logging.INFO if due else logging.DEBUG,
            "%s: %d%s documents, %d chunks encoded (%.0f a second), %d deleted, %d documents refused%s",
            self._stream.collection,
            done.documents,
            f" of {self._stream.expected}" if self._stream.expected is not None else "",
            done.encoded,
            done.encoded / max(now - self._started, 1e-9),
            done.deleted,
            done.failed,
            f"; {further}" if further else "",
            extra={"stream": self._stream},
        )
