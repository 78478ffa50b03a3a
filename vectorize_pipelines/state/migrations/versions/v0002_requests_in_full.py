"""Requests get their type, their metadata, and how far they are while they are processed.

Processes of the version before go on: they leave the new columns empty, or as they are.
"""

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade(op: Operations) -> None:
    """Add the columns, for which no row is rewritten, and the index for lists of one type."""
    for column in (
        sa.Column("task_type", _TEXT),
        sa.Column("done_items", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("known_items", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("metadata", _TEXT),
    ):
        op.add_column("vectorize_requests", column)
    op.create_index(
        "vectorize_requests_by_task_type",
        "vectorize_requests",
        ["task_type", "state", "submitted_us", "request_id"],
    )
