"""The rows that a test writes to a Weaviate which is killed, and their writer."""

import pyarrow as pa

from vectorize_pipelines.stores.conformance.records import COLLECTION, many
from vectorize_pipelines.stores.weaviate.store import WeaviateStore

ROWS, DIMENSION = 900, 64
WRITER = "files"


def rows() -> pa.Table:
    return many(ROWS, DIMENSION)


def physical(store: WeaviateStore) -> str:
    return store.collection(COLLECTION).physical
