"""Tables of the manifest of files, of the days that its runs touched, and of what runs had in hand."""

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade(op: Operations) -> None:
    """Make the tables."""
    op.create_table(
        "vectorize_manifest_files",
        *_content_columns(),
        sa.Column("content_hash", _TEXT, nullable=False),
        sa.Column("fingerprint", _TEXT, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("error_class", _TEXT, nullable=False),
        sa.Column("error_message", _TEXT, nullable=False),
        sa.Column("retryable", sa.Boolean, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "vectorize_manifest_days",
        sa.Column("collection", _TEXT, primary_key=True),
        sa.Column("day", _TEXT, primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "vectorize_manifest_attempts",
        *_content_columns(),
        sa.Column("in_hand", sa.Integer, nullable=False),
        sa.Column("stage", _TEXT, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("suspected", sa.Integer, nullable=False),
        sa.Column("deaths", _TEXT, nullable=False),
        sqlite_with_rowid=False,
    )


def _content_columns() -> list[sa.Column[object]]:
    """Return the columns of which file it is and which content it had."""
    return [
        sa.Column("collection", _TEXT, primary_key=True),
        sa.Column("source_key", _TEXT, primary_key=True),
        sa.Column("source_id", sa.LargeBinary),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("modified_ns", sa.BigInteger, nullable=False),
        sa.Column("version", _TEXT, nullable=False),
    ]
