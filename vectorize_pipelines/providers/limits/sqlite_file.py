"""The SQLite file of the use of keys: opening it, and transactions on it from an event loop."""

import asyncio
import random
import secrets
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vectorize_pipelines.errors import KeysError, VectorizeError
from vectorize_pipelines.providers.limits.base import SaltChangedError
from vectorize_pipelines.state.damage import OtherFormatError, discard_damaged, explain, is_damage, open_derived

T = TypeVar("T")

#: What it costs to make the file again.
REMADE = "what was used of the keys' limits is counted from now on, and keys disabled by command are enabled"
#: For another process that is in the middle of a transaction, which takes less than a millisecond.
BUSY_SECONDS = 10.0
#: Between two looks whether it is done, at random so that none is always the last.
LOOK_SECONDS = (0.00005, 0.0004)
#: Transactions of this process that are made one: each waits for no more than the others' statements.
TOGETHER = 64
#: So many transactions of a process lie in the log at most before it writes it back, a few pages each.
LOGGED = 500
_FORMAT = 1
_SCHEMA = """
create table if not exists salt (one integer primary key check (one = 1), salt blob not null);
create table if not exists keys (
    id text primary key, disabled text, turn integer not null default 0, number integer not null default 0,
    latest real not null default 0, tokens integer not null default 0, cooling real not null default 0, cooled real,
    streak integer not null default 0, calls integer not null default 0, failures integer not null default 0,
    limited integer not null default 0
) without rowid;
create table if not exists uses (
    key text not null, number integer not null, at real not null, tokens integer not null, primary key (key, number)
) without rowid;
create table if not exists leases (
    lease text primary key, key text not null, number integer not null, until real not null
) without rowid;
create index if not exists leases_by_end on leases (until);
create table if not exists queue (
    ticket text primary key, number integer not null, until real not null, tokens integer not null, ids text not null
) without rowid;
create table if not exists counter (one integer primary key check (one = 1), value integer not null);
insert or ignore into counter values (1, 0);
create table if not exists providers (
    name text primary key, failures integer not null default 0, in_a_row integer not null default 0,
    latest text not null default ''
) without rowid;
"""


@dataclass(frozen=True, slots=True)
class _Job:
    body: Callable[[sqlite3.Connection], Any]
    future: asyncio.Future[Any]


