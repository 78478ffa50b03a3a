"""The schema of the project's own tables: which version a database has, and which one this code needs.

`versions/` holds the migrations, in Alembic's form; `runner` applies them, and is imported only where there is
something to apply, since Alembic takes longer to import than a database takes to open.

To change a table: change its `sa.Table`, add a module to `versions/` whose `down_revision` is the present `HEAD`, and
name its revision here. `upgrade` is given Alembic's operations as its argument. Write each migration so that processes
of the version before that have the database open can go on with what it leaves (add, do not take away); a new process
of that version is refused. Do not edit a migration that was released, and do not import the tables into one: they
change, and it must not. `tests/state/test_migrations.py` holds migrations and tables against each other.
"""

from pathlib import Path

import sqlalchemy as sa

#: The revision that this code reads and writes: the newest one in `versions/`.
HEAD = "0009"
#: A name of our own: Dagster's `alembic_version` may lie in the same database.
VERSION_TABLE = "vectorize_schema_version"
#: The folders of the migrations.
FOLDERS: tuple[Path, ...] = (Path(__file__).parent / "versions",)

_VERSIONS = sa.text(f"select version_num from {VERSION_TABLE}")


class SchemaError(Exception):
    """The tables of a database are not what this code can use or bring up to date; the message goes on from its name.

    `LedgerError` is made of it, since only the database knows its name.
    """


def is_current(connection: sa.Connection) -> bool:
    """Return whether the database has the schema of this code, in one query.

    Raises `sqlalchemy.exc.DBAPIError` where it has no table that says so.
    """
    return connection.execute(_VERSIONS).scalars().all() == [HEAD]
