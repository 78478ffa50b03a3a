"""Waits out a store that is away, so that only the call that failed is made again.

One `StoreRetry` belongs to a run. `writing.written` makes its calls through `call`, and so do the look-ups of what the
store has, which find no store either. Nothing is acknowledged before the store has it, so none of this decides what is
stored. What becomes of batches meanwhile: `spill`.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from vectorize_pipelines.core.retrying import growing_pauses, retry
from vectorize_pipelines.errors import StoreUnavailableError

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
LOG_INTERVAL_SECONDS = 10.0


class StoreRetry:
    """Makes calls to the store of a run again for as long as it is away. Used by several threads.

    With `seconds` 0 nothing is waited for.
    """

    def __init__(self, seconds: float = 0.0, first_pause: float | None = None):
        """`first_pause`, in seconds: None is `FIRST_PAUSE_SECONDS`."""
        self._seconds = seconds
        self._first_pause = FIRST_PAUSE_SECONDS if first_pause is None else first_pause
        self._changing = threading.Lock()
        self._waiting = 0
        self._left = threading.Event()
        self._lasted = False
        self._listeners: list[Callable[[], None]] = []

    @property
    def on(self) -> bool:
        """Return whether somebody waits for the store."""
        return self._waiting > 0

    def listen(self, began: Callable[[], None]) -> None:
        """Have `began` called whenever an outage has begun, by the thread that noticed."""
        self._listeners.append(began)

    def close(self) -> None:
        """End every waiting soon, with the failure that was waited out. A second call does nothing."""
        self._left.set()

    def call(self, call: Callable[[], Result], began: Callable[[], None] = lambda: None) -> Result:
        """Return what the call returns, which is made again for as long as the store is away.

        `began` is called before the first waiting. Raises `StoreUnavailableError` once the time is up, and at once
        every other error: what is refused stays refused.
        """
        if not self._seconds:
            return call()
        noticed = shown = -math.inf
        with ExitStack() as outage:

            def before_pause(error: Exception, pause: float) -> None:
                nonlocal noticed, shown
                now = time.monotonic()
                if noticed == -math.inf:
                    noticed = shown = now
                    outage.enter_context(self._noticed(error))
                    began()
                elif now - shown >= LOG_INTERVAL_SECONDS:
                    shown = now
                    logger.info("the store has been away for %.0f s%s: %s", now - noticed, self._progress(), error)

            try:
                return retry(call, self._pauses(), _is_away, before_pause=before_pause, sleep=self._left.wait)
            except StoreUnavailableError as error:
                raise self._given_up(error, time.monotonic() - noticed) from error

    def _pauses(self) -> Iterator[float]:
        """Yield pauses that grow, until the time is up that begins with the first of them."""
        end = time.monotonic() + self._seconds
        growing = growing_pauses(self._first_pause, LONGEST_PAUSE_SECONDS)
        while (remaining := end - time.monotonic()) > 0:
            yield min(next(growing), remaining)

    def _given_up(self, error: StoreUnavailableError, waited: float) -> StoreUnavailableError:
        self._lasted = True
        return StoreUnavailableError(
            f"{error}; it was waited for {waited:.0f} s (pipeline.store_outage_seconds is {self._seconds:g}); "
            "nothing that waited is acknowledged, and the next run takes its vectors from the embedding cache, unless "
            "that is off"
        )

    @contextmanager
    def _noticed(self, error: Exception) -> Iterator[None]:
        with self._changing:
            self._waiting += 1
            first = self._waiting == 1
        try:
            if first:
                logger.warning("the store is away; waiting for it, %g s at most: %s", self._seconds, error)
                for began in self._listeners:
                    began()
            yield
        finally:
            with self._changing:
                self._waiting -= 1

    def _progress(self) -> str:
        """Describe what waits for the store, for the log."""
        return ""


def _is_away(failure: Exception) -> bool:
    return isinstance(failure, StoreUnavailableError)
