"""Dagster's SQLite databases as they lie on disk: whole, not made yet, half made, or damaged. Imports no Dagster.

Dagster makes each of them in several steps and tells by its tables whether that was done; two processes that do it at
once leave `alembic_version`, which says which version the tables have, with two lines, and every later start refuses
that. `runs/instance.py` makes them under a lock, and by what is said here.
"""

import sqlite3
from contextlib import closing
from enum import StrEnum
from pathlib import Path

from vectorize_pipelines.errors import DamagedStateError, VectorizeError
from vectorize_pipelines.state.damage import check_database, explain

#: Below the folder of a storage: runs and their tags; what happened to assets; schedules, sensors and their ticks.
DATABASES = (Path("history", "runs.db"), Path("history", "runs", "index.db"), Path("schedules", "schedules.db"))
BUSY_SECONDS = 30
#: How long a look at a whole database may take.
CHECK_SECONDS = 5.0
_REMEDY = (
    "restore it from a backup, or move it away, with its -wal and -shm, and it is made again empty: the history of "
    "runs, or which schedules and sensors are on, is lost then, and no vectors"
)


class Condition(StrEnum):
    """The condition in which a database was found.

    WHOLE    its tables are there, of one version
    MISSING  there is none, or nothing is in it
    STARTED  tables, but no version: the process that made it was killed, or is still at it
    TANGLED  tables, of several versions at once: two processes made it
    """

    WHOLE = "whole"
    MISSING = "missing"
    STARTED = "started"
    TANGLED = "tangled"


def condition(file: Path) -> Condition:
    """Return the condition of a database. Raises `DamagedStateError`, or as `explain`, where it cannot be read."""
    try:
        if not file.stat().st_size:
            return Condition.MISSING
        with closing(connect(file)) as connection:
            tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
            if not tables:
                return Condition.MISSING
            if "alembic_version" not in tables:
                return Condition.STARTED
            versions = len(connection.execute("select version_num from alembic_version").fetchall())
    except FileNotFoundError:
        return Condition.MISSING
    except (OSError, sqlite3.Error) as error:
        raise failure(error, file) from error
    if versions > 1:
        return Condition.TANGLED
    return Condition.WHOLE if versions else Condition.STARTED


def connect(file: Path) -> sqlite3.Connection:
    """Return a connection to a database that is there. Raises `sqlite3.Error`."""
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=rw", uri=True, timeout=BUSY_SECONDS)


def failure(error: BaseException, file: Path) -> VectorizeError:
    """Return what to raise for an error that came of a database of Dagster's."""
    known = explain(error, file, _REMEDY)
    return known or DamagedStateError(f"{file} is no database of Dagster's ({error}); {_REMEDY}")


def damaged_among(base: Path) -> DamagedStateError | None:
    """Return the first of the databases that is damaged, also where that shows only deep inside; None where none is."""
    for file in (base / name for name in DATABASES):
        found = check_database(file, CHECK_SECONDS) if file.exists() else None
        if found is not None:
            return DamagedStateError(f"{file} is damaged ({found}); {_REMEDY}")
    return None
