"""Figures over all requests of the ledger, on connections of their own: what takes long holds up nobody else's query.

Called by the HTTP server, for its metrics and its health. Every look reads what there is at that moment.
"""

from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.ledger import requests

#: Upper bounds of the classes of durations, in seconds; one more class has what took longer.
DURATION_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class RequestSums:
    """Sums over the requests that the ledger has.

    vectors    rows that the store holds of them
    durations  completed requests that have their times, by how long they were processed: up to each of
               `DURATION_BOUNDS` and more than the one before, then those that took longer
    seconds    in which these were processed, added up
    """

    vectors: int
    durations: tuple[int, ...]
    seconds: float

    @property
    def timed(self) -> int:
        """The number of completed requests that have their times."""
        return sum(self.durations)


class RequestTotals:
    """Queries over all requests. Safe for use by several threads. Every method may raise `LedgerError`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return those of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings))

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def sums(self) -> RequestSums:
        """Return the sums. Reads every row: seconds, where there are millions."""
        with self._database.read() as connection:
            row = connection.execute(_SUMS).one()
        vectors, microseconds, *up_to = (int(value or 0) for value in row)
        durations = (each - before for before, each in zip((0, *up_to), up_to, strict=False))
        return RequestSums(vectors, tuple(durations), microseconds / _MICROSECONDS)

    def ping(self) -> None:
        """Return where the database answers."""
        with self._database.read() as connection:
            connection.execute(sa.select(requests.c.request_id).limit(1)).all()

    def waiting(self) -> int:
        """Return how many requests wait to be taken up."""
        query = sa.select(sa.func.count()).where(requests.c.state == RequestState.PENDING.value)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()


def _sums() -> sa.Select[Any]:
    """One statement in one way through the table: grouped, it would be sorted, or read in an index's order."""
    taken = requests.c.finished_us - requests.c.started_us  # null where a time is missing, and then in no class
    completed = requests.c.state == RequestState.COMPLETED.value
    bounds = [round(bound * _MICROSECONDS) for bound in DURATION_BOUNDS]
    return sa.select(
        sa.func.sum(requests.c.vectors),
        sa.func.sum(sa.case((completed, taken))),
        *(sa.func.sum(sa.case((sa.and_(completed, taken <= bound), 1))) for bound in bounds),
        sa.func.count(sa.case((completed, taken))),
    )


_SUMS = _sums()
