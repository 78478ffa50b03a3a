"""Figures over all requests of the ledger, on connections of their own: what takes long holds up nobody else's query.

Called by the HTTP server, for its metrics, its health and its estimates, and by `vectorize status`. Every look reads
what there is at that moment.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import sqlalchemy as sa

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.request_rows import RequestRow, microseconds, requests

#: Upper bounds of the classes of durations, in seconds; one more class has what took longer.
DURATION_BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
#: Completed requests that `rates` looks at, those submitted last.
RATE_SAMPLE = 5_000
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


@dataclass(frozen=True, slots=True)
class Rate:
    """The speed at which requests of one modality were done, over those finished last.

    requests, items, vectors   how many the figures are of
    busy_seconds               time in which at least one of them was being processed
    mean_seconds               from taking one up to its end, on average
    """

    requests: int
    items: int
    vectors: int
    busy_seconds: float
    mean_seconds: float

    @property
    def requests_per_second(self) -> float | None:
        """None where they took no measurable time."""
        return self.requests / self.busy_seconds if self.busy_seconds > 0 else None

    def seconds_for(self, requests: int) -> float | None:
        """Return the seconds, to a tenth, in which so many are done at this rate; None where it is not known."""
        speed = self.requests_per_second
        return None if speed is None else round(requests / speed, 1)


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
        vectors, taken, *up_to = (int(value or 0) for value in row)
        durations = (each - before for before, each in zip((0, *up_to), up_to, strict=False))
        return RequestSums(vectors, tuple(durations), taken / _MICROSECONDS)

    def counts_by_type(self) -> dict[tuple[str | None, RequestState], int]:
        """Return how many requests of each type are in each state, of those that there are. Looks at every row."""
        kinds = (requests.c.task_type, requests.c.state)  # in the order of an index, so that nothing is sorted
        with self._database.read() as connection:
            found = connection.execute(sa.select(*kinds, sa.func.count()).group_by(*kinds))
            return {(task_type, RequestState(state)): number for task_type, state, number in found}

    def waiting_before(self, row: RequestRow, most: int) -> int:
        """Return how many requests of the same type wait that were submitted before; `most` where there are more."""
        earlier = (
            sa.select(requests.c.request_id)
            .where(
                requests.c.task_type == row.task_type,
                requests.c.state == RequestState.PENDING.value,
                requests.c.submitted_us < microseconds(row.submitted_at),
            )
            .limit(most)
            .subquery()
        )
        with self._database.read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(earlier)).scalar_one()

    def rates(self) -> dict[Modality, Rate]:
        """Return how fast the newest completed requests were done, by modality; without those that have no times."""
        names = ("modality", "started_us", "finished_us", "items", "vectors")
        query = (
            sa.select(*(requests.c[name] for name in names))
            .where(requests.c.state == RequestState.COMPLETED.value)
            .order_by(requests.c.submitted_us.desc(), requests.c.request_id.desc())
            .limit(RATE_SAMPLE)
        )
        with self._database.read() as connection:
            found = connection.execute(query).all()
        timed: dict[Modality, list[Any]] = {}
        for row in found:
            if row.started_us is not None and row.finished_us is not None:
                timed.setdefault(Modality(row.modality), []).append(row)
        return {modality: _rate(rows) for modality, rows in timed.items()}

    def ping(self) -> None:
        """Return where the database answers."""
        with self._database.read() as connection:
            connection.execute(sa.select(requests.c.request_id).limit(1)).all()

    def waiting(self) -> int:
        """Return how many requests wait to be taken up."""
        query = sa.select(sa.func.count()).where(requests.c.state == RequestState.PENDING.value)
        with self._database.read() as connection:
            return connection.execute(query).scalar_one()


def _rate(rows: Sequence[Any]) -> Rate:
    busy, until = 0, 0
    for row in sorted(rows, key=lambda row: row.started_us):
        busy += max(0, row.finished_us - max(until, row.started_us))
        until = max(until, row.finished_us)
    taken = sum(row.finished_us - row.started_us for row in rows)
    return Rate(
        requests=len(rows),
        items=sum(row.items for row in rows),
        vectors=sum(row.vectors for row in rows),
        busy_seconds=busy / 1e6,
        mean_seconds=taken / 1e6 / len(rows),
    )


def _sums() -> sa.Select[Any]:
    """Return one statement in one way through the table: grouped, it would be sorted, or read in an index's order."""
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
