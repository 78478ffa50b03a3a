"""Records as Qdrant's points and back. Called by `store`.

A point's vector is the record's; its payload has the record's fields under their own names (null ones left out),
timestamps as RFC 3339, and `metadata` as an object, for other programs that read or filter the collection. What this
project reads back is the text as it was written, `metadata_json`: an object cannot hold integers beyond 64 bits.
`filters` tells of the other keys.

Cosine similarity is the dot product of vectors of length 1, and so it is kept: a vector of another length is stored
as one of length 1, with its length in the payload. Qdrant's own `Cosine` would forget the length, and its local mode
would change the last bits of every vector.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vectorize_pipelines.core.records import RECORD_FIELDS, record_schema
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.contents import hits, row_uuid, timestamp_text, vectors_of
from vectorize_pipelines.stores.filters.metadata_terms import entries_of
from vectorize_pipelines.stores.qdrant.filters import (
    METADATA_JSON,
    METADATA_TERMS,
    PARTITION_HEAD,
    PARTITION_TAIL,
    ordered_numbers,
    terms_of,
)

#: Payload key of the length of a vector that was written with another length than 1.
LENGTH = "length"

_FIELDS = [field for field in record_schema(1) if field.name != "vector"]

_UNIT = 1e-6
_INTEGERS = range(-(2**63), 2**63)
# A message may nest a hundred levels, and an object takes three of them.
_DEEPEST_OBJECT = 24


class Points:
    """The points of some records, made ready piece by piece: the payloads of a large table would fill the memory.

    Raises `StoreError` where it is made for metadata that is not a JSON object.
    """

    def __init__(self, records: pa.Table, *, unit_length: bool):
        self._records = records
        self._unit_length = unit_length
        self.ids = [row_uuid(one) for one in records["id"].to_pylist()]
        self._metadata: dict[str, tuple[Any, list[str]]] = {}
        for text in records["metadata"].to_pylist():
            if text not in self._metadata:
                self._metadata[text] = (_native(entries_of(text), 0), terms_of(text))

    def pieces(self, rows: int) -> Iterator[tuple[list[str], npt.NDArray[np.float32], list[dict[str, Any]]]]:
        """Yield ids, vectors (n, dimension) and payloads of `rows` points at a time."""
        for first in range(0, self._records.num_rows, rows):
            piece = self._records.slice(first, rows).combine_chunks()
            payloads = [self._payload(fields) for fields in piece.select(list(RECORD_FIELDS)).to_pylist()]
            vectors = vectors_of(piece)
            if self._unit_length:
                vectors = _with_unit_length(vectors, payloads)
            yield self.ids[first : first + rows], vectors, payloads

    def _payload(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        payload = {
            name: timestamp_text(value) if isinstance(value, datetime) else value
            for name, value in fields.items()
            if value is not None
        }
        payload[METADATA_JSON] = fields["metadata"]
        payload["metadata"], payload[METADATA_TERMS] = self._metadata[fields["metadata"]]
        payload[PARTITION_HEAD], payload[PARTITION_TAIL] = ordered_numbers(fields["partition"])
        return payload


def payload_keys(columns: Sequence[str]) -> list[str]:
    """Return the payload keys that `rows` needs for these columns."""
    renamed = {"metadata": METADATA_JSON, "vector": LENGTH}
    return [renamed.get(column, column) for column in columns]


def rows(points: Sequence[Any], schema: pa.Schema) -> pa.RecordBatch:
    """Return points of the client, with the payload keys of `payload_keys`, as records of this schema."""
    payloads = [point.payload or {} for point in points]
    return pa.RecordBatch.from_arrays(
        [
            _vector_column(points, payloads, field) if field.name == "vector" else _column(payloads, field)
            for field in schema
        ],
        schema=schema,
    )


def found_rows(points: Sequence[Any], scores: npt.NDArray[np.float32], limit: int) -> pa.Table:
    """Return points that a search found, with the payload keys of `payload_keys`, as `contents.hits`.

    Raises `StoreError` for points that are none of this project's.
    """
    payloads = [point.payload or {} for point in points]
    if any("id" not in payload for payload in payloads):
        raise StoreError("what was found are no records of this project")
    columns = {field.name: _values(payloads, field) for field in _FIELDS}
    return hits(columns, scores, limit)


def _column(payloads: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    return pa.array(_values(payloads, field), field.type)


def _values(payloads: Sequence[Mapping[str, Any]], field: pa.Field) -> list[Any]:
    key = METADATA_JSON if field.name == "metadata" else field.name
    values = [payload.get(key) for payload in payloads]
    if pa.types.is_timestamp(field.type):
        return [None if value is None else datetime.fromisoformat(value) for value in values]
    return values


def _vector_column(points: Sequence[Any], payloads: Sequence[Mapping[str, Any]], field: pa.Field) -> pa.Array:
    vectors = np.array([point.vector for point in points], np.float32).reshape(len(points), field.type.list_size)
    for index, payload in enumerate(payloads):
        if LENGTH in payload:
            vectors[index] *= np.float32(payload[LENGTH])
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=field.type)


def _with_unit_length(vectors: npt.NDArray[np.float32], payloads: Sequence[dict[str, Any]]) -> npt.NDArray[np.float32]:
    """Return the vectors scaled to length 1, but for those that have it and those without any; notes the lengths."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
    others = np.flatnonzero((np.abs(lengths - 1) > _UNIT) & (lengths > 0))
    if not len(others):
        return vectors
    scaled = vectors.copy()
    scaled[others] = vectors[others] / lengths[others, None]
    for index in others.tolist():
        payloads[index][LENGTH] = float(lengths[index])
    return scaled


def _native(value: Any, depth: int) -> Any:
    """Return the value as a payload can hold it; what it cannot (see the module) as near as it can, or as a text."""
    match value:
        case bool() | None:
            return value
        case int():
            return value if value in _INTEGERS else str(value)
        case float():
            return value if np.isfinite(value) else None
        case str():
            return value.encode("utf-8", "replace").decode()
        case _ if depth == _DEEPEST_OBJECT:
            return json.dumps(value)
        case list():
            return [_native(element, depth + 1) for element in value]
    return {_native(name, depth): _native(element, depth + 1) for name, element in value.items()}
