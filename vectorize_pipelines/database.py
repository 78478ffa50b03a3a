"""The SQL database behind ledger, versions and callbacks: where it is, how it is opened, what it raises.

It is the one that Dagster uses, unless `ledger.url` names another. With SQLite it is a file of its own beside
Dagster's, since a writer locks a whole file and Dagster would wait for ours.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import yaml
from filelock import FileLock
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from vectorize_pipelines.errors import LedgerError, SettingsError
from vectorize_pipelines.home import dagster_home
from vectorize_pipelines.settings import Settings

#: How long a writer waits for another one; a batch takes a fraction of a second.
BUSY_SECONDS = 60
CONNECT_SECONDS = 10
#: Rows that one transaction deletes, so that who records need not wait long.
PURGE_ROWS = 10_000
#: Rows of one statement, of which SQLite takes 32,766 values; few numbers, so that statements are prepared once.
_ROWS_TOGETHER = (1000, 100, 10, 1)
FILE_NAME = "vectorize.db"
#: Text is compared by code points, as Python and SQLite do, not by the rules of the server's language.
Text = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")
#: Of the lock that is held while tables are made; any number that nobody else uses.
_SCHEMA_LOCK = 0x766563746F72697A
_DRIVERS = {"postgresql": "postgresql+psycopg2", "sqlite": "sqlite"}


class Database:
    """Connections to one database. Safe for use by several threads; every error of it is a `LedgerError`."""

    def __init__(self, url: URL, metadata: sa.MetaData):
        """Connects, and makes the tables of `metadata` that are missing. Raises `LedgerError`."""
        self.url = url
        self._place = url.database if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
        self._engine = _engine(url)
        try:
            with self._errors_reported():
                self._make_tables(metadata)
        except LedgerError:
            self.close()
            raise

    @classmethod
    def open(cls, settings: Settings, metadata: sa.MetaData) -> "Database":
        """The database of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(database_url(settings), metadata)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of this machine."""
        return self._engine.dialect.name == "sqlite"

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """A connection for queries, each of which sees the state of its own moment."""
        with self._errors_reported(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction: all of it or nothing."""
        with self._errors_reported(), self._engine.begin() as connection:
            if self.is_sqlite:  # a transaction that reads first could not be raised to a writing one later
                connection.exec_driver_sql("begin immediate")
            yield connection

    @contextmanager
    def session(self) -> Iterator[sa.Connection]:
        """A connection of its own outside the pool, each statement a transaction; closed at the end."""
        engine = sa.create_engine(self.url, poolclass=sa.NullPool, isolation_level="AUTOCOMMIT", **_options(self.url))
        with self._errors_reported(), engine.connect() as connection:
            yield connection

    def upsert(
        self, table: sa.Table, replaces: Callable[[Any, Any], sa.ColumnElement[bool]] | None = None
    ) -> sa.Insert:
        """An insert that replaces the row of the same primary key where `replaces(new, old)` holds; None: never."""
        insert = (sqlite.insert if self.is_sqlite else postgresql.insert)(table)
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
        """`upsert` for many rows: tuples in the order of the table's columns, in the types that the driver takes."""
        statement = self.upsert(table, replaces)
        names = [column.name for column in table.columns]
        if not self.is_sqlite:
            return lambda connection, rows: _execute_named(connection, statement, names, rows)
        # SQLAlchemy takes longer to look at a row's parameters than SQLite to store them.
        compiled = statement.compile(dialect=self._engine.dialect)
        assert list(compiled.positiontup or ()) == names, "an insert has its parameters in the columns' order"
        statements = _for_many_rows(str(compiled))
        return lambda connection, rows: _execute_positional(connection, statements, rows)

    def close(self) -> None:
        """Closes every connection; a second call does nothing."""
        self._engine.dispose()

    def failure(self, error: Exception) -> LedgerError:
        """What to raise for an error of the database. SQLAlchemy's own message would hold statement and values."""
        cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
        reason = " ".join(str(cause).split()) or type(cause).__name__
        return LedgerError(f"the database of requests, {self._place}, failed: {reason[:500]}")

    @contextmanager
    def _errors_reported(self) -> Iterator[None]:
        try:
            yield
        except (SQLAlchemyError, UnicodeEncodeError, OverflowError) as error:
            raise self.failure(error) from None

    def _make_tables(self, metadata: sa.MetaData) -> None:
        if self.is_sqlite and self.url.database:
            file = Path(self.url.database)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LedgerError(f"{file.parent} cannot be written: {error.strerror}") from None
            with FileLock(f"{file}.lock", timeout=BUSY_SECONDS):  # two processes that make a file refuse each other
                metadata.create_all(self._engine)
            return
        with self._engine.connect() as connection:
            if set(metadata.tables) <= set(sa.inspect(connection).get_table_names()):
                return
        with self._engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))
            metadata.create_all(connection)


