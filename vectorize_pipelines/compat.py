"""What we take from modules of Dagster that are not public, each with the way that is missing. Nothing else does.

A new version of Dagster may move any of these: what breaks with it, breaks here.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

# What a wrong dagster.yaml raises: one kind of error has no public name, and what is wrong with which value is said
# only by the objects in the other kind, whose own messages repeat the values.
from dagster._check import CheckError
from dagster._config.errors import DagsterEvaluationErrorReason, EvaluationError
from dagster._config.stack import get_friendly_path_info

# What `define_asset_job` returns, for annotations: it has no public name.
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition as AssetJob

# What an executor is given and asked for, for annotations: none of it has a public name.
from dagster._core.execution.context.system import PlanOrchestrationContext
from dagster._core.execution.plan.plan import ExecutionPlan
from dagster._core.execution.retries import RetryMode
from dagster._core.execution.step_dependency_config import StepDependencyConfig

# A class of instances has to hand on the defaults of Dagster's own.
from dagster._core.instance.ref import InstanceRef

# What launchers are called with, and what they say of a run's worker.
from dagster._core.launcher import CheckRunHealthResult, LaunchRunContext, WorkerStatus

# What an instance says of its queue, for annotations: it has no public name.
from dagster._core.run_coordinator.queued_run_coordinator import RunQueueConfig

# Databases are made whole before anybody opens them. Dagster makes each table when it first needs it, in whatever
# process, and several at once make several versions; `dagster instance migrate` asks for an instance that is there.
from dagster._core.storage.event_log.schema import SqlEventLogStorageMetadata
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.runs.schema import RunStorageSqlMetadata
from dagster._core.storage.schedules.schema import ScheduleStorageSqlMetadata
from dagster._core.storage.sql import stamp_alembic_rev
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage

# What an instance is given a run to submit with, for annotations: it has no public name.
from dagster._core.workspace.context import BaseWorkspaceRequestContext

# A class of instances says with it which launcher holds where dagster.yaml names none.
from dagster._serdes import ConfigurableClassData

if TYPE_CHECKING:
    import sqlalchemy as sa
    from starlette.types import ASGIApp

__all__ = [
    "AssetJob",
    "BaseWorkspaceRequestContext",
    "CheckError",
    "CheckRunHealthResult",
    "ConfigurableClassData",
    "DagsterEvaluationErrorReason",
    "DagsterSqliteStorage",
    "EvaluationError",
    "ExecutionPlan",
    "InstanceRef",
    "LaunchRunContext",
    "PlanOrchestrationContext",
    "RetryMode",
    "RunQueueConfig",
    "RunStorageSqlMetadata",
    "ScheduleStorageSqlMetadata",
    "SqlEventLogStorageMetadata",
    "SqliteEventLogStorage",
    "StepDependencyConfig",
    "WorkerStatus",
    "configure_web_logging",
    "execute_run",
    "get_friendly_path_info",
    "interrupts_deferred",
    "kept_connections",
    "run_daemon",
    "stamp_alembic_rev",
    "stamp_postgresql",
    "web_app",
]


#: Connections for each part of an instance that are made, and closed again, while the one that it keeps is in use.
_BESIDE = 50
#: The longest wait for runs without a sign of life of the daemon's.
_WAIT_SECONDS = 0.5


def stamp_postgresql(connection: "sa.Connection") -> None:
    """Have a database in PostgreSQL say that it is of the installed version of Dagster.

    Dagster does so itself only where it makes the tables, one part after the other.
    """
    from dagster_postgres.run_storage import run_storage
    from dagster_postgres.utils import pg_alembic_config

    stamp_alembic_rev(pg_alembic_config(run_storage.__file__), connection)


def configure_web_logging() -> None:
    """Have Dagster log as its web server does, whose command is the only public way to that."""
    from dagster._utils.log import configure_loggers

    configure_loggers(log_level="INFO")


@contextmanager
def kept_connections(instance: dg.DagsterInstance) -> Iterator[None]:
    """Have an instance in PostgreSQL keep one connection for each of its parts, for processes that ask it all the time.

    Dagster connects for each query. `optimize_for_webserver`, its way to keep connections, does not test them before
    they are used: after a restart of the database the first query would fail.
    """
    if "dagster_postgres" not in sys.modules:
        yield
        return
    from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage, PostgresScheduleStorage
    from dagster_postgres.utils import create_pg_engine

    engines = []
    for part in (instance.run_storage, instance.event_log_storage, instance.schedule_storage):
        if isinstance(part, PostgresRunStorage | PostgresEventLogStorage | PostgresScheduleStorage):
            part._engine = create_pg_engine(
                part.postgres_url,
                part._token_provider,
                isolation_level="AUTOCOMMIT",
                pool_size=1,
                max_overflow=_BESIDE,
                pool_pre_ping=True,
            )
            engines.append(part._engine)
    try:
        yield
    finally:
        for engine in engines:
            engine.dispose()


@contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Have SIGINT and SIGTERM seen only where `run_daemon` looks for them, as `dagster-daemon` does."""
    from dagster._utils.interrupts import capture_interrupts, setup_interrupt_handlers

    setup_interrupt_handlers()
    with capture_interrupts():
        yield


