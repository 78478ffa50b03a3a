"""Runs of killed processes are closed, and no others."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from vectorize_pipelines.definitions import defs
from vectorize_pipelines.runs import dead
from vectorize_pipelines.runs.dead import close_abandoned_runs, close_dead_runs, is_reminder, remind_of_retries
from vectorize_pipelines.runs.held import run_lock
from vectorize_pipelines.runs.tags import AUTO_RETRY_TAG, LAUNCHED_BY_TAG, WILL_RETRY_TAG
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import run_locks, server_folder_prefix

TAGS = {LAUNCHED_BY_TAG: "cli"}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def make_run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus) -> str:
    job = defs.resolve_job_def("embed_corpus")
    return instance.create_run_for_job(job, tags=TAGS, status=status).run_id


def status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


@pytest.mark.parametrize(
    "unfinished",
    [
        dg.DagsterRunStatus.NOT_STARTED,
        dg.DagsterRunStatus.STARTING,
        dg.DagsterRunStatus.STARTED,
        dg.DagsterRunStatus.CANCELING,
    ],
)
def test_a_lock_that_nobody_holds_closes_its_run(
    instance: dg.DagsterInstance, settings: Settings, unfinished: dg.DagsterRunStatus
) -> None:
    dead, alive, re_executed = (make_run(instance, unfinished) for _ in range(3))
    with run_lock(settings, dead):
        pass
    with run_lock(settings, alive):
        assert close_dead_runs(instance, settings) == [dead]
        assert status(instance, dead) == dg.DagsterRunStatus.FAILURE
        assert status(instance, alive) == unfinished
        assert status(instance, re_executed) == unfinished
    assert [file.stem for file in run_locks(settings).iterdir()] == [alive]


def test_locks_of_ended_runs_are_removed_and_those_of_runs_to_come_are_not(
    instance: dg.DagsterInstance, settings: Settings
) -> None:
    ended = make_run(instance, dg.DagsterRunStatus.SUCCESS)
    for run_id in (ended, "to-come"):
        with run_lock(settings, run_id):
            pass
    assert close_dead_runs(instance, settings) == []
    assert [file.stem for file in run_locks(settings).iterdir()] == ["to-come"]
    assert status(instance, ended) == dg.DagsterRunStatus.SUCCESS


def test_runs_of_an_earlier_server_are_closed(instance: dg.DagsterInstance, settings: Settings) -> None:
    prefix = server_folder_prefix(settings)
    here, earlier, elsewhere = f"/tmp/{prefix}a", f"/tmp/{prefix}b", "/tmp/vectorize-dev-of-another-machine"
    started = {place: make_run(instance, dg.DagsterRunStatus.STARTED) for place in (here, earlier, elsewhere)}
    for place, run_id in started.items():
        instance.add_run_tags(run_id, {".dagster/grpc_info": json.dumps({"socket": f"{place}/code.sock"})})
    make_run(instance, dg.DagsterRunStatus.STARTED)
    assert close_abandoned_runs(instance, settings, Path(here)) == [started[earlier]]
    assert status(instance, started[earlier]) == dg.DagsterRunStatus.FAILURE
    assert close_abandoned_runs(instance, settings, Path(here)) == []


def test_dagster_is_told_once_more_of_runs_that_it_has_not_started_again(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failed(**tags: str) -> str:
        run_id = make_run(instance, dg.DagsterRunStatus.STARTED)
        run = instance.get_run_by_id(run_id)
        assert run is not None
        instance.report_run_failed(run, "It was lost.")
        instance.add_run_tags(run_id, tags)
        return run_id

    forgotten = failed(**{WILL_RETRY_TAG: "true"})
    failed(**{WILL_RETRY_TAG: "true", AUTO_RETRY_TAG: forgotten})
    failed(**{WILL_RETRY_TAG: "false"})
    assert remind_of_retries(instance) == []  # the daemon may be about to
    monkeypatch.setattr(dead, "REMINDED_AFTER", timedelta())
    assert remind_of_retries(instance) == [forgotten]
    said = instance.all_logs(forgotten, of_type=dg.DagsterEventType.RUN_FAILURE)
    first, second = (event.message for event in said)
    assert first == "It was lost."
    assert second.endswith(": It was lost.")
    assert [is_reminder(each) for each in (first, second)] == [False, True]
    assert remind_of_retries(instance) == []