def _execute_named(
    connection: sa.Connection, statement: sa.Executable, names: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> None:
    connection.execute(statement, [dict(zip(names, row, strict=True)) for row in rows])


def _for_many_rows(insert: str) -> dict[int, str]:
    """Number of rows -> the insert of so many, the largest first."""
    before, values, after = re.split(r"( VALUES \([^)]*\))", insert)
    row = values.removeprefix(" VALUES ")
    return {together: f"{before} VALUES {', '.join([row] * together)}{after}" for together in _ROWS_TOGETHER}


def _execute_positional(
    connection: sa.Connection, statements: Mapping[int, str], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Some hundred rows a statement: after each one Python's sqlite3 waits for its turn among the threads again."""
    start = 0
    for together, many in statements.items():
        while len(rows) - start >= together:
            connection.exec_driver_sql(many, tuple(chain.from_iterable(rows[start : start + together])))
            start += together


def purge_rows(database: Database, table: sa.Table, old: sa.ColumnElement[bool]) -> int:
    """Deletes the rows for which `old` holds, in one way through the table and some at a time; gives their number."""
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
    """`ledger.url`, or else the database that Dagster uses. Raises `SettingsError` without any part of a password."""
    if settings.ledger.url is not None:
        return _checked(settings.ledger.url.get_secret_value(), "ledger.url (VECTORIZE_LEDGER__URL)")
    home = dagster_home(settings)
    file = home / "dagster.yaml"
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{file} cannot be read as YAML: {type(error).__name__}") from None
    storage = content.get("storage") or {}
    if "postgres" in storage:
        return _postgresql_url(_resolved(storage["postgres"], file), file)
    if storage and "sqlite" not in storage:
        raise SettingsError(
            f"{file} has a storage ({', '.join(storage)}) that cannot hold the ledger; "
            "set ledger.url (VECTORIZE_LEDGER__URL) to a postgresql:// or sqlite:/// address"
        )
    base = _resolved(storage["sqlite"], file)["base_dir"] if "sqlite" in storage else home
    return URL.create("sqlite", database=str(Path(base) / "history" / FILE_NAME))


def _postgresql_url(config: Mapping[str, Any], file: Path) -> URL:
    if "postgres_url" in config:
        return _checked(config["postgres_url"], f"storage.postgres.postgres_url in {file}")
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


def _resolved(value: Any, file: Path) -> Any:
    """A part of dagster.yaml, with `{env: NAME}` replaced by that variable."""
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"env"}:
        name = str(value["env"])
        if name not in os.environ:
            raise SettingsError(f"{file} refers to the variable {name}, which is not set")
        return os.environ[name]
    return {name: _resolved(part, file) for name, part in value.items()}


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
    return url.set(drivername=_DRIVERS[backend])


def _engine(url: URL) -> sa.Engine:
    engine = sa.create_engine(url, pool_pre_ping=url.get_backend_name() != "sqlite", **_options(url))
    if url.get_backend_name() != "sqlite":
        return engine

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: object) -> None:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        # Keys are random: the same pages are written again and again, and by default reach the file every 4 MiB.
        connection.execute("pragma wal_autocheckpoint = 16000")
        connection.execute("pragma cache_size = -16384")

    return engine


def _options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "sqlite":
        # Without SQLite's own idea of when a transaction begins: `Database.write` says it.
        return {"connect_args": {"timeout": BUSY_SECONDS, "isolation_level": None}}
    return {"connect_args": {"connect_timeout": CONNECT_SECONDS, "application_name": "vectorize"}}
