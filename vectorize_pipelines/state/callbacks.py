"""The table of callbacks: what became of a request, to be posted to its `callback_url`.

They wait beside the ledger (an outbox), so that one which was promised outlives the process that promised it.
`messaging.callbacks` delivers them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

import sqlalchemy as sa

from vectorize_pipelines.core.urls import shown_origin
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database, Text, metadata, purge_rows
from vectorize_pipelines.state.request_rows import ERROR_CHARACTERS, microseconds, storable


class CallbackState(StrEnum):
    """The state of a callback."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


callbacks = sa.Table(
    "vectorize_callbacks",
    metadata,
    sa.Column("task_id", Text, primary_key=True),
    sa.Column("topic", Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("offset", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("url", Text, nullable=False),
    sa.Column("body", Text, nullable=False),
    sa.Column("state", Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_us", sa.BigInteger, nullable=False),
    sa.Column("finished_us", sa.BigInteger),
    sa.Column("error", Text),
    sa.Index("vectorize_callbacks_by_state", "state", "due_us"),
    sqlite_with_rowid=False,
)
#: What tells callbacks apart: a message has one.
KEY = ("task_id", "topic", "partition", "offset")


@dataclass(frozen=True, slots=True)
class CallbackRow:
    """The callback of one message, of which there is one.

    task_id                   the request that it is about
    topic, partition, offset  of the request's message
    url                       where it is posted to
    body                      what is posted
    """

    task_id: str
    topic: str
    partition: int
    offset: int
    url: str
    body: str


@dataclass(frozen=True, slots=True)
class CallbackStatus:
    """The state of a callback. `error` is why the last attempt failed; it names no more of the URL than its host."""

    state: CallbackState
    attempts: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an attempt to post a callback.

    error          why it failed
    pause_seconds  until the next attempt, of one that is tried again
    """

    state: CallbackState
    error: str | None = None
    pause_seconds: float = 0.0


class CallbackOutbox:
    """The table of callbacks. Safe for use by several threads and processes. Every method may raise `LedgerError`."""

    def __init__(self, database: Database, now: Callable[[], float] = time.time):
        """Take `now`, which returns seconds since 1970."""
        self._database = database
        self._now = now
        self._insert = database.upsert(callbacks)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the callbacks of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings))

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def enqueue(self, rows: Sequence[CallbackRow]) -> None:
        """Promise callbacks, all or none. One that was promised before, delivered or not, stays as it is."""
        now = self._now_us()
        values = [
            {
                **asdict(row),
                "state": CallbackState.WAITING.value,
                "attempts": 0,
                "due_us": now,
            }
            for row in rows
        ]
        if values:
            with self._database.write() as connection:
                connection.execute(self._insert, values)

    def due(self) -> int:
        """Return how many callbacks could be posted now."""
        query = sa.select(sa.func.count()).where(_waiting(), callbacks.c.due_us <= self._now_us())
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def status(self, task_id: str) -> CallbackStatus | None:
        """Return the state of the latest callback of a request; None where it has none."""
        query = (
            sa.select(callbacks.c.state, callbacks.c.attempts, callbacks.c.error)
            .where(callbacks.c.task_id == task_id)
            .order_by(callbacks.c.due_us.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            found = connection.execute(query).first()
        return None if found is None else CallbackStatus(CallbackState(found.state), found.attempts, found.error)

    def claim(self, limit: int, lease_seconds: float) -> list[Any]:
        """Take callbacks that are due, as rows of the table; for `lease_seconds` no other process sees them as due."""
        now = self._now_us()
        query = sa.select(callbacks).where(_waiting(), callbacks.c.due_us <= now)
        query = query.order_by(callbacks.c.due_us).limit(limit).with_for_update(skip_locked=True)
        update = _update_of_key().values(due_us=now + int(lease_seconds * 1e6))
        with self._database.write() as connection:
            found = list(connection.execute(query))
            if found:
                connection.execute(update, [_key_of(row) for row in found])
        return found

    def note(self, claimed: Sequence[Any], outcomes: Sequence[Outcome]) -> None:
        """Note how an attempt at each of the claimed callbacks ended: all or nothing."""
        now = self._now_us()
        changes = [
            {
                **_key_of(row),
                "new_state": outcome.state.value,
                "new_attempts": row.attempts + 1,
                "new_due_us": now + int(outcome.pause_seconds * 1e6),
                "new_finished_us": None if outcome.state is CallbackState.WAITING else now,
                "new_error": storable(outcome.error, ERROR_CHARACTERS),
                # Whoever is posted to may have put a secret into the URL: it is not kept longer than it is needed.
                "new_url": row.url if outcome.state is CallbackState.WAITING else shown_origin(row.url),
            }
            for row, outcome in zip(claimed, outcomes, strict=True)
        ]
        columns = ("state", "attempts", "due_us", "finished_us", "error", "url")
        values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in columns}
        with self._database.write() as connection:
            connection.execute(_update_of_key().values(values), changes)

    def purge(self, finished_before: datetime) -> int:
        """Forget callbacks that were delivered or given up before then; return their number."""
        old = sa.and_(sa.not_(_waiting()), callbacks.c.finished_us < microseconds(finished_before))
        return purge_rows(self._database, callbacks, old)

    def _now_us(self) -> int:
        return int(self._now() * 1e6)


def _waiting() -> sa.ColumnElement[bool]:
    return callbacks.c.state == CallbackState.WAITING.value


def _update_of_key() -> sa.Update:
    return sa.update(callbacks).where(*(callbacks.c[name] == sa.bindparam(f"key_{name}") for name in KEY))


def _key_of(row: Any) -> Mapping[str, Any]:
    return {f"key_{name}": row._mapping[name] for name in KEY}
