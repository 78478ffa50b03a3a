"""Callbacks: what became of a request is posted to its `callback_url`, at least once, or given up with a reason.

They wait in a table beside the ledger (an outbox), so that one which was promised outlives the process that promised
it. `CallbackDelivery` delivers them during a run; a schedule delivers what is left over.
"""

import hashlib
import hmac
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

import sqlalchemy as sa

from vectorize_pipelines.database import Database, Text, purge_rows
from vectorize_pipelines.errors import ItemError, LedgerError, RefusedUriError
from vectorize_pipelines.guarded_http import Answer, Deadline, exchange, parse
from vectorize_pipelines.ledger import ERROR_CHARACTERS, microseconds, storable
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.settings import CallbackSettings, Settings

logger = logging.getLogger(__name__)

SIGNATURE_HEADER = "X-Vectorize-Signature"
DELIVERY_HEADER = "X-Vectorize-Delivery"
#: Pause after the first failure; each next is three times as long.
FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 3600.0
#: Posted side by side, so that a server which does not answer holds up few others.
WORKERS = 8
#: Taken together by one process; another one takes them over when it has not finished in time.
CLAIMED_TOGETHER = 4 * WORKERS
#: Of looking for those whose pause has ended.
INTERVAL_SECONDS = 5.0
CLOSING_SECONDS = 10.0
_GONE = 410


class CallbackState(StrEnum):
    """Where a callback stands."""

    WAITING = "waiting"
    DELIVERED = "delivered"
    FAILED = "failed"


metadata = sa.MetaData()
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
_KEY = ("task_id", "topic", "partition", "offset")


@dataclass(frozen=True, slots=True)
class CallbackRow:
    """What is to be posted where: the event, as the results topic says it. One message has one callback."""

    url: str
    event: ResultEvent
    origin: Origin


@dataclass(frozen=True, slots=True)
class CallbackStatus:
    """How a callback fares. `error` is why the last attempt failed; it names no more of the URL than its host."""

    state: CallbackState
    attempts: int
    error: str | None


@dataclass(frozen=True, slots=True)
class Deliveries:
    """What one call of `deliver_due` came to. `postponed` will be tried again, `given_up` will not."""

    delivered: int = 0
    postponed: int = 0
    given_up: int = 0

    def __add__(self, other: "Deliveries") -> "Deliveries":
        return Deliveries(
            self.delivered + other.delivered, self.postponed + other.postponed, self.given_up + other.given_up
        )


@dataclass(frozen=True, slots=True)
class _Outcome:
    state: CallbackState
    error: str | None = None
    pause_seconds: float = 0.0


