"""Dagster's instance of an installation. Its databases are made whole, by one process, before anybody opens them.

`dagster.yaml` names `PreparedInstance` as the instance's class, so that every process that opens the instance comes by
here first: our commands, and each bare `dagster …` command or service, whichever is the first of a new
home. Our commands come by `open_instance`, which also serves an installation whose own dagster.yaml does not name it.
"""

import contextlib
import logging
import os
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import dagster as dg
import sqlalchemy as sa
import yaml
from sqlalchemy.dialects import registry
from sqlalchemy.engine import URL

from vectorize_pipelines.compat import (
    CheckError,
    ConfigurableClassData,
    DagsterEvaluationErrorReason,
    DagsterSqliteStorage,
    EvaluationError,
    InstanceRef,
    RunStorageSqlMetadata,
    ScheduleStorageSqlMetadata,
    SqlEventLogStorageMetadata,
    SqliteEventLogStorage,
    get_friendly_path_info,
    stamp_postgresql,
)
from vectorize_pipelines.core.extras import missing
from vectorize_pipelines.core.urls import without_secrets
from vectorize_pipelines.errors import DamagedStateError, MissingExtraError, SettingsError, StateError, VectorizeError
from vectorize_pipelines.runs.tags import TOLD_TAGS
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.dagster_databases import DATABASES, Condition, condition, connect
from vectorize_pipelines.state.damage import COMPANIONS, explain, making, put_aside
from vectorize_pipelines.state.database import (
    DAGSTER_CONFIG,
    dagster_postgresql,
    dagster_storage,
    engine_options,
    secrets_of,
    shown_database,
)
from vectorize_pipelines.state.home import keep_private, use_dagster_home
from vectorize_pipelines.state.redis_connection import redis_address

if TYPE_CHECKING:
    from vectorize_pipelines.compat import BaseWorkspaceRequestContext

logger = logging.getLogger(__name__)

# From 2.1 on, SQLAlchemy takes psycopg for `postgresql://`, the form that Dagster documents and builds itself; Dagster
# installs, and is tested with, psycopg2. Every process that opens the instance imports this module first.
registry.register("postgresql", "sqlalchemy.dialects.postgresql.psycopg2", "dialect")

#: What Dagster says of these repeats the value.
_ABOUT_VALUES = (
    DagsterEvaluationErrorReason.RUNTIME_TYPE_MISMATCH,
    DagsterEvaluationErrorReason.FAILED_POST_PROCESSING,
)
#: Begins the name of a folder in which databases are made; what a killed process left of one is removed.
_MAKING = ".making-"
#: How long a process waits for another one that makes Dagster's tables in PostgreSQL: some seconds' work.
MAKING_SECONDS = 120
#: Of PostgreSQL's lock for the making of Dagster's tables; any number that nobody else uses.
_POSTGRESQL_LOCK = 0x766563746F726961
#: The databases in PostgreSQL that this process has found whole: a worker opens the instance for each of its runs.
_whole: set[URL] = set()
#: The tables of Dagster's, which share a database in PostgreSQL.
_PARTS = (RunStorageSqlMetadata, SqlEventLogStorageMetadata, ScheduleStorageSqlMetadata)


#: The launcher of `run_launcher: celery`, unless dagster.yaml names one.
_WARM_LAUNCHER = ConfigurableClassData("vectorize_pipelines.runs.workers.launcher", "WarmRunLauncher", "{}\n")
#: Where runs wait for a worker, they have been launched already: a day's work of all workers is no reason to give up.
_WAITING_SECONDS = 7 * 86_400


class PreparedInstance(dg.DagsterInstance):
    """Dagster's own instance, on databases that are whole, with the launcher of the setting `run_launcher`."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._submitted = threading.Event()

    @classmethod
    def config_schema(cls) -> Mapping[str, Any]:
        """Return what dagster.yaml may say beyond Dagster's own settings: nothing. Called by Dagster."""
        return {}

    @classmethod
    def config_defaults(cls, base_dir: str) -> Mapping[str, Any]:
        """Return what holds where dagster.yaml says nothing. Dagster calls this before it opens anything in `base_dir`.

        It is the one place that Dagster gives before it opens its databases. An error ends a command of Dagster's
        with its message, without a stack trace.
        """
        try:
            settings = load_settings()
            keep_private(settings)
            prepare(Path(base_dir))
            return {**InstanceRef.config_defaults(base_dir), **_launcher(settings)}
        except VectorizeError as error:
            raise click.ClickException(str(error)) from error

    @property
    def run_monitoring_start_timeout_seconds(self) -> int:
        """Return after how many seconds a run that was launched, and has not begun, is given up."""
        if hands_runs_to_workers(self):
            return _WAITING_SECONDS
        return super().run_monitoring_start_timeout_seconds

    def submit_run(self, run_id: str, workspace: "BaseWorkspaceRequestContext") -> dg.DagsterRun:
        """Put a run into the queue. Called by Dagster's sensors, schedules and retries, and by its UI."""
        run = super().submit_run(run_id, workspace)
        self._submitted.set()
        return run

    def wait_for_runs(self, seconds: float) -> bool:
        """Wait at most so long until a run was submitted through this object; return whether one was.

        What was submitted since the last call that returned True counts. Called by one thread.
        """
        submitted = self._submitted.wait(seconds)
        if submitted:
            self._submitted.clear()
        return submitted

    def create_reexecuted_run(self, *, parent_run: dg.DagsterRun, **arguments: Any) -> dg.DagsterRun:
        """Make the run that repeats another one. Called by Dagster's automatic retries, and by its UI.

        It would have all tags of that one, also those by which that one was told to end: it would end at once.
        """
        tags = {name: value for name, value in parent_run.tags.items() if name not in TOLD_TAGS}
        return super().create_reexecuted_run(parent_run=parent_run.with_tags(tags), **arguments)


