"""Dagster instances of a test's own home. Their databases, which take long to make, are made once and copied."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg
import pytest

from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.home import use_dagster_home


@contextmanager
def installed_instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """The instance of the installation that VECTORIZE_HOME names, which is new."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    settings = load_settings()
    shutil.copytree(Path(_new_home().name) / "dagster", settings.home / "dagster", symlinks=True)
    use_dagster_home(settings)
    with dg.DagsterInstance.get() as instance:
        yield instance


@cache
def _new_home() -> "TemporaryDirectory[str]":
    """A home with Dagster's databases and nothing else; it goes with the process."""
    folder = TemporaryDirectory(prefix="vectorize-instance-")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DAGSTER_HOME", raising=False)
        use_dagster_home(load_settings({"VECTORIZE_HOME": folder.name}))
        with dg.DagsterInstance.get() as instance:
            assert instance.get_runs_count() == 0
            assert instance.event_log_storage.get_maximum_record_id() is None
            assert instance.all_instigator_state() == []
    return folder
