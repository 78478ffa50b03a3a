"""Embeds a collection again: fills another generation from the live one, day by day, while both get what arrives.

    rows of the live generation ──▶ those that the other has not, or has otherwise ──▶ its vectors ──▶ written under the
    lock, as far as the live one still says the same

A run that was killed is simply run again: what the new generation has already is neither read nor encoded. Opened by
the asset `reembedding`.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import pyarrow as pa

from vectorize_pipelines.core.items import Item
from vectorize_pipelines.core.prefetch import prefetch
from vectorize_pipelines.core.records import record_schema
from vectorize_pipelines.encoders.base import EngineChoice
from vectorize_pipelines.errors import ItemError, StoreError
from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.encoding import LeaseEncoder
from vectorize_pipelines.pipeline.generations.begin import Wanted, begin
from vectorize_pipelines.pipeline.generations.comparison import differences
from vectorize_pipelines.pipeline.generations.recutting import Recutter, can_be_cut
from vectorize_pipelines.pipeline.generations.rows import COMPARED, FIELDS, Refused, RowReembedder, alike, records_of
from vectorize_pipelines.pipeline.spill import SpillingRetry, configured_outage
from vectorize_pipelines.pipeline.stored_rows import StoredRow
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.pipeline.totals import Failure, RunNotices, Totals
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.rereading import listed_roots
from vectorize_pipelines.state.generations import Generation, Generations, State, with_state
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.contents import vectors_of
from vectorize_pipelines.stores.filters.expressions import Equal, Filter, In

logger = logging.getLogger(__name__)

COMPARED_TOGETHER = 2048
#: Rows whose images are read at once, and bytes from which on a batch is not made larger.
LOADED_TOGETHER = 64
BYTES_TOGETHER = 64 * 2**20


@dataclass(slots=True)
class _BatchPlan:
    """The plan of one batch.

    loaded        rows with the items they are made from, to be encoded
    moved         rows that keep the vectors which they have in the new generation; the live one says them otherwise
    gone          ids of rows of the new generation that the live one has no longer
    gone_sources  the same for documents that are cut otherwise there
    read          id -> what the live generation said of the row; None: it had none
    cut           source id -> id of the row in `read` that stands for the document
    """

    loaded: list[tuple[StoredRow, Item]] = field(default_factory=list)
    moved: list[StoredRow] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    gone_sources: list[str] = field(default_factory=list)
    read: dict[str, StoredRow | None] = field(default_factory=dict)
    cut: dict[str, str] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    failures: list[Failure] = field(default_factory=list)


@dataclass(frozen=True)
class ReembeddingRun:
    """One run that fills a generation. Made by `open_reembedding`; nobody changes it.

    generations  closed with the run's stream
    live         the generation that is read
    new          the one that is filled
    days         None: all that the collection has, after which the new generation may be ready
    outage       how a store that is away is waited for
    """

    settings: Settings
    store: VectorStore
    generations: Generations
    live: Generation
    new: Generation
    days: Sequence[str] | None
    run_id: str
    lease_encoder: LeaseEncoder
    outage: SpillingRetry


class ReembeddingStream(EmbeddingStream):
    """The stream of one run. Holds no lock but while a batch is written; runs of other days may go side by side."""

    def __init__(self, run: ReembeddingRun):
        """Raises as `RowReembedder`."""
        self.collection = run.new.physical
        self.model = run.new.fingerprint
        self.totals = Totals()
        self.failures: list[Failure] = []
        self.notices = RunNotices()
        self.touched: set[str] = set()
        self.expected = None
        self.outage: SpillingRetry = run.outage
        self._run = run
        self._store = run.store
        self._generations = run.generations
        self._live, self._new = run.live, run.new
        self._roots = listed_roots(run.settings)
        self._reembedder = RowReembedder(run.settings, run.new, run.lease_encoder)
        self._resources = ExitStack()
        self._resources.callback(run.generations.close)
        self._recutter: Recutter | None = None
        if run.new.cut != run.live.cut:
            self._recutter = Recutter(run.settings, run.new)
            self._resources.callback(self._recutter.close)

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        depth = self._run.settings.pipeline.queue_batches
        read = prefetch(self._read(), depth, "vectorize-read")
        batches = prefetch(self._encode(read), depth, "vectorize-encode", self.outage)
        self._resources.callback(batches.close)
        yield from batches
        if self._run.days is None:
            self._judge()

    def close(self) -> None:
        self.outage.close()
        self._resources.close()

    def reported(self) -> None:
        """Do nothing: the rows that are there tell what is to be done."""

    @property
    def choice(self) -> EngineChoice | None:
        encoder = self._reembedder.encoder
        return None if encoder is None else encoder.choice

    def _judge(self) -> None:
        """Note that the new generation is ready, where it is, unless somebody has switched to it meanwhile."""
        look = partial(differences, self._store, self._generations, self._live, self._new)
        if self.failures or self.outage.call(look).total:
            return
        with self._generations.exclusive(self._new.collection) as lock:
            written = self._generations.written(self._new.collection)
            now = next((each for each in written if each.physical == self._new.physical), None)
            if now is None or now.state is not State.BUILDING:
                return
            lock.check()
            self._generations.put(with_state(now, State.READY))
        logger.info(
            "%s is filled; `vectorize collections switch %s` turns readers to it",
            self._new.physical,
            self._new.collection,
        )

    # ---- reading

    def _read(self) -> Generator[_BatchPlan, None, None]:
        """Yield plans. Runs in the reading thread."""
        days = self._run.days
        if days is None:
            days = self.outage.call(self._all_days)
        started = time.perf_counter()
        for plan in chain(self._missing(days), self._gone(days)):
            chunks = {day: totals.chunks for day, totals in plan.totals.items() if totals.chunks}
            plan.totals.spread("read", time.perf_counter() - started, chunks)
            yield plan
            started = time.perf_counter()

    def _all_days(self) -> list[str]:
        both = (self._store.count_by(each.physical, "partition") for each in (self._live, self._new))
        return sorted(set().union(*both))

    def _missing(self, days: Sequence[str]) -> Generator[_BatchPlan, None, None]:
        """Plan what the new generation lacks, or has otherwise."""
        for some in self._ids(self._live, days, lambda: self._reembedder.rows_together):
            plan = _BatchPlan()
            rows = self._waited_rows(self._live, In("id", tuple(some)))
            for row in rows.values():
                plan.totals.of(row["partition"]).documents += row["item_index"] == 0
            if self._recutter is not None:
                documents = [row for row in rows.values() if can_be_cut(row, self._roots)]
                rows = {id_: row for id_, row in rows.items() if not can_be_cut(row, self._roots)}
                rows |= self._take_cut(plan, [row for row in documents if row["item_index"] == 0], self._recutter)
            for row in rows.values():
                plan.totals.of(row["partition"]).chunks += 1
            yield from self._take(plan, rows)

    def _ids(
        self, generation: Generation, days: Sequence[str], together: Callable[[], int]
    ) -> Generator[list[str], None, None]:
        """Yield the ids of days, `together()` at a time; a day's are read at once.

        A scan that stays open while rows are encoded might outlive the version that it reads.
        """
        waiting: list[str] = []
        for day in days:
            ids = self.outage.call(partial(self._ids_of, generation, day))
            start = 0
            while start < len(ids):
                some = ids[start : start + max(1, together() - len(waiting))].to_pylist()
                start += len(some)
                waiting += some
                if len(waiting) >= together():
                    yield waiting
                    waiting = []
        if waiting:
            yield waiting

    def _ids_of(self, generation: Generation, day: str) -> pa.ChunkedArray:
        batches = self._store.scan(generation.physical, ("id",), Equal("partition", day))
        return pa.chunked_array([batch.column("id") for batch in batches], pa.string())

    def _take(self, plan: _BatchPlan, rows: Mapping[str, StoredRow]) -> Generator[_BatchPlan, None, None]:
        """Add rows that are carried over as they are cut; yield the plan, in pieces where contents are large."""
        there = self._waited_rows(self._new, In("id", tuple(rows)))
        wanted: list[str] = []
        for id_, row in rows.items():
            old = there.get(id_)
            model = self._reembedder.model_of(row)
            if old is None or (old["model"], old["content_hash"]) != (model, row["content_hash"]):
                wanted.append(id_)
            elif not alike(old, row):
                plan.moved.append({**old, **{name: row[name] for name in COMPARED}})
                plan.read[id_] = row
        whole: list[StoredRow] = []
        if wanted:
            whole = self._whole(wanted)
        size = 0
        for start in range(0, len(whole), LOADED_TOGETHER):
            some = whole[start : start + LOADED_TOGETHER]
            plan.read |= {row["id"]: row for row in some}
            loaded, refused = self._reembedder.load([{**row, "run_id": self._run.run_id} for row in some])
            plan.loaded += loaded
            self._refuse(plan, refused)
            size += sum(len(item.content) for _, item in loaded if isinstance(item.content, bytes))
            if size >= BYTES_TOGETHER:
                yield plan
                plan, size = _BatchPlan(), 0
        yield plan

    def _take_cut(self, plan: _BatchPlan, firsts: Sequence[StoredRow], recutter: Recutter) -> dict[str, StoredRow]:
        """Add documents, each by its first row, cut again; return the rows of those that cannot be read again."""
        kept: dict[str, StoredRow] = {}
        if not firsts:
            return kept
        examples = self._whole([row["id"] for row in firsts])
        cut = recutter.cut({**row, "run_id": self._run.run_id} for row in examples)
        there = self._waited_rows(self._new, In("source_id", tuple(cut)))
        for example in examples:
            source_id = example["source_id"]
            pairs = cut[source_id]
            if isinstance(pairs, ItemError):
                self._refuse(plan, [Refused(example, pairs)])
                kept |= self._waited_rows(self._live, Equal("source_id", source_id))
                continue
            plan.totals.of(example["partition"]).chunks += len(pairs)
            plan.read[example["id"]] = example
            plan.cut[source_id] = example["id"]
            wanted = {row["id"] for row, _ in pairs}
            plan.gone += [id_ for id_, row in there.items() if row["source_id"] == source_id and id_ not in wanted]
            for row, item in pairs:
                old = there.get(row["id"])
                if old is None or old["model"] != row["model"] or not alike(old, row):
                    plan.loaded.append((row, item))
        return kept

    def _gone(self, days: Sequence[str]) -> Generator[_BatchPlan, None, None]:
        """Plan what the new generation has of these days and the live one has no more."""
        for some in self._ids(self._new, days, lambda: COMPARED_TOGETHER):
            rows = self._waited_rows(self._new, In("id", tuple(some)))
            cut = self._recutter is not None
            documents = {row["source_id"] for row in rows.values() if cut and can_be_cut(row, self._roots)}
            others = {id_ for id_, row in rows.items() if row["source_id"] not in documents}
            standing = self.outage.call(partial(self._standing, "id", others))
            sources = self.outage.call(partial(self._standing, "source_id", documents))
            plan = _BatchPlan(gone=sorted(others - standing), gone_sources=sorted(documents - sources))
            if plan.gone or plan.gone_sources:
                yield plan

    def _standing(self, name: str, values: set[str]) -> set[str]:
        """Return those of the values of a field that the live generation has now."""
        if not values:
            return set()
        return {*self._store.fetch(self._live.physical, In(name, tuple(values)), (name,))[name].to_pylist()}

    def _rows(self, generation: Generation, where: Filter) -> dict[str, StoredRow]:
        """Return rows by id, as far as they are compared."""
        found = self._store.fetch(generation.physical, where, ("id", "model", *COMPARED))
        return {row["id"]: row for row in found.to_pylist()}

    def _waited_rows(self, generation: Generation, where: Filter) -> dict[str, StoredRow]:
        """Do the same for the reading thread, which holds no lock and waits for a store that is away."""
        return self.outage.call(partial(self._rows, generation, where))

    def _whole(self, ids: Sequence[str]) -> list[StoredRow]:
        """Return rows of the live generation, all of them but the vectors."""
        fetched = partial(self._store.fetch, self._live.physical, In("id", tuple(ids)), FIELDS)
        whole: list[StoredRow] = self.outage.call(fetched).to_pylist()
        return whole

    def _refuse(self, plan: _BatchPlan, refused: Sequence[Refused]) -> None:
        for each in refused:
            day = each.row["partition"]
            failure = Failure(each.row["source_id"], day, type(each.error).__name__, str(each.error))
            plan.failures.append(failure)
            plan.totals.of(day).failed += 1
            plan.totals.of(day).errors[failure.error_class] += 1

    # ---- encoding

    def _encode(self, plans: Generator[_BatchPlan, None, None]) -> Generator[EmbeddingBatch, None, None]:
        """Yield batches. Runs in the encoding thread."""
        with ExitStack() as leases:
            leases.callback(plans.close)
            leases.callback(self._reembedder.close)
            for plan in plans:
                yield self._batch(plan)

    def _batch(self, plan: _BatchPlan) -> EmbeddingBatch:
        encoded, refused, cache = self._reembedder.encode(plan.loaded, plan.totals)
        self._refuse(plan, refused)
        records = pa.concat_tables([encoded, self._moved(plan)])
        return EmbeddingBatch(
            collection=self._new.physical,
            announce=lambda batch: self._confine(batch, plan),
            records=records,
            stale=[],
            totals=plan.totals,
            weights=Counter(records["partition"].to_pylist()),
            acknowledge=lambda: self._acknowledge(plan),
            exclusive=lambda: self._generations.exclusive(self._new.collection),
            physical=self._new.physical,
            writer="reembedding",
            cache=cache,
        )

    def _moved(self, plan: _BatchPlan) -> pa.Table:
        """Return the records of rows that keep their vectors, where these are there still."""
        if not plan.moved:
            return record_schema(self._new.dimension).empty_table()
        where = In("id", tuple(row["id"] for row in plan.moved))
        found = self.outage.call(partial(self._store.fetch, self._new.physical, where, (*FIELDS, "vector")))
        says = {row["id"]: row for row in plan.moved}
        rows = [{**row, **says[row["id"]]} for row in found.select(FIELDS).to_pylist()]
        return records_of(rows, vectors_of(found))

    def _confine(self, batch: EmbeddingBatch, plan: _BatchPlan) -> None:
        """Called under the lock: takes out of a batch what the live generation says otherwise by now.

        Who changed it there wrote it to the new one, too. Raises `StoreError` where that one is being dropped.
        """
        standing = {each.physical: each for each in self._generations.written(self._new.collection)}
        if not {self._new.physical, self._live.physical} <= standing.keys():
            raise StoreError(
                f"{self._new.physical} is no longer filled from {self._live.physical}: one of the two was dropped"
            )
        if not batch.records.num_rows and not plan.gone and not plan.gone_sources:
            return
        now = self._rows(self._live, In("id", tuple(plan.read)))
        changed = {id_ for id_, row in plan.read.items() if not (row and id_ in now and alike(now[id_], row))}
        other = {source_id for source_id, id_ in plan.cut.items() if id_ in changed}
        if changed:
            keep = [
                source_id not in other if source_id in plan.cut else id_ not in changed
                for id_, source_id in zip(
                    batch.records["id"].to_pylist(), batch.records["source_id"].to_pylist(), strict=True
                )
            ]
            batch.records = batch.records.filter(pa.array(keep, pa.bool_()))
        batch.stale = self._stale(plan, other)

    def _stale(self, plan: _BatchPlan, other: set[str]) -> list[Filter]:
        """Return the filters of what is to be deleted; `other` are documents that are no longer as they were read."""
        of_cut = {*plan.cut} - other
        gone = set(plan.gone)
        if plan.cut:  # ids of passages mean nothing to the live generation
            rows = self._rows(self._new, In("id", tuple(gone)))
            gone = {id_ for id_, row in rows.items() if row["source_id"] in of_cut}
        else:
            gone -= self._standing("id", gone)
        sources = set(plan.gone_sources)
        sources -= self._standing("source_id", sources)
        stale = [In("id", tuple(sorted(gone))), In("source_id", tuple(sorted(sources)))]
        return [filter_ for filter_ in stale if filter_.values]

    def _acknowledge(self, plan: _BatchPlan) -> None:
        self.totals.merge(plan.totals)
        self.touched.update(plan.totals)
        self.failures.extend(plan.failures)


def open_reembedding(
    settings: Settings,
    store: VectorStore,
    collection: str,
    wanted: Wanted,
    days: Sequence[str] | None,
    run_id: str,
    lease_encoder: LeaseEncoder,
) -> ReembeddingStream:
    """Return the stream that fills the new generation of a collection, which is made where there is none yet.

    `days` None: all of them. Raises as `begin.begin`.
    """
    generations = Generations.open(settings)
    try:
        live, new = begin(settings, store, generations, collection, wanted, lease_encoder)
        outage = configured_outage(settings)
        run = ReembeddingRun(settings, store, generations, live, new, days, run_id, lease_encoder, outage)
        return ReembeddingStream(run)
    except BaseException:
        generations.close()
        raise
