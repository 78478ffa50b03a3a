"""Records as Weaviate's objects, and back. Called by `store`.

An object has the record's fields as properties (`id` as `record_id`), what of its metadata is indexed as further
ones (see `filters`), and a UUID (see `contents.row_uuid`).
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vectorize_pipelines.core.records import record_schema
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.stores.contents import hits, row_uuid, vectors_of
from vectorize_pipelines.stores.filters.metadata_terms import entries_of, number_term, term
from vectorize_pipelines.stores.weaviate.filters import LARGEST_INTEGER, property_of
from vectorize_pipelines.stores.weaviate.texts import (
    number_property,
    property_name,
    read_all,
    written,
    written_column,
)

if TYPE_CHECKING:
    from weaviate.classes.data import DataObject

#: The vector's name in Weaviate: what its client calls the only one.
VECTOR = "default"
#: The names of metadata of a record that the collection does not index; a property that exists once there are any.
UNINDEXED = "unindexed_metadata"

_FIELDS = [(field.name, property_of(field.name), field.type) for field in record_schema(1) if field.name != "vector"]


def metadata_entries(records: pa.Table) -> list[Mapping[str, Any]]:
    """Return the metadata of each record; raises `StoreError` for one whose metadata is not a JSON object."""
    known: dict[str, Mapping[str, Any]] = {}
    texts = records["metadata"].to_pylist()
    for text in texts:
        if text not in known:
            known[text] = entries_of(text)
    return [known[text] for text in texts]


def check_offsets(records: pa.Table) -> None:
    """Raise `StoreError` for integers that Weaviate would round."""
    for name in ("start", "end"):
        ends = pc.min_max(records[name]).as_py()
        if max(-(ends["min"] or 0), ends["max"] or 0) > LARGEST_INTEGER:
            raise StoreError(f"{name!r} of a record is beyond {LARGEST_INTEGER}: Weaviate would round it")


def objects(
    records: pa.Table, entries: Sequence[Mapping[str, Any]], indexed: Mapping[str, str]
) -> "list[DataObject[Any, None]]":
    """Return the records as objects: `entries` is their metadata, `indexed` which of its names have which property."""
    from weaviate.classes.data import DataObject

    columns = {property_of(name): _written_values(records[name]) for name in records.schema.names if name != "vector"}
    names = list(columns)
    vectors = vectors_of(records)
    return [
        DataObject(
            uuid=row_uuid(record_id),
            properties={name: value for name, value in zip(names, values, strict=True) if value is not None}
            | _metadata_properties(own, indexed),
            vector=vector,
        )
        for record_id, values, own, vector in zip(
            records["id"].to_pylist(), zip(*columns.values(), strict=True), entries, vectors, strict=True
        )
    ]


def _written_values(column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_timestamp(column.type):
        return list(pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ").to_pylist())
    if pa.types.is_string(column.type):
        return list(written_column(column).to_pylist())
    return list(column.to_pylist())


def _metadata_properties(entries: Mapping[str, Any], indexed: Mapping[str, str]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    unindexed = []
    for name, value in entries.items():
        text = term(value)
        if text is None:
            continue
        if name in indexed:
            properties[indexed[name]] = written(text)
            if (number := number_term(value)) is not None:
                properties[number_property(name)] = written(number)
        else:
            unindexed.append(property_name(name))
    return properties | ({UNINDEXED: unindexed} if unindexed else {})


def record_batch(found: Sequence[Any], schema: pa.Schema) -> pa.RecordBatch:
    """Return objects that Weaviate found, with these columns of the record."""
    return pa.RecordBatch.from_arrays([_column(found, field) for field in schema], schema=schema)


def _column(found: Sequence[Any], field: pa.Field) -> pa.Array:
    if field.name == "vector":
        matrix = np.array([one.vector[VECTOR] for one in found], np.float32)
        return pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), type=field.type)
    return pa.array(_read_values(found, property_of(field.name), field.type), field.type)


def _read_values(found: Sequence[Any], held: str, data_type: pa.DataType) -> Sequence[Any]:
    values = [one.properties.get(held) for one in found]
    if pa.types.is_timestamp(data_type):
        return [datetime.fromisoformat(value) for value in values]
    return read_all(values) if pa.types.is_string(data_type) else values


def result_table(found: Iterable[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Return pages of objects, as one table."""
    return pa.Table.from_batches([record_batch(page, schema) for page in found], schema=schema)


def scored(found: Sequence[Any], similarities: Sequence[float], limit: int) -> pa.Table:
    """Return hits with `score`, best first and then by id, at most `limit` of them."""
    columns = {name: _read_values(found, held, data_type) for name, held, data_type in _FIELDS}
    return hits(columns, np.array(similarities, np.float32), limit)
