"""The conditions that end a run over messages, beside an exhausted source."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from math import inf
from typing import Self

from vectorize_pipelines.settings import DrainSettings

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class StopPolicy:
    """The limits of a run; what is in hand is finished all the same.

    idle_seconds  without a message; 0: at the end of what is there
    max_seconds   since it began
    day_ends      a run that follows its topic is one day's, and ends with it, in UTC; for others: never
    should_stop   asked every second; a reason why it is to end now, or None
    """

    idle_seconds: float
    max_seconds: float
    day_ends: datetime
    should_stop: Callable[[], str | None] = lambda: None

    @classmethod
    def of_drain(
        cls,
        drain: DrainSettings,
        *,
        once: bool = False,
        idle_seconds: float | None = None,
        max_seconds: float | None = None,
        should_stop: Callable[[], str | None] = lambda: None,
    ) -> Self:
        """The limits of a drain run; what is None is as the settings say.

        once  it ends when nothing is outstanding, and does not wait for more; nor does it end with the day: there may
              be nobody who takes up the rest
        """
        most = drain.max_seconds if max_seconds is None else max_seconds
        if once:
            return cls(0, most, _NEVER, should_stop)
        idle = drain.idle_seconds if idle_seconds is None else idle_seconds
        return cls(idle, most, _end_of_today(), should_stop)

    def reason(self, begun: float) -> str | None:
        """Return why a run that began then (`time.monotonic`) is to end, whatever is left; None: it is not."""
        if time.monotonic() - begun >= self.max_seconds:
            return f"the run's {self.max_seconds:g} s are over"
        if datetime.now(UTC) >= self.day_ends:
            return "the day has ended"
        return self.should_stop()

    def reason_at_end(self, silent_seconds: float) -> str | None:
        """Return why a run is to end whose source has had nothing for so long; None: it waits for more."""
        if silent_seconds < self.idle_seconds:
            return None
        return f"nothing came for {self.idle_seconds:g} s" if self.idle_seconds else "nothing was left"


#: For sources that end by themselves.
AT_THE_END = StopPolicy(0, inf, _NEVER)


def _end_of_today() -> datetime:
    return datetime.combine(datetime.now(UTC).date() + timedelta(days=1), time_of_day(), UTC)
