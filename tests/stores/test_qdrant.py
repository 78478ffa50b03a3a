from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.stores import conformance, qdrant_server
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores.protocol import VectorStore
from vectorize_pipelines.stores.qdrant import QdrantStore


@pytest.fixture
def server(tmp_path: Path) -> Iterator[qdrant_server.Server]:
    with qdrant_server.running(tmp_path) as server:
        yield server


@pytest.fixture(params=["folder", "engine"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreSettings:
    if request.param == "folder":
        return StoreSettings(kind="qdrant")
    server = request.getfixturevalue("server")
    return StoreSettings(kind="qdrant", url=server.url, grpc_port=server.grpc_port)


class _OnQdrant:
    @pytest.fixture
    def open_again(self, place: StoreSettings, tmp_path: Path) -> Callable[[], VectorStore]:
        return lambda: QdrantStore.open(place, tmp_path)


class TestCollections(_OnQdrant, conformance.Collections):
    pass


class TestRows(_OnQdrant, conformance.Rows):
    pass


class TestSearch(_OnQdrant, conformance.Search):
    pass


class TestFilters(_OnQdrant, conformance.Filters):
    pass


class TestHistories(_OnQdrant, conformance.Histories):
    pass
