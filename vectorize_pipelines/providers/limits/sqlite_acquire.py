"""Lending a key by its use in a SQLite file: the statements of one transaction."""

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vectorize_pipelines.providers.limits.base import (
    AHEAD,
    LONGEST_WAIT,
    TICKET_GRACE,
    UNKNOWN_WAIT,
    Grant,
    Request,
    Wait,
    Windows,
)
from vectorize_pipelines.providers.limits.sqlite_use import Key, Use

#: The shortest pause before a caller asks again.
_SHORTEST_WAIT = 0.0005
#: Times further ahead than this are of before the machine was started.
_FUTURE = 1.0


@dataclass(frozen=True, slots=True)
class _Caller:
    """A caller in the queue. `ids`: those of the keys that it wants."""

    ticket: str
    tokens: int
    ids: frozenset[str]


def acquire(connection: sqlite3.Connection, request: Request, windows: Windows) -> Grant | Wait:
    """Lend the first key that has room in every limit, or take a place in the queue."""
    now = time.monotonic()
    had = connection.execute(
        "select key, at from leases join uses using (key, number) where lease = ? and until > ?", (request.lease, now)
    ).fetchone()
    if had is not None:  # the caller has not heard that it has a key, and asks once more
        return Grant(had[0], now, had[1])
    place, before = _queue(connection, request, now)
    keys = _keys(connection, request, now)
    use = Use(connection, now, windows.long)
    free, chosen, starts, has_room, later = 0, None, now, False, []
    older: set[str] = set()  # who could use one of the keys that have been looked at
    for key in keys:
        older |= _let_before(key, before, request.tokens)
        at = use.free_at(key)
        if at > use.soon:
            later.append(at - AHEAD)
            continue
        if chosen is None or key.older < chosen.older:
            chosen, starts = key, max(at, key.latest, now)
        free += use.room(key)
        has_room = key.older == 0 or free > len(older)
        if has_room:
            break
    if chosen is not None and has_room:
        _lend(connection, chosen, request, now, starts)
        if place is not None:
            leave(connection, request.ticket)
        return Grant(chosen.limits.id, now, starts)
    if not keys:
        leave(connection, request.ticket)
        return Wait(LONGEST_WAIT, None, False)
    later.sort()
    # As many keys have to become free; or those before this caller have not come for theirs yet.
    turn = min(len(older) - free, len(later) - 1)
    pause = UNKNOWN_WAIT if free else min(max(later[turn] - now, _SHORTEST_WAIT), LONGEST_WAIT)
    _wait(connection, request, place, now + pause + TICKET_GRACE)
    return Wait(pause, 0.0 if free else max(later[0] + AHEAD - now, 0.0), use.for_release)


def leave(connection: sqlite3.Connection, ticket: str) -> None:
    """Give up a place in the queue."""
    connection.execute("delete from queue where ticket = ?", (ticket,))


def _queue(connection: sqlite3.Connection, request: Request, now: float) -> tuple[int | None, list[_Caller]]:
    """Return the caller's number in the queue, and those before it. Those that ask no more are forgotten."""
    queue = connection.execute("select ticket, number, until, tokens, ids from queue").fetchall()
    if not queue:
        return None, []
    own = next((number for ticket, number, *_ in queue if ticket == request.ticket), None)
    connection.execute("delete from queue where until < ? and ticket != ?", (now, request.ticket))
    before = [
        _Caller(ticket, tokens, frozenset(ids.split(",")))
        for ticket, number, until, tokens, ids in queue
        if ticket != request.ticket and until >= now and (own is None or number < own)
    ]
    return own, before


def _let_before(key: Key, before: Sequence[_Caller], tokens: int) -> set[str]:
    """Note in a key who before the caller could use it. Return their tickets. `tokens`: those that the caller needs."""
    tpm = key.limits.tpm
    could = [each for each in before if key.limits.id in each.ids and (tpm is None or each.tokens <= tpm)]
    key.older, key.most = len(could), max([tokens, *(each.tokens for each in could)])
    return {each.ticket for each in could}


def _keys(connection: sqlite3.Connection, request: Request, now: float) -> list[Key]:
    """Return the keys that are not disabled, in the order of the strategy."""
    connection.execute("delete from leases where until <= ?", (now,))
    rows = {
        row[0]: row
        for row in connection.execute("select id, disabled, turn, number, latest, tokens, cooling from keys")
    }
    if any(row[4] > now + _FUTURE for row in rows.values()):
        begin_again(connection)
        return _keys(connection, request, now)
    in_use: dict[str, int] = {}
    if request.strategy == "least_loaded" or any(key.concurrency is not None for key in request.keys):
        in_use = dict(connection.execute("select key, count(*) from leases group by key").fetchall())
    keys = []
    for limits in request.keys:
        row = rows.get(limits.id)
        if row is None:
            keys.append(Key(limits, 0, 0, 0.0, 0, 0.0))
        elif row[1] is None:
            _, _, turn, number, latest, tokens, cooling = row
            keys.append(Key(limits, turn, number, latest, tokens, cooling, in_use.get(limits.id, 0)))
    match request.strategy:
        case "priority":
            keys.sort(key=lambda key: (-key.limits.priority, key.turn))
        case "least_loaded":
            keys.sort(key=lambda key: (key.in_use, key.turn))
        case "round_robin":
            keys.sort(key=lambda key: key.turn)
    return keys


def begin_again(connection: sqlite3.Connection) -> None:
    """Forget everything that has a time: the clock began again when the machine was started."""
    connection.execute("delete from uses")
    connection.execute("delete from leases")
    connection.execute("delete from queue")
    connection.execute("update keys set latest = 0, tokens = 0, cooling = 0, cooled = null, streak = 0")


def _lend(connection: sqlite3.Connection, key: Key, request: Request, now: float, starts: float) -> None:
    id_, number = key.limits.id, key.number + 1
    connection.execute("insert into uses values (?, ?, ?, ?)", (id_, number, starts, request.tokens))
    connection.execute(
        "insert into leases values (?, ?, ?, ?)", (request.lease, id_, number, now + request.lease_seconds)
    )
    connection.execute(
        "insert into keys (id, turn, number, latest, tokens, calls) values (?1, ?2, ?3, ?4, ?5, 1) on conflict (id) "
        "do update set turn = ?2, number = ?3, latest = ?4, tokens = tokens + ?5, calls = calls + 1",
        (id_, _next_number(connection), number, starts, request.tokens),
    )


def _wait(connection: sqlite3.Connection, request: Request, place: int | None, until: float) -> None:
    number = _next_number(connection) if place is None else place
    ids = ",".join(key.id for key in request.keys)
    connection.execute(
        "insert or replace into queue values (?, ?, ?, ?, ?)", (request.ticket, number, until, request.tokens, ids)
    )


def _next_number(connection: sqlite3.Connection) -> int:
    (number,) = connection.execute("update counter set value = value + 1 returning value").fetchone()
    return int(number)
