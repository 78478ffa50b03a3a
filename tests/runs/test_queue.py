"""The daemon's queue of runs, with a real daemon and its code server."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import dagster as dg
import pytest

from tests.servers.dagster import until
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.settings import PROJECT_ROOT, load_settings
from vectorize_pipelines.state.home import DAGSTER_YAML

_WAITING = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.QUEUED)
_SECONDS = 240


@pytest.mark.timeout(600)
def test_a_run_that_a_sensor_launches_does_not_wait_until_the_queue_is_looked_at_again(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which Dagster's own daemon would do in an hour."""
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "tide.md").write_text("The tide gauge is read every six minutes.")
    monkeypatch.setenv("VECTORIZE_CORPUS__PATH", str(documents))
    config = DAGSTER_YAML.read_text()
    assert "dequeue_interval_seconds: 1\n" in config
    (home / "dagster").mkdir(parents=True, exist_ok=True)
    (home / "dagster" / DAGSTER_YAML.name).write_text(
        config.replace("dequeue_interval_seconds: 1\n", "dequeue_interval_seconds: 3600\n")
    )
    command = [sys.executable, "-m", "vectorize_pipelines.cli.daemon", "-w", str(PROJECT_ROOT / "workspace.yaml")]
    with open_instance(load_settings()) as instance, (tmp_path / "daemon.log").open("w") as log:
        daemon = subprocess.Popen(command, env=dict(os.environ), stdout=log, stderr=log, start_new_session=True)
        try:
            until(
                f"a run that has left the queue ({log.name})",
                lambda: [run for run in instance.get_runs() if run.status not in _WAITING],
                _SECONDS,
            )
            daemon.terminate()
            assert daemon.wait(_SECONDS) == 0
            # Nor does it sleep until then when it is to end.
            assert "did not shut down gracefully" not in (tmp_path / "daemon.log").read_text()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)  # with the run, if that goes on
            daemon.wait()
