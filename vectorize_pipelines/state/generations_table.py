"""The table behind `generations`; apart, so that who only names a generation does not import SQLAlchemy."""

import sqlalchemy as sa

from vectorize_pipelines.state.database import Text, metadata

generations = sa.Table(
    "vectorize_generations",
    metadata,
    sa.Column("store", Text, primary_key=True),
    sa.Column("collection", Text, primary_key=True),
    sa.Column("physical", Text, primary_key=True),
    sa.Column("state", Text, nullable=False),
    sa.Column("model", Text, nullable=False),
    sa.Column("dimension", sa.Integer, nullable=False),
    sa.Column("fingerprint", Text, nullable=False),
    sa.Column("chunk_tokens", sa.Integer, nullable=False),
    sa.Column("overlap_tokens", sa.Integer, nullable=False),
    sa.Column("cut", Text, nullable=False),
    # ISO 8601 in UTC: SQLite has no type for a time with its zone.
    sa.Column("created", Text, nullable=False),
    sa.Column("changed", Text, nullable=False),
    sa.Column("keep_until", Text, nullable=True),
)
