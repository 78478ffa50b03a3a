"""Requests get a note, and an index. Notes in a table of its own how often it was applied.

FURTHER_MIGRATION says how it ends early: `killed` in the middle, or `failed`.
"""

import os
import signal

import sqlalchemy as sa
from alembic.operations import Operations

revision = "9001"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade(op: Operations) -> None:
    """Change a table that has rows, fill the new column, and note that it was done."""
    op.add_column("vectorize_requests", sa.Column("note", sa.Text))
    op.execute("update vectorize_requests set note = 'of ' || topic")
    match os.environ.get("FURTHER_MIGRATION"):
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "failed":
            op.execute("select 1 from vectorize_nowhere")
    with op.batch_alter_table("vectorize_requests") as batch:  # made anew and copied by SQLite
        batch.alter_column("note", nullable=False, server_default="", existing_type=sa.Text())
    op.create_index("vectorize_requests_by_note", "vectorize_requests", ["note"])
    op.execute("create table if not exists vectorize_applied (revision text)")
    op.execute("insert into vectorize_applied values ('9001')")
