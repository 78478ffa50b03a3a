"""Runs whose process was killed together with what would have noticed it.

Dagster's code server watches the runs that it launched. Those of one that has ended with its `vectorize serve` are
closed by `close_abandoned_runs`, which the web server of the next one calls. Runs of `vectorize ingest` it does not
watch: such a run holds a lock for as long as its process lives, since the operating system lets go of it when the
process ends, however it ends. `vectorize ingest` calls `close_dead_runs` before its own run, the sensor for new files
before it decides.
"""

import json
from pathlib import Path

import dagster as dg
from filelock import FileLock, Timeout

from vectorize_pipelines.runs.tags import CODE_SERVER_TAG, RUNNING
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home


def run_lock(settings: Settings, run_id: str) -> FileLock:
    """The lock to be held from before a run is made until it has ended. Locks nothing yet."""
    folder = home.run_locks(settings)
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{run_id}.lock")


def close_dead_runs(instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """Mark unfinished runs as failed whose lock file is there and held by nobody; return their ids.

    A run without a lock file was not made by `vectorize ingest`, whatever its tags say: a re-execution has its
    parent's.
    """
    return [file.stem for file in sorted(home.run_locks(settings).glob("*.lock")) if _close(instance, file)]


def close_abandoned_runs(instance: dg.DagsterInstance, settings: Settings, folder: Path) -> list[str]:
    """Mark unfinished runs as failed that an earlier `vectorize serve` of this installation launched; return their ids.

    `folder` is that of the present one. There is one at a time, and all that an earlier one had started ended with it.
    """
    prefix = home.server_folder_prefix(settings)
    closed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=RUNNING)):
        socket = json.loads(run.tags.get(CODE_SERVER_TAG, "{}")).get("socket")
        launcher = "" if socket is None else Path(socket).parent.name
        if launcher.startswith(prefix) and launcher != folder.name:
            instance.report_run_failed(run, "The process of this run ended together with an earlier `vectorize serve`.")
            closed.append(run.run_id)
    return closed


def _close(instance: dg.DagsterInstance, file: Path) -> bool:
    """Close the run of a lock file if it is dead, and return whether; the file of a run that has ended is removed."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        run = instance.get_run_by_id(file.stem)
        if run is None:
            return False  # its process is just about to make it
        dead = not run.is_finished
        if dead:
            instance.report_run_failed(run, "The process of this run was killed.")
        file.unlink(missing_ok=True)
        return dead
    finally:
        lock.release()
