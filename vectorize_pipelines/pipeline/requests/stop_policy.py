"""When a run over messages ends, beside when its source is exhausted."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime


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
