"""Compares a new generation with the live one, before readers are turned to it.

Called by `lifecycle`, by a reembedding run at its end, and by the checks of the asset `reembedding`. Both get
what arrives meanwhile, so that what differs for a moment is looked at again while nobody writes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

import numpy as np

from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.pipeline.checks.vectors import CanaryReport, canary_recall, read_listed_image
from vectorize_pipelines.state.generations import Generation, Generations
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.filters.expressions import Equal, Filter, In

ROWS_TOGETHER = 4096
#: More rows than that do not differ just because they are being written; looking at them would hold writers up.
LOOKED_AT_AGAIN = 10_000
#: Rows whose neighbours are compared, and how many neighbours of each.
SAMPLED = 64
NEIGHBOURS = 10
SHOWN = 20


@dataclass(frozen=True, slots=True)
class Differences:
    """The differences between two generations: rows, or sources where documents are cut otherwise.

    days     day -> (live, new), how many each has, where the numbers differ
    missing  in the live one only
    extra    in the new one only
    changed  in both, of other content
    """

    days: Mapping[str, tuple[int, int]]
    missing: Sequence[str]
    extra: Sequence[str]
    changed: Sequence[str]

    @property
    def total(self) -> int:
        """The number of rows or sources that differ; days whose numbers differ are due to these."""
        return len(self.missing) + len(self.extra) + len(self.changed)


def differences(
    store: VectorStore, generations: Generations, live: Generation, new: Generation, days: Sequence[str] | None = None
) -> Differences:
    """Compare every row by id and content, or every source by its day where documents are cut otherwise.

    `days` None: those that either has.
    """
    if live.cut != new.cut:
        return _differing_sources(store, generations, live, new, days)
    where = None if days is None else In("partition", tuple(days))
    missing, extra, changed = _differing(store, live, new, None, where)
    if 0 < len(missing) + len(extra) + len(changed) <= LOOKED_AT_AGAIN:
        with generations.exclusive(live.collection):
            missing, extra, changed = _differing(store, live, new, sorted({*missing, *extra, *changed}))
    if not missing and not extra and not changed:
        return Differences({}, (), (), ())
    counts = [store.count_by(each.physical, "partition", where) for each in (live, new)]
    return Differences(_unequal(*counts), missing, extra, changed)


def _differing(
    store: VectorStore,
    live: Generation,
    new: Generation,
    ids: Sequence[str] | None,
    where: Filter | None = None,
) -> tuple[list[str], list[str], list[str]]:
    """Return ids that are missing, extra, and changed, among these or (None) all that match of both."""
    missing: list[str] = []
    changed: list[str] = []
    for there in _contents(store, live, ids, where):
        here = _contents_of(store, new, tuple(there))
        missing += there.keys() - here.keys()
        changed += [id_ for id_, content in here.items() if content != there[id_]]
    extra: list[str] = []
    for there in _contents(store, new, ids, where):
        extra += there.keys() - _contents_of(store, live, tuple(there)).keys()
    return missing, extra, changed


def _contents(
    store: VectorStore, generation: Generation, ids: Sequence[str] | None, where: Filter | None
) -> Iterator[dict[str, str]]:
    """Id -> content hash and day, some thousand rows at a time."""
    if ids is not None:
        for start in range(0, len(ids), ROWS_TOGETHER):
            yield _contents_of(store, generation, tuple(ids[start : start + ROWS_TOGETHER]))
        return
    for batch in store.scan(generation.physical, ("id", "content_hash", "partition"), where, ROWS_TOGETHER):
        yield {row["id"]: row["content_hash"] + row["partition"] for row in batch.to_pylist()}


def _contents_of(store: VectorStore, generation: Generation, ids: tuple[str, ...]) -> dict[str, str]:
    found = store.fetch(generation.physical, In("id", ids), ("id", "content_hash", "partition")).to_pylist()
    return {row["id"]: row["content_hash"] + row["partition"] for row in found}


def _differing_sources(
    store: VectorStore, generations: Generations, live: Generation, new: Generation, days: Sequence[str] | None
) -> Differences:
    if days is None:
        days = sorted({*store.count_by(live.physical, "partition"), *store.count_by(new.physical, "partition")})
    unequal: dict[str, tuple[int, int]] = {}
    missing: set[str] = set()
    extra: set[str] = set()
    for day in days:
        with generations.exclusive(live.collection):
            there, here = (
                store.count_by(each.physical, "source_id", Equal("partition", day)).keys() for each in (live, new)
            )
        if there != here:
            unequal[day] = (len(there), len(here))
            missing |= there - here
            extra |= here - there
    return Differences(unequal, sorted(missing), sorted(extra), ())


def _unequal(there: Mapping[str, int], here: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    return {
        day: (there.get(day, 0), here.get(day, 0))
        for day in sorted({*there, *here})
        if there.get(day, 0) != here.get(day, 0)
    }


@dataclass(frozen=True, slots=True)
class OverlapReport:
    """The share of a row's nearest that are the same in both generations, on average over the sample.

    Nothing is sampled, and the share is None, where one is empty, or both are so small that every row is near every
    other.
    """

    sampled: int
    overlap: float | None


def neighbour_overlap(store: VectorStore, live: Generation, new: Generation, encoder: Encoder | None) -> OverlapReport:
    """Compare the `NEIGHBOURS` nearest of some rows by each generation's own vectors.

    Where documents are cut otherwise, the sources of the nearest are compared, and `encoder`, that of the new
    generation, encodes the rows' texts. Another model is not worse for finding others: this says how much changes.
    """
    counts = [store.count(each.physical) for each in (live, new)]
    if not min(counts) or max(counts) <= NEIGHBOURS + 1:
        return OverlapReport(0, None)
    ids: list[str] = []
    for batch in store.scan(live.physical, ("id",)):
        ids = nsmallest(SAMPLED, [*ids, *batch.column("id").to_pylist()])
    same_rows = live.cut == new.cut
    field = "id" if same_rows else "source_id"
    found = store.fetch(live.physical, In("id", tuple(ids)), ("id", "source_id", "text", "vector")).to_pylist()
    if same_rows:
        fetched = store.fetch(new.physical, In("id", tuple(ids)), ("id", "vector")).to_pylist()
        queries = {row["id"]: np.asarray(row["vector"], np.float32) for row in fetched}
    else:
        texts = {row["id"]: row["text"] for row in found if row["text"]}
        encoded = encoder.encode(list(texts.values())) if encoder is not None and texts else ()
        queries = dict(zip(texts, encoded, strict=False))
    shares = []
    for row in found:
        if row["id"] in queries:
            before = _nearest(store, live, np.asarray(row["vector"], np.float32), field, row)
            after = _nearest(store, new, queries[row["id"]], field, row)
            shares.append(len(before & after) / max(len(before), len(after), 1))
    return OverlapReport(len(shares), float(np.mean(shares)) if shares else None)


def _nearest(
    store: VectorStore, generation: Generation, vector: "np.ndarray[tuple[int], np.dtype[np.float32]]",
    field: str, row: Mapping[str, str],
) -> set[str]:  # fmt: skip
    hits = store.search(generation.physical, vector, NEIGHBOURS + 1)[field].to_pylist()
    return set([name for name in hits if name != row[field]][:NEIGHBOURS])


@dataclass(frozen=True, slots=True)
class GenerationComparison:
    """The figures that are looked at before a switch."""

    live: Generation
    new: Generation
    rows: tuple[int, int]
    differences: Differences
    canaries: CanaryReport
    overlap: OverlapReport

    def problems(self, least_recall: float) -> list[str]:
        """Why readers should not be turned to the new generation, in words; nothing where they may."""
        found = []
        kind = "rows" if self.live.cut == self.new.cut else "sources"
        for names, what in (
            (self.differences.missing, f"{kind} are missing"),
            (self.differences.extra, f"{kind} are there that {self.live.physical} has no more"),
            (self.differences.changed, f"{kind} are of other content"),
        ):
            if names:
                found.append(f"{len(names)} {what}")
        if self.canaries.sampled and self.canaries.recall < least_recall:
            found.append(
                f"of {self.canaries.sampled} passages looked for by their own text, {len(self.canaries.missed)} did "
                "not come first"
            )
        return found


def compare(
    store: VectorStore,
    generations: Generations,
    live: Generation,
    new: Generation,
    encoder: Encoder,
    read: Callable[[Mapping[str, Any]], bytes] = read_listed_image,
) -> GenerationComparison:
    """Look at everything; `encoder` is that of the new generation. Takes a while, and holds nobody up for long.

    `read` gives the bytes of an image by its row.
    """
    return GenerationComparison(
        live,
        new,
        (store.count(live.physical), store.count(new.physical)),
        differences(store, generations, live, new),
        canary_recall(store, new.physical, encoder, None, read=read),
        neighbour_overlap(store, live, new, encoder),
    )
