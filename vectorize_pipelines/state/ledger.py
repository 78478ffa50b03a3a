"""The request ledger: what became of each request. Users ask it; no control flow of ours does.

It is derived: what is lost of it comes back by replaying the topics.
"""

import base64
import binascii
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, date, datetime, timedelta
from datetime import time as time_of_day
from typing import Any, Self

import sqlalchemy as sa
from pydantic_core import from_json, to_json

from vectorize_pipelines.core.items import JsonValue, Modality
from vectorize_pipelines.core.request_state import FINAL_STATES, RequestState
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database, Text, metadata, purge_rows

#: Longer messages are cut; the dead letter has the whole.
ERROR_CHARACTERS = 2000
#: Larger metadata are not kept here, only with the rows in the store; by default no message has such.
METADATA_BYTES = 64 * 1024
#: Larger metadata are left out of pages, which would else take a thousand times as much.
LISTED_METADATA_CHARACTERS = 4096
#: A request whose rows all have their vectors is not done before the store has them.
MOST_PROGRESS = 0.99
#: Finished requests that `rates` looks at, newest first.
RATE_SAMPLE = 5_000
#: Ids that one query of `get_many` asks for.
IDS_TOGETHER = 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

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
    sa.Column("task_type", Text),
    sa.Column("done_items", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("known_items", sa.BigInteger, nullable=False, server_default="0"),
    # The last, since it may be long: SQLite then finds the others without reading it.
    sa.Column("metadata", Text),
    # Each index costs a tenth of the writing. A page of several states is merged from a page of each; a type has an
    # index of its own, since a rare one among millions would otherwise be looked for in all of them.
    sa.Index("vectorize_requests_by_state", "state", "submitted_us", "request_id"),
    sa.Index("vectorize_requests_by_task_type", "task_type", "state", "submitted_us", "request_id"),
    sqlite_with_rowid=False,
)
#: The columns of a page.
_LISTED = (
    *(column for column in requests.c if column.name != "metadata"),
    sa.case((sa.func.length(requests.c.metadata) <= LISTED_METADATA_CHARACTERS, requests.c.metadata)).label("metadata"),
)


class InvalidCursorError(VectorizeError):
    """A place to go on from that did not come from an earlier page."""

    exit_code = 2


# Not frozen: of a frozen one, making each costs three times as much, and runs make thousands a second.
@dataclass(slots=True, kw_only=True)
class RequestRow:
    """The row of one request: what became of it. Times are timezone-aware.

    submitted_at   the message's timestamp
    started_at     when a run took it up; None while it waits
    finished_at    when it came to a final state
    topic, partition, offset, timestamp_ms   of the message
    items          texts, images or documents in it
    vectors        rows that the store holds of it
    tokens         that were encoded
    error_class, error_message   why it failed
    task_type      as its message says; None of a message that is no request, and of rows of earlier versions
    done, known    while it is processed: rows that have their vectors, of those that it will have as far as is known
    metadata       its own; None where they are not known: in rows of earlier versions, of messages that are no
                   requests, and where they are too large (`METADATA_BYTES`, in pages `LISTED_METADATA_CHARACTERS`)
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
    task_type: str | None = None
    done: int = 0
    known: int = 0
    metadata: Mapping[str, JsonValue] | None = None

    @property
    def has_own_run(self) -> bool:
        """True of a request that came with a run for it alone, and lies in no topic."""
        return not self.topic

    @property
    def progress(self) -> float:
        """The part of it that is done, from 0 to 1: 1 once it has ended, however it ended, and not before."""
        if self.state.is_final:
            return 1.0
        if self.state is not RequestState.PROCESSING or not self.known:
            return 0.0
        return min(self.done / self.known, MOST_PROGRESS)

    def as_dict(self) -> dict[str, Any]:
        """The row as JSON has it: under the names of requests and result events, times in ISO 8601, UTC."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        told = {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}
        task_id, status = told.pop("request_id"), told.pop("state")
        return {"task_id": task_id, "status": status, "progress": self.progress, **told}

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


