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

from vectorize_pipelines.encoders.protocol import EngineChoice
from vectorize_pipelines.errors import ItemError, StoreError
from vectorize_pipelines.generations import Generation, Generations, State, with_state
from vectorize_pipelines.items import Item
from vectorize_pipelines.overlap import prefetch
from vectorize_pipelines.pipeline.comparison import differences
from vectorize_pipelines.pipeline.counterparts import COMPARED, FIELDS, Counterparts, Lease, Refused, alike, records_of
from vectorize_pipelines.pipeline.outage import configured_outage
from vectorize_pipelines.pipeline.recutting import Recutter, Row, can_be_cut
from vectorize_pipelines.pipeline.stream import EmbeddingBatch, EmbeddingStream
from vectorize_pipelines.pipeline.switching import Wanted, begin
from vectorize_pipelines.pipeline.totals import Failure, Totals
from vectorize_pipelines.records import record_schema
from vectorize_pipelines.settings import PipelineSettings, Settings
from vectorize_pipelines.stores.contents import vectors_of
from vectorize_pipelines.stores.filters import Equal, Filter, In
from vectorize_pipelines.stores.protocol import VectorStore

logger = logging.getLogger(__name__)

COMPARED_TOGETHER = 2048
#: Rows whose images are read at once, and bytes from which on a batch is not made larger.
LOADED_TOGETHER = 64
BYTES_TOGETHER = 64 * 2**20


@dataclass(slots=True)
class _Work:
    """One batch's worth.

    loaded        rows with the items they are made from, to be encoded
    moved         rows that keep the vectors which they have in the new generation; the live one says them otherwise
    gone          ids of rows of the new generation that the live one has no longer
    gone_sources  the same for documents that are cut otherwise there
    read          id -> what the live generation said of the row; None: it had none
    cut           source id -> id of the row in `read` that stands for the document
    """

    loaded: list[tuple[Row, Item]] = field(default_factory=list)
    moved: list[Row] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    gone_sources: list[str] = field(default_factory=list)
    read: dict[str, Row | None] = field(default_factory=dict)
    cut: dict[str, str] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    failures: list[Failure] = field(default_factory=list)