class KeyUseFile:
    """Transactions on the file, one after another; it belongs to one event loop.

    One that needs to wait for nobody is made at once, since to hand it to a thread takes longer than the transaction
    itself. The thread waits for other processes, and writes the log back into the file, which waits for the disk.
    """

    def __init__(self, file: Path):
        self.salt = b""
        self._file = file
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._jobs: list[_Job] = []
        self._working = False
        self._written = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="key-use")

    async def open(self) -> bytes:
        """Open the file, or make it. Return its salt. Raises `KeysError`."""
        self.salt = await asyncio.get_running_loop().run_in_executor(self._thread, self._open)
        return self.salt

    async def do(self, body: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `body` returns in a transaction. Raises `KeysError`, and `SaltChangedError`.

        What is asked for while a transaction is under way is done in the next one, together.
        """
        if not self._working and self._written < LOGGED and self._is_open():
            results = self._transaction([body], wait=False)
            if results is not None:
                found: T = results[0]
                return found
        loop = asyncio.get_running_loop()
        job = _Job(body, loop.create_future())
        self._jobs.append(job)
        if not self._working:
            self._begin(loop)
        result: T = await job.future
        return result

    async def close(self) -> None:
        """Close the file once what has been asked for is done."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown(wait=False)

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        jobs, self._jobs = self._jobs[:TOGETHER], self._jobs[TOGETHER:]
        self._working = True
        self._thread.submit(self._work, loop, jobs)

    def _work(self, loop: asyncio.AbstractEventLoop, jobs: list[_Job]) -> None:
        """Do the jobs in one transaction, in the thread."""
        error: Exception | None = None
        results: list[Any] | None = None
        try:
            results = self._transaction([job.body for job in jobs], wait=True)
            self._write_back()
        except Exception as failure:  # noqa: BLE001 (raised again by each of those who wait)
            error = failure
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(self._done, loop, jobs, results, error)

    def _done(
        self, loop: asyncio.AbstractEventLoop, jobs: list[_Job], results: list[Any] | None, error: Exception | None
    ) -> None:
        """Hand over the results, in the loop."""
        if self._jobs:
            self._begin(loop)
        else:
            self._working = False
        for number, job in enumerate(jobs):
            if job.future.done():
                continue  # cancelled
            if results is not None:
                job.future.set_result(results[number])
            elif error is not None:
                job.future.set_exception(error)

    def _transaction(self, bodies: list[Callable[[sqlite3.Connection], Any]], *, wait: bool) -> list[Any] | None:
        """Return what the bodies return in one transaction; None where another process is at it, and not to `wait`."""
        try:
            connection = self._current()
            if not _begin_immediate(connection, BUSY_SECONDS if wait else 0):
                return None
            try:
                results = [body(connection) for body in bodies]
                connection.execute("commit")
            except BaseException:
                with suppress(sqlite3.Error):  # what failed before is the reason
                    connection.execute("rollback")
                raise
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from None
        self._written += 1
        return results

    def _write_back(self) -> None:
        if self._written >= LOGGED and self._connection is not None:
            self._written = 0
            self._connection.execute("pragma wal_checkpoint(passive)").fetchall()

    def _is_open(self) -> bool:
        """Return whether the connection is one to the file that lies there now."""
        try:
            return self._connection is not None and self._file.stat().st_ino == self._inode
        except FileNotFoundError:
            return False

    def _current(self) -> sqlite3.Connection:
        """Return the connection; one to the new file where somebody has removed or replaced it."""
        if not self._is_open():
            salt = self._open()
            if salt != self.salt:
                raise SaltChangedError(salt)
        assert self._connection is not None, "it was just opened"
        return self._connection

    def _open(self) -> bytes:
        self._close()
        try:
            self._connection = open_derived(self._file, _connect, REMADE, BUSY_SECONDS)
            self._inode = self._file.stat().st_ino
            (salt,) = self._connection.execute("select salt from salt").fetchone()
        except VectorizeError as error:
            raise KeysError(f"the state of the API keys cannot be used: {error}") from None
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from None
        return bytes(salt)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _failure(self, error: sqlite3.Error | OSError) -> KeysError:
        """Return what to raise; a file that is damaged is put aside, and made again for the next call."""
        self._close()
        reason: object = explain(error, self._file) or f"{self._file}: {error}"
        if isinstance(error, sqlite3.DatabaseError) and is_damage(error):
            try:
                discard_damaged(self._file, error, REMADE)
            except VectorizeError as obstacle:
                reason = f"{self._file} is damaged ({error}); delete it ({obstacle})"
        return KeysError(f"the state of the API keys cannot be used: {reason}")


def _begin_immediate(connection: sqlite3.Connection, seconds: float) -> bool:
    """Begin a transaction that writes, after that of another process. Return false where that may not be waited for.

    SQLite's own waiting sleeps for up to 100 ms between two looks.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection.execute("begin immediate")
        except sqlite3.OperationalError as error:
            if (error.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_BUSY:
                raise
            if not seconds:
                return False
            if time.monotonic() > deadline:
                raise
            time.sleep(random.uniform(*LOOK_SECONDS))
        else:
            return True


def _connect(file: Path) -> sqlite3.Connection:
    """Return a connection. Raises `sqlite3.DatabaseError`, with the connection closed."""
    connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.execute("begin immediate")
        (version,) = connection.execute("pragma user_version").fetchone()
        if version not in (0, _FORMAT):
            raise OtherFormatError(f"its format is {version}, this version of the project reads {_FORMAT}")
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        connection.execute("insert or ignore into salt values (1, ?)", (secrets.token_bytes(16),))
        connection.execute(f"pragma user_version = {_FORMAT}")
        connection.execute("commit")
        connection.execute("pragma busy_timeout = 0")
        connection.execute("pragma wal_autocheckpoint = 0")
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
