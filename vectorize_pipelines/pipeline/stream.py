"""Changes -> batches of records with their vectors, reading and encoding side by side.

    source ──Change──▶ [thread] plan ──Plan──▶ [thread] encode ──EmbeddingBatch──▶ writer (who iterates)

An asset makes an `EmbeddingStream` and hands it to the IO manager as its output; the IO manager iterates it and
writes it with `written`. At most `queue_batches` batches wait between two stages, so memory is bounded
whatever the size of the partition.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import compress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vectorize_pipelines.encoders.protocol import Encoder
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.overlap import prefetch
from vectorize_pipelines.pipeline.changes import Change, Receipt
from vectorize_pipelines.pipeline.planning import Plan, PlannedRow, Planner
from vectorize_pipelines.pipeline.reuse import VectorReuse, content_key
from vectorize_pipelines.pipeline.totals import Failure, Totals
from vectorize_pipelines.records import record_schema
from vectorize_pipelines.settings import PipelineSettings
from vectorize_pipelines.stores.filters import Filter, In
from vectorize_pipelines.stores.protocol import VectorStore

logger = logging.getLogger(__name__)

#: A batch grows until encoding it takes this long: long enough for a full pipeline, short enough to stop soon.
SECONDS_PER_BATCH = 5.0
FIRST_BATCH = 128
SMALLEST_BATCH = 32
PROGRESS_INTERVAL_SECONDS = 10.0
#: Every batch is a commit, and many small ones slow down those after them; where nothing is due, a call is cheap.
BATCHES_BETWEEN_MAINTENANCE = 16


@dataclass(slots=True)
class EmbeddingBatch:
    """What is written together. In this order: `announce()`, `records`, deletion of what is `stale`, `acknowledge()`.

    announce  tells the source which of its documents are about to change in the store
    records   `records.record_schema`; may be empty
    stale     rows of earlier versions and of vanished sources, to be deleted once `records` are written
    totals    what the batch did, by day; its writer adds the time that writing took
    weights   rows written, by day
    """

    announce: Callable[[], None]
    records: pa.Table
    stale: Sequence[Filter]
    totals: Totals
    weights: Mapping[str, int]
    acknowledge: Callable[[], None]


@dataclass(slots=True)
class EmbeddingStream:
    """Batches of one run for one collection, and running totals of those acknowledged. Iterated once.

    A context manager: leaving it stops the threads and releases what `resources` holds (locks, parser processes),
    whether or not everything was read.

    announce     called with source ids before their rows change
    acknowledge  called with receipts and the days that were touched, once the store has what they stand for
    reported     to be called once the days in `touched` have been told to the user
    touched      days of which something was written, deleted or refused, by an earlier run that was killed too
    expected     the number of source documents, where it is known
    interrupt    makes a reading in progress end soon; called when the stream is left early
    """

    changes: Generator[Change, None, None]
    planner: Planner
    collection: str
    model: str
    dimension: int
    run_id: str
    lease_encoder: Callable[[], AbstractContextManager[Encoder]]
    reuse: VectorReuse
    announce: Callable[[Sequence[str]], None]
    acknowledge: Callable[[Sequence[Receipt], Iterable[str]], None]
    settings: PipelineSettings
    expected: int | None = None
    resources: ExitStack = field(default_factory=ExitStack)
    totals: Totals = field(default_factory=Totals)
    failures: list[Failure] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    encoder: Encoder | None = None
    interrupt: Callable[[], None] = lambda: None
    reported: Callable[[], None] = lambda: None
    _rows_together: int = FIRST_BATCH

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.interrupt()
        self.resources.close()

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        depth = self.settings.queue_batches
        plans = prefetch(self._read(), depth, "vectorize-read")
        batches = prefetch(self._encode(plans), depth, "vectorize-encode")
        self.resources.callback(batches.close)
        yield from batches

    def _read(self) -> Generator[Plan, None, None]:
        """Runs in the reading thread: parsing, cutting, and looking up what the store has."""
        started = time.perf_counter()
        try:
            for plan in self.planner.plans(self.changes, lambda: self._rows_together):
                plan.totals.spread("read", time.perf_counter() - started, _weights(plan))
                yield plan
                started = time.perf_counter()
        finally:
            self.changes.close()

    def _encode(self, plans: Generator[Plan, None, None]) -> Generator[EmbeddingBatch, None, None]:
        """Runs in the encoding thread."""
        with ExitStack() as leases:
            leases.callback(plans.close)
            leases.callback(self.reuse.close)
            for plan in plans:
                yield self._batch(plan, leases)

    def _batch(self, plan: Plan, leases: ExitStack) -> EmbeddingBatch:
        vectors, made = self._vectors(plan, leases)

        def acknowledge() -> None:
            self.acknowledge(plan.receipts, plan.totals)
            self.totals.merge(plan.totals)
            self.touched.update(plan.totals)
            self.failures.extend(plan.failures)

        stale = [In("id", tuple(plan.stale_ids)), In("source_id", tuple(plan.vanished))]
        return EmbeddingBatch(
            announce=lambda: self.announce(plan.sources),
            records=self._records(plan.rows, vectors, made),
            stale=[filter_ for filter_ in stale if filter_.values],
            totals=plan.totals,
            weights=_weights(plan),
            acknowledge=acknowledge,
        )

    def _vectors(self, plan: Plan, leases: ExitStack) -> tuple[npt.NDArray[np.float32], list[datetime]]:
        """Vectors of a plan's rows, shape (n, dimension), and when each was made."""
        donated = self.planner.donated_vectors(plan.rows)
        vectors = np.empty((len(plan.rows), self.dimension), dtype=np.float32)
        made: list[datetime] = [datetime.now(UTC)] * len(plan.rows)
        to_encode: list[int] = []
        for n, row in enumerate(plan.rows):
            if row.donor in donated:
                vectors[n], made[n] = donated[row.donor]
            else:
                to_encode.append(n)
        if to_encode:
            before = self.reuse.seconds
            refused = self._fill(plan, to_encode, vectors, leases)
            plan.totals.spread("cache", self.reuse.seconds - before, Counter(plan.rows[n].day for n in to_encode))
            kept = [row.item.source_id not in refused for row in plan.rows]
            for source_id, error in refused.items():
                self.planner.refuse(plan, source_id, error)
            vectors, made = vectors[kept], list(compress(made, kept))
        return vectors, made

    def _fill(
        self, plan: Plan, positions: Sequence[int], vectors: npt.NDArray[np.float32], leases: ExitStack
    ) -> dict[str, ItemError]:
        """Fills in the vectors of these rows, each content encoded once; by source id, what the encoder refused.

        A refusal is not shared, nor is the vector of a file that has changed meanwhile: the rows of the same content
        are encoded by themselves then, and those refused have each its own error.
        """
        waiting: dict[bytes, list[int]] = {}
        for n in positions:
            waiting.setdefault(content_key(plan.rows[n].item), []).append(n)
        self._take_known(plan, waiting, vectors)
        if not waiting:
            return {}
        refused, seconds = self._encode_rows(plan, [rows[0] for rows in waiting.values()], vectors, leases)
        firsts = {key: plan.rows[rows[0]].item for key, rows in waiting.items()}
        encoded = {
            key: (item, vectors[waiting[key][0]].copy())
            for key, item in firsts.items()
            if item.source_id not in refused
        }
        shareable = self.reuse.keep(encoded, seconds)
        apart: list[int] = []
        for key, (first, *others) in waiting.items():
            if key in shareable:
                self._share(plan, others, vectors, vectors[first])
            else:
                apart += others
        if apart:
            refused |= self._encode_rows(plan, apart, vectors, leases)[0]
        return refused

    def _take_known(self, plan: Plan, waiting: dict[bytes, list[int]], vectors: npt.NDArray[np.float32]) -> None:
        """Fills in what the run or the cache has, and takes it out of `waiting` (rows by content)."""
        recent = self.reuse.recent(list(waiting))
        cached = self.reuse.cached([key for key in waiting if key not in recent])
        for key, vector in recent.items():
            self._share(plan, waiting.pop(key), vectors, vector)
        for key, vector in cached.items():
            first, *others = waiting.pop(key)
            vectors[first] = vector
            plan.totals.of(plan.rows[first].day).cache_hits += 1
            self._share(plan, others, vectors, vector)

    def _share(
        self, plan: Plan, rows: Sequence[int], vectors: npt.NDArray[np.float32], vector: npt.NDArray[np.float32]
    ) -> None:
        """Gives these rows the vector of another one."""
        for n in rows:
            vectors[n] = vector
            plan.totals.of(plan.rows[n].day).deduplicated += 1

    def _encode_rows(
        self, plan: Plan, positions: Sequence[int], vectors: npt.NDArray[np.float32], leases: ExitStack
    ) -> tuple[dict[str, ItemError], float]:
        """Encodes these rows; by source id what the encoder refused, and the seconds that it took."""
        if self.encoder is None:
            self.encoder = leases.enter_context(self.lease_encoder())
        rows = [plan.rows[n] for n in positions]
        started = time.perf_counter()
        vectors[positions], errors = self.encoder.encode_each([_content(row) for row in rows])
        seconds = time.perf_counter() - started
        for n, row in enumerate(rows):
            totals = plan.totals.of(row.day)
            totals.encode_seconds += seconds / len(rows)
            if n not in errors:
                totals.encoded += 1
                totals.tokens += row.item.tokens
        self._adapt(len(rows), seconds)
        return {rows[n].item.source_id: error for n, error in errors.items()}, seconds

    def _adapt(self, rows: int, seconds: float) -> None:
        """Sizes the batches to come by how long this one took."""
        if rows < self._rows_together // 2:
            return  # too few to tell
        fitting = int(rows * SECONDS_PER_BATCH / max(seconds, 1e-3))
        self._rows_together = max(SMALLEST_BATCH, min(self.settings.batch_items, fitting, 4 * self._rows_together))

    def _records(self, rows: Sequence[PlannedRow], vectors: npt.NDArray[np.float32], made: list[datetime]) -> pa.Table:
        schema = record_schema(self.dimension)
        items = [row.item for row in rows]
        columns: dict[str, Any] = {
            "id": [row.id for row in rows],
            "partition": [row.day for row in rows],
            "model": [self.model] * len(rows),
            "run_id": [self.run_id] * len(rows),
            "embedded_at": made,
            "metadata": [json.dumps(item.metadata, ensure_ascii=False, sort_keys=True) for item in items],
            "vector": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)), type=schema.field("vector").type
            ),
        }
        return pa.table(
            [columns[name] if name in columns else [getattr(item, name) for item in items] for name in schema.names],
            schema=schema,
        )


