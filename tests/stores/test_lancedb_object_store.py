"""LanceDB in an object store under the conformance suite."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vectorize_pipelines.errors import StoreUnavailableError
from vectorize_pipelines.settings import StoreSettings, load_settings
from vectorize_pipelines.state.table_locks import TableLocks
from vectorize_pipelines.stores import conformance, open_store
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.conformance import suite
from vectorize_pipelines.stores.conformance.records import Row
from vectorize_pipelines.stores.filters.expressions import Filter
from vectorize_pipelines.stores.lancedb.failures import translate_errors
from vectorize_pipelines.stores.lancedb.location import Location

pytestmark = pytest.mark.slow


class _OnObjectStore:
    @pytest.fixture
    def open_again(self, bucket_store: StoreSettings, tmp_path: Path) -> Callable[[], VectorStore]:
        installation = load_settings({}, home=tmp_path / "home")
        return lambda: open_store(bucket_store, installation.home, TableLocks(installation))


class TestCollections(_OnObjectStore, conformance.Collections):
    pass


class TestRows(_OnObjectStore, conformance.Rows):
    pass


class TestSearch(_OnObjectStore, conformance.Search):
    pass


class TestFilters(_OnObjectStore, conformance.Filters):
    @settings(max_examples=4, suppress_health_check=list(HealthCheck))
    @given(
        generated=st.lists(suite.generated_rows, min_size=1, max_size=12), wheres=st.lists(suite.filters, min_size=4)
    )
    @pytest.mark.slow
    def test_filters_mean_what_the_reference_says(
        self, store: VectorStore, generated: list[Row], wheres: list[Filter]
    ) -> None:
        """With few examples: what evaluates a filter is the same in a folder."""
        conformance.Filters.test_filters_mean_what_the_reference_says.hypothesis.inner_test(  # type: ignore[attr-defined]
            self, store, generated, wheres
        )


class TestHistories(_OnObjectStore, conformance.Histories):
    pass


@pytest.mark.parametrize("status", ["500 Internal Server Error", "502 Bad Gateway", "504 Gateway Timeout"])
def test_a_collection_is_not_damaged_because_the_object_store_fails(status: str) -> None:
    said = f"LanceError(IO): Generic S3 error: Error performing GET … Server returned non-2xx status code: {status}"
    with pytest.raises(StoreUnavailableError, match="object store fails"), translate_errors(Location("s3://b/v"), "it"):
        raise RuntimeError(said)
