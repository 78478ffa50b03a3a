"""An installation of its own for each test, on the broker that all share."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.requests.installation import Installation, MakeInstallation, install
from vectorize_pipelines.pipeline import stop_policy
from vectorize_pipelines.settings import KafkaSettings


@pytest.fixture(autouse=True)
def _the_day_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run ends because midnight passes, unless its test is about that."""
    monkeypatch.setattr(stop_policy, "_end_of_today", lambda: datetime.now(UTC) + timedelta(days=1))


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


@pytest.fixture
def plain_model(tmp_path: Path) -> Path:
    """The folder of another model than the default one, as far as a model is described; nobody loads it."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    config = {"model_type": "bert", "hidden_size": 32, "max_position_embeddings": 128, "vocab_size": 100}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder
