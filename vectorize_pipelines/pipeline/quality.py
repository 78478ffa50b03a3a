"""Checks on what a store holds: sound vectors, complete rows, passages that find themselves.

Called by the asset checks (`assets/checks.py`); each function looks and reports, none changes anything.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.encoders.protocol import Encoder
from vectorize_pipelines.errors import CollectionNotFoundError, ItemError
from vectorize_pipelines.items import Modality, content_hash
from vectorize_pipelines.pipeline.changes import Days
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.sources.manifest import ManifestEntry
from vectorize_pipelines.stores.filters import Equal, Filter, In, Range
from vectorize_pipelines.stores.protocol import VectorStore

Vector: TypeAlias = npt.NDArray[np.float32]

#: How far from 1 the length of a normalised vector may be: float32, and stores that keep half precision.
NORM_TOLERANCE = 1e-3
CANARIES = 32
#: A larger image is no canary.
LARGEST_CANARY_BYTES = 16 * 2**20
#: How far from a canary's own score the best one may be: the stored vector was encoded in another batch.
SCORE_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class VectorReport:
    """Counts of rows: all that were looked at, and those with a vector that is not as it should be."""

    rows: int
    wrong_dimension: int
    not_finite: int
    not_unit: int

    def __add__(self, other: Self) -> Self:
        """Both together."""
        return type(self)(
            self.rows + other.rows,
            self.wrong_dimension + other.wrong_dimension,
            self.not_finite + other.not_finite,
            self.not_unit + other.not_unit,
        )

    @property
    def bad(self) -> int:
        """Rows with a fault of any kind."""
        return self.wrong_dimension + self.not_finite + self.not_unit


def inspect_vectors(
    store: VectorStore,
    collection: str,
    where: Filter | None,
    dimension: int,
    *,
    normalized: bool,
    most: int | None = None,
) -> VectorReport:
    """Looks at matching rows' vectors, batch by batch; `normalized` says whether length 1 is expected.

    `most`: no further batch once so many have been looked at; None: all of them.
    """
    rows = wrong_dimension = not_finite = not_unit = 0
    for batch in store.scan(collection, ("vector",), where):
        if most is not None and rows >= most:
            break
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

    def __add__(self, other: Self) -> Self:
        """Both together."""
        return type(self)(self.sampled + other.sampled, (*self.missed, *other.missed))

    @property
    def recall(self) -> float:
        """Share of the passages that came first; NaN where none was looked for."""
        return (self.sampled - len(self.missed)) / self.sampled if self.sampled else math.nan


def read_image(uri: str) -> bytes:
    """The bytes of an image that came from files. Raises `UnreadableFileError`."""
    return read_content(uri, LARGEST_CANARY_BYTES)


def canary_recall(
    store: VectorStore,
    collection: str,
    encoder: Encoder,
    where: Filter | None,
    *,
    most: int | None = None,
    read: Callable[[str], bytes] = read_image,
) -> CanaryReport:
    """Encodes the content of some rows, the first by id among those that match, and looks whether each finds itself.

    They are chosen among all or, with `most`, among about so many that the store gives first.

    An image is read again from its URI by `read`; one that cannot be, or is another by now, is left out. A row of
    the same content counts as itself: the same passage may stand in several documents. So does a row that scores as the
    canary's own vector does: texts that differ only in what the tokenizer drops have one vector.
    """
    canaries: list[dict[str, str]] = []
    seen = 0
    for batch in store.scan(collection, ("id", "source_id", "content_hash", "text", "modality", "uri"), where):
        rows = [row for row in batch.to_pylist() if row["text"] or row["modality"] == Modality.IMAGE]
        canaries = sorted([*canaries, *rows], key=lambda row: row["id"])[:CANARIES]
        seen += batch.num_rows
        if most is not None and seen >= most:
            break
    contents = {row["id"]: content for row in canaries if (content := _content(row, read)) is not None}
    canaries = [row for row in canaries if row["id"] in contents]
    if not canaries:
        return CanaryReport(0, ())
    stored = _vectors(store, collection, [row["id"] for row in canaries])
    vectors = encoder.encode([contents[row["id"]] for row in canaries])
    missed = []
    for row, vector in zip(canaries, vectors, strict=True):
        hits = store.search(collection, vector, 1).to_pylist()
        if not hits or not _finds(hits[0], row, _cosine(vector, stored.get(row["id"]))):
            missed.append(row["source_id"])
    return CanaryReport(len(canaries), tuple(missed))


def _content(row: Mapping[str, str], read: Callable[[str], bytes]) -> str | bytes | None:
    """What a row was made from, if it can still be had."""
    if row["modality"] != Modality.IMAGE:
        return row["text"]
    try:
        data = read(row["uri"])
    except ItemError:
        return None
    return data if content_hash(data) == row["content_hash"] else None


def _vectors(store: VectorStore, collection: str, ids: Sequence[str]) -> dict[str, Vector]:
    table = store.fetch(collection, In("id", tuple(ids)), ("id", "vector"))
    vectors = (np.asarray(vector, dtype=np.float32) for vector in table["vector"].to_pylist())
    return dict(zip(table["id"].to_pylist(), vectors, strict=True))


def _finds(hit: Mapping[str, Any], row: Mapping[str, str], own_score: float) -> bool:
    """A score below the row's own is a miss too: the search passed over the row."""
    found = hit["id"] == row["id"] or hit["content_hash"] == row["content_hash"]
    return found or abs(float(hit["score"]) - own_score) <= SCORE_TOLERANCE


def _cosine(encoded: Vector, stored: Vector | None) -> float:
    """NaN, which is near no score, for a row without a direction and for one that has gone meanwhile."""
    if stored is None or stored.shape != encoded.shape:
        return math.nan
    lengths = float(np.linalg.norm(encoded) * np.linalg.norm(stored))
    return float(encoded @ stored) / lengths if lengths else math.nan


def written_by(run_id: str) -> Filter:
    """The rows that a run wrote."""
    return Equal("run_id", run_id)


def sources_of_run(store: VectorStore, collection: str, run_id: str) -> set[str]:
    """The sources of which a run wrote rows."""
    return set(store.count_by(collection, "source_id", written_by(run_id)))


def rows_of_sources(store: VectorStore, collection: str, sources: Sequence[str]) -> dict[str, int]:
    """Source id -> rows, of those of the sources that have any; none where there is no such collection."""
    try:
        return store.count_by(collection, "source_id", In("source_id", tuple(sources)))
    except CollectionNotFoundError:
        return {}


def sources_of_days(
    store: VectorStore, collection: str, entries: Iterable[ManifestEntry], days: Days, window: tuple[date, date]
) -> set[str]:
    """The sources that the store or the manifest has under a day of the window (first and last, both included)."""
    first, last = (day.isoformat() for day in window)
    after = (window[1] + timedelta(days=1)).isoformat()
    stored = set(store.count_by(collection, "source_id", Range("partition", first, after)))
    known = {entry.source_id for entry in entries if first <= days.of(_modified(entry)) <= last}
    return stored | known


def _modified(entry: ManifestEntry) -> datetime:
    return datetime.fromtimestamp(entry.modified_ns // 1_000_000_000, UTC)
