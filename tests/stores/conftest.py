"""Servers of vector stores, started once for all tests that need them."""

import os
from collections.abc import Iterator

import pytest

from tests.servers import postgresql as postgresql_server
from tests.servers import weaviate as weaviate_server
from vectorize_pipelines.settings import StoreSettings


@pytest.fixture(scope="session")
def postgresql(postgresql_program: None) -> Iterator[str]:
    """The address of a database in a PostgreSQL of these tests, which they share."""
    with postgresql_server.running() as server:
        yield server.url()


@pytest.fixture(scope="session")
def weaviate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreSettings]:
    """The settings of a running Weaviate: that of VECTORIZE_TEST_WEAVIATE_URL, or one started here, with a key.

    VECTORIZE_TEST_WEAVIATE_GRPC_PORT and VECTORIZE_TEST_WEAVIATE_API_KEY as needed; the tests drop every collection of
    this project that they find there.
    """
    url = os.environ.get("VECTORIZE_TEST_WEAVIATE_URL")
    if url:
        port = os.environ.get("VECTORIZE_TEST_WEAVIATE_GRPC_PORT", "50051")
        key = os.environ.get("VECTORIZE_TEST_WEAVIATE_API_KEY")
        yield StoreSettings.model_validate({"kind": "weaviate", "url": url, "grpc_port": port, "api_key": key})
        return
    request.getfixturevalue("weaviate_program")
    keys = {
        "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "false",
        "AUTHENTICATION_APIKEY_ENABLED": "true",
        "AUTHENTICATION_APIKEY_ALLOWED_KEYS": "the right key",
        "AUTHENTICATION_APIKEY_USERS": "someone",
    }
    with weaviate_server.Server(tmp_path_factory.mktemp("weaviate"), keys) as server:
        yield StoreSettings.model_validate(
            {"kind": "weaviate", "url": server.url, "grpc_port": server.grpc_port, "api_key": "the right key"}
        )
