"""An installation of its own for each test, on the broker and the provider that all share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.assessments.installation import KEY, UNLIMITED, Installation, install
from tests.servers.provider import ProviderServer, serving_provider
from vectorize_pipelines.settings import KafkaSettings

MakeInstallation = Callable[..., Installation]


@pytest.fixture(scope="module")
def provider_process() -> Iterator[ProviderServer]:
    """A provider that the tests of a module share."""
    with serving_provider() as provider:
        yield provider


@pytest.fixture
def provider(provider_process: ProviderServer) -> ProviderServer:
    """The provider, with one key that is not limited, and without faults."""
    provider_process.reset(keys={KEY: UNLIMITED})
    return provider_process


@pytest.fixture
def make_installation(home: Path, kafka_settings: KafkaSettings, provider: ProviderServer) -> MakeInstallation:
    """Makes the test's installation with a tree of settings laid over."""

    def make(**overrides: Any) -> Installation:
        return install(home, kafka_settings, provider, **overrides)

    return make


@pytest.fixture
def installation(make_installation: MakeInstallation) -> Installation:
    """The test's installation."""
    return make_installation()
