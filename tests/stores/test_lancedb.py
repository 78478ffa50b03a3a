from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stores import conformance
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.protocol import VectorStore


class _OnLanceDB:
    @pytest.fixture
    def open_again(self, tmp_path: Path) -> Callable[[], VectorStore]:
        return lambda: open_store(StoreSettings(), tmp_path)


class TestCollections(_OnLanceDB, conformance.Collections):
    pass


class TestRows(_OnLanceDB, conformance.Rows):
    pass


class TestSearch(_OnLanceDB, conformance.Search):
    pass


class TestFilters(_OnLanceDB, conformance.Filters):
    pass


class TestHistories(_OnLanceDB, conformance.Histories):
    pass