def _content(row: PlannedRow) -> str | Path | bytes:
    content = row.item.content if row.item.text is None else row.item.text
    if content is None:
        raise ValueError(f"{row.item.source_id} has neither text nor content to encode")
    return content


def _weights(plan: Plan) -> Mapping[str, int]:
    return Counter(row.day for row in plan.rows)


def write_batch(store: VectorStore, collection: str, batch: EmbeddingBatch) -> None:
    """Writes a batch, deletes what it made stale, acknowledges it. Raises `StoreError` with nothing acknowledged.

    Killed between any two of these steps, the next run finds the source announced and not acknowledged: it reads it
    again, finds the rows that are right, and completes the rest.
    """
    started = time.perf_counter()
    batch.announce()
    if batch.records.num_rows:
        store.upsert(collection, batch.records)
    for stale in batch.stale:
        store.delete(collection, stale)
    batch.totals.spread("write", time.perf_counter() - started, batch.weights)
    batch.acknowledge()


def written(store: VectorStore, stream: EmbeddingStream) -> Iterator[EmbeddingBatch]:
    """Writes the stream batch by batch, giving each once it is acknowledged, and keeps the collection compact.

    Raises as `write_batch` does; what was given before stays.
    """
    for number, batch in enumerate(stream, 1):
        write_batch(store, stream.collection, batch)
        if number % BATCHES_BETWEEN_MAINTENANCE == 0:
            store.maintain(stream.collection)
        yield batch
    if stream.touched:
        store.maintain(stream.collection)


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
        logger.log(
            logging.INFO if due else logging.DEBUG,
            "%s: %d%s documents, %d chunks encoded (%.0f a second), %d deleted, %d documents refused",
            self._stream.collection,
            done.documents,
            f" of {self._stream.expected}" if self._stream.expected is not None else "",
            done.encoded,
            done.encoded / max(now - self._started, 1e-9),
            done.deleted,
            done.failed,
            extra={"stream": self._stream},
        )
