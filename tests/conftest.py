"""Fixtures that every kind of test shares. Each test gets an installation of its own: another VECTORIZE_HOME."""

import os
from pathlib import Path

import pytest

from vectorize_pipelines.settings import PREFIX, Settings, load_settings


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
