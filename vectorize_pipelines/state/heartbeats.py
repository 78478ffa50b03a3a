"""Heartbeats: what the workers of an installation do now, wherever they run, and which runs they execute.

A worker's process has a `Pulse`, which writes its `Heartbeat` every few seconds; `workers` lists those that were
written lately. Heartbeats lie in Redis where that is configured, else in the database that Dagster uses. They are for
people and for figures: nothing is decided by them. That a run lives, whoever executes it, its lease says
(`state.leases`).

All times are by the clock of the server that keeps them, so that machines with different clocks can be compared.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import sqlalchemy as sa

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database, Text, metadata, purge_rows
from vectorize_pipelines.state.redis_connection import open_redis, redis_errors
from vectorize_pipelines.state.request_rows import microseconds, time_of

if TYPE_CHECKING:
    import redis
    from pydantic import TypeAdapter

logger = logging.getLogger(__name__)

#: From one heartbeat of a process to the next.
BEAT_SECONDS = 5.0
#: A process is listed until so many heartbeats have failed to come.
BEATS_OF_GRACE = 4
#: How long the end of a process waits for its heartbeat to be taken back.
_CLOSING_SECONDS = 5.0
#: Rows of the database that lapsed so long ago are deleted by the next process that begins.
_FORGOTTEN_US = 86_400_000_000
#: With a hash tag, so that a cluster keeps all of it on one node.
_REDIS_PREFIX = "{vectorize:heartbeats}:"
#: key of a heartbeat -> when it lapses, in microseconds since 1970.
_REDIS_INDEX = f"{_REDIS_PREFIX}expiry"

#: `heartbeat` is the JSON of a `Heartbeat`; `expires_us` is in microseconds since 1970.
heartbeats = sa.Table(
    "vectorize_heartbeats",
    metadata,
    sa.Column("node_id", Text, primary_key=True),
    sa.Column("expires_us", sa.BigInteger, nullable=False),
    sa.Column("heartbeat", Text, nullable=False),
    sqlite_with_rowid=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """What a process says of itself.

    node_id       names this process and no other one, such as a worker's configured id
    name          what people call it
    host          the machine that it runs on
    queues        the queues that a worker takes runs from
    models        the models that are loaded
    memory_bytes  resident memory of the process
    gpu           the device that it computes on; None: the CPU
    run_id        the run that it executes now; None: it waits
    run_queue     the queue that this run waited in
    """

    node_id: str
    name: str
    host: str
    queues: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    memory_bytes: int = 0
    gpu: str | None = None
    run_id: str | None = None
    run_queue: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat(NodeStatus):
    """What a process said of itself at `last_heartbeat`; `started` is when it began to. Both by the server's clock."""

    started: datetime
    last_heartbeat: datetime


class HeartbeatStore(Protocol):
    """Where heartbeats lie. Every method may raise a `VectorizeError`. Used by one thread."""

    def now_us(self) -> int:
        """Return the time of the server's clock in microseconds since 1970."""

    def put(self, heartbeat: Heartbeat, expires_us: int) -> None:
        """Replace the heartbeat of the same `node_id`."""

    def remove(self, node_id: str) -> None:
        """Remove a heartbeat, if it is there."""

    def living(self) -> list[Heartbeat]:
        """Return the heartbeats that have not expired, in no order."""

    def purge(self) -> None:
        """Delete what expired long ago, where the server does not do so by itself."""

    def close(self) -> None:
        """Close the connection; a second call does nothing."""


def open_heartbeats(settings: Settings) -> HeartbeatStore:
    """Return the heartbeats of an installation. Raises `SettingsError`, `MissingExtraError` and `LedgerError`."""
    return DatabaseHeartbeats(Database.open(settings)) if settings.redis.url is None else RedisHeartbeats(settings)


def workers(settings: Settings) -> list[Heartbeat]:
    """Return the heartbeats of the workers that live, by name and id. Raises a `VectorizeError` without a server."""
    with closing(open_heartbeats(settings)) as store:
        return sorted(store.living(), key=lambda each: (each.name, each.node_id))


