"""The setting `run_launcher` selects the launcher of runs."""

import click
import dagster as dg
import pytest

from tests.instances import installed_instance
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.runs.workers.launcher import WarmRunLauncher
from vectorize_pipelines.sensors.waiting_runs import waiting_runs_sensors
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.home import DAGSTER_YAML


def test_celery_is_selected_by_one_setting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTORIZE_RUN_LAUNCHER", "celery")
    monkeypatch.setenv("VECTORIZE_REDIS__URL", "redis://:s3cret@127.0.0.1:1/0")
    with installed_instance(monkeypatch) as instance:
        assert isinstance(instance.run_launcher, WarmRunLauncher)
        assert instance.run_monitoring_start_timeout_seconds > 86_400
        assert "s3cret" not in str(instance.get_ref().to_dict())


def test_by_default_each_run_is_a_process(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with installed_instance(monkeypatch) as instance:
        assert type(instance.run_launcher).__name__ == "DefaultRunLauncher"
        assert instance.run_monitoring_start_timeout_seconds == 180


def test_a_launcher_that_dagster_yaml_names_wins(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    file = settings.home / "dagster" / "dagster.yaml"
    file.parent.mkdir(parents=True)
    own = "run_launcher:\n  module: dagster\n  class: DefaultRunLauncher\n"
    file.write_text(f"{DAGSTER_YAML.read_text()}\n{own}")
    monkeypatch.setenv("VECTORIZE_RUN_LAUNCHER", "celery")
    monkeypatch.setenv("VECTORIZE_REDIS__URL", "redis://127.0.0.1:1/0")
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    (sensor,) = waiting_runs_sensors(load_settings())
    with open_instance(load_settings()) as instance:
        assert instance.run_monitoring_start_timeout_seconds == 180
        said = sensor(dg.build_sensor_context(instance))
    assert isinstance(said, dg.SkipReason)
    assert "names another launcher" in str(said.skip_message)


def test_celery_without_redis_is_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTORIZE_RUN_LAUNCHER", "celery")
    with pytest.raises(click.ClickException, match="VECTORIZE_REDIS__URL"), installed_instance(monkeypatch):
        pass
