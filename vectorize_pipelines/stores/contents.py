"""Checks of what may go into a collection, and of what comes out. Called by every store of this package.

What a store cannot hold beyond that, and its own types, are the store's affair.
"""

import json
import math
import re
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vectorize_pipelines.core.records import ID_NAMESPACE, record_schema
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import ModelMismatchError, StoreError
from vectorize_pipelines.stores.base import Collection

_UUID5 = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """Return a table's rows with their metadata as objects, each text read once: the rows of a request share theirs."""
    read: dict[str, Any] = {}
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        text = row["metadata"]
        if text not in read:
            read[text] = json.loads(text)
        row["metadata"] = read[text]
    return rows


def check_model(collection: Collection, revision: str, spec: EncoderSpec) -> None:
    """Raise `ModelMismatchError` where the collection holds vectors of another model than the spec's.

    A model of the same revision under another name, e.g. a local copy, has the same vectors and is let in.
    """
    same_model = spec.name == collection.model or spec.revision == revision
    if same_model and spec.dimension == collection.dimension:
        return
    cut = f" --dimension {spec.dimension}" if same_model else ""
    raise ModelMismatchError(
        f"the collection {collection.name!r} ({collection.physical} in {collection.location}) holds vectors of "
        f"{collection.model} with {collection.dimension} dimensions, not of {spec.name} with {spec.dimension}; "
        "name the model that it has, use another collection, or embed this one again: "
        f"`vectorize collections reembed {collection.name} --model {spec.name}{cut}`"
    )


def result_schema(dimension: int, columns: Sequence[str]) -> pa.Schema:
    """Return the record's own types for these columns. Raises `StoreError` for a column that no record has."""
    schema = record_schema(dimension)
    unknown = [column for column in columns if column not in schema.names]
    if unknown or not columns:
        raise StoreError(f"no such columns: {unknown}; a record has {', '.join(schema.names)}")
    return pa.schema([schema.field(column) for column in columns])


def checked_records(records: pa.Table, dimension: int) -> pa.Table:
    """Return the records in the record's own types, without copying; raises `StoreError` for what no store may take."""
    schema = record_schema(dimension)
    if records.schema.names != schema.names:
        raise StoreError(f"records have the columns {records.schema.names}; they must be {schema.names}")
    given = records.schema.field("vector").type
    if not pa.types.is_fixed_size_list(given) or given.list_size != dimension:
        raise StoreError(f"vectors are {given}; the collection's have {dimension} components")
    for field in schema:
        if not field.nullable and records[field.name].null_count:
            raise StoreError(f"{records[field.name].null_count} records have no {field.name!r}, which every record has")
    try:
        rows = records if records.schema.equals(schema) else records.cast(schema)
    except (ValueError, pa.ArrowException) as error:
        raise StoreError(f"records are not what they must be: {error}") from error
    _check_ids(rows["id"])
    _check_vectors(rows)
    return rows


_HIT_SCHEMA = pa.schema([field for field in record_schema(1) if field.name != "vector"]).append(
    pa.field("score", pa.float32())
)
_NAMES_BY_TYPE = {
    data_type: [field.name for field in _HIT_SCHEMA if field.type == data_type]
    for data_type in dict.fromkeys(field.type for field in _HIT_SCHEMA)
}


def hits(columns: Mapping[str, Sequence[Any]], scores: npt.NDArray[np.float32], limit: int) -> pa.Table:
    """Return rows that a client found as `VectorStore.search` does: best first and then by id, at most `limit`.

    `columns` has every field of a record but the vector.
    """
    given = scores.tolist()
    ids = columns["id"]
    order = sorted(range(len(ids)), key=lambda hit: (-given[hit], ids[hit]))[:limit]
    values = {**columns, "score": given}
    arrays: dict[str, pa.Array] = {}
    # Of a few hits an array takes as long to make as all its values do, so those of one type are made together.
    for data_type, names in _NAMES_BY_TYPE.items():
        together = pa.array([values[name][hit] for name in names for hit in order], data_type)
        for place, name in enumerate(names):
            arrays[name] = together.slice(place * len(order), len(order))
    return pa.Table.from_arrays([arrays[name] for name in _HIT_SCHEMA.names], schema=_HIT_SCHEMA)


def row_uuid(record_id: str) -> str:
    """Return the UUID of a record, for stores whose rows go by one: its id where that is a uuid5, else made of it.

    So the UUIDs of a collection are spread evenly, whatever its ids.
    """
    return record_id if _UUID5.fullmatch(record_id) else str(uuid.uuid5(ID_NAMESPACE, record_id))


def timestamp_text(time: datetime) -> str:
    """Return a time as RFC 3339 in UTC, to the microsecond; the texts sort as the timestamps do."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def vectors_of(records: pa.Table) -> npt.NDArray[np.float32]:
    """Return the vectors, of shape (records, dimension), without copying where they lie in one piece."""
    column = records["vector"]
    # Not `.values`, which ignores where a sliced column begins.
    components: npt.NDArray[np.float32] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return components.reshape(records.num_rows, column.type.list_size)


def _check_ids(ids: pa.ChunkedArray) -> None:
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    repeated = next(entry["values"] for entry in pc.value_counts(ids).to_pylist() if entry["counts"] > 1)
    raise StoreError(f"the id {repeated!r} occurs more than once in a call")


def _check_vectors(rows: pa.Table) -> None:
    for batch in rows.select(["id", "vector"]).to_batches():
        # Not `.values`, which ignores where a sliced batch begins.
        components = batch.column("vector").flatten().to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(components.sum()):  # as it cannot be where one of them is not; takes no memory
                continue
        finite = np.isfinite(components)
        if not finite.all():
            index = int(np.argmin(finite)) // (len(components) // batch.num_rows)
            row = batch.column("id")[index].as_py()
            raise StoreError(f"the vector of {row!r} is not finite: check the model and its precision")


def checked_query(vector: npt.NDArray[np.float32], dimension: int, name: str) -> npt.NDArray[np.float32]:
    """Return the query, of shape (dimension,); raises `StoreError` where no cosine can be taken with it."""
    if vector.shape != (dimension,):
        raise StoreError(
            f"the query vector has the shape {vector.shape}, but vectors of {name!r} have {dimension} components; "
            "encode the query with the collection's model"
        )
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length == 0:
        raise StoreError(f"the query vector has the length {length}: it points nowhere")
    return np.ascontiguousarray(vector, dtype=np.float32)
