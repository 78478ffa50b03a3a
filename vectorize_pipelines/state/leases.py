"""Leases: what one process on one of all machines holds for as long as it says so every few seconds.

A lease is a row of the database. Its holder renews it from a thread of its own; who is killed, cut off or stalled does
not, and after `LEASE_SECONDS` anybody may take the lease over. Only the database's clock decides when that is: those of
the machines may differ. Each taking over raises the lease's `fence`, so that one holder is told from another.

A holder that has lost its lease must write nothing any more: it calls `Lease.check` right before. That renews the lease
once more, so that what follows has all its time, and is certain of it by two signs: the row is still the holder's, and
by the clock of its own machine no more time has passed than the lease lasts. The latter counts from before the last
renewal was sent, and goes on while the process or the whole machine is stopped.

Between `check` and the write there is always a moment, and a write that is stalled in its middle goes on later: what
must not suffer from that has to bear it by itself, as stores do whose writes can be repeated.
"""

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa

from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.state.database import Database, Text, metadata, purge_rows
from vectorize_pipelines.state.held_locks import (
    ExclusiveLock,
    LockLostError,
    LockTakenError,
    RunLostError,
    needed_by_process,
)

logger = logging.getLogger(__name__)

#: How long a lease lasts that is not renewed.
LEASE_SECONDS = 20.0
#: A lease is renewed this often while it lasts: an answer may fail to come several times.
RENEWALS = 5
#: How long a server may stay silent to a renewal, in parts of the lease; then another connection is made.
_SILENCES = 5
#: How long after a failure a renewal, or a release, is tried again.
_RETRY_SECONDS = 0.1
#: How often who waits for a lease looks for it: at first, and at last.
_POLL_SECONDS = (0.01, 0.1)
#: How long the one who waits longest may not look for the lease until somebody else gets it.
_PATIENCE_SECONDS = 2.0
#: The clock of this machine that also counts the time in which it is suspended.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_FREE = ""

