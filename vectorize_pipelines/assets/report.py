"""The figures and the plot of `corpus_report`: an example of what an asset downstream of the embeddings can do."""

import base64
import io
from typing import Any, TypeAlias

import dagster as dg
import numpy as np
import numpy.typing as npt
import pandas as pd

#: Cosine from which two passages of different documents count as near-duplicates.
NEAR_DUPLICATE_COSINE = 0.97
#: Comparing every pair grows with the square of the rows; beyond this many the first ones by id are compared.
ROWS_COMPARED = 20_000
#: A block's cosines with every row are in memory at once: 20 MB of them at `ROWS_COMPARED`.
BLOCK_ROWS = 256
LARGEST_SHOWN = 5
PAIRS_SHOWN = 10

#: Where the one passage stands, where the other, and their cosine.
Pair: TypeAlias = tuple[str, str, float]


def report_day(records: pd.DataFrame) -> dict[str, Any]:
    """The metadata of one day's records; `records` as `VectorStoreIOManager.load_input` gives them."""
    chunks_of = records.groupby("source_id").size().sort_values(ascending=False)
    languages = records.drop_duplicates("source_id")["metadata"].map(lambda fields: fields.get("language", "unknown"))
    near, pairs = near_duplicates(records)
    metadata: dict[str, Any] = {
        "documents": len(chunks_of),
        "chunks": len(records),
        "characters": int(records["text"].str.len().sum()),
        "near_duplicates": near,
        "rows_compared": min(len(records), ROWS_COMPARED),
    }
    for language, count in languages.value_counts().items():
        metadata[f"language/{language}"] = int(count)
    if len(chunks_of):
        metadata["largest_documents"] = _table(("source", "chunks"), list(chunks_of.head(LARGEST_SHOWN).items()))
    if pairs:
        metadata["near_duplicate_passages"] = _table(("first", "second", "cosine"), pairs)
    return metadata


def near_duplicates(records: pd.DataFrame) -> tuple[int, list[Pair]]:
    """Return the number of pairs of passages of different documents that say nearly the same, and the nearest of them.

    Compares block by block, so memory grows with the rows and not with their pairs.
    """
    compared = records.sort_values("id").head(ROWS_COMPARED)
    if compared.empty:
        return 0, []
    vectors = np.stack(compared["vector"].to_list())
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    sources = compared["source_id"].factorize()[0]
    columns = np.arange(len(vectors))
    count = 0
    nearest: list[tuple[float, int, int]] = []
    for start in range(0, len(vectors), BLOCK_ROWS):
        rows = columns[start : start + BLOCK_ROWS]
        cosines = vectors[rows] @ vectors[start:].T
        near = cosines >= NEAR_DUPLICATE_COSINE
        near &= columns[start:] > rows[:, None]
        near &= sources[start:] != sources[rows, None]
        count += int(np.count_nonzero(near))
        nearest = _nearest(nearest, cosines, near, start)
    places = (compared["source_id"] + " #" + compared["item_index"].astype(str)).to_numpy()
    return count, [(places[first], places[second], round(cosine, 4)) for cosine, first, second in nearest]


def _nearest(
    known: list[tuple[float, int, int]], cosines: npt.NDArray[np.float32], near: npt.NDArray[np.bool_], start: int
) -> list[tuple[float, int, int]]:
    """The nearest pairs (cosine, row, row) of those known and those of a block that starts at row `start`."""
    if len(known) == PAIRS_SHOWN:
        near &= cosines > known[-1][0]
    places = np.flatnonzero(near)
    values = cosines.ravel()[places]
    best = np.argsort(-values, kind="stable")[:PAIRS_SHOWN]
    rows, columns = np.unravel_index(places[best], cosines.shape)
    found = [
        (float(value), start + int(row), start + int(column))
        for value, row, column in zip(values[best], rows, columns, strict=True)
    ]
    return sorted([*known, *found], key=lambda pair: (-pair[0], *pair[1:]))[:PAIRS_SHOWN]


def report_plot(records: pd.DataFrame) -> dg.MarkdownMetadataValue:
    """Documents and chunks of each day, as a picture inside Markdown, which is how the UI shows one."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    days = records.groupby("partition").agg(documents=("source_id", "nunique"), chunks=("id", "size"))
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    positions = np.arange(len(days))
    axes.bar(positions - 0.2, days["documents"], width=0.4, label="documents")
    axes.bar(positions + 0.2, days["chunks"], width=0.4, label="chunks")
    axes.set_xticks(positions, list(days.index), rotation=30 if len(days) > 4 else 0)
    axes.set_ylabel("count")
    axes.set_title("Documents and chunks by day")
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    encoded = base64.b64encode(image.getvalue()).decode()
    return dg.MetadataValue.md(f"![documents and chunks by day](data:image/png;base64,{encoded})")


def _table(columns: tuple[str, ...], rows: list[Any]) -> dg.TableMetadataValue:
    records = [dg.TableRecord({name: _plain(value) for name, value in zip(columns, row, strict=True)}) for row in rows]
    return dg.MetadataValue.table(records)


def _plain(value: Any) -> str | int | float:
    plain: str | int | float = value.item() if isinstance(value, np.generic) else value
    return plain