class RequestLedger:
    """The table of requests. Safe for use by several threads. Every method may raise `LedgerError`."""

    def __init__(self, database: Database):
        self._database = database
        self._upsert = database.bulk_upsert(requests, _replaces)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the ledger of an installation, made where there is none. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings))

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def record(self, rows: Sequence[RequestRow]) -> None:
        """Note what became of requests, all or nothing.

        A row of an older message never replaces one of a newer. Of rows of one message the latest call wins, but
        `pending` replaces no other state, and `processing` no final one: whoever took a request in may note it after a
        run has taken it up.
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
        """Return what became of a request; None where nothing is known of it."""
        with self._database.read() as connection:
            found = connection.execute(
                sa.select(requests).where(requests.c.request_id == _storable_id(request_id))
            ).first()
        return None if found is None else _row(found)

    def get_many(self, request_ids: Collection[str]) -> dict[str, RequestRow]:
        """Return what became of each of these requests, by its id; one of which nothing is known is missing."""
        asked = {_storable_id(request_id): request_id for request_id in request_ids}
        ids = list(asked)
        found: dict[str, RequestRow] = {}
        with self._database.read() as connection:
            for start in range(0, len(ids), IDS_TOGETHER):
                some = ids[start : start + IDS_TOGETHER]
                for each in connection.execute(sa.select(requests).where(requests.c.request_id.in_(some))):
                    found[asked[each.request_id]] = _row(each)
        return found

    def page(
        self,
        states: Collection[RequestState] | None = None,
        limit: int = 50,
        after: str | None = None,
        *,
        task_type: str | None = None,
        skip: int = 0,
    ) -> Page:
        """Return a page of requests in these states (None: all), of one type (None: all), the latest submitted first.

        A cursor stays good while rows are added and removed: no row that stays in its state is missed or repeated, as
        it may be where pages are counted by `skip`, which also costs the more the larger it is. Metadata of more than
        `LISTED_METADATA_CHARACTERS` are left out. Raises `InvalidCursorError`.
        """
        place = None if after is None else _place(after)
        wanted, most = sorted(set(states or RequestState)), skip + limit + 1
        # One statement sees one moment: a request that changes its state meanwhile is there once. What is merged are
        # entries of an index alone.
        parts = sa.union_all(
            *(sa.select(_newest(state, task_type, most, place).subquery()) for state in wanted)
        ).subquery()
        merged = sa.select(parts).order_by(parts.c.submitted_us.desc(), parts.c.request_id.desc())
        chosen = merged.limit(limit + 1).offset(skip).subquery()
        query = (
            sa.select(*_LISTED)
            .select_from(chosen)
            .join(requests, requests.c.request_id == chosen.c.request_id)
            .order_by(chosen.c.submitted_us.desc(), chosen.c.request_id.desc())
        )
        with self._database.read() as connection:
            found = connection.execute(query).all()
        last = found[limit - 1] if len(found) > limit else None
        following = None if last is None else _cursor(last.submitted_us, last.request_id)
        return Page(tuple(_row(each) for each in found[:limit]), following)

    def completed(
        self, modality: Modality, limit: int, *, run_id: str | None = None, days: tuple[date, date] | None = None
    ) -> list[RequestRow]:
        """Return the completed requests with rows in the store that were submitted last: of all, a run, or some days.

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
        """Return how many requests are in each state; states without any are there, too. Looks at every row's state."""
        query = sa.select(requests.c.state, sa.func.count()).group_by(requests.c.state)
        with self._database.read() as connection:
            found = {RequestState(state): number for state, number in connection.execute(query)}
        return {state: found.get(state, 0) for state in RequestState}

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
        query = _newest(RequestState.COMPLETED, None, RATE_SAMPLE, None)
        query = query.with_only_columns(*(requests.c[name] for name in names))
        with self._database.read() as connection:
            found = connection.execute(query).all()
        timed: dict[Modality, list[Any]] = {}
        for row in found:
            if row.started_us is not None and row.finished_us is not None:
                timed.setdefault(Modality(row.modality), []).append(row)
        return {modality: _rate(rows) for modality, rows in timed.items()}

    def purge(self, finished_before: datetime) -> int:
        """Forget requests in a final state that finished before then; return their number."""
        old = sa.and_(requests.c.state.in_(FINAL_STATES), requests.c.finished_us < microseconds(finished_before))
        return purge_rows(self._database, requests, old)


