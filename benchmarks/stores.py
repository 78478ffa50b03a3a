"""Measures every store against its bare client, on the same server or folder. Called by `run.py`.

Every figure is a ratio of the protocol's call and the client's own best one, taken in turn in one run: of loads the
median of the rounds' ratios, of searches the median of the differences between the two that follow each other. Seconds
of CPU are shown beside it, which other programs on the machine disturb less.

`python -m benchmarks.stores [KIND] [ROWS]` measures one store, or all with fewer rows.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from benchmarks.figures import Figure
from tests.servers.weaviate import Server
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.conformance.records import many, spec

ROWS = {"lancedb": 100_000, "weaviate": 100_000, "qdrant": 5_000}  # Qdrant's local mode takes some hundred a second
DIMENSION = 384
BATCH_ROWS = 2_048
ROUNDS = 3
QUERIES = 300
LIMIT = 10

Query = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Bare:
    """The client's own best calls: `prepare` is not measured, `load` takes what it gives."""

    prepare: Callable[[str, pa.Table], Any]
    load: Callable[[str, Any], None]
    search: Callable[[str, Query], int]


@dataclass(frozen=True, slots=True)
class Measured:
    """Wall-clock seconds, and the process's own CPU seconds."""

    wall: float
    cpu: float


def passages(rows: int) -> pa.Table:
    """Records with a text of some 60 words each and random normalised vectors."""
    records = many(rows, DIMENSION)
    words = np.random.default_rng(1).integers(0, 5_000, (rows, 60))
    texts = pa.array([" ".join(f"word{number}" for number in line) for line in words.tolist()])
    return records.set_column(records.schema.get_field_index("text"), records.schema.field("text"), texts)


def run(place: Path) -> list[Figure]:
    """All stores, and what it costs that LanceDB's rows are on the disk before a run says so."""
    figures = [figure for kind, rows in ROWS.items() for figure in measure(kind, rows, place / kind)]
    return [*figures, durability(ROWS["lancedb"], place / "durability")]


def durability(rows: int, place: Path) -> Figure:
    """The same load with and without the flush that follows each batch, in turn."""
    place.mkdir(parents=True, exist_ok=True)
    records, shares, rates = passages(rows), [], []
    with _opened("lancedb", place) as (store, _):
        _load(store, "warm", records.slice(0, 10 * BATCH_ROWS))
        for number in range(ROUNDS):
            pair = [(f"kept{number}", True), (f"left{number}", False)]
            walls = {
                flushed: _measured(partial(_load, store, name, records, flushed=flushed)).wall
                for name, flushed in (reversed(pair) if number % 2 else pair)
            }
            store.flush([f"left{number}"])
            shares.append(walls[False] / walls[True])
            rates.append(rows / walls[True])
    share = statistics.median(shares)
    measured = f"{share:.0%} of the rate without it ({statistics.median(rates):,.0f} rows/s)"
    return Figure(f"stores: {rows:,} rows into LanceDB, each batch on the disk", measured, "≥ 80 %", share >= 0.8)


def measure(kind: str, rows: int, place: Path) -> list[Figure]:
    """Loading and searching through the protocol, against the client's own calls on equal collections."""
    place.mkdir(parents=True, exist_ok=True)
    records = passages(rows)
    with _opened(kind, place) as (store, bare):
        loads, searches = _loads(store, bare, records), _searches(store, bare)
    own, direct = (statistics.median(each.wall for each in side) for side in loads)
    own_cpu, direct_cpu = (statistics.median(each.cpu for each in side) for side in loads)
    share = statistics.median(b.wall / a.wall for a, b in zip(*loads, strict=True))
    rates = f"{rows / own:,.0f} rows/s, the client {rows / direct:,.0f}; CPU {own_cpu:.1f} and {direct_cpu:.1f} s"
    through, directly = searches
    p50 = statistics.median(each.wall for each in directly)
    more = statistics.median(a.wall - b.wall for a, b in zip(through, directly, strict=True))
    ratio = (p50 + more) / p50
    cpu = [statistics.median(each.cpu for each in side) * 1e3 for side in searches]
    times = f"{(p50 + more) * 1e3:.2f} ms, {p50 * 1e3:.2f} ms; CPU {cpu[0]:.2f} and {cpu[1]:.2f} ms"
    name = kind.capitalize()
    return [
        Figure(f"stores: load {rows:,} into {name}", f"{share:.0%} of the client's ({rates})", "≥ 80 %", share >= 0.8),
        Figure(
            f"stores: search in {name}", f"{ratio:.2f} times the client's p50 ({times})", "≤ 1.2 times", ratio <= 1.2
        ),
    ]


@contextmanager
def _opened(kind: str, place: Path) -> Iterator[tuple[VectorStore, Bare]]:
    if kind != "weaviate":
        store = open_store(StoreSettings(kind=kind), place)
        yield store, _bare_lancedb(place) if kind == "lancedb" else _bare_qdrant(store)
        store.close()
        return
    with Server(place) as server:
        store = open_store(StoreSettings(kind=kind, url=server.url, grpc_port=server.grpc_port), place)
        yield store, _bare_weaviate(store)
        store.close()


def _loads(store: VectorStore, bare: Bare, records: pa.Table) -> tuple[list[Measured], list[Measured]]:
    """In turn, now one first and now the other."""
    own: list[Measured] = []
    direct: list[Measured] = []
    for number in range(ROUNDS):
        ready = bare.prepare(f"bare{number}", records)
        calls = [
            (own, partial(_load, store, f"own{number}", records)),
            (direct, partial(bare.load, f"bare{number}", ready)),
        ]
        for measured, call in reversed(calls) if number % 2 else calls:
            measured.append(_measured(call))
        if number:
            store.drop(store.collection(f"own{number}").physical)
    return own, direct


