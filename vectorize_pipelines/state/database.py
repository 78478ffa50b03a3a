"""The SQL database of all tables of an installation: its place, its connections, its errors.

It is the one that Dagster uses, unless `ledger.url` names another. With SQLite it is a file of its own beside
Dagster's, since a writer locks a whole file and Dagster would wait for ours.
"""

import os
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, ProgrammingError, SQLAlchemyError

from vectorize_pipelines.core.durable_files import sync_folders
from vectorize_pipelines.core.extras import missing
from vectorize_pipelines.core.urls import without_secrets
from vectorize_pipelines.core.yaml_files import read_yaml
from vectorize_pipelines.errors import LedgerError, SettingsError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import migrations
from vectorize_pipelines.state.damage import explain
from vectorize_pipelines.state.home import dagster_home

#: How long a writer waits for another one; a batch takes a fraction of a second.
BUSY_SECONDS = 60
CONNECT_SECONDS = 10
#: How long a server may leave packets unanswered before its connections count as broken.
SILENCE_SECONDS = 30.0
#: Rows that one transaction deletes, so that who records need not wait long.
PURGE_ROWS = 10_000
#: Rows of one statement, of which SQLite takes 32,766 values; few numbers, so that statements are prepared once.
_ROWS_TOGETHER = (1000, 100, 10, 1)
FILE_NAME = "vectorize.db"
DAGSTER_CONFIG = "dagster.yaml"
#: What to do where the file is damaged.
REMEDY = (
    "restore it from a backup, or move it away, with its -wal and -shm, and it is made again empty: docs/operations.md "
    "says what is lost then"
)
#: What to do where a dagster.yaml is wrong.
_REMEDY = "correct it, or delete it for the project's own"
#: Text is compared by code points, as Python and SQLite do, not by the rules of the server's language.
Text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
#: The tables of this project. `state.migrations` makes them, and needs a step for every change.
metadata = sa.MetaData()
#: How long a process waits for another one that brings the tables up to date, or for who holds a table then.
UPGRADE_SECONDS = 600
#: Of the lock that is held while tables are brought up to date; any number that nobody else uses.
_SCHEMA_LOCK = 0x766563746F72697A
_DRIVERS = {"postgresql": "postgresql+psycopg2", "sqlite": "sqlite"}
#: Parameters in a URL's query whose values are no secrets; any other may be one.
_OPEN_PARAMETERS = re.compile(
    r"application_name|channel_binding|client_encoding|connect_timeout|gssencmode|host(addr)?|keepalives.*|"
    r"load_balance_hosts|port|sslmode|target_session_attrs|tcp_user_timeout"
)


