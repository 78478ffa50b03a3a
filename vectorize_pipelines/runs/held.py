"""The proof that a run's process is alive: a lease in PostgreSQL with the node's name, or the lock of a file.

Taken by whoever executes a run; `runs.dead` closes the runs whose proof is gone.
On one machine, whose database is SQLite, a run that the code server has launched is watched by that, and one of
`vectorize ingest` holds the lock of a file: the operating system lets go of it when the process ends, however it ends.
"""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from filelock import FileLock

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home, leases
from vectorize_pipelines.state.database import Database, database_url
from vectorize_pipelines.state.held_locks import check_run

#: Of the names of runs' leases: the run's id follows.
PREFIX = "run/"


def is_shared(settings: Settings) -> bool:
    """Return whether several machines may use the installation's database. Raises `SettingsError`."""
    return database_url(settings).get_backend_name() != "sqlite"


@contextmanager
def held(settings: Settings, run_id: str) -> Iterator[None]:
    """Say that this process executes a run that nobody watches, from before it is made until it has ended.

    Raises as `leased`.
    """
    if is_shared(settings):
        with leased(settings, run_id):
            yield
    else:
        with run_lock(settings, run_id):
            yield


@contextmanager
def leased(settings: Settings, run_id: str) -> Iterator[None]:
    """Hold the lease of a run, without which this process writes nothing.

    Waits for another process that has it; this one may have it already. Raises `LedgerError`; `LockLostError` where the
    lease was lost meanwhile, so that the run has been declared lost, or will be.
    """
    name = f"{PREFIX}{run_id}"
    if leases.is_held_by_process(name):
        yield
        check_run()
        return
    with (
        closing(Database.open(settings)) as database,
        leases.hold(database, name, f"run {run_id}", node=settings.node_name, whole_process=True),
    ):
        yield


def is_leased(settings: Settings, run_id: str) -> bool:
    """Return whether some process holds the lease of a run. Raises `LedgerError`."""
    with closing(Database.open(settings)) as database:
        return leases.is_held(database, f"{PREFIX}{run_id}")


def run_lock(settings: Settings, run_id: str) -> FileLock:
    """The lock of a run's file. Locks nothing yet."""
    folder = home.run_locks(settings)
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{run_id}.lock")
