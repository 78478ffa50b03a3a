"""The figures and the plot of `corpus_report`: an example of what an asset downstream of the embeddings can do."""

import base64
import io
from typing import Any

import dagster as dg
import numpy as np
import pandas as pd

#: Cosine from which two passages of different documents count as near-duplicates.
NEAR_DUPLICATE_COSINE = 0.97
#: Comparing every pair grows with the square of the rows; beyond this many the first ones by id are compared.
ROWS_COMPARED = 20_000
BLOCK_ROWS = 1024
LARGEST_SHOWN = 5
PAIRS_SHOWN = 10


def report_day(records: pd.DataFrame) -> dict[str, Any]:
    """The metadata of one day's records; `records` as `VectorStoreIOManager.load_input` gives them."""
    chunks_of = records.groupby("source_id").size().sort_values(ascending=False)
    languages = records.drop_duplicates("source_id")["metadata"].map(lambda fields: fields.get("language", "unknown"))
    pairs = near_duplicates(records)
    metadata: dict[str, Any] = {
        "documents": len(chunks_of),
        "chunks": len(records),
        "characters": int(records["text"].str.len().sum()),
        "near_duplicates": len(pairs),
        "rows_compared": min(len(records), ROWS_COMPARED),
    }
    for language, count in languages.value_counts().items():
        metadata[f"language/{language}"] = int(count)
    if len(chunks_of):
        metadata["largest_documents"] = _table(("source", "chunks"), list(chunks_of.head(LARGEST_SHOWN).items()))
    if pairs:
        metadata["near_duplicate_passages"] = _table(("first", "second", "cosine"), pairs[:PAIRS_SHOWN])
    return metadata


def near_duplicates(records: pd.DataFrame) -> list[tuple[str, str, float]]:
    """Pairs of passages of different documents that say nearly the same: (where, where, cosine), nearest first."""
    compared = records.sort_values("id").head(ROWS_COMPARED)
    if compared.empty:
        return []
    vectors = np.stack(compared["vector"].to_list())
    vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    sources = compared["source_id"].to_numpy()
    places = (compared["source_id"] + " #" + compared["item_index"].astype(str)).to_numpy()
    found: list[tuple[str, str, float]] = []
    for start in range(0, len(vectors), BLOCK_ROWS):
        cosines = vectors[start : start + BLOCK_ROWS] @ vectors[start:].T
        for a, b in np.argwhere(cosines >= NEAR_DUPLICATE_COSINE):
            if a < b and sources[start + a] != sources[start + b]:
                found.append((places[start + a], places[start + b], round(float(cosines[a, b]), 4)))
    return sorted(found, key=lambda pair: -pair[2])


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
