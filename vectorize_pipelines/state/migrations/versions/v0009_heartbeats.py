"""A table of the heartbeats of processes, for installations without Redis."""

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0007"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade(op: Operations) -> None:
    """Make the table."""
    op.create_table(
        "vectorize_heartbeats",
        sa.Column("node_id", _TEXT, primary_key=True),
        sa.Column("expires_us", sa.BigInteger, nullable=False),
        sa.Column("heartbeat", _TEXT, nullable=False),
        sqlite_with_rowid=False,
    )
