"""The recall of a collection's index, held against comparing every vector.

Called by the asset checks of that name (`assets/checks/vectors.py`, `assets/maintenance.py`); changes nothing.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.filters.expressions import Filter, Range

Matrix: TypeAlias = npt.NDArray[np.float32]

#: What a check demands.
LEAST_RECALL = 0.99
#: Of a collection's vectors, that a run compares which does nothing else.
BYTES_ALONE = 256 * 2**20
#: Rows that a search is asked for.
NEAREST = 10
#: Searches where every row is compared, and at most.
FEWEST_QUERIES, MOST_QUERIES = 100, 1000
#: Length of what is added to a row's own vector of length 1 to make a query.
NOISE = 0.2
#: Rows whose scores differ by less are equally near: float32, summed in another order.
TIE_TOLERANCE = 1e-5
#: Queries whose scores of every compared row are in memory at once.
QUERIES_TOGETHER = 32
#: Ids are UUIDs: numbers that their first eight digits may be.
_ID_PREFIXES = 16**8


@dataclass(frozen=True, slots=True)
class IndexReport:
    """The measured recall.

    rows       of the collection
    compared   rows whose vectors were compared with the queries; the figures are about these
    queries    searches
    nearest    rows among the compared that are among the nearest of a query
    found      of these, those that the search gave
    """

    rows: int
    compared: int
    queries: int
    nearest: int
    found: int

    @property
    def recall(self) -> float:
        """Share of the nearest rows that were found; NaN where none were looked for."""
        return self.found / self.nearest if self.nearest else math.nan

    def __add__(self, other: "IndexReport") -> "IndexReport":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return IndexReport(*(one + another for one, another in pairs))

    def reaches(self, least: float) -> bool:
        """Return whether the recall is at least that; of a sample, whether it may be, by two standard deviations."""
        if not self.nearest:
            return True
        spread = 0.0 if self.compared >= self.rows else math.sqrt(least * (1 - least) / self.nearest)
        return self.recall >= least - 2 * spread


def index_recall(store: VectorStore, collection: str, max_bytes: int) -> IndexReport:
    """Searches with vectors near those of some rows, and compares the hits with the nearest of all rows.

    At most about so many bytes of vectors are read and compared: of a larger collection those in a range of ids, drawn
    by chance, over which rows are spread evenly; the smaller their share, the more searches. Meant for normalised
    vectors, whose order is the same whatever the store measures by.
    """
    rows, dimension = store.count(collection), store.collection(collection).dimension
    chance = np.random.default_rng(rows)
    share = min(1.0, max_bytes / (4 * dimension * rows)) if rows else 1.0
    ids, vectors = _vectors(store, collection, None if share == 1 else _some_ids(share, chance), dimension)
    number = min(len(ids), round(min(MOST_QUERIES, FEWEST_QUERIES / share)))
    nearest = found = 0
    for queries in _queries(vectors, number, chance):
        for query, exact in zip(queries, queries @ vectors.T, strict=True):
            hits = store.search(collection, query, NEAREST)
            of_nearest, of_found = _found(hits["id"].to_pylist(), hits["score"].to_pylist(), ids, exact)
            nearest, found = nearest + of_nearest, found + of_found
    return IndexReport(rows, len(ids), number, nearest, found)


def _some_ids(share: float, chance: np.random.Generator) -> Filter:
    width = round(share * _ID_PREFIXES)
    first = int(chance.integers(0, _ID_PREFIXES - width))
    return Range("id", f"{first:08x}", f"{first + width:08x}")


def _vectors(
    store: VectorStore, collection: str, where: Filter | None, dimension: int
) -> tuple[dict[str, int], Matrix]:
    """Id -> place, and vectors of length 1, of shape (n, dimension). Rows without a direction are left out."""
    ids: dict[str, int] = {}
    parts: list[Matrix] = [np.empty((0, dimension), np.float32)]
    for batch in store.scan(collection, ("id", "vector"), where):
        part = batch.column("vector").flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension)
        lengths = np.linalg.norm(part, axis=1)
        kept = np.isfinite(lengths) & (lengths > 0)
        for id_ in batch.column("id").filter(kept).to_pylist():
            ids[id_] = len(ids)
        parts.append(part[kept] / lengths[kept, None])
    return ids, np.concatenate(parts)


def _queries(vectors: Matrix, number: int, chance: np.random.Generator) -> Iterator[Matrix]:
    """Return so many vectors of length 1 near those of rows, a few together."""
    places = chance.choice(len(vectors), number, replace=False) if number else np.empty(0, np.int64)
    for first in range(0, number, QUERIES_TOGETHER):
        near = vectors[places[first : first + QUERIES_TOGETHER]]
        noise = chance.standard_normal(near.shape, dtype=np.float32)
        queries = near + NOISE * noise / np.linalg.norm(noise, axis=1, keepdims=True)
        yield queries / np.linalg.norm(queries, axis=1, keepdims=True)


def _found(hits: Sequence[str], scores: Sequence[float], ids: Mapping[str, int], exact: Matrix) -> tuple[int, int]:
    """Return how many of the compared rows are among the nearest, and how many of these are hits.

    `exact` is each compared row's own score. A row that is just as near as the last hit has not been missed.
    """
    last = min(scores) if len(hits) == NEAREST else -math.inf
    better = exact > last + TIE_TOLERANCE
    better[[ids[hit] for hit in hits if hit in ids]] = False
    missed = [(float(score), False, True) for score in np.sort(exact[better])[-NEAREST:]]
    given = [(score, True, hit in ids) for hit, score in zip(hits, scores, strict=True)]
    # What was missed pushes the last hits out of the nearest.
    nearest = sorted([*given, *missed], reverse=True)[:NEAREST]
    of_compared = [is_hit for _, is_hit, compared in nearest if compared]
    return len(of_compared), sum(of_compared)