class ReembeddingStream(EmbeddingStream):
    """The stream of one run. Holds no lock but while a batch is written; runs of other days may go side by side."""

    def __init__(
        self,
        settings: Settings,
        store: VectorStore,
        generations: Generations,
        live: Generation,
        new: Generation,
        lease: Lease,
        run_id: str,
        days: Sequence[str] | None,
    ):
        """`days` None: all that the collection has, after which the new generation may be ready."""
        self.collection = new.physical
        self.model = new.fingerprint
        self.totals = Totals()
        self.failures: list[Failure] = []
        self.touched: set[str] = set()
        self.expected = None
        self.outage = configured_outage(settings)
        self._settings: PipelineSettings = settings.pipeline
        self._store = store
        self._generations = generations
        self._live, self._new = live, new
        self._run_id = run_id
        self._days = days
        self._counterparts = Counterparts(settings, new, lease)
        self._resources = ExitStack()
        self._resources.callback(generations.close)
        self._recutter: Recutter | None = None
        if new.cut != live.cut:
            self._recutter = Recutter(settings, new)
            self._resources.callback(self._recutter.close)

    def __iter__(self) -> Iterator[EmbeddingBatch]:
        depth = self._settings.queue_batches
        read = prefetch(self._read(), depth, "vectorize-read")
        batches = prefetch(self._encode(read), depth, "vectorize-encode", self.outage)
        self._resources.callback(batches.close)
        yield from batches
        if self._days is None:
            self._judge()

    def close(self) -> None:
        self.outage.close()
        self._resources.close()

    def reported(self) -> None:
        """Nothing is remembered: what is there tells what is to be done."""

    @property
    def choice(self) -> EngineChoice | None:
        encoder = self._counterparts.encoder
        return None if encoder is None else encoder.choice

    def _judge(self) -> None:
        """Notes that the new generation is ready, where it is, unless somebody has switched to it meanwhile."""
        look = partial(differences, self._store, self._generations, self._live, self._new)
        if self.failures or self.outage.wait_out(look).total:
            return
        with self._generations.exclusive(self._new.collection):
            written = self._generations.written(self._new.collection)
            now = next((each for each in written if each.physical == self._new.physical), None)
            if now is None or now.state is not State.BUILDING:
                return
            self._generations.put(with_state(now, State.READY))
        logger.info(
            "%s is filled; `vectorize collections switch %s` turns readers to it",
            self._new.physical,
            self._new.collection,
        )

    # ---- reading

    def _read(self) -> Generator[_Work, None, None]:
        """Runs in the reading thread."""
        days = self._days
        if days is None:
            days = self.outage.wait_out(self._all_days)
        started = time.perf_counter()
        for work in chain(self._missing(days), self._gone(days)):
            chunks = {day: totals.chunks for day, totals in work.totals.items() if totals.chunks}
            work.totals.spread("read", time.perf_counter() - started, chunks)
            yield work
            started = time.perf_counter()

    def _all_days(self) -> list[str]:
        both = (self._store.count_by(each.physical, "partition") for each in (self._live, self._new))
        return sorted(set().union(*both))

    def _missing(self, days: Sequence[str]) -> Generator[_Work, None, None]:
        """What the new generation lacks, or has otherwise."""
        for some in self._ids(self._live, days, lambda: self._counterparts.rows_together):
            work = _Work()
            rows = self._waited_rows(self._live, In("id", tuple(some)))
            for row in rows.values():
                work.totals.of(row["partition"]).documents += row["item_index"] == 0
            if self._recutter is not None:
                documents = [row for row in rows.values() if can_be_cut(row)]
                rows = {id_: row for id_, row in rows.items() if not can_be_cut(row)}
                rows |= self._take_cut(work, [row for row in documents if row["item_index"] == 0], self._recutter)
            for row in rows.values():
                work.totals.of(row["partition"]).chunks += 1
            yield from self._take(work, rows)

    def _ids(
        self, generation: Generation, days: Sequence[str], together: Callable[[], int]
    ) -> Generator[list[str], None, None]:
        """The ids of days, `together()` at a time; a day's are read at once.

        A scan that stays open while rows are encoded might outlive the version that it reads.
        """
        waiting: list[str] = []
        for day in days:
            ids = self.outage.wait_out(partial(self._ids_of, generation, day))
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

    def _take(self, work: _Work, rows: Mapping[str, Row]) -> Generator[_Work, None, None]:
        """Adds rows that are carried over as they are cut; gives the work, in pieces where contents are large."""
        there = self._waited_rows(self._new, In("id", tuple(rows)))
        wanted: list[str] = []
        for id_, row in rows.items():
            old = there.get(id_)
            model = self._counterparts.model_of(row)
            if old is None or (old["model"], old["content_hash"]) != (model, row["content_hash"]):
                wanted.append(id_)
            elif not alike(old, row):
                work.moved.append({**old, **{name: row[name] for name in COMPARED}})
                work.read[id_] = row
        whole: list[Row] = []
        if wanted:
            whole = self._whole(wanted)
        size = 0
        for start in range(0, len(whole), LOADED_TOGETHER):
            some = whole[start : start + LOADED_TOGETHER]
            work.read |= {row["id"]: row for row in some}
            loaded, refused = self._counterparts.load([{**row, "run_id": self._run_id} for row in some])
            work.loaded += loaded
            self._refuse(work, refused)
            size += sum(len(item.content) for _, item in loaded if isinstance(item.content, bytes))
            if size >= BYTES_TOGETHER:
                yield work
                work, size = _Work(), 0
        yield work

    def _take_cut(self, work: _Work, firsts: Sequence[Row], recutter: Recutter) -> dict[str, Row]:
        """Adds documents, each by its first row, cut anew; gives the rows of those that cannot be read again."""
        kept: dict[str, Row] = {}
        if not firsts:
            return kept
        examples = self._whole([row["id"] for row in firsts])
        cut = recutter.cut({**row, "run_id": self._run_id} for row in examples)
        there = self._waited_rows(self._new, In("source_id", tuple(cut)))
        for example in examples:
            source_id = example["source_id"]
            pairs = cut[source_id]
            if isinstance(pairs, ItemError):
                self._refuse(work, [Refused(example, pairs)])
                kept |= self._waited_rows(self._live, Equal("source_id", source_id))
                continue
            work.totals.of(example["partition"]).chunks += len(pairs)
            work.read[example["id"]] = example
            work.cut[source_id] = example["id"]
            wanted = {row["id"] for row, _ in pairs}
            work.gone += [id_ for id_, row in there.items() if row["source_id"] == source_id and id_ not in wanted]
            for row, item in pairs:
                old = there.get(row["id"])
                if old is None or old["model"] != row["model"] or not alike(old, row):
                    work.loaded.append((row, item))
        return kept

    def _gone(self, days: Sequence[str]) -> Generator[_Work, None, None]:
        """What the new generation has of these days and the live one has no more."""
        for some in self._ids(self._new, days, lambda: COMPARED_TOGETHER):
            rows = self._waited_rows(self._new, In("id", tuple(some)))
            documents = {row["source_id"] for row in rows.values() if self._recutter is not None and can_be_cut(row)}
            others = {id_ for id_, row in rows.items() if row["source_id"] not in documents}
            standing = self.outage.wait_out(partial(self._standing, "id", others))
            sources = self.outage.wait_out(partial(self._standing, "source_id", documents))
            work = _Work(gone=sorted(others - standing), gone_sources=sorted(documents - sources))
            if work.gone or work.gone_sources:
                yield work

    def _standing(self, name: str, values: set[str]) -> set[str]:
        """Those of the values of a field that the live generation has now."""
        if not values:
            return set()
        return {*self._store.fetch(self._live.physical, In(name, tuple(values)), (name,))[name].to_pylist()}

    def _rows(self, generation: Generation, where: Filter) -> dict[str, Row]:
        """Rows by id, as far as they are compared."""
        found = self._store.fetch(generation.physical, where, ("id", "model", *COMPARED))
        return {row["id"]: row for row in found.to_pylist()}

    def _waited_rows(self, generation: Generation, where: Filter) -> dict[str, Row]:
        """The same for the reading thread, which holds no lock and waits for a store that is away."""
        return self.outage.wait_out(partial(self._rows, generation, where))

    def _whole(self, ids: Sequence[str]) -> list[Row]:
        """Rows of the live generation, all of them but the vectors."""
        fetched = partial(self._store.fetch, self._live.physical, In("id", tuple(ids)), FIELDS)
        whole: list[Row] = self.outage.wait_out(fetched).to_pylist()
        return whole

    def _refuse(self, work: _Work, refused: Sequence[Refused]) -> None:
        for each in refused:
            day = each.row["partition"]
            failure = Failure(each.row["source_id"], day, type(each.error).__name__, str(each.error))
            work.failures.append(failure)
            work.totals.of(day).failed += 1
            work.totals.of(day).errors[failure.error_class] += 1

    # ---- encoding

    def _encode(self, works: Generator[_Work, None, None]) -> Generator[EmbeddingBatch, None, None]:
        """Runs in the encoding thread."""
        with ExitStack() as leases:
            leases.callback(works.close)
            leases.callback(self._counterparts.close)
            for work in works:
                yield self._batch(work)

    def _batch(self, work: _Work) -> EmbeddingBatch:
        encoded, refused, keep = self._counterparts.encode(work.loaded, work.totals)
        self._refuse(work, refused)
        records = pa.concat_tables([encoded, self._moved(work)])
        return EmbeddingBatch(
            collection=self._new.physical,
            announce=lambda batch: self._confine(batch, work),
            records=records,
            stale=[],
            totals=work.totals,
            weights=Counter(records["partition"].to_pylist()),
            acknowledge=lambda: self._acknowledge(work),
            exclusive=lambda: self._generations.exclusive(self._new.collection),
            physical=self._new.physical,
            keep=keep,
        )

    def _moved(self, work: _Work) -> pa.Table:
        """The records of rows that keep their vectors, where these are there still."""
        if not work.moved:
            return record_schema(self._new.dimension).empty_table()
        where = In("id", tuple(row["id"] for row in work.moved))
        found = self.outage.wait_out(partial(self._store.fetch, self._new.physical, where, (*FIELDS, "vector")))
        says = {row["id"]: row for row in work.moved}
        rows = [{**row, **says[row["id"]]} for row in found.select(FIELDS).to_pylist()]
        return records_of(rows, vectors_of(found))

    def _confine(self, batch: EmbeddingBatch, work: _Work) -> None:
        """Called under the lock: takes out of a batch what the live generation says otherwise by now.

        Who changed it there wrote it to the new one, too. Raises `StoreError` where that one is being dropped.
        """
        standing = {each.physical: each for each in self._generations.written(self._new.collection)}
        if not {self._new.physical, self._live.physical} <= standing.keys():
            raise StoreError(
                f"{self._new.physical} is no longer filled from {self._live.physical}: one of the two was dropped"
            )
        if not batch.records.num_rows and not work.gone and not work.gone_sources:
            return
        now = self._rows(self._live, In("id", tuple(work.read)))
        changed = {id_ for id_, row in work.read.items() if not (row and id_ in now and alike(now[id_], row))}
        other = {source_id for source_id, id_ in work.cut.items() if id_ in changed}
        if changed:
            keep = [
                source_id not in other if source_id in work.cut else id_ not in changed
                for id_, source_id in zip(
                    batch.records["id"].to_pylist(), batch.records["source_id"].to_pylist(), strict=True
                )
            ]
            batch.records = batch.records.filter(pa.array(keep, pa.bool_()))
        batch.stale = self._stale(work, other)

    def _stale(self, work: _Work, other: set[str]) -> list[Filter]:
        """What is to be deleted; `other` are documents that are no longer as they were read."""
        of_cut = {*work.cut} - other
        gone = set(work.gone)
        if work.cut:  # ids of passages mean nothing to the live generation
            rows = self._rows(self._new, In("id", tuple(gone)))
            gone = {id_ for id_, row in rows.items() if row["source_id"] in of_cut}
        else:
            gone -= self._standing("id", gone)
        sources = set(work.gone_sources)
        sources -= self._standing("source_id", sources)
        stale = [In("id", tuple(sorted(gone))), In("source_id", tuple(sorted(sources)))]
        return [filter_ for filter_ in stale if filter_.values]

    def _acknowledge(self, work: _Work) -> None:
        self.totals.merge(work.totals)
        self.touched.update(work.totals)
        self.failures.extend(work.failures)


def open_reembedding(
    settings: Settings,
    store: VectorStore,
    collection: str,
    wanted: Wanted,
    days: Sequence[str] | None,
    run_id: str,
    lease: Lease,
) -> ReembeddingStream:
    """The stream that fills the new generation of a collection, which is made where there is none yet.

    `days` None: all of them. Raises as `switching.begin`.
    """
    generations = Generations.open(settings)
    try:
        live, new = begin(settings, store, generations, collection, wanted, lease)
        return ReembeddingStream(settings, store, generations, live, new, lease, run_id, days)
    except BaseException:
        generations.close()
        raise
