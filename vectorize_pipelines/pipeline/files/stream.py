"""Changes -> batches of records with their vectors, reading and encoding side by side.

    source ──Change──▶ [thread] plan ──Plan──▶ [thread] encode ──EmbeddingBatch──▶ writer (who iterates)

For sources whose state counts, as a folder's does: `folder` makes the stream. At most `queue_batches` batches
wait between two stages, so memory is bounded whatever the size of the partition.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from datetime import UTC, datetime
from functools import partial
from itertools import compress
from threading import Condition
from types import TracebackType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.core.prefetch import prefetch
from vectorize_pipelines.core.records import make_records
from vectorize_pipelines.encoders.base import EngineChoice
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.encoding import ItemEncoder
from vectorize_pipelines.pipeline.files.changes import Change, Receipt
from vectorize_pipelines.pipeline.files.context import FolderRun
from vectorize_pipelines.pipeline.files.planning import Plan, Planner
from vectorize_pipelines.pipeline.files.tallies import UnchangedFiles
from vectorize_pipelines.pipeline.spill import SpillingRetry
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.pipeline.totals import Failure, RunNotices, Totals
from vectorize_pipelines.state.attempts import may_be_of_an_item
from vectorize_pipelines.stores.filters.expressions import In

#: A batch grows until encoding it takes this long: long enough for a full pipeline, short enough to stop soon.
SECONDS_PER_BATCH = 5.0


class ChangeSource(Protocol):
    """The source of a run's changes, which notes those that the store has.

    expected     the number of sources; None until all have been found
    touched      days of which earlier runs wrote something and told nobody
    unchanged    the sources that are left alone; counted in the reading thread
    left_out     how many temporary files were passed over
    other_kinds  suffix -> how many files were passed over for it
    """

    expected: int | None
    touched: set[str]
    unchanged: UnchangedFiles

    @property
    def left_out(self) -> int: ...

    @property
    def other_kinds(self) -> Mapping[str, int]: ...

    def changes(self) -> Generator[Change, None, None]:
        """Yield the changes, but for suspects. Called in the reading thread."""

    def suspects(self) -> Sequence[Callable[[], Generator[Change, None, None]]]:
        """Return further changes, each begun with the encoder loaded and everything before it acknowledged.

        Called once all of `changes` has been taken.
        """

    def announce(self, source_ids: Sequence[str]) -> None:
        """Note that rows of these sources are about to change."""

    def acknowledge(self, receipts: Sequence[Receipt], days: Collection[str]) -> None:
        """Note that the store has what the receipts stand for, which touched these days."""

    def reported(self) -> None:
        """Note that all days that were touched have been told to the user."""

    def interrupt(self) -> None:
        """Make a reading in progress end soon. Called from another thread; a second call does nothing."""

    def end_with(self, error: BaseException, *, proven: bool) -> None:
        """Note an error that ended the run and may have its reason in what the run had in hand.

        `proven`: the run had stored something before, so that others would not have met the error.
        """


class ChangeStream(EmbeddingStream):
    """The stream of one run for one collection. Everything in `resources` is closed with it."""

    def __init__(
        self,
        run: FolderRun,
        source: ChangeSource,
        planner: Planner,
        items: ItemEncoder,
        resources: ExitStack,
    ):
        self.collection = run.collection
        self.model = run.model
        self.totals = Totals()
        self.failures: list[Failure] = []
        self.notices = RunNotices()
        self.touched = source.touched
        self.expected: int | None = None
        self.outage: SpillingRetry = run.outage
        self.items = items
        self._run = run
        self.source = source
        self._planner = planner
        self._resources = resources
        self._progress = _Acknowledged()

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        depth = self._run.settings.pipeline.queue_batches
        plans = prefetch(self._read(), depth, "vectorize-read", leaving=self._leave)
        batches = prefetch(self._encode(plans), depth, "vectorize-encode", self.outage, leaving=self._leave)
        self._resources.callback(batches.close)
        for batch in batches:
            self._look_at_source()
            yield batch
        self._look_at_source()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and may_be_of_an_item(error):
            self.source.end_with(error, proven=self._progress.has_stored)
        self.close()

    def close(self) -> None:
        self._leave()
        self._resources.close()

    def _leave(self) -> None:
        """End what the threads wait for: what they are to acknowledge, files that are being read, and a store."""
        self._progress.leave()
        self.source.interrupt()
        self.outage.close()

    def _look_at_source(self) -> None:
        """Take over what the source has found beside changes."""
        self.expected = self.source.expected
        totals, failures, notices = self.source.unchanged.take()
        self.totals.merge(totals)
        self.failures.extend(failures)
        self.notices.extend(notices)

    def reported(self) -> None:
        self.source.reported()

    def figures(self) -> Mapping[str, int | float]:
        return {"left_out": self.source.left_out}

    def other_kinds(self) -> Mapping[str, int]:
        return self.source.other_kinds

    @property
    def choice(self) -> EngineChoice | None:
        return None if self.items.encoder is None else self.items.encoder.choice

    def _read(self) -> Generator[Plan, None, None]:
        """Yield plans. Runs in the reading thread: parsing, cutting, and looking up what the store has."""
        yield from self._planned(self.source.changes())
        for suspect in self.source.suspects():
            if not self._progress.wait_for_all():
                return
            # Not later: a process that is killed from outside meanwhile would seem to have died of what is in hand.
            self.items.open()
            yield from self._planned(suspect())

    def _planned(self, changes: Generator[Change, None, None]) -> Generator[Plan, None, None]:
        started = time.perf_counter()
        with closing(changes):
            for plan in self._planner.plans(changes, lambda: self.items.rows_together):
                plan.totals.spread("read", time.perf_counter() - started, _weights(plan))
                self._progress.begun += 1
                yield plan
                started = time.perf_counter()

    def _encode(self, plans: Generator[Plan, None, None]) -> Generator[EmbeddingBatch, None, None]:
        """Yield batches. Runs in the encoding thread."""
        with ExitStack() as leases:
            leases.callback(plans.close)
            leases.callback(self.items.close)
            for plan in plans:
                yield self._batch(plan)

    def _batch(self, plan: Plan) -> EmbeddingBatch:
        vectors, made = self._vectors(plan)

        def acknowledge() -> None:
            self.source.acknowledge(plan.receipts, plan.totals)
            self.totals.merge(plan.totals)
            self.touched.update(plan.totals)
            self.failures.extend(plan.failures)
            self.notices.extend(plan.notices)
            self._progress.acknowledge(has_stored=bool(ids))

        items = [row.item for row in plan.rows]
        ids, days, weights = [row.id for row in plan.rows], [row.day for row in plan.rows], _weights(plan)
        models = [self.model] * len(ids)
        contents = {row.id: row.item.content for row in plan.rows if isinstance(row.item.content, bytes)}
        plan.release()
        stale = [In("id", tuple(plan.stale_ids)), In("source_id", tuple(plan.vanished))]
        return EmbeddingBatch(
            collection=self.collection,
            announce=lambda _: self.source.announce(plan.sources),
            records=make_records(ids, items, days, vectors, made, models, run_id=self._run.request.run_id),
            stale=[filter_ for filter_ in stale if filter_.values],
            totals=plan.totals,
            weights=weights,
            acknowledge=acknowledge,
            exclusive=lambda: nullcontext(self._run.lock),
            physical=self._run.physical,
            writer=self._run.request.writer,
            reindex=self._run.request.force,
            contents=contents,
            cache=partial(self.items.cache, items, vectors),
        )

    def _vectors(self, plan: Plan) -> tuple[npt.NDArray[np.float32], list[datetime]]:
        """Return vectors of a plan's rows, shape (n, dimension), and when each was made."""
        donated = self._planner.donated_vectors(plan.rows)
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
                self._planner.refuse(plan, source_id, error)
            vectors, made = vectors[kept], list(compress(made, kept))
        return vectors, made


class _Acknowledged:
    """The number of plans that the reading thread began, and of those that have been acknowledged."""

    def __init__(self) -> None:
        self.begun = self.acknowledged = 0
        self.has_stored = False
        self._left = False
        self._changed = Condition()

    def acknowledge(self, *, has_stored: bool) -> None:
        """One more; `has_stored`: with rows."""
        with self._changed:
            self.acknowledged += 1
            self.has_stored = self.has_stored or has_stored
            self._changed.notify_all()

    def leave(self) -> None:
        """Nobody acknowledges anything any more."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def wait_for_all(self) -> bool:
        """Return once nothing is in hand; False where that will not be."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self.acknowledged >= self.begun)
            return not self._left


def _weights(plan: Plan) -> Mapping[str, int]:
    return Counter(row.day for row in plan.rows)