def hands_runs_to_workers(instance: dg.DagsterInstance) -> bool:
    """Return whether workers on several hosts take an instance's runs: dagster.yaml may name another launcher."""
    kind = type(instance.run_launcher)
    return (kind.__module__, kind.__name__) == (_WARM_LAUNCHER.module_name, _WARM_LAUNCHER.class_name)


def _launcher(settings: Settings) -> Mapping[str, ConfigurableClassData]:
    """Return the launcher that holds in place of Dagster's own, if any. Raises `SettingsError`, `MissingExtraError`."""
    if settings.run_launcher != "celery":
        return {}
    lacking = missing("run_launcher: celery", "celery", "redis")
    if lacking is not None:
        raise MissingExtraError(lacking)
    redis_address(settings)
    return {"run_launcher": _WARM_LAUNCHER}


@contextlib.contextmanager
def open_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Yield the instance of the installation, closed at the end.

    Raises `SettingsError` where its dagster.yaml is wrong or the home cannot be written, `StateError` where a database
    is damaged or the disk is full.
    """
    use_dagster_home(settings)
    folder = Path(os.environ["DAGSTER_HOME"])
    prepare(folder)
    with _opened(folder) as instance:
        yield instance


def prepare(folder: Path) -> None:
    """Make Dagster's databases where they are missing, and mend what two processes made at once.

    `folder` has the dagster.yaml. Costs a look at three files where all is well. Raises as `open_instance`.
    """
    storage = dagster_storage(folder)
    if isinstance(storage, Path):
        _prepare_sqlite(storage.expanduser().absolute())
    elif isinstance(storage, URL) and _is_ours_to_make(dagster_postgresql(folder)):
        _prepare_postgresql(storage)


def _opened(folder: Path) -> dg.DagsterInstance:
    try:
        return dg.DagsterInstance.get()
    except (dg.DagsterInvalidConfigError, CheckError, yaml.YAMLError) as error:
        raise SettingsError(
            f"{folder / DAGSTER_CONFIG} is no valid configuration of Dagster: {_said_of_config(error)}; correct it, or "
            "delete it for the project's own"
        ) from None  # the error holds the values, which may be secrets
    except Exception as error:
        known = explain(error, folder)
        if known is None:
            raise
        raise known from error


def _said_of_config(error: Exception) -> str:
    """The places and kinds of what is wrong, without any value of the file."""
    if isinstance(error, yaml.YAMLError):
        return "it is not YAML"
    problems = [each for each in getattr(error, "errors", None) or () if isinstance(each, EvaluationError)]
    return " ".join(("; ".join(map(_said_of_problem, problems)) or str(error)).split())


def _said_of_problem(problem: EvaluationError) -> str:
    if problem.reason not in _ABOUT_VALUES:
        return problem.message
    place, _ = get_friendly_path_info(problem.stack)
    return f"the value {place} is not of the type that belongs there, or comes from a variable that is not set"


def _prepare_sqlite(base: Path) -> None:
    if _all_whole(base):
        return
    with making(base / "databases"):
        if _all_whole(base):
            return  # another process has made them meanwhile
        for left in base.glob(f"{_MAKING}*"):
            shutil.rmtree(left, ignore_errors=True)  # of a process that was killed
        with tempfile.TemporaryDirectory(prefix=_MAKING, dir=base) as folder:
            DagsterSqliteStorage.from_local(folder).dispose()
            for name in DATABASES:
                _complete(base / name, Path(folder, name))
        if any(condition(base / name) is Condition.STARTED for name in DATABASES):
            _finish(base)


def _finish(base: Path) -> None:
    """Let Dagster go on where it was; it would finish the database of assets when that is used, in many processes."""
    storage = DagsterSqliteStorage.from_local(str(base))
    events = storage.event_log_storage
    assert isinstance(events, SqliteEventLogStorage), "the event log of a SQLite storage is of SQLite"
    with events.index_connection():
        pass
    events.reindex_events()
    events.reindex_assets()
    storage.dispose()


def _all_whole(base: Path) -> bool:
    return all(condition(base / name) is Condition.WHOLE for name in DATABASES)


def _complete(file: Path, whole: Path) -> None:
    """Bring one database into order; `whole` is a new one, which may be moved to its place."""
    found = condition(file)
    if found is Condition.TANGLED:
        _untangle(file, whole)
    elif found is Condition.MISSING:
        _put_in_place(file, whole)


def _put_in_place(file: Path, whole: Path) -> None:
    """Move a new database to its place at once, so that nobody who is not held by the lock finds half of it."""
    with contextlib.closing(connect(whole)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    file.parent.mkdir(parents=True, exist_ok=True)
    if any(file.with_name(file.name + suffix).exists() for suffix in ("", *COMPANIONS)):
        aside = put_aside(file)
        logger.warning("%s was empty: put aside as %s and made again; what it held is lost", file, aside.name)
    whole.replace(file)


def _untangle(file: Path, whole: Path) -> None:
    """Leave one version in a database that several processes made at once: that of the tables it has."""
    with contextlib.closing(connect(whole)) as connection:
        tables, versions = _columns(connection), _versions(connection)
    with contextlib.closing(connect(file)) as connection:
        found, named = _columns(connection), _versions(connection)
        lacking = sorted(name for name, columns in tables.items() if not columns <= found.get(name, set()))
        (newest,) = versions
        if lacking or newest not in named:
            raise DamagedStateError(
                f"{file} is of several versions of Dagster at once ({', '.join(sorted(named))}) and lacks columns of "
                f"{', '.join(lacking) or 'none'}; restore it from a backup, or move it away and it is made again empty"
            )
        with connection:
            connection.execute("delete from alembic_version where version_num <> ?", (newest,))
    logger.warning("%s was made by several processes at once, and every start refused it: mended", file)


def _columns(connection: sqlite3.Connection) -> dict[str, set[str]]:
    tables = connection.execute("select name from sqlite_master where type = 'table'").fetchall()
    return {
        name: {row[0] for row in connection.execute("select name from pragma_table_info(?)", (name,))}
        for (name,) in tables
    }


def _versions(connection: sqlite3.Connection) -> set[str]:
    return {row[0] for row in connection.execute("select version_num from alembic_version")}


def _is_ours_to_make(config: Mapping[str, Any]) -> bool:
    """Return whether the tables of a PostgreSQL storage are made here, under a lock.

    Not where the operator makes them, and not where only Dagster gets the token with which to connect.
    """
    return config.get("should_autocreate_tables", True) is not False and not config.get("auth_provider")


def _prepare_postgresql(url: URL) -> None:
    """Dagster makes its tables one by one: whoever comes meanwhile would take the first one for all of them."""
    if url in _whole:
        return
    engine = sa.create_engine(url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT", **engine_options(url))
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"set lock_timeout = '{MAKING_SECONDS}s'")
            connection.execute(sa.select(sa.func.pg_advisory_lock(_POSTGRESQL_LOCK)))
            _make_postgresql(connection, url)
        _whole.add(url)
    except sa.exc.SQLAlchemyError as error:
        said = " ".join(str(getattr(error, "orig", None) or type(error).__name__).split())
        reason = without_secrets(said, *secrets_of(url))
        place = shown_database(url)
        raise StateError(
            f"Dagster's database {place} failed: {reason[:500]}; start it, or correct `storage` in dagster.yaml"
        ) from None
    finally:
        engine.dispose()


def _make_postgresql(connection: sa.Connection, url: URL) -> None:
    if _is_whole(connection):
        return
    from dagster_postgres import DagsterPostgresStorage

    storage = DagsterPostgresStorage(url.render_as_string(hide_password=False))
    # Dagster takes a table for all of its part: where its maker was killed, the rest of a new database is made here.
    # One in use is of an earlier version of Dagster's, which `dagster instance migrate` brings up to date.
    if _is_whole(connection) or connection.execute(sa.text("select exists (select from runs)")).scalar():
        return
    for part in _PARTS:
        part.create_all(connection)
    for migrated in (storage.run_storage, storage.schedule_storage):
        migrated.migrate()
        migrated.optimize()
    storage.event_log_storage.reindex_events()
    storage.event_log_storage.reindex_assets()
    stamp_postgresql(connection)


def _is_whole(connection: sa.Connection) -> bool:
    """Return whether a PostgreSQL database has all tables of Dagster's and says of which version they are."""
    wanted = {"alembic_version"}.union(*(part.tables for part in _PARTS))
    return wanted <= set(sa.inspect(connection).get_table_names()) and bool(
        connection.execute(sa.text("select exists (select from alembic_version)")).scalar()
    )
