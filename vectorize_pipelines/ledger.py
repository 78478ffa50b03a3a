"""The request ledger: what became of each request. Users ask it; no control flow of ours does.

It is derived: what is lost of it comes back by replaying the topics.
"""

import base64
import binascii
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import Any, Self

import sqlalchemy as sa

from vectorize_pipelines.database import Database, Text, purge_rows
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.items import Modality
from vectorize_pipelines.request_state import FINAL_STATES, RequestState
from vectorize_pipelines.settings import Settings

#: Longer messages are cut; the dead letter has the whole.
ERROR_CHARACTERS = 2000
#: Finished requests that `rates` looks at, newest first.
RATE_SAMPLE = 5_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

metadata = sa.MetaData()
#: Times are microseconds since 1970. What a request's message is known by: topic, partition, offset.
requests = sa.Table(
    "vectorize_requests",
    metadata,
    sa.Column("request_id", Text, primary_key=True),
    sa.Column("state", Text, nullable=False),
    sa.Column("modality", Text, nullable=False),
    sa.Column("collection", Text),
    sa.Column("submitted_us", sa.BigInteger, nullable=False),
    sa.Column("started_us", sa.BigInteger),
    sa.Column("finished_us", sa.BigInteger),
    sa.Column("run_id", Text),
    sa.Column("topic", Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("timestamp_ms", sa.BigInteger, nullable=False),
    sa.Column("items", sa.BigInteger, nullable=False),
    sa.Column("vectors", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("error_class", Text),
    sa.Column("error_message", Text),
    # The only index: each costs a tenth of the writing. A page of several states is merged from a page of each.
    sa.Index("vectorize_requests_by_state", "state", "submitted_us", "request_id"),
    sqlite_with_rowid=False,
)


class InvalidCursorError(VectorizeError):
    """What was given as the place to go on from did not come from an earlier page."""

    exit_code = 2


# Not frozen: of a frozen one, making each costs three times as much, and runs make thousands a second.
@dataclass(slots=True, kw_only=True)
class RequestRow:
    """What became of one request. Times are timezone-aware.

    submitted_at   the message's timestamp
    started_at     when a run took it up; None while it waits
    finished_at    when it came to a final state
    topic, partition, offset, timestamp_ms   of the message
    items          texts, images or documents in it
    vectors        rows that the store holds of it
    tokens         that were encoded
    error_class, error_message   why it failed
    """

    request_id: str
    state: RequestState
    modality: Modality
    submitted_at: datetime
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    collection: str | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    run_id: str | None = None
    items: int = 0
    vectors: int = 0
    tokens: int = 0
    error_class: str | None = None
    error_message: str | None = None

    @property
    def version(self) -> tuple[int, str, int, int]:
        """The order of messages with the same request id."""
        return self.timestamp_ms, self.topic, self.partition, self.offset


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list, newest first. `next` is what to give as `after` for the next part; None: this is the last."""

    rows: tuple[RequestRow, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Rate:
    """How fast requests of one modality were done, over those finished last.

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


class RequestLedger:
    """The table of requests. Safe for use by several threads. Every method may raise `LedgerError`."""

    def __init__(self, database: Database):
        self._database = database
        self._upsert = database.bulk_upsert(requests, _replaces)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The ledger of an installation, made where there is none. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings, metadata))

    def close(self) -> None:
        """Closes the connections; a second call does nothing."""
        self._database.close()

    def record(self, rows: Sequence[RequestRow]) -> None:
        """Notes what became of requests, all or nothing.

        A row of an older message never replaces one of a newer. Of rows of one message the latest call wins, but
        `pending` and `processing` do not replace a final state.
        """
        latest: dict[str, RequestRow] = {}
        for row in rows:
            known = latest.setdefault(row.request_id, row)
            if known is not row and _outranks(row, known):
                latest[row.request_id] = row
        if latest:
            with self._database.write() as connection:
                self._upsert(connection, [_values(row) for row in latest.values()])

    def get(self, request_id: str) -> RequestRow | None:
        """What became of a request; None where nothing is known of it."""
        with self._database.read() as connection:
            found = connection.execute(
                sa.select(requests).where(requests.c.request_id == _storable_id(request_id))
            ).first()
        return None if found is None else _row(found)

    def page(self, states: Collection[RequestState] | None = None, limit: int = 50, after: str | None = None) -> Page:
        """A page of requests in these states (None: all), the latest submitted first.

        A cursor stays good while rows are added and removed: no row that stays in its state is missed or repeated.
        Raises `InvalidCursorError`.
        """
        place = None if after is None else _place(after)
        wanted = sorted(set(states or RequestState))
        # One statement sees one moment: a request that changes its state meanwhile is there once.
        parts = sa.union_all(*(sa.select(_newest(state, limit + 1, place).subquery()) for state in wanted)).subquery()
        query = sa.select(parts).order_by(parts.c.submitted_us.desc(), parts.c.request_id.desc()).limit(limit + 1)
        with self._database.read() as connection:
            found = connection.execute(query).all()
        last = found[limit - 1] if len(found) > limit else None
        following = None if last is None else _cursor(last.submitted_us, last.request_id)
        return Page(tuple(_row(each) for each in found[:limit]), following)

    def completed(
        self, modality: Modality, limit: int, *, run_id: str | None = None, days: tuple[date, date] | None = None
    ) -> list[RequestRow]:
        """The completed requests with rows in the store that were submitted last: of all, or of a run, or of some days.

        `days`: first and last one, both included, in UTC.
        """
        wanted = [
            requests.c.state == RequestState.COMPLETED.value,
            requests.c.modality == modality.value,
            requests.c.vectors > 0,
        ]
        if run_id is not None:
            wanted.append(requests.c.run_id == run_id)
        if days is not None:
            begin, end = (datetime.combine(day, time_of_day(), UTC) for day in days)
            wanted.append(requests.c.submitted_us >= microseconds(begin))
            wanted.append(requests.c.submitted_us < microseconds(end + timedelta(days=1)))
        query = sa.select(requests).where(*wanted).order_by(requests.c.submitted_us.desc()).limit(limit)
        with self._database.read() as connection:
            return [_row(found) for found in connection.execute(query)]

    def counts(self) -> dict[RequestState, int]:
        """How many requests are in each state; states without any are there, too."""
        query = sa.select(requests.c.state, sa.func.count()).group_by(requests.c.state)
        with self._database.read() as connection:
            found = {RequestState(state): number for state, number in connection.execute(query)}
        return {state: found.get(state, 0) for state in RequestState}

    def rates(self) -> dict[Modality, Rate]:
        """How fast the newest completed requests were done, by modality; without those that have no times."""
        with self._database.read() as connection:
            found = connection.execute(_newest(RequestState.COMPLETED, RATE_SAMPLE, None)).all()
        timed: dict[Modality, list[Any]] = {}
        for row in found:
            if row.started_us is not None and row.finished_us is not None:
                timed.setdefault(Modality(row.modality), []).append(row)
        return {modality: _rate(rows) for modality, rows in timed.items()}

    def purge(self, finished_before: datetime) -> int:
        """Forgets requests in a final state that finished before then; gives their number."""
        old = sa.and_(requests.c.state.in_(FINAL_STATES), requests.c.finished_us < microseconds(finished_before))
        return purge_rows(self._database, requests, old)


