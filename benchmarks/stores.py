"""Measures a store server against its bare client, both on the same server. Called by `run.py`.

Every figure is a ratio of the protocol's call and the client's own best one, taken in turn in one run.
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.figures import Figure
from tests.servers.weaviate import Server
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores.conformance.records import many, spec
from vectorize_pipelines.stores.weaviate import WeaviateStore

ROWS = 20_000
DIMENSION = 384
BATCH_ROWS = 2_048
ROUNDS = 2
QUERIES = 300
LIMIT = 10


def passages() -> pa.Table:
    """Records with a text of some 60 words each and random normalised vectors."""
    records = many(ROWS, DIMENSION)
    words = np.random.default_rng(1).integers(0, 5_000, (ROWS, 60))
    texts = pa.array([" ".join(f"word{number}" for number in line) for line in words.tolist()])
    return records.set_column(records.schema.get_field_index("text"), records.schema.field("text"), texts)


def run(place: Path) -> list[Figure]:
    """Loading and searching through the protocol, against the client's own calls on equal collections."""
    records = passages()
    with Server(place) as server:
        store = WeaviateStore(StoreSettings(kind="weaviate", url=server.url, grpc_port=server.grpc_port))
        own, bare = [], []
        for number in range(ROUNDS):
            own.append(_seconds(partial(_load, store, f"own{number}", records)))
            bare.append(_bare_load(store, f"bare{number}", records))
        share = min(bare) / min(own)
        rates = f"{ROWS / min(own):,.0f} rows/s, the client {ROWS / min(bare):,.0f}"
        figures = [
            Figure("stores: load into Weaviate", f"{share:.0%} of the client's rate ({rates})", "≥ 80 %", share >= 0.8)
        ]
        through, directly = _searches(store, "own0")
        ratio = through / directly
        measured = f"{ratio:.2f} times the client's p50 ({through * 1e3:.2f} ms, {directly * 1e3:.2f} ms)"
        figures.append(Figure("stores: search in Weaviate", measured, "≤ 1.2 times", ratio <= 1.2))
        store.close()
    return figures


def _load(store: WeaviateStore, name: str, records: pa.Table) -> None:
    store.ensure_collection(name, spec(dimension=DIMENSION))
    for first in range(0, ROWS, BATCH_ROWS):
        store.upsert(name, records.slice(first, BATCH_ROWS))


def _bare_load(store: WeaviateStore, name: str, records: pa.Table) -> float:
    """The same rows, made into objects beforehand, through `insert_many` of several threads: the fastest of the
    client's calls here; its `batch.stream`, `batch.dynamic` and `batch.fixed_size` are slower."""
    from weaviate.classes.data import DataObject

    store.ensure_collection(name, spec(dimension=DIMENSION))
    vectors = np.stack(records["vector"].to_numpy())
    objects = [
        DataObject(uuid=one.pop("id"), properties=_plain(one), vector=vector)
        for one, vector in zip(records.drop_columns("vector").to_pylist(), vectors, strict=True)
    ]
    collection = store._client.collections.use(_class_name(name))

    def insert(first: int) -> None:
        assert not collection.data.insert_many(objects[first : first + 250]).has_errors

    def run() -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(insert, range(0, ROWS, 250)))

    return _seconds(run)


def _plain(one: dict[str, Any]) -> dict[str, Any]:
    times = {name: f"{one[name]:%Y-%m-%dT%H:%M:%S.%fZ}" for name in ("occurred_at", "embedded_at")}
    return {name: value for name, value in (one | times).items() if value is not None}


def _class_name(name: str) -> str:
    return name.capitalize()


def _searches(store: WeaviateStore, name: str) -> tuple[float, float]:
    """Median seconds of a search through the protocol and of the same one by the client."""
    from weaviate.classes.query import MetadataQuery

    collection = store._client.collections.use(_class_name(name))
    queries = np.random.default_rng(7).standard_normal((QUERIES, DIMENSION), dtype=np.float32)
    through, directly = [], []

    def own(query: npt.NDArray[np.float32]) -> None:
        assert store.search(name, query, LIMIT).num_rows == LIMIT

    def bare(query: npt.NDArray[np.float32]) -> None:
        hits = collection.query.near_vector(
            query.tolist(), limit=LIMIT, return_metadata=MetadataQuery(distance=True)
        ).objects
        assert len(hits) == LIMIT

    for query in queries:
        through.append(_seconds(partial(own, query)))
        directly.append(_seconds(partial(bare, query)))
    return statistics.median(through), statistics.median(directly)


def _seconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
