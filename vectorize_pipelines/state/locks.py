"""A lock that one thread of one process on one of all machines holds: for what must not be done by two at once.

With SQLite, which one machine uses, the lock of a file; with PostgreSQL the database's own.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from vectorize_pipelines.errors import LedgerError

if TYPE_CHECKING:
    import sqlalchemy as sa

    from vectorize_pipelines.state.database import Database

POLL_SECONDS = 0.01


class ExclusiveLock:
    """A lock that `exclusive` holds."""

    def check(self) -> None:
        """Raise `LedgerError` if the lock is lost; to be called just before what must not be done by two at once."""


def unlocked() -> AbstractContextManager[ExclusiveLock]:
    """Return a lock for the only user of something."""
    return nullcontext(ExclusiveLock())


class _SessionLock(ExclusiveLock):
    """A lock that lives as long as a connection to PostgreSQL does."""

    def __init__(self, database: "Database", connection: "sa.Connection", what: str, key: int):
        self._database = database
        self._connection = connection
        self._what = what
        self._key = key

    def check(self) -> None:
        import sqlalchemy as sa
        from sqlalchemy.exc import SQLAlchemyError

        try:
            self._connection.execute(sa.select(1))
        except SQLAlchemyError as error:
            raise self._lost(error) from None

    def release(self) -> None:
        import sqlalchemy as sa
        from sqlalchemy.exc import SQLAlchemyError

        try:
            held = self._connection.execute(sa.select(sa.func.pg_advisory_unlock(self._key))).scalar()
        except SQLAlchemyError as error:
            raise self._lost(error) from None
        if not held:
            raise self._lost(RuntimeError("the server no longer knows of the lock"))

    def _lost(self, error: Exception) -> LedgerError:
        reason = self._database.failure(error)
        return LedgerError(f"the lock of {self._what} was lost while it was needed: {reason}")


@contextmanager
def exclusive(
    database: "Database", name: str, file: Path, what: str, timeout_seconds: float | None = None
) -> Iterator[ExclusiveLock]:
    """Hold a lock that one thread of one process has at a time; it goes when that process or its machine dies.

    `name` tells locks apart, `file` does so where the database is SQLite; `what` is said in errors. Waits for the
    holder, at most `timeout_seconds`. Raises `LedgerError` when it cannot be had in time, and after the body when it
    was lost meanwhile.
    """
    if database.is_sqlite:
        with _file_lock(file, what, timeout_seconds):
            yield ExclusiveLock()
    else:
        with _session_lock(database, name, what, timeout_seconds) as lock:
            yield lock


def is_held(database: "Database", name: str, file: Path) -> bool:
    """Return whether somebody holds the lock that `exclusive` takes under this name. Raises `LedgerError`."""
    if not database.is_sqlite:
        return _session_is_held(database, name)
    try:
        with _acquired(file, 0):
            return False
    except Timeout:
        return True


def held(database: "Database", names: Iterable[str]) -> list[str]:
    """Return which of many locks of PostgreSQL are held, by one question. Raises `LedgerError`."""
    import sqlalchemy as sa

    keys = {_key(name): name for name in names}
    # A key is shown in two halves without a sign.
    query = sa.text(
        "select cast(classid as bigint), cast(objid as bigint) from pg_locks where locktype = 'advisory' and granted "
        "and objsubid = 1 and database = (select oid from pg_database where datname = current_database())"
    )
    with database.read() as connection:
        found = [(high << 32 | low) for high, low in connection.execute(query)]
    signed = [key - 2**64 if key >= 2**63 else key for key in found]
    return [keys[key] for key in signed if key in keys]


def _session_is_held(database: "Database", name: str) -> bool:
    import sqlalchemy as sa

    key = _key(name)
    with database.session() as connection:
        if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar():
            return True
        connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))
        return False


def _key(name: str) -> int:
    digest = hashlib.blake2b(f"vectorize/{name}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


@contextmanager
def _session_lock(database: "Database", name: str, what: str, timeout_seconds: float | None) -> Iterator[ExclusiveLock]:
    """Hold an advisory lock of PostgreSQL, on a connection of its own: none of the pool, which it would use up."""
    import sqlalchemy as sa
    from sqlalchemy.exc import SQLAlchemyError

    key = _key(name)
    with database.session() as connection:
        try:
            # A machine that vanished is noticed within a minute, not within the two hours of TCP's default.
            connection.exec_driver_sql(
                "set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 3"
            )
            if timeout_seconds is not None:
                connection.exec_driver_sql(f"set lock_timeout = {max(1, round(timeout_seconds * 1000))}")
            connection.execute(sa.select(sa.func.pg_advisory_lock(key)))
        except SQLAlchemyError as error:
            if getattr(getattr(error, "orig", None), "pgcode", None) == "55P03":
                raise _not_free(what, timeout_seconds) from None
            raise
        lock = _SessionLock(database, connection, what, key)
        yield lock  # after an error of the body, the lock goes with the connection
        lock.release()


@contextmanager
def _file_lock(file: Path, what: str, timeout_seconds: float | None) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(_acquired(file, -1 if timeout_seconds is None else timeout_seconds))
        except Timeout:
            raise _not_free(what, timeout_seconds) from None
        yield


@contextmanager
def _acquired(file: Path, timeout_seconds: float) -> Iterator[None]:
    """Hold the lock of a file. Raises `Timeout`, and `LedgerError` where the file cannot be locked at all."""
    lock = FileLock(file, timeout=timeout_seconds)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(poll_interval=POLL_SECONDS)
    except Timeout:
        raise
    except OSError as error:
        raise LedgerError(f"{file} cannot be locked: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def _not_free(what: str, timeout_seconds: float | None) -> LedgerError:
    return LedgerError(f"another run has held the lock of {what} for {timeout_seconds} s")
