"""Ending a loan, and what is noted of keys and providers in a SQLite file: the statements of one transaction."""

import sqlite3
import time
from collections.abc import Sequence

from vectorize_pipelines.providers.limits.base import Lease, Outcome, Pause, ProviderUse


def release(connection: sqlite3.Connection, lease: Lease, outcome: Outcome) -> bool:
    """End a loan and note what became of the call. Return whether this disabled the key."""
    loan = connection.execute("delete from leases where lease = ? returning number", (lease.id,)).fetchone()
    number = -1 if loan is None else loan[0]
    call = connection.execute(
        "select at, tokens from uses where key = ? and number = ?", (lease.key_id, number)
    ).fetchone()
    if outcome.unused:
        if call is not None:
            take_back(connection, lease, number)
        return False
    if call is not None and outcome.tokens is not None and outcome.tokens != call[1]:
        connection.execute(
            "update uses set tokens = ? where key = ? and number = ?", (outcome.tokens, lease.key_id, number)
        )
        connection.execute("update keys set tokens = tokens + ? where id = ?", (outcome.tokens - call[1], lease.key_id))
    if outcome.cancelled:
        return False
    if outcome.failed is not None:
        _note_failure(connection, outcome.provider, outcome.failed)
        return False
    connection.execute("update providers set in_a_row = 0 where name = ? and in_a_row > 0", (outcome.provider,))
    return _note_answer(connection, lease.key_id, None if call is None else call[0], outcome)


def take_back(connection: sqlite3.Connection, lease: Lease, number: int) -> None:
    """Let a call that was never made count no more; the numbers of the calls stay without a gap."""
    connection.execute("update uses set at = 0, tokens = 0 where key = ? and number = ?", (lease.key_id, number))
    connection.execute(
        "update keys set tokens = tokens - ?, calls = calls - 1 where id = ?", (lease.tokens, lease.key_id)
    )


def _note_answer(connection: sqlite3.Connection, key: str, began: float | None, outcome: Outcome) -> bool:
    """Note what an answer says about the key. `began`: when the call began, None: too long ago to matter."""
    row = connection.execute("select cooled, streak, cooling, disabled from keys where id = ?", (key,)).fetchone()
    if row is None:
        return False
    cooled, streak, cooling, disabled = row
    later = cooled is None or (began is not None and began >= cooled)  # than the latest 429
    if outcome.success:
        if cooled is not None and later:
            connection.execute("update keys set streak = 0, cooled = null where id = ?", (key,))
        return False
    connection.execute("update keys set failures = failures + 1 where id = ?", (key,))
    if outcome.pause is not None:
        # Calls that were under way together are answered together: one refusal.
        streak = streak + 1 if later else max(streak, 1)
        now = time.monotonic()
        connection.execute(
            "update keys set limited = limited + 1, streak = ?, cooling = ?, cooled = ? where id = ?",
            (streak, max(cooling, now + _seconds(outcome.pause, streak)), now, key),
        )
    elif outcome.refused is not None and disabled is None:
        disable(connection, [key], outcome.refused)
        return True
    return False


def _seconds(pause: Pause, streak: int) -> float:
    doubled = pause.default * 2.0 ** min(streak - 1, 60)
    return min(doubled if pause.asked is None else pause.asked, pause.most)


def _note_failure(connection: sqlite3.Connection, name: str, how: str) -> None:
    connection.execute(
        "insert into providers values (?1, 1, 1, ?2) on conflict (name) do update set "
        "failures = failures + 1, in_a_row = in_a_row + 1, latest = ?2",
        (name, how),
    )


def provider(connection: sqlite3.Connection, name: str) -> ProviderUse:
    """Return the failures of a provider."""
    row = connection.execute("select failures, in_a_row, latest from providers where name = ?", (name,)).fetchone()
    return ProviderUse(0, 0, "") if row is None else ProviderUse(*row)


def disable(connection: sqlite3.Connection, ids: Sequence[str], reason: str) -> None:
    """Disable keys, whatever they were disabled for before."""
    connection.executemany(
        "insert into keys (id, disabled) values (?1, ?2) on conflict (id) do update set disabled = ?2",
        [(each, reason) for each in ids],
    )


def enable(connection: sqlite3.Connection, ids: Sequence[str], only: str | None) -> None:
    """Enable keys, and end their cooling; `only` those that are disabled for this reason."""
    connection.executemany(
        "update keys set disabled = null, cooling = 0, cooled = null, streak = 0 "
        "where id = ?1 and (?2 is null or disabled = ?2)",
        [(each, only) for each in ids],
    )
