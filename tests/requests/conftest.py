"""An installation of its own for each test, on the broker that all share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.encoders.tiny_models import build_encoder
from tests.requests.installation import Installation, install
from vectorize_pipelines.settings import KafkaSettings

MakeInstallation = Callable[..., Installation]


@pytest.fixture
def make_installation(tmp_path: Path, kafka_settings: KafkaSettings) -> MakeInstallation:
    """Makes the test's installation with a tree of settings laid over."""
    servers = kafka_settings.bootstrap_servers
    assert servers is not None

    def make(**overrides: Any) -> Installation:
        return install(tmp_path / "home", servers, kafka_settings.topic_prefix, **overrides)

    return make


@pytest.fixture
def installation(make_installation: MakeInstallation) -> Installation:
    """The test's installation."""
    return make_installation()


@pytest.fixture(scope="session")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model beside the default one."""
    return build_encoder(tmp_path_factory.mktemp("models") / "tiny", "bert")
