"""How a worker's process treats a run: what it sees of it, and when it may end it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import closing

import dagster as dg
import pytest

from vectorize_pipelines.definitions import defs
from vectorize_pipelines.runs.held import PREFIX
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.runs.workers import execution
from vectorize_pipelines.runs.workers.node import _PoolProcess
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.leases import hold


@pytest.fixture
def instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    with open_instance(settings) as instance:
        yield instance


def terminated(instance: dg.DagsterInstance) -> str:
    """The id of a run that is to end."""
    job = defs.resolve_job_def("embed_corpus")
    return instance.create_run_for_job(job, status=dg.DagsterRunStatus.CANCELING).run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


@pytest.fixture
def interrupted() -> Iterator[threading.Event]:
    """Set as soon as this process is told to end."""
    event = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    yield event
    signal.signal(signal.SIGTERM, before)


def test_a_run_is_watched_on_after_its_storage_was_away(
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    interrupted: threading.Event,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_id = terminated(instance)
    found = instance.get_run_by_id
    failures = iter(range(3))

    def away(run_id: str) -> dg.DagsterRun | None:
        if next(failures, None) is not None:
            raise RuntimeError("too many retries for DB connection")
        return found(run_id)

    monkeypatch.setattr(instance, "get_run_by_id", away)
    monkeypatch.setattr(execution, "LOOK_SECONDS", 0.01)
    with execution._watched(instance, run_id, lambda: False):
        assert interrupted.wait(60)
    assert len([record for record in caplog.records if "cannot be looked at" in record.message]) == 1


def test_a_process_that_has_executed_a_run_ends_at_sigterm(settings: Settings, interrupted: threading.Event) -> None:
    process = _PoolProcess(settings, "a worker", lambda: False)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as a run leaves it
    process.execute("deleted", "text")
    with pytest.raises(SystemExit):
        signal.raise_signal(signal.SIGTERM)
    assert not interrupted.is_set()


def test_a_terminated_run_is_ended_only_under_its_lease(
    instance: dg.DagsterInstance, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = terminated(instance)
    monkeypatch.setattr(execution, "_WAIT_SECONDS", 0.0)
    with closing(Database.open(settings)) as database, hold(database, PREFIX + run_id, "the run"):
        execution.execute(settings, run_id, "a worker", lambda: False)
        assert status(instance, run_id) == dg.DagsterRunStatus.CANCELING
    execution.execute(settings, run_id, "a worker", lambda: False)
    assert status(instance, run_id) == dg.DagsterRunStatus.CANCELED
