"""What a check says of an index: of real ones, and of a search that is known to miss rows."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests.servers.weaviate import Server
from vectorize_pipelines.pipeline.checks.index_recall import NEAREST, index_recall
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.conformance.records import COLLECTION, many, spec
from vectorize_pipelines.stores.filters.expressions import Filter
from vectorize_pipelines.stores.lancedb.location import Location
from vectorize_pipelines.stores.lancedb.maintenance import Maintenance
from vectorize_pipelines.stores.lancedb.store import LanceDBStore
from vectorize_pipelines.stores.weaviate.store import WeaviateStore

pytestmark = pytest.mark.slow

DIMENSION = 32
EVERYTHING = 2**30


def passages(rows: int) -> pa.Table:
    """Records whose vectors lie in groups, as those of texts do."""
    chance = np.random.default_rng(3)
    groups = chance.standard_normal((rows // 50, DIMENSION), dtype=np.float32)
    vectors = groups[chance.integers(0, len(groups), rows)]
    vectors = vectors + 0.5 * chance.standard_normal((rows, DIMENSION), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    records = many(rows, DIMENSION)
    place = records.schema.get_field_index("vector")
    field = records.schema.field(place)
    return records.set_column(place, field, pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), type=field.type))


def filled(store: VectorStore, rows: int) -> VectorStore:
    store.ensure_collection(COLLECTION, spec(dimension=DIMENSION))
    store.upsert(COLLECTION, passages(rows))
    return store


def lancedb(folder: Path, **maintenance: Any) -> LanceDBStore:
    limits = Maintenance(apart_rows=10**9, **maintenance)
    return LanceDBStore(Location.folder(folder), maintenance=limits)


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VectorStore]:
    store = filled(lancedb(tmp_path_factory.mktemp("exact")), 2_000)
    yield store
    store.close()


class Lossy:
    """A store whose searches leave out the hits at these places, and give those that come after them."""

    def __init__(self, store: VectorStore, *places: int):
        self._store, self._places = store, places

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def search(self, name: str, vector: Any, limit: int, where: Filter | None = None) -> pa.Table:
        hits = self._store.search(name, vector, limit + len(self._places), where)
        return hits.take([place for place in range(hits.num_rows) if place not in self._places])


def test_a_search_without_an_index_finds_everything(exact: VectorStore) -> None:
    assert exact.searches_exactly(COLLECTION)
    report = index_recall(exact, COLLECTION, EVERYTHING)
    assert (report.rows, report.compared, report.queries) == (2_000, 2_000, 100)
    assert report.found == report.nearest == 100 * NEAREST
    assert report.reaches(1.0)


@pytest.mark.parametrize(("places", "recall"), [((0,), 0.9), ((9,), 0.9), ((2, 5, 7), 0.7), (range(10), 0.0)])
def test_what_is_missed_is_counted(exact: VectorStore, places: Any, recall: float) -> None:
    report = index_recall(Lossy(exact, *places), COLLECTION, EVERYTHING)  # type: ignore[arg-type]
    # A row that is as near as the last hit, by chance, has not been missed.
    assert report.recall == pytest.approx(recall, abs=0.005)
    assert not report.reaches(0.99)


def test_of_a_large_collection_a_part_is_compared_with_more_queries(exact: VectorStore) -> None:
    a_tenth = 200 * DIMENSION * 4
    report = index_recall(exact, COLLECTION, a_tenth)
    assert 120 < report.compared < 280
    assert report.queries == report.compared
    assert report.recall == 1
    lossy = index_recall(Lossy(exact, 4), COLLECTION, a_tenth)  # type: ignore[arg-type]
    assert lossy.recall == pytest.approx(0.9, abs=0.06)
    assert not lossy.reaches(0.99)


def test_an_empty_collection_and_one_of_few_rows(tmp_path: Path) -> None:
    store = lancedb(tmp_path)
    store.ensure_collection(COLLECTION, spec(dimension=DIMENSION))
    report = index_recall(store, COLLECTION, EVERYTHING)
    assert (report.rows, report.queries, report.reaches(0.99)) == (0, 0, True)
    store.upsert(COLLECTION, many(4, DIMENSION))
    report = index_recall(store, COLLECTION, EVERYTHING)
    assert (report.queries, report.nearest, report.found) == (4, 16, 16)


def test_lancedb_with_an_index(tmp_path: Path) -> None:
    store = filled(lancedb(tmp_path, vector_index_rows=20_000), 25_000)
    assert store.maintain(COLLECTION)["indexes_built"] == 1
    assert not store.searches_exactly(COLLECTION)
    report = index_recall(store, COLLECTION, EVERYTHING)
    assert report.compared == 25_000
    assert report.reaches(0.99)


def test_weaviate_with_an_index(weaviate_program: None, tmp_path: Path) -> None:
    with Server(tmp_path) as server:
        store = WeaviateStore(StoreSettings(kind="weaviate", url=server.url, grpc_port=server.grpc_port))
        filled(store, 2_000)
        assert not store.searches_exactly(COLLECTION)
        report = index_recall(store, COLLECTION, EVERYTHING)
        assert report.compared == 2_000
        assert report.reaches(0.99)
        part = index_recall(store, COLLECTION, 400 * DIMENSION * 4)
        assert 300 < part.compared < 500
        assert part.reaches(0.99)
        store.close()
