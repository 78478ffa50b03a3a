"""What we take from modules of Dagster that are not public, each with the way that is missing. Nothing else does.

A new version of Dagster may move any of these: what breaks with it, breaks here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    import sqlalchemy as sa
    from starlette.types import ASGIApp

__all__ = [
    "AssetJob",
    "CheckError",
    "DagsterEvaluationErrorReason",
    "DagsterSqliteStorage",
    "EvaluationError",
    "ExecutionPlan",
    "InstanceRef",
    "PlanOrchestrationContext",
    "RetryMode",
    "RunQueueConfig",
    "RunStorageSqlMetadata",
    "ScheduleStorageSqlMetadata",
    "SqlEventLogStorageMetadata",
    "SqliteEventLogStorage",
    "StepDependencyConfig",
    "configure_web_logging",
    "get_friendly_path_info",
    "stamp_alembic_rev",
    "stamp_postgresql",
    "web_app",
]


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