class Pulse:
    """Writes the heartbeat of this process from a thread of its own, from entering it until leaving it.

    A server that fails is told of once, and tried again at the next beat. The thread does not survive a fork: a process
    that forks others has each of them enter a pulse of its own.
    """

    def __init__(self, settings: Settings, describe: Callable[[], NodeStatus], beat_seconds: float = BEAT_SECONDS):
        """`describe` is called by the thread at each beat; its `node_id` stays the same."""
        self._settings = settings
        self._describe = describe
        self._beat_seconds = beat_seconds
        self._due = threading.Event()
        self._closed = False
        self._failing = False
        self._store: HeartbeatStore | None = None
        self._began = 0.0
        self._started_us: int | None = None
        self._written: str | None = None
        self._thread = threading.Thread(target=self._work, name="vectorize-heartbeats", daemon=True)

    def __enter__(self) -> Self:
        """Begin. The first heartbeat is written soon after."""
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End, and take the heartbeat back; a server that does not answer is waited for `_CLOSING_SECONDS` seconds."""
        self._closed = True
        self._due.set()
        self._thread.join(_CLOSING_SECONDS)

    def beat_soon(self) -> None:
        """Write a heartbeat at once in place of the next one, since what it says has changed. Waits for nothing."""
        self._due.set()

    def _work(self) -> None:
        while not self._closed:
            self._attempt(self._beat)
            self._due.wait(self._beat_seconds)
            self._due.clear()
        self._attempt(self._end)
        if self._store is not None:
            self._store.close()

    def _beat(self) -> None:
        status = self._describe()
        if self._store is None:
            self._store = open_heartbeats(self._settings)
            self._store.purge()
        now = self._store.now_us()
        if self._started_us is None:
            self._started_us = now - round((time.monotonic() - self._began) * 1e6)
        said = {name: getattr(status, name) for name in NodeStatus.__slots__}
        heartbeat = Heartbeat(**said, started=time_of(self._started_us), last_heartbeat=time_of(now))
        self._written = status.node_id
        self._store.put(heartbeat, now + round(self._beat_seconds * BEATS_OF_GRACE * 1e6))

    def _end(self) -> None:
        if self._store is not None and self._written is not None:
            self._store.remove(self._written)

    def _attempt(self, call: Callable[[], None]) -> None:
        """Say once that the server fails, and once that it works again."""
        try:
            call()
        except VectorizeError as error:
            if not self._failing:
                logger.warning("this process is not listed among the living: its heartbeat is not written: %s", error)
            self._failing = True
        else:
            if self._failing:
                logger.info("the heartbeat of this process is written again")
            self._failing = False


class RedisHeartbeats:
    """A `HeartbeatStore` in Redis, which forgets what has expired by itself."""

    def __init__(self, settings: Settings):
        """Connect with the first call. Raises `SettingsError` and `MissingExtraError`."""
        self._settings = settings
        self._redis: redis.Redis = open_redis(settings)

    def now_us(self) -> int:
        """As in `HeartbeatStore`."""
        with redis_errors(self._settings):
            seconds, rest_us = self._redis.time()
        return int(seconds) * 1_000_000 + int(rest_us)

    def put(self, heartbeat: Heartbeat, expires_us: int) -> None:
        """As in `HeartbeatStore`."""
        key = _REDIS_PREFIX + heartbeat.node_id
        now_us = microseconds(heartbeat.last_heartbeat)
        expiry_ms = max(1, (expires_us - now_us) // 1000)
        with redis_errors(self._settings), self._redis.pipeline(transaction=True) as together:
            together.set(key, _packed(heartbeat), px=expiry_ms)
            together.zadd(_REDIS_INDEX, {key: expires_us})
            together.zremrangebyscore(_REDIS_INDEX, "-inf", now_us)
            together.execute()

    def remove(self, node_id: str) -> None:
        """As in `HeartbeatStore`."""
        with redis_errors(self._settings), self._redis.pipeline(transaction=True) as together:
            together.delete(_REDIS_PREFIX + node_id)
            together.zrem(_REDIS_INDEX, _REDIS_PREFIX + node_id)
            together.execute()

    def living(self) -> list[Heartbeat]:
        """As in `HeartbeatStore`."""
        now_us = self.now_us()
        with redis_errors(self._settings):
            keys: list[Any] = self._redis.zrangebyscore(_REDIS_INDEX, f"({now_us}", "+inf")
            found = self._redis.mget(keys) if keys else []
        return [_unpacked(each) for each in found if each is not None]

    def purge(self) -> None:
        """As in `HeartbeatStore`."""

    def close(self) -> None:
        """As in `HeartbeatStore`."""
        with redis_errors(self._settings):
            self._redis.close()


class DatabaseHeartbeats:
    """A `HeartbeatStore` in the database that Dagster uses."""

    def __init__(self, database: Database):
        """Use a database that `close` closes."""
        self._database = database
        self._put = database.bulk_upsert(heartbeats, lambda _new, _old: sa.true())

    def now_us(self) -> int:
        """As in `HeartbeatStore`. A file is used by one machine, and has that one's clock."""
        if self._database.is_sqlite:
            return time.time_ns() // 1000
        clock = sa.cast(sa.func.extract("epoch", sa.func.clock_timestamp()) * 1_000_000, sa.BigInteger)
        with self._database.read() as connection:
            return int(connection.execute(sa.select(clock)).scalar_one())

    def put(self, heartbeat: Heartbeat, expires_us: int) -> None:
        """As in `HeartbeatStore`."""
        with self._database.write() as connection:
            self._put(connection, [(heartbeat.node_id, expires_us, _packed(heartbeat))])

    def remove(self, node_id: str) -> None:
        """As in `HeartbeatStore`."""
        with self._database.write() as connection:
            connection.execute(sa.delete(heartbeats).where(heartbeats.c.node_id == node_id))

    def living(self) -> list[Heartbeat]:
        """As in `HeartbeatStore`."""
        query = sa.select(heartbeats.c.heartbeat).where(heartbeats.c.expires_us > self.now_us())
        with self._database.read() as connection:
            return [_unpacked(each) for each in connection.scalars(query)]

    def purge(self) -> None:
        """As in `HeartbeatStore`."""
        purge_rows(self._database, heartbeats, heartbeats.c.expires_us < self.now_us() - _FORGOTTEN_US)

    def close(self) -> None:
        """As in `HeartbeatStore`."""
        self._database.close()


@cache
def _json() -> "TypeAdapter[Heartbeat]":
    """Return what reads and writes the JSON of a heartbeat; it passes over fields of newer versions."""
    from pydantic import TypeAdapter

    return TypeAdapter(Heartbeat)


def _packed(heartbeat: Heartbeat) -> str:
    return _json().dump_json(heartbeat).decode()


def _unpacked(stored: bytes | str) -> Heartbeat:
    return _json().validate_json(stored)
