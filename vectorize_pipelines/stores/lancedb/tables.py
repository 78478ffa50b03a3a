"""The form of a collection's table in LanceDB, and what may go into it. Called by `store`."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vectorize_pipelines.core.records import record_schema
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.stores.contents import checked_records
from vectorize_pipelines.stores.lancedb.filters import METADATA_TERMS, terms_column

#: Field metadata by which LanceDB knows the column that merges must keep distinct.
PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}

#: Keys of the table's schema metadata.
MODEL, REVISION, DIMENSION = b"vectorize.model", b"vectorize.revision", b"vectorize.dimension"


def table_schema(spec: EncoderSpec) -> pa.Schema:
    """Return the columns of a record and `metadata_terms`, with the model in the schema metadata."""
    record = record_schema(spec.dimension)
    schema = record.set(0, record.field(0).with_metadata(PRIMARY_KEY))
    return schema.append(pa.field(METADATA_TERMS, pa.string(), nullable=False)).with_metadata(
        {MODEL: spec.name, REVISION: spec.revision, DIMENSION: str(spec.dimension)}
    )


def is_collection(table: Any) -> bool:
    """Return whether this project made the table; a directory may hold others."""
    return MODEL in (table.schema.metadata or {})


def dimension_of(table: Any) -> int:
    """Return the length of the vectors of a collection's table."""
    return int(table.schema.field("vector").type.list_size)


def revision_of(table: Any) -> str:
    """Return the revision of the model whose vectors a collection's table holds."""
    revision: bytes = table.schema.metadata[REVISION]
    return revision.decode()


def prepared(records: pa.Table, dimension: int) -> pa.Table:
    """Return the records as the table takes them, without copying; raises `StoreError` for what it must not take."""
    rows = checked_records(records, dimension)
    return rows.append_column(pa.field(METADATA_TERMS, pa.string(), nullable=False), terms_column(rows["metadata"]))


def scored(nearest: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return hits with cosine distances as hits with `score`, best first and then by id.

    They are cast to the schema: LanceDB forgets what is never null.
    """
    score = pc.cast(pc.subtract(pa.scalar(1.0, pa.float32()), nearest["_distance"]), pa.float32())
    hits = nearest.select(schema.names).cast(schema).append_column("score", score)
    return hits.sort_by([("score", "descending"), ("id", "ascending")])