def microseconds(time: datetime) -> int:
    """Since 1970. Raises `ValueError` for a time without a zone, which would be read as another one elsewhere."""
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone")
    return (time - _EPOCH) // _MICROSECOND


def storable(text: str | None, characters: int) -> str | None:
    """A text from elsewhere as every database takes it: no NUL, no half characters, not too long."""
    if text is None:
        return None
    return text[:characters].replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _storable_id(request_id: str) -> str:
    # A valid request's is printable; that of a message which is none need not be.
    return request_id if request_id.isprintable() else storable(request_id, len(request_id)) or ""


def _values(row: RequestRow) -> tuple[Any, ...]:
    """In the order of the table's columns."""
    return (
        _storable_id(row.request_id),
        row.state.value,
        row.modality.value,
        row.collection,
        microseconds(row.submitted_at),
        None if row.started_at is None else microseconds(row.started_at),
        None if row.finished_at is None else microseconds(row.finished_at),
        row.run_id,
        row.topic,
        row.partition,
        row.offset,
        row.timestamp_ms,
        row.items,
        row.vectors,
        row.tokens,
        row.error_class,
        storable(row.error_message, ERROR_CHARACTERS),
    )


def _row(found: Any) -> RequestRow:
    values = dict(found._mapping)
    for name in ("submitted", "started", "finished"):
        stored = values.pop(f"{name}_us")
        values[f"{name}_at"] = None if stored is None else _EPOCH + timedelta(microseconds=stored)
    values["state"] = RequestState(values["state"])
    values["modality"] = Modality(values["modality"])
    return RequestRow(**values)


def _outranks(new: RequestRow, old: RequestRow) -> bool:
    if new.version != old.version:
        return new.version > old.version
    return new.state.is_final or not old.state.is_final


def _replaces(new: Any, old: Any) -> sa.ColumnElement[bool]:
    """`_outranks` in SQL."""
    versions = [sa.tuple_(row.timestamp_ms, row.topic, row.partition, row.offset) for row in (new, old)]
    stays = sa.and_(old.state.in_(_literals(FINAL_STATES)), new.state.not_in(_literals(FINAL_STATES)))
    return sa.or_(versions[0] > versions[1], sa.and_(versions[0] == versions[1], sa.not_(stays)))


def _literals(states: Collection[RequestState]) -> list[sa.ColumnElement[str]]:
    # Part of the statement, not parameters: a statement whose condition has any is sent row by row.
    return [sa.literal_column(f"'{state.value}'", Text) for state in sorted(states)]


def _newest(state: RequestState, limit: int, place: tuple[int, str] | None) -> sa.Select[Any]:
    order = sa.tuple_(requests.c.submitted_us, requests.c.request_id)
    query = sa.select(requests).where(requests.c.state == state.value)
    if place is not None:
        query = query.where(order < place)
    return query.order_by(requests.c.submitted_us.desc(), requests.c.request_id.desc()).limit(limit)


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


def _cursor(submitted_us: int, request_id: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([submitted_us, request_id]).encode()).decode().rstrip("=")


def _place(cursor: str) -> tuple[int, str]:
    try:
        decoded = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        submitted_us, request_id = decoded
    except (ValueError, TypeError, binascii.Error, RecursionError):
        submitted_us, request_id = None, None
    if type(submitted_us) is not int or type(request_id) is not str or not -(2**63) <= submitted_us < 2**63:
        raise InvalidCursorError(f"{cursor[:100]!r} is no cursor; give the `next` of an earlier page")
    return submitted_us, request_id
