"""Faults that checks found and nobody has mended yet, so that a later run which looks elsewhere does not hide it.

Written and read by the asset checks; runs over files embed the sources that are named here again. The table lies in the
database that Dagster uses.
"""

from collections.abc import Collection, Mapping
from typing import Self

import sqlalchemy as sa

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database, Text, metadata

#: In place of a subject: the collection as a whole, or more subjects than are remembered one by one.
WHOLE = ""
#: Subjects of a collection that a check remembers; of more, it remembers `WHOLE` in addition.
MOST_SUBJECTS = 1_000

findings = sa.Table(
    "vectorize_findings",
    metadata,
    sa.Column("owner", Text, primary_key=True),
    sa.Column("check_name", Text, primary_key=True),
    sa.Column("collection", Text, primary_key=True),
    sa.Column("subject", Text, primary_key=True),
    sqlite_with_rowid=False,
)


class Findings:
    """The table of findings. Every method may raise `LedgerError`.

    `owner` is what a check belongs to: the asset of files, or the modality of requests. A check's subjects are ids of
    sources, or of rows where it is about rows.
    """

    def __init__(self, database: Database):
        self._database = database

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the findings of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings))

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def of_check(self, owner: str, check: str) -> dict[str, set[str]]:
        """Return what a check has found: collection -> subjects, among which may be `WHOLE`."""
        query = sa.select(findings.c.collection, findings.c.subject).where(
            findings.c.owner == owner, findings.c.check_name == check
        )
        found: dict[str, set[str]] = {}
        with self._database.read() as connection:
            for collection, subject in connection.execute(query):
                found.setdefault(collection, set()).add(subject)
        return found

    def subjects(self, collection: str, check: str) -> set[str]:
        """Return the subjects in a collection that a check has found, whomever it belongs to; without `WHOLE`."""
        query = sa.select(findings.c.subject).where(
            findings.c.collection == collection, findings.c.check_name == check, findings.c.subject != WHOLE
        )
        with self._database.read() as connection:
            return set(connection.scalars(query))

    def settle(
        self, owner: str, check: str, before: Mapping[str, Collection[str]], failing: Mapping[str, Collection[str]]
    ) -> None:
        """Replace what a check had found, all of which it has looked at again, by what it finds now: all or nothing."""
        gone = [(collection, subject) for collection, subjects in before.items() for subject in subjects]
        rows = [
            {"owner": owner, "check_name": check, "collection": collection, "subject": subject}
            for collection, subjects in failing.items()
            for subject in _remembered(subjects)
        ]
        with self._database.write() as connection:
            for collection, subject in gone:
                connection.execute(
                    sa.delete(findings).where(
                        findings.c.owner == owner,
                        findings.c.check_name == check,
                        findings.c.collection == collection,
                        findings.c.subject == subject,
                    )
                )
            if rows:
                connection.execute(self._database.upsert(findings), rows)


def _remembered(subjects: Collection[str]) -> list[str]:
    named = sorted(set(subjects))
    return named if len(named) <= MOST_SUBJECTS else [*named[:MOST_SUBJECTS], WHOLE]
