"""Runs of `vectorize ingest` whose process was killed. Dagster watches only the runs that it launched itself.

Such a run holds a lock for as long as its process lives, since the operating system lets go of it when the process
ends, however it ends. `vectorize ingest` calls `close_dead_runs` before its own run, the sensor for new files before
it decides.
"""

from pathlib import Path

import dagster as dg
from filelock import FileLock, Timeout

from vectorize_pipelines import home
from vectorize_pipelines.settings import Settings


def run_lock(settings: Settings, run_id: str) -> FileLock:
    """The lock to be held from before a run is made until it has ended. Locks nothing yet."""
    folder = home.run_locks(settings)
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{run_id}.lock")


def close_dead_runs(instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """Marks unfinished runs as failed whose lock file is there and held by nobody; gives their ids.

    A run without a lock file was not made by `vectorize ingest`, whatever its tags say: a re-execution has its
    parent's.
    """
    return [file.stem for file in sorted(home.run_locks(settings).glob("*.lock")) if _close(instance, file)]


def _close(instance: dg.DagsterInstance, file: Path) -> bool:
    """Whether the run of a lock file was dead, and is closed now; the file of a run that has ended is removed."""
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
