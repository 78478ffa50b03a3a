"""Fixtures that every kind of test shares. Each test gets an installation of its own: another VECTORIZE_HOME."""

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.servers import kafka
from vectorize_pipelines.settings import PREFIX, KafkaSettings, Settings, load_settings


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the developer's environment nor the files of the working directory reach a test."""
    for name in list(os.environ):
        if name.startswith(PREFIX) and not name.startswith("VECTORIZE_TEST_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(scope="session")
def exported_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are exported to, once for all tests."""
    return tmp_path_factory.mktemp("encoders")


@pytest.fixture
def home(tmp_path: Path, exported_models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A VECTORIZE_HOME with nothing but exported models in it, in the environment too."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "encoders").symlink_to(exported_models)
    monkeypatch.setenv("VECTORIZE_HOME", str(folder))
    return folder


@pytest.fixture
def settings(home: Path) -> Settings:
    """The settings of that installation."""
    return load_settings()


@dataclass(frozen=True)
class Broker:
    """Where a broker is reached."""

    bootstrap_servers: str


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker | kafka.Server]:
    """A real broker that all tests share: each has topics of its own (`kafka_settings`). Nobody stops it."""
    given = os.environ.get("VECTORIZE_TEST_KAFKA")
    if given:
        yield Broker(given)
        return
    with own_kafka_server(tmp_path_factory.mktemp("kafka")) as server:
        yield server


def own_kafka_server(folder: Path, **options: Any) -> kafka.Server:
    """A broker of a test's own, not started yet; `options` are those of `kafka.Server`.

    The test is left out where there can be none, which in CI is a failure.
    """
    try:
        kafka.jars()
    except kafka.UnavailableError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    return kafka.Server(folder, **options)


@pytest.fixture
def kafka_settings(kafka_server: Broker | kafka.Server, monkeypatch: pytest.MonkeyPatch) -> KafkaSettings:
    """Settings of the shared broker with topics of the test's own (not made yet), in the environment too."""
    prefix = f"test-{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", kafka_server.bootstrap_servers)
    monkeypatch.setenv("VECTORIZE_KAFKA__TOPIC_PREFIX", prefix)
    return KafkaSettings(bootstrap_servers=kafka_server.bootstrap_servers, topic_prefix=prefix)