leases = sa.Table(
    "vectorize_leases",
    metadata,
    sa.Column("name", Text, primary_key=True),
    sa.Column("holder", Text, nullable=False),
    sa.Column("node", Text, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("since_us", sa.BigInteger, nullable=False),
    sa.Column("expires_us", sa.BigInteger, nullable=False),
    sa.Column("waiter", Text, nullable=False),
    sa.Column("waiter_until_us", sa.BigInteger, nullable=False),
    sqlite_with_rowid=False,
)


class LeaseLostError(LockLostError):
    """A lease is not, or not certainly, held any more: whoever held it must write nothing."""


class RunLeaseLostError(LeaseLostError, RunLostError):
    """The lease is one that the whole process depends on: that of its run."""


class LeaseTakenError(LockTakenError):
    """Somebody else has held a lease for all the time that it was waited for."""


@dataclass(frozen=True, slots=True)
class LapsedLease:
    """A lease whose holder has not renewed it in time. `since`: when it lapsed, by the database's clock."""

    name: str
    holder: str
    node: str
    fence: int
    since: datetime


class Lease(ExclusiveLock):
    """A lease that this process holds; `hold` makes it.

    name, node  as they were given
    holder      who holds it, in words
    fence       larger than that of every earlier holder
    """

    def __init__(
        self, name: str, what: str, holder: str, node: str, fence: int, certain_until: float, keeper: "_Keeper"
    ):
        self.name = name
        self.holder = holder
        self.node = node
        self.fence = fence
        self.what = what
        #: By this machine's clock: until when it is held for certain, and when its last renewal was sent.
        self.certain_until = certain_until
        self.renewed_at = float("-inf")
        #: Why it is lost, once it is.
        self.lost: str | None = None
        self._keeper = keeper

    def check(self) -> None:
        """Renew the lease; raise `LeaseLostError` if it is lost, or one that the whole process depends on.

        To be called right before what must not be done by two at once. While the database is away it waits for it, at
        most as long as the lease lasts.
        """
        begun = _now()
        for lease in (*_of_process(), self):
            lease.confirm(begun)

    def confirm(self, begun: float) -> None:
        """Wait until a renewal that was sent after `begun` has succeeded. Raises `LeaseLostError`."""
        self._keeper.confirm(self, begun)
        if self.lost is not None:
            raise self.error()

    def drop(self) -> None:
        """Renew the lease no more."""
        self._keeper.remove(self)

    def error(self) -> LeaseLostError:
        """Return what to raise once the lease is lost."""
        kind = RunLeaseLostError if self in needed_by_process else LeaseLostError
        return kind(f"the lock of {self.what} was lost while it was needed: {self.lost}")


def is_held_by_process(name: str) -> bool:
    """Return whether this process holds a lease that all of it needs."""
    return any(lease.name == name for lease in _of_process())


def _of_process() -> list[Lease]:
    return [lock for lock in tuple(needed_by_process) if isinstance(lock, Lease)]


@contextlib.contextmanager
def hold(
    database: Database,
    name: str,
    what: str,
    holder: str | None = None,
    node: str | None = None,
    timeout_seconds: float | None = None,
    *,
    whole_process: bool = False,
    keep_on_error: bool = False,
) -> Iterator[Lease]:
    """Hold a lease that one thread of one process has at a time.

    name           tells leases apart
    what           is said in errors, as in "the lock of {what}"
    holder, node   are told to who finds the lease lapsed; the node is this host, unless it is named
    whole_process  every `check` of this process checks this lease, too
    keep_on_error  after an error of the body the lease is not given back: it lapses, and `lapsed` tells of it

    Waits for an earlier holder, at most `timeout_seconds`: then raises `LeaseTakenError`. Who waits longest is next.
    Raises `LeaseLostError` after the body when the lease was lost meanwhile, `LedgerError` when the database fails.
    """
    holder, node = holder or _this_thread(), node or socket.gethostname()
    taken: list[Lease] = []  # an interrupt may come as soon as it is kept
    try:
        lease = _take(database, name, what, holder, node, timeout_seconds, taken)
        if whole_process:
            needed_by_process.append(lease)
        yield lease
    except BaseException:
        for lease in taken:
            if keep_on_error:
                lease.drop()
            else:
                _abandon(database, lease)
        raise
    else:
        _release(database, lease)
    finally:
        for lease in taken:
            if lease in needed_by_process:
                needed_by_process.remove(lease)


def is_held(database: Database, name: str) -> bool:
    """Return whether somebody holds a lease. Raises `LedgerError`."""
    clock = _database_clock(database)
    with database.statements() as connection:
        found = connection.execute(sa.select(leases.c.expires_us >= clock).where(leases.c.name == name))
        return bool(found.scalar())


def await_signs(database: Database, names: Sequence[str]) -> None:
    """Wait until the holder of each has renewed its lease, given it back, or not renewed it in time.

    Then `is_held` tells who lives, and not only who lived a moment ago. Raises `LedgerError`.
    """
    silent = _expiries(database, names)
    while silent:
        time.sleep(_POLL_SECONDS[1])
        now = _expiries(database, list(silent))
        silent = {name: expires for name, expires in silent.items() if now.get(name) == expires}


def _expiries(database: Database, names: Sequence[str]) -> dict[str, int]:
    """Return when each that is held would lapse."""
    query = sa.select(leases.c.name, leases.c.expires_us).where(
        leases.c.name.in_(names), leases.c.expires_us >= _database_clock(database)
    )
    with database.statements() as connection:
        return {row.name: row.expires_us for row in connection.execute(query)}


def held_below(database: Database, prefix: str) -> list[str]:
    """Return the names of the leases that begin so and that somebody holds. Raises `LedgerError`."""
    query = (
        sa.select(leases.c.name)
        .where(leases.c.name.startswith(prefix, autoescape=True), leases.c.holder != _FREE)
        .where(leases.c.expires_us >= _database_clock(database))
        .order_by(leases.c.name)
    )
    with database.statements() as connection:
        return list(connection.scalars(query))


def lapsed(database: Database, prefix: str) -> list[LapsedLease]:
    """Return the leases that their holders have not renewed, and nobody has taken over. Raises `LedgerError`."""
    query = (
        sa.select(leases.c.name, leases.c.holder, leases.c.node, leases.c.fence, leases.c.expires_us)
        .where(leases.c.name.startswith(prefix, autoescape=True), leases.c.holder != _FREE)
        .where(leases.c.expires_us < _database_clock(database))
        .order_by(leases.c.name)
    )
    with database.statements() as connection:
        return [
            LapsedLease(name, holder, node, fence, datetime.fromtimestamp(expires_us / 1e6, UTC))
            for name, holder, node, fence, expires_us in connection.execute(query)
        ]


def purge(database: Database, before: datetime) -> int:
    """Remove what lapsed before then, and nobody will take over; return their number. Raises `LedgerError`."""
    return purge_rows(database, leases, leases.c.expires_us < round(before.timestamp() * 1e6))


# ---- taking a lease, and giving it back: each statement by itself, since a process that is stopped in the middle of a
# ---- transaction would keep the row from all others


def _take(
    database: Database,
    name: str,
    what: str,
    holder: str,
    node: str,
    timeout_seconds: float | None,
    taken: list[Lease],
) -> Lease:
    """Return the lease, which is in `taken` before it is renewed."""
    token = uuid.uuid4().hex
    deadline = None if timeout_seconds is None else _now() + timeout_seconds
    pause, most = _POLL_SECONDS
    while True:
        seconds, sent = LEASE_SECONDS, _now()
        fence = _try(database, name, holder, node, token, seconds)
        if fence is not None:
            keeper = _keeper_of(database)
            lease = Lease(name, what, holder, node, fence, sent + seconds, keeper)
            taken.append(lease)
            keeper.add(lease)
            return lease
        if deadline is not None and _now() >= deadline:
            _stop_waiting(database, name, token)
            raise LeaseTakenError(f"another run has held the lock of {what} for {timeout_seconds} s")
        time.sleep(pause if deadline is None else max(0.0, min(pause, deadline - _now())))
        pause = min(pause * 1.5, most)


def _try(database: Database, name: str, holder: str, node: str, token: str, seconds: float) -> int | None:
    """Take a lease that is free, unless somebody waits for it already, and return its fence; or wait for it."""
    clock = _database_clock(database)
    insert = database.insert(leases).values(
        name=name,
        holder=holder,
        node=node,
        fence=clock,  # so that it grows, too, after a row has been removed
        since_us=clock,
        expires_us=clock + round(seconds * 1e6),
        waiter=_FREE,
        waiter_until_us=0,
    )
    new = insert.excluded
    next_fence = sa.case((new.fence > leases.c.fence, new.fence), else_=leases.c.fence + 1)
    changed = {column.name: new[column.name] for column in leases.columns if not column.primary_key}
    mine = sa.or_(leases.c.waiter.in_([_FREE, token]), leases.c.waiter_until_us < clock)
    take = insert.on_conflict_do_update(
        index_elements=[leases.c.name],
        set_={**changed, "fence": next_fence},
        where=sa.and_(leases.c.expires_us < clock, mine),
    ).returning(leases.c.fence)
    wait = (
        sa.update(leases)
        .where(leases.c.name == name, mine)
        .values(waiter=token, waiter_until_us=clock + round(_PATIENCE_SECONDS * 1e6))
    )
    with database.statements() as connection:
        fence: int | None = connection.execute(take).scalar()
        if fence is None:
            connection.execute(wait)
        return fence


def _stop_waiting(database: Database, name: str, token: str) -> None:
    mine = sa.and_(leases.c.name == name, leases.c.waiter == token)
    with database.statements() as connection:
        connection.execute(sa.delete(leases).where(mine, leases.c.holder == _FREE))
        connection.execute(sa.update(leases).where(mine).values(waiter=_FREE, waiter_until_us=0))


def _release(database: Database, lease: Lease) -> None:
    """Give a lease back; waits for a database that is away as long as the lease lasts. Raises `LeaseLostError`."""
    lease.drop()
    while lease.lost is None:
        try:
            if not _give_back(database, lease):
                lease.lost = "it had lapsed, or somebody else has taken it over"
            break
        except LedgerError as error:
            if _now() + _RETRY_SECONDS >= lease.certain_until:
                lease.lost = str(error)
            else:
                time.sleep(_RETRY_SECONDS)
    if lease.lost is not None:
        raise lease.error()


def _abandon(database: Database, lease: Lease) -> None:
    """Give a lease back after an error, which is what is told."""
    lease.drop()
    try:
        _give_back(database, lease)
    except LedgerError as error:
        logger.warning("the lock of %s is not given back, and lapses in %.0f s: %s", lease.what, LEASE_SECONDS, error)


def _give_back(database: Database, lease: Lease) -> bool:
    """Return whether the lease was still held."""
    clock = _database_clock(database)
    this = leases.c.name == lease.name
    free = sa.update(leases).where(this, leases.c.fence == lease.fence, leases.c.expires_us >= clock)
    unwanted = sa.or_(leases.c.waiter == _FREE, leases.c.waiter_until_us < clock)
    with database.statements() as connection:
        held = connection.execute(free.values(holder=_FREE, node=_FREE, expires_us=0)).rowcount > 0
        if held:
            connection.execute(sa.delete(leases).where(this, leases.c.holder == _FREE, unwanted))
        return held


# ---- keeping it


class _Keeper:
    """The thread of a process that renews all its leases in one database, over one connection; started when needed."""

    def __init__(self, database: Database):
        self._database = database
        self._changed = threading.Condition()
        self._leases: list[Lease] = []
        self._running = False
        self._asked = False
        #: Why the last renewal failed.
        self._failure: str | None = None

    def add(self, lease: Lease) -> None:
        """Renew a lease from now on."""
        with self._changed:
            self._leases.append(lease)
            if not self._running:
                threading.Thread(target=self._work, name="leases", daemon=True).start()
                self._running = True  # after it, which an interrupt may prevent

    def remove(self, lease: Lease) -> None:
        """Renew a lease no more."""
        with self._changed:
            if lease in self._leases:
                self._leases.remove(lease)
            self._changed.notify_all()

    def confirm(self, lease: Lease, begun: float) -> None:
        """Wait until a lease was renewed after `begun`, or is lost."""
        with self._changed:
            while lease.lost is None:
                left = lease.certain_until - _now()
                if left <= 0:
                    lease.lost = self._failure or f"this process was stalled for more than {LEASE_SECONDS:g} s"
                elif lease.renewed_at >= begun:
                    return
                else:
                    self._asked = True
                    self._changed.notify_all()
                    self._changed.wait(left)

    def _work(self) -> None:
        with contextlib.ExitStack() as resources:
            connection: sa.Connection | None = None
            while kept := self._next():
                try:
                    if connection is None:
                        connection = resources.enter_context(self._database.session(LEASE_SECONDS / _SILENCES))
                    self._renew(connection, kept)
                except LedgerError as error:
                    connection = None
                    self._failed(error)
                except sa.exc.SQLAlchemyError as error:
                    connection = None
                    self._failed(self._database.failure(error))
                if connection is None:
                    with contextlib.suppress(LedgerError):  # of closing what has failed already
                        resources.close()
                    time.sleep(_RETRY_SECONDS)

    def _next(self) -> list[Lease]:
        """Wait until the next renewal; return what to renew, and nothing once nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._asked or not self._leases, LEASE_SECONDS / RENEWALS)
            self._asked = False
            self._running = bool(self._leases)
            return list(self._leases)

    def _renew(self, connection: sa.Connection, kept: Sequence[Lease]) -> None:
        clock = _database_clock(self._database)
        seconds, sent = LEASE_SECONDS, _now()
        these = sa.tuple_(leases.c.name, leases.c.fence).in_([(lease.name, lease.fence) for lease in kept])
        renewal = sa.update(leases).where(these, leases.c.expires_us >= clock)
        renewed = connection.execute(
            renewal.values(expires_us=clock + round(seconds * 1e6)).returning(leases.c.name, leases.c.fence)
        )
        held = {tuple(row) for row in renewed}
        with self._changed:
            self._failure = None
            for lease in kept:
                if (lease.name, lease.fence) in held:
                    lease.renewed_at, lease.certain_until = sent, sent + seconds
                elif lease in self._leases and lease.lost is None:
                    lease.lost = "it had lapsed, or somebody else has taken it over"
            self._changed.notify_all()

    def _failed(self, error: LedgerError) -> None:
        with self._changed:
            first, self._failure = self._failure is None, str(error)
            self._asked = True  # again at once
        if first:
            logger.warning("leases could not be renewed, which is tried again: %s", error)


_keepers: dict[sa.URL, _Keeper] = {}
_keepers_lock = threading.Lock()


def _keeper_of(database: Database) -> _Keeper:
    with _keepers_lock:
        return _keepers.setdefault(database.url, _Keeper(database))


def _now() -> float:
    return time.clock_gettime(_CLOCK)


def _this_thread() -> str:
    return f"process {os.getpid()}, thread {threading.current_thread().name}"


def _database_clock(database: Database) -> sa.ColumnElement[int]:
    """Return the microseconds since 1970 at the moment when the database evaluates it."""
    now = (
        "cast((julianday('now') - 2440587.5) * 86400000000.0 as integer)"
        if database.is_sqlite
        else "cast(extract(epoch from clock_timestamp()) * 1000000 as bigint)"
    )
    return sa.literal_column(now, sa.BigInteger())
