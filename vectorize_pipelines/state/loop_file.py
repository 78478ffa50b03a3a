"""A SQLite file that an event loop works on without being held up by other processes, or by the disk.

Used by the state of API keys and by the answers of models (`providers`).
"""

import asyncio
import random
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.state.damage import OtherFormatError, discard_damaged, explain, is_damage, open_derived

T = TypeVar("T")

#: Work on an open connection.
Body: TypeAlias = Callable[[sqlite3.Connection], T]

#: For another process that is in the middle of a transaction, which takes less than a millisecond.
BUSY_SECONDS = 10.0
#: Between two looks whether it is done, at random so that none is always the last.
LOOK_SECONDS = (0.00005, 0.0004)
#: Transactions of this process that are made one: each waits for no more than the others' statements.
TOGETHER = 64
#: So many transactions of a process lie in the log at most before it writes it back, a few pages each.
LOGGED = 500


@dataclass(frozen=True, slots=True)
class _Job:
    body: Body[Any]
    future: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Failed:
    """The error that a body is to be answered with: its own, or what is wrong with the file."""

    error: Exception


class LoopFile:
    """Transactions on a file of what can be made again, one after another; it belongs to one event loop.

    One that needs to wait for nobody is made at once, since to hand it to a thread takes longer than the transaction
    itself. The thread waits for other processes, and writes the log back into the file, which waits for the disk.
    """

    def __init__(
        self,
        file: Path,
        version: int,
        schema: str,
        cost: str,
        *,
        error: Callable[[str], VectorizeError] = VectorizeError,
        opened: Body[None] = lambda _connection: None,
    ):
        """Open nothing yet.

        version  SQLite's `user_version` of the file; to be raised with every change of `schema`
        cost     what it costs to make the content again, for people
        error    makes what is raised where the file cannot be used
        opened   called with each new connection, in the transaction that makes what the schema has
        """
        self.file = file
        self._version, self._schema, self._cost = version, schema, cost
        self._error, self._opened = error, opened
        self._connection: sqlite3.Connection | None = None
        self._inode = 0
        self._jobs: list[_Job] = []
        self._working = self._closed = False
        self._closing: asyncio.Future[None] | None = None
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._written = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{file.stem}-file")

    async def open(self) -> None:
        """Open the file, or make it; `do` and `read` do that as well. Raises what `error` makes."""
        await self._in_thread(lambda _connection: None)

    async def do(self, body: Body[T], *, briefly: bool = True) -> T:
        """Return what `body` returns in a transaction that writes. Raises what `error` makes.

        What is asked for while a transaction is under way is done in the next one, together: where a body raises an
        error of its own, what it did is undone, and the others stay. Where the caller is cancelled meanwhile, it is
        done nevertheless. `briefly`: false of what takes longer than the loop may wait.
        """
        is_free = not self._working and not self._closed
        if briefly and is_free and self._written < LOGGED and self._is_open():
            results = self._transaction([body], wait=False)
            if results is not None:
                found: T = results[0]
                return found
        return await self._in_thread(body)

    async def read(self, body: Body[T]) -> T:
        """Return what `body` returns, which reads by one statement. Raises what `error` makes."""
        if self._working or self._closed or not self._is_open():
            return await self._in_thread(body)
        assert self._connection is not None, "it is open"
        try:
            return body(self._connection)  # who reads waits for no writer
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from None

    async def close(self) -> None:
        """Close the file once what has been asked for is done, and nothing more is; a second call waits for that.

        Where the caller is cancelled meanwhile, it is closed nevertheless.
        """
        if self._closing is None:
            self._closed = True
            self._closing = asyncio.ensure_future(self._close_once_idle())
        await asyncio.shield(self._closing)

    async def _close_once_idle(self) -> None:
        try:
            await self._is_idle.wait()
        finally:
            self._jobs.clear()  # some are left where the loop itself is about to end
            closed = self._thread.submit(self._close)
            self._thread.shutdown(wait=False)
        await asyncio.wrap_future(closed)

    async def _in_thread(self, body: Body[T]) -> T:
        if self._closed:
            raise self._error(f"{self.file} has been closed here")
        loop = asyncio.get_running_loop()
        job = _Job(body, loop.create_future())
        self._jobs.append(job)
        if not self._working:
            self._begin(loop)
        result: T = await job.future
        return result

    def _begin(self, loop: asyncio.AbstractEventLoop) -> None:
        jobs, self._jobs = self._jobs[:TOGETHER], self._jobs[TOGETHER:]
        self._working = True
        self._is_idle.clear()
        self._thread.submit(self._work, loop, jobs)

    def _work(self, loop: asyncio.AbstractEventLoop, jobs: list[_Job]) -> None:
        """Do the jobs in one transaction, in the thread."""
        try:
            results = self._transaction([job.body for job in jobs], wait=True)
            assert results is not None, "it was waited for"
        except Exception as failure:  # noqa: BLE001 (raised again by each of those who wait)
            results = [_Failed(failure)] * len(jobs)
        else:
            with suppress(sqlite3.Error):  # what is wrong with the file the next transaction says
                self._write_back()
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(self._done, loop, jobs, results)

    def _done(self, loop: asyncio.AbstractEventLoop, jobs: list[_Job], results: list[Any]) -> None:
        """Hand over the results, in the loop."""
        if self._jobs:
            self._begin(loop)
        else:
            self._working = False
            self._is_idle.set()
        for job, result in zip(jobs, results, strict=True):
            if job.future.done():
                continue  # cancelled
            if isinstance(result, _Failed):
                job.future.set_exception(result.error)
            else:
                job.future.set_result(result)

    def _transaction(self, bodies: list[Body[Any]], *, wait: bool) -> list[Any] | None:
        """Return what the bodies return in one transaction; None where another process is at it, and not to `wait`.

        In the place of what one of several raised stands `_Failed`; what is wrong with the file is raised.
        """
        try:
            if not self._is_open():
                self._open()
            assert self._connection is not None, "it was just opened"
            connection = self._connection
            if not _begin_immediate(connection, BUSY_SECONDS if wait else 0):
                return None
            try:
                alone = len(bodies) == 1
                results = [body(connection) if alone else _beside_others(connection, body) for body in bodies]
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
        """Return whether the connection is one to the file that lies there now, which may have been replaced."""
        try:
            return self._connection is not None and self.file.stat().st_ino == self._inode
        except OSError:  # it is not there; or it will be said when it is opened what is wrong
            return False

    def _open(self) -> None:
        self._close()
        try:
            self._connection = open_derived(self.file, self._connect, self._cost, BUSY_SECONDS)
            self._inode = self.file.stat().st_ino
        except VectorizeError as error:
            raise self._error(str(error)) from None
        except (sqlite3.Error, OSError) as error:
            raise self._failure(error) from None

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _failure(self, error: sqlite3.Error | OSError) -> VectorizeError:
        """Return what to raise; a file that is damaged is put aside, and made again for the next call."""
        self._close()
        reason = str(explain(error, self.file, self._cost) or f"{self.file}: {error}")
        if isinstance(error, sqlite3.DatabaseError) and is_damage(error):
            try:
                discard_damaged(self.file, error, self._cost)
            except VectorizeError as obstacle:
                reason = f"{self.file} is damaged ({error}); delete it ({obstacle})"
        return self._error(reason)

    def _connect(self, file: Path) -> sqlite3.Connection:
        """Return a connection. Raises `sqlite3.DatabaseError`, with the connection closed."""
        connection = sqlite3.connect(file, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("pragma journal_mode = wal")
            connection.execute("pragma synchronous = normal")
            connection.execute("begin immediate")
            (version,) = connection.execute("pragma user_version").fetchone()
            if version not in (0, self._version):
                raise OtherFormatError(f"its format is {version}, this version of the project reads {self._version}")
            for statement in self._schema.split(";"):
                connection.execute(statement)
            self._opened(connection)
            connection.execute(f"pragma user_version = {self._version}")
            connection.execute("commit")
            connection.execute("pragma busy_timeout = 0")
            connection.execute("pragma wal_autocheckpoint = 0")
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection


def _beside_others(connection: sqlite3.Connection, body: Body[Any]) -> Any:
    """Return what a body returns. Where it raises an error of its own, undo what it did, and return `_Failed`."""
    connection.execute("savepoint body")
    try:
        result = body(connection)
    except (sqlite3.Error, OSError):
        raise
    except Exception as error:  # noqa: BLE001 (raised again where it was asked for)
        connection.execute("rollback to body")
        result = _Failed(error)
    connection.execute("release body")
    return result


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