def _load(store: VectorStore, name: str, records: pa.Table, *, flushed: bool = False) -> None:
    """In batches, each of them `flushed` as before an acknowledgement, which no client's own call does."""
    store.ensure_collection(name, spec(dimension=DIMENSION))
    for first in range(0, records.num_rows, BATCH_ROWS):
        store.upsert(name, records.slice(first, BATCH_ROWS))
        if flushed:
            store.flush([name])


def _searches(store: VectorStore, bare: Bare) -> tuple[list[Measured], list[Measured]]:
    """The same searches through the protocol and by the client, each first as often as second."""
    through: list[Measured] = []
    directly: list[Measured] = []

    def own(query: Query) -> None:
        assert store.search("own0", query, LIMIT).num_rows == LIMIT

    def direct(query: Query) -> None:
        assert bare.search("own0", query) == LIMIT

    queries = np.random.default_rng(7).standard_normal((QUERIES, DIMENSION), dtype=np.float32)
    for number, query in enumerate(queries):
        calls = [(own, through), (direct, directly)]
        for call, measured in calls if number % 2 else reversed(calls):
            measured.append(_measured(partial(call, query)))
    return through, directly


def _measured(call: Callable[[], None]) -> Measured:
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return Measured(time.perf_counter() - wall, time.process_time() - cpu)


# ---- the clients


def _bare_lancedb(place: Path) -> Bare:
    """Batches appended to a table that stays open: the fastest call, which looks for no rows of the same id."""
    import lancedb

    database: Any = lancedb.connect(place / "lancedb")

    def load(name: str, records: pa.Table) -> None:
        table = database.create_table(f"{name}__bare", schema=records.schema)
        for first in range(0, records.num_rows, BATCH_ROWS):
            table.add(records.slice(first, BATCH_ROWS))

    def search(name: str, query: Query) -> int:
        (physical,) = (one for one in database.list_tables().tables if one.startswith(f"{name}__"))
        table = database.open_table(physical)
        return int(
            table.search(query, vector_column_name="vector").distance_type("cosine").limit(LIMIT).to_arrow().num_rows
        )

    return Bare(lambda _, records: records, load, search)


def _bare_qdrant(store: Any) -> Bare:
    """`upload_collection`, as Qdrant recommends; local mode."""
    client = store._connection.client

    def prepare(name: str, records: pa.Table) -> tuple[list[str], Query, list[dict[str, Any]]]:
        store.ensure_collection(name, spec(dimension=DIMENSION))
        payload = [_plain(one) for one in records.drop_columns(["vector", "id"]).to_pylist()]
        return records["id"].to_pylist(), np.stack(records["vector"].to_numpy()), payload

    def load(name: str, ready: tuple[list[str], Query, list[dict[str, Any]]]) -> None:
        ids, vectors, payload = ready
        client.upload_collection(name, vectors=vectors, payload=payload, ids=ids, batch_size=512, wait=True)

    def search(name: str, query: Query) -> int:
        return len(client.query_points(name, query.tolist(), limit=LIMIT, with_payload=True).points)

    return Bare(prepare, load, search)


def _bare_weaviate(store: Any) -> Bare:
    """The same rows, made into objects beforehand, through `insert_many` of several threads: the fastest of the
    client's calls here; its `batch.stream`, `batch.dynamic` and `batch.fixed_size` are slower."""
    from weaviate.classes.data import DataObject
    from weaviate.classes.query import MetadataQuery

    def collection(name: str) -> Any:
        return store._client.collections.use(name.capitalize())

    def prepare(name: str, records: pa.Table) -> list[Any]:
        store.ensure_collection(name, spec(dimension=DIMENSION))
        vectors = np.stack(records["vector"].to_numpy())
        rows = records.drop_columns("vector").to_pylist()
        return [
            DataObject(uuid=one.pop("id"), properties=_plain(one), vector=vector)
            for one, vector in zip(rows, vectors, strict=True)
        ]

    def load(name: str, objects: list[Any]) -> None:
        target = collection(name)

        def insert(first: int) -> None:
            assert not target.data.insert_many(objects[first : first + 250]).has_errors

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(insert, range(0, len(objects), 250)))

    def search(name: str, query: Query) -> int:
        near = collection(name).query.near_vector
        return len(near(query.tolist(), limit=LIMIT, return_metadata=MetadataQuery(distance=True)).objects)

    return Bare(prepare, load, search)


def _plain(one: dict[str, Any]) -> dict[str, Any]:
    times = {name: f"{one[name]:%Y-%m-%dT%H:%M:%S.%fZ}" for name in ("occurred_at", "embedded_at")}
    return {name: value for name, value in (one | times).items() if value is not None}


def main() -> None:
    """Prints the figures of the stores that are named."""
    kinds = [argument for argument in sys.argv[1:] if argument in ROWS] or list(ROWS)
    rows = [int(argument) for argument in sys.argv[1:] if argument.isdigit()]
    with tempfile.TemporaryDirectory() as place:
        for kind in kinds:
            for figure in measure(kind, rows[0] if rows else ROWS[kind], Path(place) / kind):
                print(figure, flush=True)


if __name__ == "__main__":
    main()
