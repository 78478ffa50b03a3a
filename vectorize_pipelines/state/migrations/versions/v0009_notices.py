"""Requests and files get what of them is not embedded, or was guessed in reading them.

Processes of the version before go on: they leave the new columns empty, or as they are.
"""

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade(op: Operations) -> None:
    """Add the columns, for which no row is rewritten."""
    op.add_column("vectorize_requests", sa.Column("truncated", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("vectorize_requests", sa.Column("warnings", _TEXT))
    op.add_column("vectorize_manifest_files", sa.Column("notices", _TEXT, nullable=False, server_default=sa.text("''")))
