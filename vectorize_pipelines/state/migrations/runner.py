"""Migrations applied with Alembic. Imports Alembic and Mako: to be imported where there is something to apply.

There is no `env.py`, and migrations are given their operations as an argument: Alembic's own way passes both through
global variables of its modules (`alembic.context`, `alembic.op`), and Dagster uses these too, in any thread, whenever
it makes the log of a run.
"""

import logging
from typing import Any

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from vectorize_pipelines.state import migrations
from vectorize_pipelines.state.migrations import SchemaError

logger = logging.getLogger(__name__)


def scripts() -> ScriptDirectory:
    """Return the migrations that there are."""
    folders = migrations.FOLDERS
    return ScriptDirectory(folders[0].parent, version_locations=[str(folder) for folder in folders])


def upgrade(connection: sa.Connection, place: str) -> None:
    """Bring a database up to date, within the transaction of `connection`; one that is so already is left alone.

    To be called under a lock that no other process holds at the same time; `place` names the database in the log.
    Raises `SchemaError` for a database that is newer than this code, or has tables that are not this project's.
    """
    known = scripts()
    context = migration_context(connection, known)
    heads = context.get_current_heads()
    if heads == (migrations.HEAD,):
        return
    _refuse_unknown(heads, known)
    if heads:
        logger.info("%s is brought from version %s to %s", place, ", ".join(heads), migrations.HEAD)
    try:
        context.run_migrations(op=Operations(context))
    except CommandError as error:
        raise SchemaError(f"cannot be brought to version {migrations.HEAD}: {error}") from error


def migration_context(connection: sa.Connection, known: ScriptDirectory, **options: Any) -> MigrationContext:
    """Return Alembic's view of a database, with `options` as `EnvironmentContext.configure` takes them."""
    return MigrationContext.configure(
        connection=connection,
        opts={
            "version_table": migrations.VERSION_TABLE,
            "script": known,
            "fn": lambda heads, _: known._upgrade_revs("head", heads),  # as Alembic's own command does
            **options,
        },
    )


def _refuse_unknown(heads: tuple[str, ...], known: ScriptDirectory) -> None:
    names = {script.revision for script in known.walk_revisions()}
    unknown = [head for head in heads if head not in names]
    if unknown:
        raise SchemaError(
            f"is of a newer version of this project: its schema is {', '.join(unknown)}, and this version knows "
            f"{migrations.HEAD}; nothing was written. Install the newer version again, or restore the backup from "
            "before its first start"
        )
