"""Each VECTORIZE_HOME is an installation of its own."""

import os
from pathlib import Path

import pytest

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import DAGSTER_YAML, use_dagster_home


def test_the_instance_is_that_of_the_installation(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "of another installation"))
    use_dagster_home(settings)
    assert os.environ["DAGSTER_HOME"] == str(settings.home / "dagster")
    assert (settings.home / "dagster" / "dagster.yaml").samefile(DAGSTER_YAML)


def _package_at(folder: Path) -> Path:
    """The `dagster.yaml` of another installation."""
    file = folder / "site-packages" / "vectorize_pipelines" / "defaults" / "dagster.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("telemetry: {enabled: false}\n")
    return file


@pytest.mark.parametrize("still_there", [True, False])
def test_a_home_goes_by_the_version_that_is_installed(
    settings: Settings, tmp_path: Path, still_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    earlier = _package_at(tmp_path)
    link = settings.home / "dagster" / "dagster.yaml"
    link.parent.mkdir()
    link.symlink_to(earlier)
    if not still_there:
        earlier.unlink()
    use_dagster_home(settings)
    assert link.samefile(DAGSTER_YAML)


def test_a_dagster_yaml_of_its_own_stays(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    own = tmp_path / "dagster.yaml"
    own.write_text("telemetry: {enabled: false}\n")
    link = settings.home / "dagster" / "dagster.yaml"
    link.parent.mkdir()
    link.symlink_to(own)
    use_dagster_home(settings)
    assert link.samefile(own)
