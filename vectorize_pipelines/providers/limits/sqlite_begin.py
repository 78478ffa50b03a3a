"""Counting a call that begins later than its key was lent, in a SQLite file: the statements of one transaction."""

import sqlite3
import time
from collections.abc import Sequence

from vectorize_pipelines.providers.limits.base import KeyLimits, Lease, Windows
from vectorize_pipelines.providers.limits.sqlite_release import take_back

#: Sums of times are rounded.
_ROUNDED = 1e-6


def begin(
    connection: sqlite3.Connection, lease: Lease, limits: KeyLimits, within: float, windows: Windows
) -> float | None:
    """Count a call from `within` seconds from now, since it begins by then, and later than its key was lent.

    Return the time; None, with the loan taken back, where the windows have no room for it then, or the loan has ended.
    """
    now = time.monotonic()
    loan = connection.execute("select number, until from leases where lease = ?", (lease.id,)).fetchone()
    if loan is None:
        return None
    number, until = loan
    long = limits.second if limits.rpm is None and limits.tpm is None else windows.long
    rows = _uses(connection, lease.key_id, number, now - long)
    others = [row for row in rows if row[0] != number and row[1] > now - long]
    times = sorted((at, tokens) for _, at, tokens in others)
    is_counted = any(row[0] == number for row in rows)
    if is_counted and until > now and _has_room(times, limits, lease.tokens, now, now + within, long):
        later = [row for row in rows if row[0] > number]
        _count_last(connection, lease, number, later, now + within)
        return now
    connection.execute("delete from leases where lease = ?", (lease.id,))
    if is_counted:
        take_back(connection, lease, number)
    return None


def _uses(connection: sqlite3.Connection, key: str, number: int, after: float) -> list[tuple[int, float, int]]:
    """Return the uses of a key after a time, and those from a number on, in order: number, time, tokens."""
    rows = []
    for row in connection.execute("select number, at, tokens from uses where key = ? order by number desc", (key,)):
        is_taken_back = not row[1]
        if row[1] <= after and row[0] < number and not is_taken_back:
            break
        rows.append(row)
    rows.reverse()
    return rows


def _has_room(
    times: Sequence[tuple[float, int]], limits: KeyLimits, tokens: int, earliest: float, latest: float, long: float
) -> bool:
    """Return whether a call that begins between two times exceeds no window with the others: (time, tokens) of each."""

    def fits(limit: int | None, window: float, amounts: Sequence[int], own: int) -> bool:
        if limit is None:
            return True
        total, last = own, 0
        for first, (began, _) in enumerate(times):
            while last < len(times) and max(times[last][0], earliest) - min(began, latest) < window - _ROUNDED:
                total += amounts[last]
                last += 1
            if total > limit:
                return False
            if last > first:
                total -= amounts[first]
            else:
                last = first + 1
        return True

    ones = [1] * len(times)
    return (
        fits(limits.qps, limits.second, ones, 1)
        and fits(limits.rpm, long, ones, 1)
        and fits(limits.tpm, long, [each for _, each in times], tokens)
    )


def _count_last(
    connection: sqlite3.Connection, lease: Lease, number: int, later: Sequence[tuple[int, float, int]], at: float
) -> None:
    """Make a call the last of its key, by number and by time: between calls as far apart as a limit lies its window."""
    key = lease.key_id
    connection.executemany(
        "update uses set at = ?, tokens = ? where key = ? and number = ?",
        [(began, tokens, key, own - 1) for own, began, tokens in later],
    )
    connection.execute("update leases set number = number - 1 where key = ? and number > ?", (key, number))
    last = later[-1][0] if later else number
    connection.execute("update leases set number = ? where lease = ?", (last, lease.id))
    connection.execute("update keys set latest = max(latest, ?) where id = ?", (at, key))
    connection.execute(
        "update uses set tokens = ?, at = (select latest from keys where id = ?2) where key = ?2 and number = ?3",
        (lease.tokens, key, last),
    )