def microseconds(time: datetime) -> int:
    """Return a time in microseconds since 1970. Raises `ValueError` for one without a zone, which says too little."""
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone")
    return (time - _EPOCH) // _MICROSECOND


def storable(text: str | None, characters: int) -> str | None:
    """Return a text from elsewhere as every database takes it: no NUL, no half characters, not too long."""
    if text is None:
        return None
    return text[:characters].replace("\x00", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()


def _storable_id(request_id: str) -> str:
    # A valid request's is printable; that of a message which is none need not be.
    return request_id if request_id.isprintable() else storable(request_id, len(request_id)) or ""


def _values(row: RequestRow) -> tuple[Any, ...]:
    """Return the values in the order of the table's columns."""
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
        row.task_type,
        row.done,
        row.known,
        _written(row.metadata),
    )


def _written(metadata: Mapping[str, JsonValue] | None) -> str | None:
    if not metadata:
        return None if metadata is None else "{}"
    text = to_json(metadata)
    return text.decode() if len(text) <= METADATA_BYTES else None


def _row(found: Any) -> RequestRow:
    values = dict(found._mapping)
    for name in ("submitted", "started", "finished"):
        stored = values.pop(f"{name}_us")
        values[f"{name}_at"] = None if stored is None else _EPOCH + timedelta(microseconds=stored)
    values["state"] = RequestState(values["state"])
    values["modality"] = Modality(values["modality"])
    values["done"], values["known"] = values.pop("done_items"), values.pop("known_items")
    if values["metadata"] is not None:
        values["metadata"] = from_json(values["metadata"])
    return RequestRow(**values)


def _outranks(new: RequestRow, old: RequestRow) -> bool:
    if new.version != old.version:
        return new.version > old.version
    return _stage(new.state) >= _stage(old.state)


def _stage(state: RequestState) -> int:
    return 2 if state.is_final else int(state is RequestState.PROCESSING)


def _replaces(new: Any, old: Any) -> sa.ColumnElement[bool]:
    """`_outranks` in SQL."""
    versions = [sa.tuple_(row.timestamp_ms, row.topic, row.partition, row.offset) for row in (new, old)]
    pending, unfinished = {RequestState.PENDING}, set(RequestState) - FINAL_STATES
    stays = sa.or_(
        sa.and_(new.state.in_(_literals(pending)), old.state.not_in(_literals(pending))),
        sa.and_(new.state.in_(_literals(unfinished)), old.state.not_in(_literals(unfinished))),
    )
    return sa.or_(versions[0] > versions[1], sa.and_(versions[0] == versions[1], sa.not_(stays)))


def _literals(states: Collection[RequestState]) -> list[sa.ColumnElement[str]]:
    # Part of the statement, not parameters: a statement whose condition has any is sent row by row.
    return [sa.literal_column(f"'{state.value}'", Text) for state in sorted(states)]


def _newest(state: RequestState, task_type: str | None, limit: int, place: tuple[int, str] | None) -> sa.Select[Any]:
    """The places of requests in a state, all of them or those of a type, the latest submitted first."""
    order = sa.tuple_(requests.c.submitted_us, requests.c.request_id)
    query = sa.select(requests.c.submitted_us, requests.c.request_id).where(requests.c.state == state.value)
    if task_type is not None:
        query = query.where(requests.c.task_type == task_type)
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
