"""A table of what became of assessment tasks: one row each."""

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade(op: Operations) -> None:
    """Make the table and its index."""
    op.create_table(
        "vectorize_assessments",
        sa.Column("task_id", _TEXT, primary_key=True),
        sa.Column("state", _TEXT, nullable=False),
        sa.Column("day", _TEXT, nullable=False),
        sa.Column("camera_id", _TEXT, nullable=False),
        sa.Column("message_id", _TEXT, nullable=False),
        sa.Column("group_index", sa.BigInteger, nullable=False),
        sa.Column("groups_total", sa.BigInteger, nullable=False),
        sa.Column("occurred_us", sa.BigInteger, nullable=False),
        sa.Column("assessed_us", sa.BigInteger, nullable=False),
        sa.Column("topic", _TEXT, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("offset", sa.BigInteger, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("level", _TEXT),
        sa.Column("score", sa.Double),
        sa.Column("model", _TEXT),
        sa.Column("key_name", _TEXT),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.Double, nullable=False),
        sa.Column("latency_ms", sa.Double, nullable=False),
        sa.Column("cached", sa.Boolean, nullable=False),
        sa.Column("run_id", _TEXT, nullable=False),
        sa.Column("error_class", _TEXT),
        sa.Column("error_message", _TEXT),
        sa.Column("summary", _TEXT),
        sa.Column("recommendation", _TEXT),
        sa.Column("hazards", _TEXT),
        sqlite_with_rowid=False,
    )
    op.create_index("vectorize_assessments_by_day", "vectorize_assessments", ["day", "camera_id", "occurred_us"])
