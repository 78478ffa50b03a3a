"""Each VECTORIZE_HOME is an installation of its own."""

import os
from pathlib import Path

import pytest

from vectorize_pipelines.home import DAGSTER_YAML, use_dagster_home
from vectorize_pipelines.settings import Settings


def test_the_instance_is_that_of_the_installation(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "of another installation"))
    use_dagster_home(settings)
    assert os.environ["DAGSTER_HOME"] == str(settings.home / "dagster")
    assert (settings.home / "dagster" / "dagster.yaml").samefile(DAGSTER_YAML)