class Database:
    """Connections to one database. Safe for use by several threads; every error of it is a `LedgerError`."""

    def __init__(self, url: URL):
        """Connect, and bring the tables up to date where they are not so. Raises `LedgerError`."""
        self.url = url
        self._place = shown_database(url)
        self._secrets = secrets_of(url)
        self._engine = _engine(url)
        try:
            with self._errors_reported():
                self._bring_up_to_date()
        except LedgerError:
            self.close()
            raise

    @classmethod
    def open(cls, settings: Settings) -> "Database":
        """Return the database of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(database_url(settings))

    @property
    def is_sqlite(self) -> bool:
        """Return whether it is a file of this machine."""
        return self._engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a connection for queries, each of which sees the state of its own moment."""
        with self._errors_reported(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction: all of it or nothing."""
        with self._errors_reported(), self._engine.begin() as connection:
            if self.is_sqlite:  # a transaction that reads first could not be raised to a writing one later
                connection.exec_driver_sql("begin immediate")
            yield connection

    @contextmanager
    def statements(self) -> Iterator[sa.Connection]:
        """Open a connection on which each statement is a transaction: nothing stays locked from one to the next."""
        with self._errors_reported(), self._engine.connect() as connection:
            # SQLite's is so already: see `engine_options`.
            yield connection if self.is_sqlite else connection.execution_options(isolation_level="AUTOCOMMIT")

    @contextmanager
    def session(self, silence_seconds: float) -> Iterator[sa.Connection]:
        """Open a connection outside the pool, each statement a transaction; closed at the end.

        A server of another machine that is silent for so long counts as away.
        """
        engine = sa.create_engine(
            self.url,
            poolclass=sa.NullPool,
            isolation_level="AUTOCOMMIT",
            **engine_options(self.url, silence_seconds),
        )
        with self._errors_reported(), engine.connect() as connection:
            yield connection

    def insert(self, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
        """Return an insert of which can be said what it does on a conflict."""
        return (sqlite.insert if self.is_sqlite else postgresql.insert)(table)

    def upsert(
        self, table: sa.Table, replaces: Callable[[Any, Any], sa.ColumnElement[bool]] | None = None
    ) -> sa.Insert:
        """Return an insert that replaces the row of the same key where `replaces(new, old)` holds; None: never."""
        insert = self.insert(table)
        key = list(table.primary_key.columns)
        if replaces is None:
            return insert.on_conflict_do_nothing(index_elements=key)
        return insert.on_conflict_do_update(
            index_elements=key,
            set_={column.name: insert.excluded[column.name] for column in table.columns if not column.primary_key},
            where=replaces(insert.excluded, table.c),
        )

    def bulk_upsert(
        self, table: sa.Table, replaces: Callable[[Any, Any], sa.ColumnElement[bool]]
    ) -> Callable[[sa.Connection, Sequence[tuple[Any, ...]]], None]:
        """Return `upsert` for many rows: tuples in the order of the columns, in the types that the driver takes."""
        statement = self.upsert(table, replaces)
        if self.is_sqlite:
            return self.bulk(table, statement)
        names = [column.name for column in table.columns]
        return lambda connection, rows: _execute_named(connection, statement, names, rows)

    def bulk(self, table: sa.Table, insert: sa.Insert) -> Callable[[sa.Connection, Sequence[tuple[Any, ...]]], None]:
        """Return an insert for many rows, which has no parameters beside theirs, as `bulk_upsert` does.

        With PostgreSQL, which would be asked once for each row else, no two rows may have the same key.
        """
        names = [column.name for column in table.columns]
        dialect = self._engine.dialect if self.is_sqlite else postgresql.psycopg2.dialect(paramstyle="format")  # type: ignore[no-untyped-call]
        # SQLAlchemy takes longer to look at a row's parameters than SQLite to store them.
        compiled = insert.compile(dialect=dialect, column_keys=names)
        assert list(compiled.positiontup or ()) == names, "an insert has its parameters in the columns' order"
        statements = _for_many_rows(str(compiled))
        return lambda connection, rows: _execute_positional(connection, statements, rows)

    def close(self) -> None:
        """Close every connection; a second call does nothing."""
        self._engine.dispose()

    def failure(self, error: Exception) -> LedgerError:
        """Return what to raise for an error of the database: SQLAlchemy's message would hold statement and values."""
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        known = explain(cause, Path(self.url.database), REMEDY) if self.is_sqlite and self.url.database else None
        if known is not None:
            return LedgerError(f"the database of requests, {known}")
        reason = without_secrets(" ".join(str(cause).split()), *self._secrets) or type(cause).__name__
        return LedgerError(f"the database of requests, {self._place}, failed: {reason[:500]}")

    @contextmanager
    def _errors_reported(self) -> Iterator[None]:
        try:
            yield
        # What SQLite says to the statements of `_prepare` reaches us as it is.
        except (SQLAlchemyError, sqlite3.Error, UnicodeEncodeError, OverflowError) as error:
            raise self.failure(error) from None

    def _bring_up_to_date(self) -> None:
        """Leave a database with the schema of this code: after one query, where it has that already."""
        if self._is_current():
            return
        if self.is_sqlite and self.url.database:
            file = Path(self.url.database)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                # Two that make a file refuse each other.
                with FileLock(f"{file}.lock", timeout=UPGRADE_SECONDS), self.write() as connection:
                    self._upgrade(connection)
                    _make_name_durable(file)
            except OSError as error:
                raise self.failure(error) from None
            return
        with self.write() as connection:
            connection.exec_driver_sql(f"set local lock_timeout = '{UPGRADE_SECONDS}s'")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            self._upgrade(connection)

    def _is_current(self) -> bool:
        """Return whether nothing is to be done. What stands in the way of the look is met, and seen, under the lock."""
        # An empty file is being made: a look would take from its maker the lock that it needs.
        if self.is_sqlite and self.url.database and not _has_content(Path(self.url.database)):
            return False
        # SQLite also refuses a file that another process is just making.
        refusals: tuple[type[Exception], ...]
        refusals = (DBAPIError, sqlite3.Error) if self.is_sqlite else (ProgrammingError,)
        try:
            with self._engine.connect() as connection:
                return migrations.is_current(connection)
        except refusals:
            return False

    def _upgrade(self, connection: sa.Connection) -> None:
        """Apply the migrations that are missing: all of them or, with the transaction of `connection`, none."""
        from vectorize_pipelines.state.migrations.runner import upgrade

        what = f"the database of requests, {self._place},"
        try:
            upgrade(connection, what)
        except migrations.SchemaError as error:
            raise LedgerError(f"{what} {error}") from None


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:
        return False


def _make_name_durable(file: Path) -> None:
    """Put the file's folders on the disk: SQLite sees to what is in its file, and nobody to those made for it."""
    try:
        sync_folders(file.parent)
    except OSError as error:
        raise LedgerError(f"{file} cannot be put on the disk: {error.strerror}") from None


def _execute_named(
    connection: sa.Connection, statement: sa.Executable, names: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    connection.execute(statement, [dict(zip(names, row, strict=True)) for row in rows])


def _for_many_rows(insert: str) -> dict[int, str]:
    """Return the insert of so many rows by their number, the largest first."""
    before, values, after = re.split(r"( VALUES \([^)]*\))", insert)
    row = values.removeprefix(" VALUES ")
    return {together: f"{before} VALUES {', '.join([row] * together)}{after}" for together in _ROWS_TOGETHER}


def _execute_positional(
    connection: sa.Connection, statements: Mapping[int, str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert some hundred rows a statement: after each, Python's sqlite3 waits for its turn among the threads again."""
    start = 0
    for together, many in statements.items():
        while len(rows) - start >= together:
            connection.exec_driver_sql(many, tuple(chain.from_iterable(rows[start : start + together])))
            start += together


def purge_rows(database: Database, table: sa.Table, old: sa.ColumnElement[bool]) -> int:
    """Delete the rows for which `old` holds, in one way through the table and some at a time; return their number."""
    key = list(table.primary_key.columns)
    removed, place = 0, None
    while True:
        query = sa.select(*key).where(old).order_by(*key).limit(PURGE_ROWS)
        if place is not None:
            query = query.where(sa.tuple_(*key) > place)
        with database.write() as connection:
            found = [tuple(row) for row in connection.execute(query)]
            if not found:
                return removed
            place = found[-1]
            first = sa.tuple_(*key) >= found[0]
            connection.execute(sa.delete(table).where(old, first, sa.tuple_(*key) <= place))
        removed += len(found)


def database_url(settings: Settings) -> URL:
    """Return `ledger.url`, or else Dagster's database. Raises `SettingsError` without any part of a password."""
    if settings.ledger.url is not None:
        return _checked(settings.ledger.url.get_secret_value(), "ledger.url (VECTORIZE_LEDGER__URL)")
    home = dagster_home(settings)
    storage = dagster_storage(home)
    if storage is None:
        raise SettingsError(
            f"{home / DAGSTER_CONFIG} has a storage that cannot hold the ledger; "
            "set ledger.url (VECTORIZE_LEDGER__URL) to a postgresql:// or sqlite:/// address"
        )
    if isinstance(storage, URL):
        return storage
    return URL.create("sqlite", database=str(storage / "history" / FILE_NAME))


def dagster_storage(home: Path) -> URL | Path | None:
    """Return where Dagster keeps its runs: a PostgreSQL database, a folder of SQLite files, or (None) something else.

    Raises `SettingsError` where the folder's dagster.yaml is not what it should be.
    """
    file = home / DAGSTER_CONFIG
    storage = _storage(file)
    if "postgres" in storage:
        return _postgresql_url(_part(storage, "postgres", file), file)
    if storage and "sqlite" not in storage:
        return None
    folder = _part(storage, "sqlite", file).get("base_dir", home) if "sqlite" in storage else home
    if not isinstance(folder, str | Path):
        raise SettingsError(f"{file}: storage.sqlite.base_dir must be the name of a folder; {_REMEDY}")
    return Path(folder)


def dagster_postgresql(home: Path) -> Mapping[str, Any]:
    """Return `storage.postgres` of a dagster.yaml that has it. Raises `SettingsError` as `dagster_storage`."""
    file = home / DAGSTER_CONFIG
    return _part(_storage(file), "postgres", file)


def _storage(file: Path) -> Mapping[str, Any]:
    try:
        content = read_yaml(file) if file.exists() else None
    except SettingsError as error:
        raise SettingsError(f"{error}; {_REMEDY}") from None
    content = {} if content is None else content
    storage = content.get("storage") or {} if isinstance(content, Mapping) else None
    if not isinstance(storage, Mapping):
        raise SettingsError(
            f"{file} is no configuration of Dagster: it must hold a tree, such as `storage: {{postgres: …}}`; {_REMEDY}"
        )
    return storage


def _part(storage: Mapping[str, Any], name: str, file: Path) -> Mapping[str, Any]:
    part = _resolved(storage[name], file)
    if not isinstance(part, Mapping):
        raise SettingsError(f"{file}: storage.{name} must hold a tree")
    return part


def _require_driver(name: str) -> None:
    lacking = missing(f"{name}: PostgreSQL", "postgres")
    if lacking is not None:
        raise SettingsError(lacking)


def _postgresql_url(config: Mapping[str, Any], file: Path) -> URL:
    _require_driver(f"storage.postgres in {file}")
    if "postgres_url" in config:
        return _checked(config["postgres_url"], f"storage.postgres.postgres_url in {file}")
    try:
        parts = config["postgres_db"]
        return URL.create(
            _DRIVERS["postgresql"],
            username=parts["username"],
            password=parts.get("password"),
            host=parts["hostname"],
            port=int(parts.get("port", 5432)),
            database=parts["db_name"],
            query={name: str(value) for name, value in (parts.get("params") or {}).items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):  # whose own messages may repeat a value
        raise SettingsError(
            f"storage.postgres in {file} must have postgres_url, or postgres_db with username, password, hostname, "
            "db_name and a number as port"
        ) from None


def _resolved(value: Any, file: Path) -> Any:
    """Return a part of dagster.yaml, with `{env: NAME}` replaced by that variable."""
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"env"}:
        name = str(value["env"])
        if name not in os.environ:
            raise SettingsError(f"{file} refers to the variable {name}, which is not set")
        return os.environ[name]
    return {name: _resolved(part, file) for name, part in value.items()}


def shown_database(url: URL) -> str | None:
    """Return the place of a database: its file, or server and name. Who connects, and by what, is nobody's business."""
    if url.get_backend_name() == "sqlite":
        return url.database
    host = url.host or url.query.get("host") or "the local socket"
    port = f":{url.port}" if url.port else ""
    return f"{url.get_backend_name()}://{host if isinstance(host, str) else ','.join(host)}{port}/{url.database or ''}"


def secrets_of(url: URL) -> tuple[str, ...]:
    """Return what no error may repeat, whatever the driver says."""
    query = (
        (value,) if isinstance(value, str) else value
        for name, value in url.query.items()
        if not _OPEN_PARAMETERS.fullmatch(name.lower())
    )
    password = () if url.password is None else (str(url.password),)
    return (*password, *chain.from_iterable(query))


def _checked(text: str, name: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise SettingsError(f"{name} is no database address; write postgresql://… or sqlite:///…") from None
    backend = url.get_backend_name()
    if backend not in _DRIVERS:
        raise SettingsError(f"{name}: {backend} is not supported; write postgresql://… or sqlite:///…")
    if backend == "sqlite" and not url.database:
        raise SettingsError(f"{name}: a database in memory is seen by one process only; name a file")
    if backend == "postgresql":
        _require_driver(name)
    return url.set(drivername=_DRIVERS[backend])


def _engine(url: URL) -> sa.Engine:
    engine = sa.create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite", **engine_options(url))
    if url.get_backend_name() != "sqlite":
        return engine

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.execute("pragma journal_mode = wal")
        # A version has to be on the disk before its rows are, and callbacks before the offsets of their messages.
        connection.execute("pragma synchronous = full")
        # Keys are random: the same pages are written again and again, and by default reach the file every 4 MiB.
        connection.execute("pragma wal_autocheckpoint = 16000")
        connection.execute("pragma cache_size = -16384")

    return engine


def engine_options(url: URL, silence_seconds: float = SILENCE_SECONDS) -> dict[str, Any]:
    """Return how long a database may let a connection wait, as `sa.create_engine` takes it."""
    if url.get_backend_name() == "sqlite":
        # Without SQLite's own idea of when a transaction begins: `Database.write` says it.
        return {"connect_args": {"timeout": BUSY_SECONDS, "isolation_level": None}}
    probe_seconds = max(1, round(silence_seconds / 3))
    return {
        "connect_args": {
            "connect_timeout": min(CONNECT_SECONDS, max(2, round(silence_seconds))),  # fewer would be taken for two
            "application_name": "vectorize",
            # A machine that vanished is noticed soon, not within the two hours of TCP's default.
            "tcp_user_timeout": round(silence_seconds * 1000),
            "keepalives_idle": probe_seconds,
            "keepalives_interval": probe_seconds,
            "keepalives_count": 3,
        }
    }
