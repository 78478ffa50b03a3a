"""A lock that one thread of one process on one of all machines holds: for what must not be done by two at once.

With SQLite, which one machine uses, the lock of a file; with PostgreSQL a lease (`state.leases`): a lock of
PostgreSQL's own would go on while a process is stalled that has it.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.state.held_locks import ExclusiveLock, LockTakenError

if TYPE_CHECKING:
    from vectorize_pipelines.state.database import Database

POLL_SECONDS = 0.01


@contextmanager
def exclusive(
    database: "Database", name: str, file: Path, what: str, timeout_seconds: float | None = None
) -> Iterator[ExclusiveLock]:
    """Hold a lock that one thread of one process has at a time; it goes when that process or its machine dies.

    `name` tells locks apart, `file` does so where the database is SQLite; `what` is said in errors. Waits for the
    holder, at most `timeout_seconds`: then raises `LockTakenError`. Raises `LockLostError` after the body when the lock
    was lost meanwhile, and `LedgerError` when the database fails.
    """
    if database.is_sqlite:
        with _file_lock(file, what, timeout_seconds):
            yield ExclusiveLock()
    else:
        from vectorize_pipelines.state import leases

        with leases.hold(database, name, what, timeout_seconds=timeout_seconds) as lease:
            yield lease


def is_held(database: "Database", name: str, file: Path) -> bool:
    """Return whether somebody holds the lock that `exclusive` takes under this name. Raises `LedgerError`."""
    if not database.is_sqlite:
        from vectorize_pipelines.state import leases

        return leases.is_held(database, name)
    try:
        with _acquired(file, 0):
            return False
    except Timeout:
        return True


def await_signs(database: "Database", names: Sequence[str]) -> None:
    """Wait until `is_held` tells of each who holds it now: a killed process counts as a holder until its lease lapses.

    Raises `LedgerError`.
    """
    if not database.is_sqlite:
        from vectorize_pipelines.state import leases

        leases.await_signs(database, names)


@contextmanager
def _file_lock(file: Path, what: str, timeout_seconds: float | None) -> Iterator[None]:
    with ExitStack() as held:
        try:
            held.enter_context(_acquired(file, -1 if timeout_seconds is None else timeout_seconds))
        except Timeout:
            raise LockTakenError(f"another run has held the lock of {what} for {timeout_seconds} s") from None
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
