"""The daily partitions that every embedding asset has, and the window of days that a run covers.

An item belongs to the day, in UTC, of its own time: a file's modification time, a message's timestamp.
"""

from datetime import UTC, date, datetime, timedelta

import dagster as dg

from vectorize_pipelines.settings import load_settings

#: `end_offset=1`: without it the partitions end yesterday.
daily = dg.DailyPartitionsDefinition(
    start_date=load_settings().partitions.start.isoformat(), timezone="UTC", end_offset=1
)

Window = tuple[date, date]


def window_of(key_range: dg.PartitionKeyRange) -> Window:
    """First and last day of a run, both included: a single-run backfill covers several."""
    return date.fromisoformat(key_range.start), date.fromisoformat(key_range.end)


def days_in(window: Window) -> list[str]:
    """The partition keys of a window."""
    first, last = window
    return [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]


def today() -> str:
    """The partition that drain runs are runs of."""
    return datetime.now(UTC).date().isoformat()
