"""The tables as they were before there were migrations.

Installations of that time have them, or those that they had used, and nothing that says of which version they are.
What is missing is made: a table, or an index, before which the process that made its table was killed.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql

from vectorize_pipelines.state.migrations import SchemaError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade(op: Operations) -> None:
    """Make the tables and indexes that are missing."""
    for name, columns, options in _tables():
        _make_table(op, name, columns, options)
    for name, table, indexed in (
        ("vectorize_requests_by_state", "vectorize_requests", ["state", "submitted_us", "request_id"]),
        ("vectorize_callbacks_by_state", "vectorize_callbacks", ["state", "due_us"]),
    ):
        op.create_index(name, table, indexed, if_not_exists=True)


def _make_table(op: Operations, name: str, columns: Sequence[sa.Column[Any]], options: dict[str, Any]) -> None:
    inspector = sa.inspect(op.get_bind())
    if not inspector.has_table(name):
        op.create_table(name, *columns, **options)
        return
    found = {column["name"] for column in inspector.get_columns(name)}
    lacking = [column.name for column in columns if column.name not in found]
    if lacking:
        raise SchemaError(
            f"has a table {name} that no version of this project made: it lacks {', '.join(lacking)}; rename it, or "
            "name another database"
        )


def _tables() -> list[tuple[str, list[sa.Column[Any]], dict[str, Any]]]:
    """Return name, columns and options of each table."""
    return [
        ("vectorize_requests", _requests(), {"sqlite_with_rowid": False}),
        ("vectorize_versions", _versions(), {"sqlite_with_rowid": False}),
        ("vectorize_generations", _generations(), {}),
        ("vectorize_callbacks", _callbacks(), {"sqlite_with_rowid": False}),
        ("vectorize_message_attempts", _message_attempts(), {}),
        ("vectorize_findings", _keys("owner", "check_name", "collection", "subject"), {"sqlite_with_rowid": False}),
        ("vectorize_unfinished_writes", _keys("physical", "writer", "id"), {"sqlite_with_rowid": False}),
    ]


def _keys(*names: str) -> list[sa.Column[Any]]:
    return [sa.Column(name, _TEXT, primary_key=True) for name in names]


def _requests() -> list[sa.Column[Any]]:
    return [
        *_keys("request_id"),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("modality", _TEXT, nullable=False),
        sa.Column("collection", _TEXT),
        sa.Column("submitted_us", sa.BigInteger, nullable=False),
        sa.Column("started_us", sa.BigInteger),
        sa.Column("finished_us", sa.BigInteger),
        sa.Column("run_id", _TEXT),
        sa.Column("topic", _TEXT, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("timestamp_ms", sa.BigInteger, nullable=False),
        sa.Column("items", sa.BigInteger, nullable=False),
        sa.Column("vectors", sa.BigInteger, nullable=False),
        sa.Column("tokens", sa.BigInteger, nullable=False),
        sa.Column("error_class", _TEXT),
        sa.Column("error_message", _TEXT),
    ]


def _versions() -> list[sa.Column[Any]]:
    return [
        *_keys("collection", "source_id"),
        sa.Column("timestamp_ms", sa.BigInteger, nullable=False),
        sa.Column("topic", _TEXT, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("deleted", sa.Boolean, nullable=False),
    ]


def _generations() -> list[sa.Column[Any]]:
    return [
        *_keys("store", "collection", "physical"),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("dimension", sa.Integer, nullable=False),
        sa.Column("fingerprint", _TEXT, nullable=False),
        sa.Column("chunk_tokens", sa.Integer, nullable=False),
        sa.Column("overlap_tokens", sa.Integer, nullable=False),
        sa.Column("cut", _TEXT, nullable=False),
        sa.Column("created", _TEXT, nullable=False),
        sa.Column("changed", _TEXT, nullable=False),
        sa.Column("keep_until", _TEXT, nullable=True),
    ]


def _callbacks() -> list[sa.Column[Any]]:
    return [
        *_keys("task_id", "topic"),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("url", _TEXT, nullable=False),
        sa.Column("body", _TEXT, nullable=False),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_us", sa.BigInteger, nullable=False),
        sa.Column("finished_us", sa.BigInteger),
        sa.Column("error", _TEXT),
    ]


def _message_attempts() -> list[sa.Column[Any]]:
    return [
        *_keys("owner", "topic"),
        sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", _TEXT, nullable=False),
        sa.Column("first_offset", sa.BigInteger, nullable=False),
        sa.Column("end_offset", sa.BigInteger, nullable=False),
        sa.Column("alone", sa.Boolean, nullable=False),
        sa.Column("timestamp_ms", sa.BigInteger, nullable=False),
        sa.Column("stage", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("noted_us", sa.BigInteger, nullable=False),
        sa.Column("died", sa.Boolean, nullable=False),
        sa.Column("proven", sa.Boolean, nullable=False),
        sa.Column("error", _TEXT),
    ]