def execute_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Execute a launched run in this process as `dagster api execute_run` does, whose command makes a new process.

    Whatever becomes of the run is in the instance.
    """
    from dagster._cli.api import _execute_run_command_body

    _execute_run_command_body(run_id, instance, lambda event: None, set_exit_code_on_failure=False)


def run_daemon(instance: dg.DagsterInstance, workspace: Path, wait_for_runs: Callable[[float], bool]) -> None:
    """Run Dagster's daemon as `dagster-daemon run` does, until an interrupt.

    Between two looks at the queue of runs it calls `wait_for_runs`, which waits at most so many seconds, and returns
    whether a run was put there. Dagster's own loop sleeps then, whatever is put into the queue.
    """
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster._daemon.cli import _get_heartbeat_tolerance
    from dagster._daemon.controller import create_daemons_from_instance, daemon_controller_from_instance
    from dagster._daemon.daemon import DaemonIterator, SpanMarker
    from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
    from dagster._utils.error import serializable_error_info_from_exc_info

    class Queue(QueuedRunCoordinatorDaemon):
        def core_loop(self, context: Any, shutdown_event: threading.Event) -> DaemonIterator:
            while True:
                due = time.monotonic() + self.interval_seconds
                yield SpanMarker.START_SPAN
                try:
                    yield from self.run_iteration(context)
                except Exception:  # as the loop that this one stands for
                    self._logger.exception("Caught error")
                    yield serializable_error_info_from_exc_info(sys.exc_info())
                yield SpanMarker.END_SPAN
                # Each `yield` lets Dagster note that the daemon lives, and end it.
                yield None
                while (left := due - time.monotonic()) > 0 and not wait_for_runs(min(left, _WAIT_SECONDS)):
                    yield None

    def daemons(instance: dg.DagsterInstance) -> Iterator[Any]:
        for daemon in create_daemons_from_instance(instance):
            if isinstance(daemon, QueuedRunCoordinatorDaemon):
                yield Queue(interval_seconds=daemon.interval_seconds)
            else:
                yield daemon

    with daemon_controller_from_instance(
        instance,
        workspace_load_target=WorkspaceFileTarget(paths=[str(workspace)]),
        heartbeat_tolerance_seconds=_get_heartbeat_tolerance(),
        gen_daemons=daemons,
        code_server_log_level="warning",
        log_level=os.environ.get("DAGSTER_DAEMON_LOG_LEVEL", "info"),
    ) as controller:
        controller.check_daemon_loop()


@contextmanager
def web_app(instance: dg.DagsterInstance, workspace: Path, path_prefix: str = "") -> "Iterator[ASGIApp]":
    """The app of `dagster-webserver` on an instance and a workspace file, below a path, without its command.

    The command binds a port of its own and serves the app bare; there is no public way to put anything in front of it.
    """
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster_webserver.app import create_app_from_workspace_process_context
    from dagster_webserver.cli import (
        DEFAULT_DB_STATEMENT_TIMEOUT,
        DEFAULT_POOL_MAX_OVERFLOW,
        DEFAULT_POOL_RECYCLE,
    )
    from dagster_webserver.version import __version__

    instance.optimize_for_webserver(DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_RECYCLE, DEFAULT_POOL_MAX_OVERFLOW)
    target = WorkspaceFileTarget(paths=[str(workspace)])
    with WorkspaceProcessContext(instance, target, version=__version__, code_server_log_level="WARNING") as context:
        yield create_app_from_workspace_process_context(context, path_prefix, live_data_poll_rate=2000)