class CallbackOutbox:
    """The table of callbacks. Safe for use by several threads and processes. Every method may raise `LedgerError`."""

    def __init__(self, database: Database, settings: CallbackSettings, now: Callable[[], float] = time.time):
        """`now` gives seconds since 1970."""
        self._database = database
        self._settings = settings
        self._now = now
        self._insert = database.upsert(callbacks)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The callbacks of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings, metadata), settings.callbacks)

    def close(self) -> None:
        """Closes the connections; a second call does nothing."""
        self._database.close()

    def enqueue(self, rows: Sequence[CallbackRow]) -> None:
        """Promises callbacks, all or none. One that was promised before, delivered or not, stays as it is."""
        now = self._now_us()
        values = [
            {
                "task_id": row.event.task_id,
                "topic": row.origin.topic,
                "partition": row.origin.partition,
                "offset": row.origin.offset,
                "url": row.url,
                "body": row.event.to_json().decode(),
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
        """How many callbacks could be posted now."""
        query = sa.select(sa.func.count()).where(_waiting(), callbacks.c.due_us <= self._now_us())
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def status(self, task_id: str) -> CallbackStatus | None:
        """How the latest callback of a request fares; None where it has none."""
        query = (
            sa.select(callbacks.c.state, callbacks.c.attempts, callbacks.c.error)
            .where(callbacks.c.task_id == task_id)
            .order_by(callbacks.c.due_us.desc())
            .limit(1)
        )
        with self._database.read() as connection:
            found = connection.execute(query).first()
        return None if found is None else CallbackStatus(CallbackState(found.state), found.attempts, found.error)

    def deliver_due(self, stop: threading.Event | None = None) -> Deliveries:
        """Posts every callback that is due, several side by side; ends early, after those in hand, once `stop` is set.

        A process that is killed meanwhile may have posted a callback whose success it did not note: it is posted again
        a minute or two later.
        """
        total = Deliveries()
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="vectorize-callback") as pool:
            while not (stop is not None and stop.is_set()):
                claimed = self._claim()
                if not claimed:
                    break
                outcomes = list(pool.map(self._post, claimed))
                self._note(claimed, outcomes)
                total += _counted(outcomes)
        return total

    def purge(self, finished_before: datetime) -> int:
        """Forgets callbacks that were delivered or given up before then; gives their number."""
        old = sa.and_(sa.not_(_waiting()), callbacks.c.finished_us < microseconds(finished_before))
        return purge_rows(self._database, callbacks, old)

    def _now_us(self) -> int:
        return int(self._now() * 1e6)

    def _claim(self) -> list[Any]:
        """Takes callbacks that are due; until its lease has ended no other process sees them as due."""
        now = self._now_us()
        lease_seconds = (CLAIMED_TOGETHER / WORKERS) * self._settings.timeout_seconds + 30
        query = sa.select(callbacks).where(_waiting(), callbacks.c.due_us <= now)
        query = query.order_by(callbacks.c.due_us).limit(CLAIMED_TOGETHER).with_for_update(skip_locked=True)
        update = _update_of_key().values(due_us=now + int(lease_seconds * 1e6))
        with self._database.write() as connection:
            found = list(connection.execute(query))
            if found:
                connection.execute(update, [_key_of(row) for row in found])
        return found

    def _note(self, claimed: Sequence[Any], outcomes: Iterable[_Outcome]) -> None:
        now = self._now_us()
        changes = [
            {
                **_key_of(row),
                "new_state": outcome.state.value,
                "new_attempts": row.attempts + 1,
                "new_due_us": now + int(outcome.pause_seconds * 1e6),
                "new_finished_us": None if outcome.state is CallbackState.WAITING else now,
                "new_error": storable(outcome.error, ERROR_CHARACTERS),
            }
            for row, outcome in zip(claimed, outcomes, strict=True)
        ]
        columns = ("state", "attempts", "due_us", "finished_us", "error")
        values: dict[str, Any] = {name: sa.bindparam(f"new_{name}") for name in columns}
        with self._database.write() as connection:
            connection.execute(_update_of_key().values(values), changes)

    def _post(self, row: Any) -> _Outcome:
        try:
            answer = self._send(row)
        except RefusedUriError as error:
            return self._failed(row, str(error), final=True)
        except ItemError as error:
            return self._failed(row, str(error))
        if 200 <= answer.status < 300:
            return _Outcome(CallbackState.DELIVERED)
        reason = f"the server answered {answer.status}"
        if 300 <= answer.status < 400:
            reason += "; redirects are not followed"
        return self._failed(row, reason, final=answer.status == _GONE, retry_after=answer.headers.get("retry-after"))

    def _send(self, row: Any) -> Answer:
        body = row.body.encode("utf-8")
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "vectorize-pipelines",
            DELIVERY_HEADER: str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([row[name] for name in range(len(_KEY))]))),
        }
        if self._settings.secret is not None:
            headers[SIGNATURE_HEADER] = signature(self._settings.secret.get_secret_value(), int(self._now()), body)
        return exchange(
            "POST",
            parse(row.url),
            headers=headers,
            body=body,
            limit=0,
            allow_private=self._settings.allow_private,
            deadline=Deadline(self._settings.timeout_seconds),
        )

    def _failed(self, row: Any, reason: str, *, final: bool = False, retry_after: str | None = None) -> _Outcome:
        attempts = row.attempts + 1
        if final or attempts >= self._settings.attempts:
            logger.warning("the callback of request %s is given up after attempt %d: %s", row.task_id, attempts, reason)
            return _Outcome(CallbackState.FAILED, reason)
        pause = FIRST_PAUSE_SECONDS * 3 ** (attempts - 1)
        if retry_after is not None and retry_after.isdecimal() and len(retry_after) < 10:
            pause = max(pause, float(retry_after))
        return _Outcome(CallbackState.WAITING, reason, min(pause, LONGEST_PAUSE_SECONDS))


class CallbackDelivery:
    """Delivers callbacks beside a run, in a thread that starts with the first `deliver_soon`.

    What is not due when it is closed is left to the schedule. Where the database fails, the thread logs that and tries
    again: no callback is lost, since they wait in the table.
    """

    def __init__(self, outbox: CallbackOutbox):
        self._outbox = outbox
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.total = Deliveries()

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """For an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(CallbackOutbox.open(settings))

    def enqueue(self, rows: Sequence[CallbackRow]) -> None:
        """As `CallbackOutbox.enqueue`; nothing is posted yet. Raises `LedgerError`."""
        self._outbox.enqueue(rows)

    def deliver_soon(self) -> None:
        """What was promised can be kept now."""
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vectorize-callbacks", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Delivers what is due, for `CLOSING_SECONDS` at most and those in hand, and closes the table."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSING_SECONDS)
            self._stop.set()
            self._thread.join()
        self._outbox.close()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            last = self._closing.is_set()
            try:
                self.total += self._outbox.deliver_due(self._stop)
            except LedgerError as error:
                logger.warning("callbacks wait: %s", error)
            if last:
                return
            self._wake.wait(INTERVAL_SECONDS)


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """`t=<seconds since 1970>,v1=<HMAC-SHA256 of "t.body", hexadecimal>`.

    The receiver refuses an old `t`, so that a callback which somebody overheard is worth nothing later.
    """
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={digest.hexdigest()}"


def _waiting() -> sa.ColumnElement[bool]:
    return callbacks.c.state == CallbackState.WAITING.value


def _update_of_key() -> sa.Update:
    return sa.update(callbacks).where(*(callbacks.c[name] == sa.bindparam(f"key_{name}") for name in _KEY))


def _key_of(row: Any) -> Mapping[str, Any]:
    return {f"key_{name}": row._mapping[name] for name in _KEY}


def _counted(outcomes: Sequence[_Outcome]) -> Deliveries:
    states = [outcome.state for outcome in outcomes]
    return Deliveries(
        delivered=states.count(CallbackState.DELIVERED),
        postponed=states.count(CallbackState.WAITING),
        given_up=states.count(CallbackState.FAILED),
    )
