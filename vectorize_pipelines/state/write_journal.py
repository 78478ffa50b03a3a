"""The ids of rows whose write to a store has begun and has not ended.

Kept for stores that need `VectorStore.repair` alone. `pipeline.writing` notes every write here; what is found at
the next one was cut off. The table lies in the database that Dagster uses, which all machines of an installation share.
"""

from collections.abc import Sequence
from typing import Self

import sqlalchemy as sa

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database, Text, metadata

unfinished = sa.Table(
    "vectorize_unfinished_writes",
    metadata,
    sa.Column("physical", Text, primary_key=True),
    sa.Column("writer", Text, primary_key=True),
    sa.Column("id", Text, primary_key=True),
    sqlite_with_rowid=False,
)


class WriteJournal:
    """The table of unfinished writes. Every method may raise `LedgerError`.

    `writer` names those who never write to a collection at the same time, because they hold one lock while they do: so
    what one of them finds here is no write that is under way.
    """

    def __init__(self, database: Database):
        self._database = database

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the journal of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings))

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def writers(self, physical: str) -> list[str]:
        """Return those whose write to a collection has not ended."""
        with self._database.read() as connection:
            found = connection.scalars(
                sa.select(unfinished.c.writer).where(unfinished.c.physical == physical).distinct()
            )
            return sorted(found)

    def begin(self, physical: str, writer: str, ids: Sequence[str]) -> None:
        """Note rows that are about to be written: all or none."""
        if ids:
            insert = self._database.upsert(unfinished)
            with self._database.write() as connection:
                connection.execute(insert, [{"physical": physical, "writer": writer, "id": each} for each in ids])

    def left(self, physical: str, writer: str) -> list[str]:
        """Return the rows whose write has not ended."""
        with self._database.read() as connection:
            return list(connection.scalars(sa.select(unfinished.c.id).where(*_of(physical, writer))))

    def end(self, physical: str, writer: str) -> None:
        """Forget the rows of a writer: all that it noted is written."""
        with self._database.write() as connection:
            connection.execute(sa.delete(unfinished).where(*_of(physical, writer)))


def _of(physical: str, writer: str) -> tuple[sa.ColumnElement[bool], ...]:
    return unfinished.c.physical == physical, unfinished.c.writer == writer
