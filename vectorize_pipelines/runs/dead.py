"""Marks runs whose process is gone as failed; Dagster's `run_retries` (dagster.yaml) then starts them again.

On one machine, Dagster's code server watches the runs that it launched. Those of one that has ended with its `vectorize
serve` are closed by `close_abandoned_runs`, which the web server of the next one calls. Runs of `vectorize ingest` it
does not watch: they hold the lock of a file. Where several machines share the database, every run holds a lease. Both
says `runs.held`. `vectorize ingest` calls `close_dead_runs` before its own run, the sensors before they decide, and the
sensor `lost_runs` every few seconds.
"""

import json
import logging
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol, runtime_checkable

import dagster as dg
from filelock import FileLock, Timeout

from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.runs.held import PREFIX, is_shared
from vectorize_pipelines.runs.tags import AUTO_RETRY_TAG, CODE_SERVER_TAG, INTERRUPTED, RUNNING, WILL_RETRY_TAG
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home, leases
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.held_locks import LockTakenError
from vectorize_pipelines.state.leases import LapsedLease

logger = logging.getLogger(__name__)

#: So long after its end it is asked why a run was interrupted: its job is kept for an hour, unless the values of the
#: chart say less.
EXPLAINED_WITHIN = timedelta(minutes=5)
#: Dagster's daemon looks every few seconds for runs that it is to start again.
REMINDED_AFTER = timedelta(seconds=20)

#: Begins the message of a failure that is told a second time.
_REMINDER = "Dagster is told once more of this failure, so that it starts the run again: "
_INTERRUPTED_BY = "The run was interrupted because its process was told to end. "


def close_dead_runs(instance: dg.DagsterInstance, settings: Settings) -> list[str]:
    """Mark unfinished runs as failed whose lease lapsed, or whose lock's file nobody holds; return their ids.

    A run without either is none that says so: one that has not begun, or one that the code server watches.
    Raises `SettingsError` and `LedgerError`.
    """
    if is_shared(settings):
        with closing(Database.open(settings)) as database:
            return [
                lease.name.removeprefix(PREFIX)
                for lease in leases.lapsed(database, PREFIX)
                if _close_lapsed(instance, database, lease)
            ]
    return [file.stem for file in sorted(home.run_locks(settings).glob("*.lock")) if _close(instance, file)]


def close_abandoned_runs(instance: dg.DagsterInstance, settings: Settings, folder: Path) -> list[str]:
    """Mark unfinished runs as failed that an earlier `vectorize serve` of this installation launched; return their ids.

    `folder` is that of the present one. There is one at a time in this home on this machine, and all that an earlier
    one had started ended with it. What the lease of a run tells is left to `close_dead_runs`. Raises as that.
    """
    prefix = home.server_folder_prefix(settings)
    leased = _leased(settings)
    closed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=RUNNING)):
        socket = json.loads(run.tags.get(CODE_SERVER_TAG, "{}")).get("socket")
        launcher = "" if socket is None else Path(socket).parent.name
        if launcher.startswith(prefix) and launcher != folder.name and run.run_id not in leased:
            instance.report_run_failed(run, "The process of this run ended together with an earlier `vectorize serve`.")
            closed.append(run.run_id)
    return closed


def _leased(settings: Settings) -> set[str]:
    """Return the ids of the runs whose lease is held, or was and has lapsed."""
    if not is_shared(settings):
        return set()
    with closing(Database.open(settings)) as database:
        names = [lease.name for lease in leases.lapsed(database, PREFIX)] + leases.held_below(database, PREFIX)
    return {name.removeprefix(PREFIX) for name in names}


def _close_lapsed(instance: dg.DagsterInstance, database: Database, lease: LapsedLease) -> bool:
    """Close the run of a lease, and return whether it had not ended.

    The lease is taken over meanwhile: another one that closes it, or a process that Dagster has go on with the run,
    has it before or after. Who is killed now, or fails, leaves it as it was: it is all that tells of the run.
    """
    run_id = lease.name.removeprefix(PREFIX)
    try:
        with leases.hold(
            database, lease.name, f"run {run_id}", lease.holder, lease.node, timeout_seconds=0, keep_on_error=True
        ):
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                return False
            why = _explained(instance, run) or f"the machine {lease.node} was lost, or its process was killed"
            if run.status == dg.DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, f"The run was to end, and {why}.")
            else:
                instance.report_run_failed(run, f"The run was lost: {why}.")
            return True
    except LockTakenError:
        return False


def remind_of_retries(instance: dg.DagsterInstance) -> list[str]:
    """Tell Dagster once more of runs that it was to start again and has not; return their ids.

    Its daemon reads of a failure before that is noted on the run: if it looks in between, it leaves the run alone for
    ever. It starts a run again once, however often it is told. To sensors it is another failure: `is_reminder`.
    """
    now = datetime.now(UTC)
    failed = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE],
        tags={WILL_RETRY_TAG: "true"},
        updated_after=now - EXPLAINED_WITHIN,
        updated_before=now - REMINDED_AFTER,
    )
    reminded = []
    for run in instance.get_runs(failed):
        told = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
        if AUTO_RETRY_TAG not in run.tags and len(told) == 1:
            instance.report_run_failed(run, f"{_REMINDER}{told[0].message}")
            reminded.append(run.run_id)
    return reminded


def is_reminder(message: str | None) -> bool:
    """Return whether the event of a failure with this message only repeats an earlier one."""
    return message is not None and message.startswith(_REMINDER)


@runtime_checkable
class _Explaining(Protocol):
    """A launcher that knows how its runs ended: that of Kubernetes."""

    def explain_end(self, run: dg.DagsterRun) -> str | None: ...


def explain_interrupted_runs(instance: dg.DagsterInstance) -> list[str]:
    """Add to runs that failed a moment ago because their processes were told to end why that was; return their ids.

    They say only that they were interrupted: that the pod was evicted, or its node drained, Kubernetes knows.
    """
    recently = datetime.now(UTC) - EXPLAINED_WITHIN
    interrupted = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], tags=INTERRUPTED, updated_after=recently)
    explained = []
    for run in instance.get_runs(interrupted) if isinstance(instance.run_launcher, _Explaining) else []:
        events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT)
        if any(_INTERRUPTED_BY in event.message for event in events):
            continue
        why = _explained(instance, run)
        if why is not None:
            instance.report_engine_event(f"{_INTERRUPTED_BY}{why}", run)
            explained.append(run.run_id)
    return explained


def _explained(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Return what the launcher of the runs knows of how one ended, if it knows anything."""
    try:
        launcher = instance.run_launcher
    except SettingsError as error:  # this command runs where the launcher does not: the run is lost all the same
        logger.warning("how the run %s ended is not known: %s", run.run_id, error)
        return None
    return launcher.explain_end(run) if isinstance(launcher, _Explaining) else None


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
