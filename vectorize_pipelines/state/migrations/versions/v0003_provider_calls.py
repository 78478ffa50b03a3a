"""A table of what calls to providers of remote models took."""

import sqlalchemy as sa
from alembic.operations import Operations
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def upgrade(op: Operations) -> None:
    """Make the table and its index."""
    op.create_table(
        "vectorize_provider_calls",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("at_us", sa.BigInteger, nullable=False),
        sa.Column("tenant", _TEXT),
        sa.Column("camera", _TEXT),
        sa.Column("model", _TEXT, nullable=False),
        sa.Column("key_name", _TEXT, nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
        sa.Column("completion_tokens", sa.BigInteger, nullable=False),
        sa.Column("cost", sa.Float),
        sa.Column("latency_ms", sa.Float, nullable=False),
        sa.Column("outcome", _TEXT, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("cached", sa.Boolean, nullable=False),
    )
    op.create_index("vectorize_provider_calls_by_time", "vectorize_provider_calls", ["at_us"])
