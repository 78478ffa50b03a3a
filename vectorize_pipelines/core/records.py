"""The record that every store holds: its Arrow schema and its deterministic id.

Users and their data depend on these: a change here is a new major version.
"""

import functools
import hashlib
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vectorize_pipelines.core.items import Item, encode_metadata

ID_NAMESPACE = uuid.UUID("6f7d6c1e-3f0b-5c0e-9a51-5b9a6c1d7e42")

_NAMESPACE_BYTES = ID_NAMESPACE.bytes

TIMESTAMP = pa.timestamp("us", tz="UTC")


@functools.cache
def record_schema(dimension: int) -> pa.Schema:
    """Return the columns of a record; `id` first, `vector` (float32, `dimension` long) last.

    `metadata` is a JSON object as text; a store may keep it in its own native form.
    """
    return pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            pa.field("source_id", pa.string(), nullable=False),
            pa.field("item_index", pa.int32(), nullable=False),
            pa.field("modality", pa.string(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("uri", pa.string()),
            pa.field("page", pa.int32()),
            pa.field("start", pa.int64()),
            pa.field("end", pa.int64()),
            pa.field("content_hash", pa.string(), nullable=False),
            pa.field("model", pa.string(), nullable=False),
            pa.field("occurred_at", TIMESTAMP, nullable=False),
            pa.field("partition", pa.string(), nullable=False),
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("embedded_at", TIMESTAMP, nullable=False),
            pa.field("metadata", pa.string(), nullable=False),
            pa.field("vector", pa.list_(pa.field("item", pa.float32(), nullable=False), dimension), nullable=False),
        ]
    )


#: Every field of a record but its vector, in the order of the schema.
RECORD_FIELDS: tuple[str, ...] = tuple(name for name in record_schema(1).names if name != "vector")


def record_id(collection: str, source_id: str, item_index: int) -> str:
    """Return uuid5 of collection, source and index: the same item always lands on the same row.

    `collection` is the alias that users read, so that an item keeps its id when the model changes.
    """
    # `str(uuid.uuid5(…))` in half the time: this is asked for every row.
    name = f"{collection}\x1f{source_id}\x1f{item_index}".encode()
    digest = bytearray(hashlib.sha1(_NAMESPACE_BYTES + name, usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50  # version 5
    digest[8] = digest[8] & 0x3F | 0x80  # variant of RFC 9562
    text = digest.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def make_records(
    ids: Sequence[str],
    items: Sequence[Item],
    days: Sequence[str],
    vectors: npt.NDArray[np.float32],
    embedded_at: Sequence[datetime],
    models: Sequence[str],
    *,
    run_id: str,
) -> pa.Table:
    """Return the records of items, `record_schema`; each sequence of length n, `vectors` of shape (n, dimension)."""
    schema = record_schema(vectors.shape[1])
    columns: dict[str, Any] = {
        "id": ids,
        "partition": days,
        "model": models,
        "run_id": [run_id] * len(items),
        "embedded_at": embedded_at,
        "metadata": _metadata(items),
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=schema.field("vector").type),
    }
    return pa.table(
        [columns[name] if name in columns else [getattr(item, name) for item in items] for name in schema.names],
        schema=schema,
    )


def _metadata(items: Sequence[Item]) -> list[str]:
    """Return the metadata of items as text, written once for all items that share them, as those of a request do."""
    written: dict[int, str] = {}
    found: list[str] = []
    for item in items:
        metadata = item.metadata
        if not metadata:
            found.append("{}")
            continue
        text = written.get(id(metadata))
        if text is None:
            text = written[id(metadata)] = encode_metadata(metadata)
        found.append(text)
    return found
