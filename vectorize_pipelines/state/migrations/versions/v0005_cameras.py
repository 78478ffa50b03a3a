"""A table of when each camera was last heard of, and an index for what one run assessed."""

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade(op: Operations) -> None:
    """Make the table and the index."""
    op.create_table(
        "vectorize_cameras",
        sa.Column("camera_id", _TEXT, primary_key=True),
        sa.Column("seen_us", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("vectorize_assessments_by_run", "vectorize_assessments", ["run_id"])
