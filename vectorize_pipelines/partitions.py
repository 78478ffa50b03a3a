"""The daily partitions that every embedding asset has, and the window of days that a run covers.

An item belongs to the day, in UTC, of its own time: a file's modification time, a message's timestamp.
"""

from datetime import UTC, date, datetime, timedelta

import dagster as dg

from vectorize_pipelines.settings import Settings

Window = tuple[date, date]


def daily_partitions(settings: Settings) -> dg.DailyPartitionsDefinition:
    """Return the partitions of every embedding asset."""
    # `end_offset=1`: without it the partitions end yesterday.
    return dg.DailyPartitionsDefinition(start_date=settings.partitions.start.isoformat(), timezone="UTC", end_offset=1)


def window_of(key_range: dg.PartitionKeyRange) -> Window:
    """Return first and last day of a run, both included: a single-run backfill covers several."""
    return date.fromisoformat(key_range.start), date.fromisoformat(key_range.end)


def days_in(window: Window) -> list[str]:
    """Return the partition keys of a window."""
    first, last = window
    return [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]


def today() -> str:
    """Return the partition that drain runs are runs of."""
    return datetime.now(UTC).date().isoformat()
