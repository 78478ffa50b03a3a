"""Waiting for providers that are away: one call at a time tries whether they are back.

Used by `calls`, in its thread.
"""

import logging
import time
from collections.abc import Callable, Iterator

from vectorize_pipelines.core.retrying import growing_pauses
from vectorize_pipelines.errors import ProviderUnavailableError

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0


class ProviderOutage:
    """What a run knows of its provider: whether it answers, and since when it does not.

    seconds  how long an outage is waited for
    """

    def __init__(self, seconds: float, now: Callable[[], float] = time.monotonic):
        self._seconds = seconds
        self._now = now
        self._since: float | None = None
        self._next_try = 0.0
        self._pauses: Iterator[float] = iter(())

    def may_call(self, running: int) -> bool:
        """Return whether one more call may be made beside those that are running."""
        return self._since is None or (running == 0 and self._now() >= self._next_try)

    def answered(self) -> None:
        """Note that the provider answered, whatever it said."""
        if self._since is not None:
            logger.info("the provider answers again, after %.0f s", self._now() - self._since)
        self._since = None

    def failed(self, error: Exception) -> ProviderUnavailableError | None:
        """Note that a call failed for a reason that may pass; return what to fail the run with once it lasts too long.

        Calls that ran beside each other fail together: only the first of them, and those that try, count.
        """
        now = self._now()
        if self._since is None:
            self._since = now
            self._pauses = growing_pauses(FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            logger.warning("the provider is away; waiting for it, %g s at most: %s", self._seconds, error)
        if now >= self._next_try:
            self._next_try = now + next(self._pauses)
        if now - self._since < self._seconds:
            return None
        return ProviderUnavailableError(
            f"{error}; it was waited for {now - self._since:.0f} s (pipeline.store_outage_seconds is "
            f"{self._seconds:g}); what waits is not acknowledged, and the next run judges it"
        )
