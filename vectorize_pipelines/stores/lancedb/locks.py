"""The locks of tables: each writer of a table holds its lock, and checks it before it commits. Called by `catalogue`.

In a folder they are files beside the tables. In an object store, which has no locks, they are those of the installation
(`state.table_locks`), which every machine takes that writes there.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NoReturn

import filelock

from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.state.held_locks import ExclusiveLock, LockTakenError
from vectorize_pipelines.state.table_locks import TableLocks

#: How long a writer waits for another one.
LOCK_SECONDS = 600.0


class WriterLocks(ABC):
    """The locks of the tables of one location."""

    @abstractmethod
    def exclusive(self, table: str) -> AbstractContextManager[ExclusiveLock]:
        """Hold a table's lock. Raises `StoreError` after ten minutes."""

    def close(self) -> None:  # noqa: B027 (most have nothing to close)
        """Close what they are taken by; a second call does nothing."""


class FolderLocks(WriterLocks):
    """Files of this machine."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    @contextmanager
    def exclusive(self, table: str) -> Iterator[ExclusiveLock]:
        """See `WriterLocks`."""
        lock = filelock.FileLock(self._folder / f"{table}.lock", timeout=LOCK_SECONDS)
        try:
            lock.acquire(poll_interval=0.01)
        except filelock.Timeout as error:
            raise _taken(lock.lock_file) from error
        try:
            yield ExclusiveLock()
        finally:
            lock.release()


class InstallationLocks(WriterLocks):
    """Those that an installation has for a location that is no folder of this machine."""

    def __init__(self, location: str, locks: TableLocks) -> None:
        self._location, self._locks = location, locks

    @contextmanager
    def exclusive(self, table: str) -> Iterator[ExclusiveLock]:
        """See `WriterLocks`. Raises `LockLostError` and `LedgerError` too, as `TableLocks.exclusive`."""
        try:
            with self._locks.exclusive(self._location, table, LOCK_SECONDS) as lock:
                yield lock
        except LockTakenError as error:
            raise _taken(f"the lock of the table {table}") from error

    def close(self) -> None:
        """See `WriterLocks`."""
        self._locks.close()


class ReadOnly(WriterLocks):
    """The locks of a location that was opened without any."""

    def __init__(self, location: str) -> None:
        self._location = location

    def exclusive(self, table: str) -> NoReturn:
        """Raise `StoreError`."""
        raise StoreError(
            f"{self._location} was opened without the locks that its writers take turns by, and can only be read: pass "
            "them to open_store, as TableLocks(settings)"
        )


def _taken(what: str) -> StoreError:
    return StoreError(f"another process has held {what} for {LOCK_SECONDS:.0f} seconds; end it and call again")
