"""`Days`: the UTC days that are partitions, and the day that an item belongs to, without Dagster."""

from dataclasses import dataclass
from datetime import UTC, date, datetime


@dataclass(frozen=True, slots=True)
class Days:
    """The days that items may belong to. `first` and `last` are days in UTC, both included."""

    first: date
    last: date

    def of(self, occurred_at: datetime) -> str:
        """Return the day of a time, `YYYY-MM-DD`; what lies outside belongs to the first or the last day."""
        return min(max(occurred_at.astimezone(UTC).date(), self.first), self.last).isoformat()
