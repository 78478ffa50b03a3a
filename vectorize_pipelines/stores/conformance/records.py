"""Records to write into stores under test, and what they look like when they come back."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.records import record_id, record_schema
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.stores.base import VectorStore

COLLECTION = "articles"
NOON = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)

Row = dict[str, Any]


def spec(name: str = "models/tiny-model", dimension: int = 4, revision: str = "0123456789ab") -> EncoderSpec:
    return EncoderSpec(
        name=name,
        revision=revision,
        dimension=dimension,
        max_length=128,
        pooling="mean",
        prompt="",
        query_prompt="",
        modalities=frozenset({Modality.TEXT}),
        normalized=True,
    )


def row(source_id: str = "a.txt", item_index: int = 0, **fields: Any) -> Row:
    """Return a record as a dictionary; `metadata` may be given as a mapping."""
    complete = {
        "id": record_id(COLLECTION, source_id, item_index),
        "source_id": source_id,
        "item_index": item_index,
        "modality": "text",
        "text": f"chunk {item_index} of {source_id}",
        "uri": f"file:///{source_id}",
        "page": None,
        "start": 0,
        "end": 10,
        "content_hash": "00" * 16,
        "model": spec().fingerprint,
        "occurred_at": NOON + timedelta(microseconds=item_index),
        "partition": "2024-02-29",
        "run_id": "run",
        "embedded_at": NOON,
        "metadata": {},
        "vector": [1.0, 0.0, 0.0, 0.0],
    } | fields
    if isinstance(complete["metadata"], Mapping):
        complete["metadata"] = json.dumps(complete["metadata"])
    return complete


def table(rows: Iterable[Row], dimension: int = 4) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=record_schema(dimension))


def many(count: int, dimension: int = 4, seed: int = 0, per_source: int = 8, first: int = 0) -> pa.Table:
    """Return `count` records with normalised random vectors, `per_source` of them to a source."""
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [
        row(f"folder/{number // per_source}.txt", number % per_source, vector=vectors[number - first])
        for number in range(first, first + count)
    ]
    return table(rows, dimension)


def stored(store: VectorStore, columns: Sequence[str] = record_schema(4).names) -> dict[str, Row]:
    """Return everything in the collection by id, metadata read as JSON; fail where an id occurs twice."""
    rows = [one for batch in store.scan(COLLECTION, columns) for one in batch.to_pylist()]
    by_id = {one["id"]: one for one in rows}
    assert len(by_id) == len(rows)
    return by_id
