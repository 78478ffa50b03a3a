"""An installation as several hosts share it: PostgreSQL and Redis, runs that are launched, workers that take them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from dagster._core.definitions.reconstruct import ReconstructableRepository

from tests.commands import COMMAND
from tests.runs.workers.pausing_worker import GO_ON
from tests.servers.dev import until
from vectorize_pipelines.compat import LaunchRunContext
from vectorize_pipelines.core.request_runs import JOB, LOCATION, OP
from vectorize_pipelines.definitions import defs
from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.heartbeats import Heartbeat, workers
from vectorize_pipelines.stores import open_store

SECONDS = 120.0
PAUSING = [sys.executable, "-m", "tests.runs.workers.pausing_worker"]
FINISHED = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}


@dataclass
class Worker:
    """A `vectorize worker`, and what it says."""

    process: subprocess.Popen[bytes]
    name: str
    log: Path
    go_on: Path
    """What runs of a pausing worker wait for."""

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def heartbeat(self, settings: Settings) -> Heartbeat | None:
        """What it says of itself; None: it is not listed."""
        assert self.process.poll() is None, self.said()
        return next((each for each in workers(settings) if each.node_id == self.name), None)

    def kill(self) -> None:
        """Kill it, as with its host: its processes end with it."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        psutil.wait_procs(processes, timeout=SECONDS)

    def end(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """Return its exit code."""
        return self.process.wait(SECONDS)


@contextmanager
def worker(name: str, log: Path, *, pausing: bool = False, **environment: str) -> Iterator[Worker]:
    """A worker, which is killed at the end if it lives. A pausing one has runs wait after their first batch."""
    go_on = log.with_suffix(".go_on")
    start = PAUSING if pausing else COMMAND
    command = [*start, "worker", "--node-id", name, "--heartbeat-interval", "1"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, GO_ON: str(go_on), **environment},
        )
    started = Worker(process, name, log, go_on)
    try:
        yield started
    finally:
        if process.poll() is None:
            started.kill()


def launch(
    instance: dg.DagsterInstance,
    job: str,
    config: dict[str, Any],
    tags: dict[str, str] | None = None,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.NOT_STARTED,
) -> str:
    """Launch a run of a job, and return its id."""
    run = create(instance, job, config, tags, status)
    instance.run_launcher.launch_run(LaunchRunContext(run, workspace=None))
    return run.run_id


def create(
    instance: dg.DagsterInstance,
    job: str,
    config: dict[str, Any],
    tags: dict[str, str] | None = None,
    status: dg.DagsterRunStatus = dg.DagsterRunStatus.NOT_STARTED,
) -> dg.DagsterRun:
    """Make a run of a job, which nobody launches."""
    repository = ReconstructableRepository.for_module(LOCATION, "defs", working_directory=os.getcwd())  # noqa: PTH109
    return instance.create_run_for_job(
        defs.resolve_job_def(job),
        run_config=config,
        tags=tags,
        job_code_origin=repository.get_reconstructable_job(job).get_python_origin(),
        status=status,
    )


def launch_text(
    instance: dg.DagsterInstance, task_id: str, text: str, status: dg.DagsterRunStatus = dg.DagsterRunStatus.NOT_STARTED
) -> str:
    """Launch the run of a request, and return its id."""
    message = {"task_type": "text_vectorization", "task_id": task_id, "data": text, "collection": "notes"}
    return launch(instance, JOB, {"ops": {OP: {"config": message}}}, status=status)


def run_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRun:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run


def wait_for_end(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    """Wait until a run has ended, and return how."""
    until(f"the end of run {run_id}", lambda: run_of(instance, run_id).status in FINISHED, SECONDS)
    return run_of(instance, run_id).status


def messages(instance: dg.DagsterInstance, run_id: str) -> str:
    """What the events of a run say."""
    return "\n".join(entry.user_message or str(entry.dagster_event) for entry in instance.all_logs(run_id))


def sources(settings: Settings, collection: str) -> list[str]:
    """The sources of all rows of a collection, each as often as it has rows."""
    store = open_store(settings.store, settings.home)
    try:
        return [name for batch in store.scan(collection, ("source_id",)) for name in batch["source_id"].to_pylist()]
    except CollectionNotFoundError:
        return []
