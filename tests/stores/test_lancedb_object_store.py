"""LanceDB in an object store under the conformance suite."""

from collections.abc import Callable
from pathlib import Path

import pytest

from vectorize_pipelines.settings import StoreSettings, load_settings
from vectorize_pipelines.state.table_locks import TableLocks
from vectorize_pipelines.stores import conformance, open_store
from vectorize_pipelines.stores.base import VectorStore


class _OnObjectStore:
    @pytest.fixture
    def open_again(self, bucket_store: StoreSettings, tmp_path: Path) -> Callable[[], VectorStore]:
        settings = load_settings({}, home=tmp_path / "home")
        return lambda: open_store(bucket_store, settings.home, TableLocks(settings))


class TestCollections(_OnObjectStore, conformance.Collections):
    pass


class TestRows(_OnObjectStore, conformance.Rows):
    pass


class TestSearch(_OnObjectStore, conformance.Search):
    pass


class TestFilters(_OnObjectStore, conformance.Filters):
    pass


class TestHistories(_OnObjectStore, conformance.Histories):
    pass
