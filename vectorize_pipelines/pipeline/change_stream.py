"""Changes -> batches of records with their vectors, reading and encoding side by side.

    source ──Change──▶ [thread] plan ──Plan──▶ [thread] encode ──EmbeddingBatch──▶ writer (who iterates)

For sources whose state counts, as a folder's does: `pipeline.folder` makes the stream. At most `queue_batches` batches
wait between two stages, so memory is bounded whatever the size of the partition.
"""

import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import compress

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.encoders.protocol import EngineChoice
from vectorize_pipelines.overlap import prefetch
from vectorize_pipelines.pipeline.changes import Change, Receipt
from vectorize_pipelines.pipeline.encoding import ItemEncoder
from vectorize_pipelines.pipeline.outage import Outage
from vectorize_pipelines.pipeline.planning import Plan, Planner
from vectorize_pipelines.pipeline.stream import EmbeddingBatch, EmbeddingStream
from vectorize_pipelines.pipeline.totals import Failure, Totals
from vectorize_pipelines.records import make_records
from vectorize_pipelines.settings import PipelineSettings
from vectorize_pipelines.stores.filters import In

#: A batch grows until encoding it takes this long: long enough for a full pipeline, short enough to stop soon.
SECONDS_PER_BATCH = 5.0


@dataclass(slots=True)
class ChangeStream(EmbeddingStream):
    """The stream of one run for one collection.

    physical           the collection behind the alias that the run's model is the model of
    announce           called with source ids before their rows change
    acknowledged       called with receipts and the days that were touched, once the store has what they stand for
    all_days_reported  called by `reported`
    interrupt          makes a reading in progress end soon; called when the stream is left early
    """

    changes: Generator[Change, None, None]
    planner: Planner
    collection: str
    physical: str
    model: str
    run_id: str
    items: ItemEncoder
    announce: Callable[[Sequence[str]], None]
    acknowledged: Callable[[Sequence[Receipt], Iterable[str]], None]
    settings: PipelineSettings
    expected: int | None = None
    outage: Outage = field(default_factory=Outage)
    resources: ExitStack = field(default_factory=ExitStack)
    totals: Totals = field(default_factory=Totals)
    failures: list[Failure] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    interrupt: Callable[[], None] = lambda: None
    all_days_reported: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        depth = self.settings.queue_batches
        plans = prefetch(self._read(), depth, "vectorize-read")
        batches = prefetch(self._encode(plans), depth, "vectorize-encode", self.outage)
        self.resources.callback(batches.close)
        yield from batches

    def close(self) -> None:
        self.interrupt()
        self.outage.close()
        self.resources.close()

    def reported(self) -> None:
        self.all_days_reported()

    @property
    def choice(self) -> EngineChoice | None:
        return None if self.items.encoder is None else self.items.encoder.choice

    def _read(self) -> Generator[Plan, None, None]:
        """Runs in the reading thread: parsing, cutting, and looking up what the store has."""
        started = time.perf_counter()
        try:
            for plan in self.planner.plans(self.changes, lambda: self.items.rows_together):
                plan.totals.spread("read", time.perf_counter() - started, _weights(plan))
                yield plan
                started = time.perf_counter()
        finally:
            self.changes.close()

    def _encode(self, plans: Generator[Plan, None, None]) -> Generator[EmbeddingBatch, None, None]:
        """Runs in the encoding thread."""
        with ExitStack() as leases:
            leases.callback(plans.close)
            leases.callback(self.items.close)
            for plan in plans:
                yield self._batch(plan)

    def _batch(self, plan: Plan) -> EmbeddingBatch:
        vectors, made = self._vectors(plan)

        def acknowledge() -> None:
            self.acknowledged(plan.receipts, plan.totals)
            self.totals.merge(plan.totals)
            self.touched.update(plan.totals)
            self.failures.extend(plan.failures)

        items = [row.item for row in plan.rows]
        ids, days, weights = [row.id for row in plan.rows], [row.day for row in plan.rows], _weights(plan)
        models = [self.model] * len(ids)
        contents = {row.id: row.item.content for row in plan.rows if isinstance(row.item.content, bytes)}
        plan.release()
        stale = [In("id", tuple(plan.stale_ids)), In("source_id", tuple(plan.vanished))]
        return EmbeddingBatch(
            collection=self.collection,
            announce=lambda _: self.announce(plan.sources),
            records=make_records(ids, items, days, vectors, made, models, run_id=self.run_id),
            stale=[filter_ for filter_ in stale if filter_.values],
            totals=plan.totals,
            weights=weights,
            acknowledge=acknowledge,
            physical=self.physical,
            contents=contents,
            keep=partial(self.items.keep, items, vectors),
        )

    def _vectors(self, plan: Plan) -> tuple[npt.NDArray[np.float32], list[datetime]]:
        """Vectors of a plan's rows, shape (n, dimension), and when each was made."""
        donated = self.planner.donated_vectors(plan.rows)
        vectors = np.empty((len(plan.rows), self.items.dimension), dtype=np.float32)
        made: list[datetime] = [datetime.now(UTC)] * len(plan.rows)
        to_encode: list[int] = []
        for n, row in enumerate(plan.rows):
            if row.donor in donated:
                vectors[n], made[n] = donated[row.donor]
            else:
                to_encode.append(n)
        if to_encode:
            rows = [plan.rows[n] for n in to_encode]
            vectors[to_encode], errors = self.items.encode(
                [row.item for row in rows], [row.day for row in rows], plan.totals
            )
            refused = {rows[n].item.source_id: error for n, error in errors.items()}
            kept = [row.item.source_id not in refused for row in plan.rows]
            for source_id, error in refused.items():
                self.planner.refuse(plan, source_id, error)
            vectors, made = vectors[kept], list(compress(made, kept))
        return vectors, made


def _weights(plan: Plan) -> Mapping[str, int]:
    return Counter(row.day for row in plan.rows)
