"""Checks on what a store holds: sound vectors, complete rows, passages that find themselves.

Called by the asset checks; each function looks and reports, none changes anything.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vectorize_pipelines.encoders.protocol import Encoder
from vectorize_pipelines.stores.filters import Equal, Filter
from vectorize_pipelines.stores.protocol import VectorStore

#: How far from 1 the length of a normalised vector may be: float32, and stores that keep half precision.
NORM_TOLERANCE = 1e-3
CANARIES = 32


@dataclass(frozen=True, slots=True)
class VectorReport:
    """Counts of rows: all that were looked at, and those with a vector that is not as it should be."""

    rows: int
    wrong_dimension: int
    not_finite: int
    not_unit: int

    @property
    def bad(self) -> int:
        """Rows with a fault of any kind."""
        return self.wrong_dimension + self.not_finite + self.not_unit


def inspect_vectors(
    store: VectorStore, collection: str, where: Filter | None, dimension: int, *, normalized: bool
) -> VectorReport:
    """Looks at every matching row's vector, batch by batch; `normalized` says whether length 1 is expected."""
    rows = wrong_dimension = not_finite = not_unit = 0
    for batch in store.scan(collection, ("vector",), where):
        rows += batch.num_rows
        column = batch.column("vector")
        if column.type.list_size != dimension:
            wrong_dimension += batch.num_rows
            continue
        vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, dimension)
        finite = np.isfinite(vectors).all(axis=1)
        not_finite += int((~finite).sum())
        if normalized:
            norms = np.linalg.norm(vectors[finite], axis=1)
            not_unit += int((np.abs(norms - 1) > NORM_TOLERANCE).sum())
    return VectorReport(rows, wrong_dimension, not_finite, not_unit)


def differing_sources(stored: Mapping[str, int], expected: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Source id -> (rows stored, rows expected), for the expected sources where the two differ."""
    return {name: (stored.get(name, 0), rows) for name, rows in expected.items() if stored.get(name, 0) != rows}


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """Passages looked for by their own text, and the source ids of those that did not come first."""

    sampled: int
    missed: tuple[str, ...]

    @property
    def recall(self) -> float:
        """Share of the passages that came first; NaN where none was looked for."""
        return (self.sampled - len(self.missed)) / self.sampled if self.sampled else math.nan


def canary_recall(store: VectorStore, collection: str, encoder: Encoder, where: Filter | None) -> CanaryReport:
    """Encodes the texts of some rows, the first by id among those that match, and looks whether each finds itself.

    A row of the same content counts as itself: the same passage may stand in several documents.
    """
    canaries: list[dict[str, str]] = []
    for batch in store.scan(collection, ("id", "source_id", "content_hash", "text"), where):
        rows = [row for row in batch.to_pylist() if row["text"]]
        canaries = sorted([*canaries, *rows], key=lambda row: row["id"])[:CANARIES]
    if not canaries:
        return CanaryReport(0, ())
    vectors = encoder.encode([row["text"] for row in canaries])
    missed = []
    for row, vector in zip(canaries, vectors, strict=True):
        hits = store.search(collection, vector, 1)
        if hits.num_rows == 0 or hits["content_hash"][0].as_py() != row["content_hash"]:
            missed.append(row["source_id"])
    return CanaryReport(len(canaries), tuple(missed))


def written_by(run_id: str) -> Filter:
    """The rows that a run wrote."""
    return Equal("run_id", run_id)
