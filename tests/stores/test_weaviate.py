"""Weaviate under the conformance suite, and what only it promises: a server that is killed, tenants, texts that its
index would change, results larger than it gives at once, and failures that say what to do."""

from collections.abc import Callable
from typing import ClassVar

import pytest

from tests.stores import conformance
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores.protocol import VectorStore
from vectorize_pipelines.stores.weaviate import WeaviateStore
from vectorize_pipelines.stores.weaviate_collections import described


def emptied(settings: StoreSettings) -> StoreSettings:
    """The server without any collection of this project."""
    from weaviate import connect_to_custom

    host, _, port = (settings.url or "").removeprefix("http://").partition(":")
    grpc_port = settings.grpc_port or 50051
    with connect_to_custom(host, int(port), False, host, grpc_port, False, skip_init_checks=True) as client:
        own = [name for name, config in client.collections.list_all(simple=False).items() if described(config)]
        for alias, one in client.alias.list_all().items():
            if one.collection in own:
                client.alias.delete(alias_name=alias)
        for name in own:
            client.collections.delete(name)
    return settings


class _OnWeaviate:
    @pytest.fixture
    def open_again(self, weaviate: StoreSettings, request: pytest.FixtureRequest) -> Callable[[], VectorStore]:
        emptied(weaviate)

        def opened() -> VectorStore:
            store = WeaviateStore(weaviate)
            request.addfinalizer(store.close)
            return store

        return opened


class TestCollections(_OnWeaviate, conformance.Collections):
    pass


class TestRows(_OnWeaviate, conformance.Rows):
    pass


class TestSearch(_OnWeaviate, conformance.Search):
    pass


class TestFilters(_OnWeaviate, conformance.Filters):
    LARGEST_OFFSET: ClassVar[int] = 2**53


class TestHistories(_OnWeaviate, conformance.Histories):
    pass
