"""What a key has been used for, by the rows of a SQLite file."""

import sqlite3
import time
from dataclasses import dataclass

from vectorize_pipelines.providers.limits.base import AHEAD, UNKNOWN_WAIT, KeyLimits, KeyUse, Windows


@dataclass(slots=True)
class Key:
    """A key and its row. `number`: how many calls it has had; `latest`: when the last was.

    `older`: callers before this one that could use it; `most`: the most tokens that one of them or this one needs.
    """

    limits: KeyLimits
    turn: int
    number: int
    latest: float
    tokens: int
    cooling: float
    in_use: int = 0
    older: int = 0
    most: int = 1


class Use:
    """When keys have room for one more call, and for how many. `for_release`: one waits for the end of a call.

    What has room by `soon` is lent for then.
    """

    def __init__(self, connection: sqlite3.Connection, now: float, long: float):
        self.for_release = False
        self.soon = now + AHEAD
        self._connection = connection
        self._now = now
        self._long = long

    def free_at(self, key: Key) -> float:
        """Return the time from which the key has room for a call; not after now: it has."""
        self._forget_old_uses(key)
        limits = key.limits
        at = max(
            key.cooling,
            self._ripe(key, limits.qps, limits.second),
            self._ripe(key, limits.rpm, self._long),
            self._tokens_ripe(key),
        )
        if limits.concurrency is not None and key.in_use >= limits.concurrency:
            self.for_release = True
            at = max(at, self.soon + UNKNOWN_WAIT)
        return at

    def room(self, key: Key) -> int:
        """Return how many calls the key could take at once; counted up to one more than there are older callers."""
        limits, room = key.limits, key.older + 1
        if limits.concurrency is not None:
            room = min(room, limits.concurrency - key.in_use)
        if limits.tpm is not None and key.most:
            room = min(room, (limits.tpm - key.tokens) // key.most)
        for limit, window in ((limits.qps, limits.second), (limits.rpm, self._long)):
            if limit is not None:
                ripe = 0
                while ripe < min(room, limit) and self._ripe(key, limit - ripe, window) <= self.soon:
                    ripe += 1
                room = ripe
        return room

    def _ripe(self, key: Key, limit: int | None, window: float) -> float:
        """Return when the use grows old that has to, before one more fits into a window with this limit."""
        if limit is None or key.number < limit:
            return 0.0
        row = self._connection.execute(
            "select at from uses where key = ? and number = ?", (key.limits.id, key.number - limit + 1)
        ).fetchone()
        return 0.0 if row is None else row[0] + window

    def _tokens_ripe(self, key: Key) -> float:
        limit = key.limits.tpm
        if limit is None or key.tokens + key.most <= limit:
            return 0.0
        left = key.tokens
        for at, tokens in self._connection.execute(
            "select at, tokens from uses where key = ? order by number", (key.limits.id,)
        ):
            left -= tokens
            if left + key.most <= limit:
                return float(at) + self._long
        return self._now + self._long

    def since(self, key: Key, start: float) -> int:
        """Return how many calls there were after a time."""
        (number,) = self._connection.execute(
            "select count(*) from uses where key = ? and at > ?", (key.limits.id, start)
        ).fetchone()
        return int(number)

    def _forget_old_uses(self, key: Key) -> None:
        last, tokens = 0, 0
        for number, at, used in self._connection.execute(
            "select number, at, tokens from uses where key = ? order by number", (key.limits.id,)
        ):
            if at > self._now - self._long:
                break
            last, tokens = number, tokens + used
        if last:
            key.tokens -= tokens
            self._connection.execute("delete from uses where key = ? and number <= ?", (key.limits.id, last))
            self._connection.execute("update keys set tokens = tokens - ? where id = ?", (tokens, key.limits.id))


def use(connection: sqlite3.Connection, limits: KeyLimits, windows: Windows) -> KeyUse:
    """Return the use of a key."""
    now = time.monotonic()
    row = connection.execute(
        "select disabled, turn, number, latest, tokens, cooling, calls, failures, limited from keys where id = ?",
        (limits.id,),
    ).fetchone()
    if row is None:
        return KeyUse()
    disabled, turn, number, latest, tokens, cooling, calls, failures, limited = row
    (in_use,) = connection.execute(
        "select count(*) from leases where key = ? and until > ?", (limits.id, now)
    ).fetchone()
    key = Key(limits, turn, number, latest, tokens, cooling, in_use)
    reading = Use(connection, now, windows.long)
    at = reading.free_at(key)
    if limits.concurrency is not None and in_use >= limits.concurrency:
        (first,) = connection.execute("select min(until) from leases where key = ?", (limits.id,)).fetchone()
        at = max(at, first)
    return KeyUse(
        disabled=disabled,
        cooling=max(key.cooling - now, 0.0),
        in_use=in_use,
        requests_second=reading.since(key, now - limits.second),
        requests_minute=reading.since(key, now - windows.long),
        tokens_minute=key.tokens,
        next_available=None if disabled is not None else max(at - now, 0.0),
        calls=calls,
        failures=failures,
        rate_limited=limited,
    )
