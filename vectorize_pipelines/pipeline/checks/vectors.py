"""Checks on what a store holds: sound vectors, complete rows, passages that find themselves.

Called by the asset checks (`assets/checks/vectors.py`); each function looks and reports, none changes anything.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.core.items import Modality, content_hash
from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.errors import CollectionNotFoundError, ItemError, UnreadableFileError
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.sources.rereading import is_listed_file
from vectorize_pipelines.state.findings import MOST_SUBJECTS
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.filters.expressions import Equal, Filter, In

if TYPE_CHECKING:
    import pyarrow as pa

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
    """Counts of rows: all that were looked at, and those with a vector that is not as it should be.

    `sources` are those of the latter, as far as they are remembered (`findings.MOST_SUBJECTS`, and one more).
    """

    rows: int
    wrong_dimension: int
    not_finite: int
    not_unit: int
    sources: frozenset[str] = frozenset()

    def __add__(self, other: Self) -> Self:
        """Both together."""
        return type(self)(
            self.rows + other.rows,
            self.wrong_dimension + other.wrong_dimension,
            self.not_finite + other.not_finite,
            self.not_unit + other.not_unit,
            self.sources | other.sources,
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
    report = VectorReport(0, 0, 0, 0)
    for batch in store.scan(collection, ("source_id", "vector"), where):
        if most is not None and report.rows >= most:
            break
        report += _inspected(batch, dimension, normalized=normalized)
        report = replace(report, sources=frozenset(islice(report.sources, MOST_SUBJECTS + 1)))
    return report


def _inspected(batch: "pa.RecordBatch", dimension: int, *, normalized: bool) -> VectorReport:
    column, sources = batch.column("vector"), batch.column("source_id")
    if column.type.list_size != dimension:
        return VectorReport(batch.num_rows, batch.num_rows, 0, 0, frozenset(sources.to_pylist()))
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(batch.num_rows, dimension)
    finite = np.isfinite(vectors).all(axis=1)
    other_length = np.zeros_like(finite)
    if normalized:
        other_length[finite] = np.abs(np.linalg.norm(vectors[finite], axis=1) - 1) > NORM_TOLERANCE
    bad = sources.filter(~finite | other_length).to_pylist()
    return VectorReport(batch.num_rows, 0, int((~finite).sum()), int(other_length.sum()), frozenset(bad))


@dataclass(frozen=True, slots=True)
class CanaryReport:
    """Passages looked for by their own content, and the source ids of those that did not come first.

    missed_ids  ids of their rows
    left_out    ids of rows that were to be looked for, and whose content could not be had
    """

    sampled: int
    missed: tuple[str, ...]
    missed_ids: frozenset[str] = frozenset()
    left_out: frozenset[str] = frozenset()

    def __add__(self, other: Self) -> Self:
        """Both together."""
        return type(self)(
            self.sampled + other.sampled,
            (*self.missed, *other.missed),
            self.missed_ids | other.missed_ids,
            self.left_out | other.left_out,
        )

    @property
    def recall(self) -> float:
        """Share of the passages that came first; NaN where none was looked for."""
        return (self.sampled - len(self.missed)) / self.sampled if self.sampled else math.nan


def read_listed_image(row: Mapping[str, Any], roots: Sequence[str] = ()) -> bytes:
    """Return the bytes of an image that came from files. Raises `UnreadableFileError`, also for any other image.

    `roots` are those of `sources.rereading.listed_roots`. What requests name may only be fetched under their rules:
    `sources.rereading.ContentReader` does.
    """
    if not is_listed_file(row, roots):
        raise UnreadableFileError("came with a request")
    return read_content(row["uri"], LARGEST_CANARY_BYTES)


def canary_recall(
    store: VectorStore,
    collection: str,
    encoder: Encoder,
    where: Filter | None,
    *,
    most: int | None = None,
    canaries: int = CANARIES,
    read: Callable[[Mapping[str, Any]], bytes] = read_listed_image,
) -> CanaryReport:
    """Encodes the content of some rows, the first `canaries` by id that match, and looks whether each finds itself.

    They are chosen among all or, with `most`, among about so many that the store gives first.

    An image is read again by `read`, which takes its row; one that cannot be, or is another by now, is left out. A row
    of the same content counts as itself: the same passage may stand in several documents. So does a row that scores as
    the canary's own vector does: texts that differ only in what the tokenizer drops have one vector.
    """
    chosen: list[dict[str, str]] = []
    seen = 0
    for batch in store.scan(collection, ("id", "source_id", "content_hash", "text", "modality", "uri"), where):
        rows = [row for row in batch.to_pylist() if row["text"] or row["modality"] == Modality.IMAGE]
        chosen = sorted([*chosen, *rows], key=lambda row: row["id"])[:canaries]
        seen += batch.num_rows
        if most is not None and seen >= most:
            break
    contents = {row["id"]: content for row in chosen if (content := _content(row, read)) is not None}
    left_out = frozenset(row["id"] for row in chosen if row["id"] not in contents)
    chosen = [row for row in chosen if row["id"] in contents]
    if not chosen:
        return CanaryReport(0, (), left_out=left_out)
    stored = _vectors(store, collection, [row["id"] for row in chosen])
    vectors = encoder.encode([contents[row["id"]] for row in chosen])
    missed = []
    for row, vector in zip(chosen, vectors, strict=True):
        hits = store.search(collection, vector, 1).to_pylist()
        if not hits or not _finds(hits[0], row, _cosine(vector, stored.get(row["id"]))):
            missed.append(row)
    return CanaryReport(
        len(chosen), tuple(row["source_id"] for row in missed), frozenset(row["id"] for row in missed), left_out
    )


def _content(row: Mapping[str, str], read: Callable[[Mapping[str, Any]], bytes]) -> str | bytes | None:
    """Return the content that a row was made from, None where it is not to be had any more."""
    if row["modality"] != Modality.IMAGE:
        return row["text"]
    try:
        data = read(row)
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


def rows_of_sources(store: VectorStore, collection: str, sources: Sequence[str]) -> dict[str, int]:
    """Source id -> rows, of those of the sources that have any; none where there is no such collection."""
    try:
        return store.count_by(collection, "source_id", In("source_id", tuple(sources)))
    except CollectionNotFoundError:
        return {}
