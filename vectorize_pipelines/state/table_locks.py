"""The locks of the tables of a store that is no server: processes on several machines may write to one table.

Passed to `open_store` by whoever opens the store of an installation; taken by stores whose files lie where several
machines reach them (LanceDB in an object store), which serialise their own writers where only one machine does.
"""

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.state.home import table_lock
from vectorize_pipelines.state.locks import exclusive

if TYPE_CHECKING:
    from vectorize_pipelines.state.database import Database

logger = logging.getLogger(__name__)

#: What an installation with SQLite must know of a store that other machines reach.
ONE_MACHINE = "with SQLite as Dagster's storage only processes of this machine may write to it"


class TableLocks:
    """The locks of one installation: leases in PostgreSQL, or files of its home where the database is SQLite.

    Connects when the first lock is taken: whoever only reads needs no database. Safe for use by several threads.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._database: Database | None = None
        self._opening = threading.Lock()

    def is_of_one_machine(self) -> bool:
        """Return whether only processes of this machine take the locks. Raises `SettingsError`."""
        from vectorize_pipelines.state.database import database_url

        return database_url(self._settings).get_backend_name() == "sqlite"

    @contextmanager
    def exclusive(self, location: str, table: str, timeout_seconds: float) -> Iterator[ExclusiveLock]:
        """Hold the lock of a table; its `check` is to be called just before each write.

        `location` tells stores apart, and is shown. Raises `LockTakenError`, `LockLostError` after the body where the
        lock was lost meanwhile, and `LedgerError` where the database fails.
        """
        name = f"store/{location}/{table}"
        file = table_lock(self._settings, hashlib.blake2b(name.encode(), digest_size=16).hexdigest())
        with exclusive(self._open(location), name, file, f"the table {table}", timeout_seconds) as lock:
            yield lock

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        with self._opening:
            if self._database is not None:
                self._database.close()
                self._database = None

    def _open(self, location: str) -> "Database":
        from vectorize_pipelines.state.database import Database

        with self._opening:
            if self._database is None:
                self._database = Database.open(self._settings)
                if self._database.is_sqlite:
                    logger.info("%s: %s", location, ONE_MACHINE)
            return self._database
