from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stores import conformance
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores.protocol import VectorStore
from vectorize_pipelines.stores.qdrant import QdrantStore


class _InAFolder:
    @pytest.fixture
    def open_again(self, tmp_path: Path) -> Callable[[], VectorStore]:
        return lambda: QdrantStore.open(StoreSettings(kind="qdrant"), tmp_path)


class TestCollections(_InAFolder, conformance.Collections):
    pass


class TestRows(_InAFolder, conformance.Rows):
    pass


class TestSearch(_InAFolder, conformance.Search):
    pass


class TestFilters(_InAFolder, conformance.Filters):
    pass


class TestHistories(_InAFolder, conformance.Histories):
    pass
