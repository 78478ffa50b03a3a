"""Figures over all requests of the ledger, for routes: among millions of rows they take long to find.

Called by the routes of tasks, in threads: everything here blocks.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from vectorize_pipelines.core.daemon_threads import DaemonThreads
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow

logger = logging.getLogger(__name__)

#: So many requests are counted in about 10 ms, and for each caller again.
QUICKLY_COUNTED = 100_000
#: The same of the newest completed requests, by which rates go.
QUICKLY_TIMED = 1_000
#: What takes longer is kept for so many times as long as it took: then it takes a twentieth of a core at most.
AGE_FACTOR = 20
#: So long, beyond that, callers are given what is known while it is found again; later they wait for it.
GRACE_SECONDS = 60.0
#: Waiting requests before one that are counted; where there are more, all that wait are taken to be before it.
MOST_COUNTED = 10_000

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class _Found(Generic[Value]):
    """What was found: from when on, and in how many seconds."""

    value: Value
    began: float
    took: float


class Remembered(Generic[Value]):
    """A value that takes long to find, found again as often as that is worth it. Safe for use by several threads.

    After a value that `is_quick` it is found for each caller, as it is then. Otherwise callers are given what was found
    last, and a thread finds it again once it is older than `AGE_FACTOR` times the time that it took.
    """

    def __init__(
        self,
        find: Callable[[], Value],
        is_quick: Callable[[Value], bool],
        threads: DaemonThreads,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._is_quick = is_quick
        self._threads = threads
        self._clock = clock
        self._found: _Found[Value] | None = None
        self._refreshing = False
        self._changing = threading.Lock()
        self._finding = threading.Lock()

    def get(self) -> Value:
        """Return the value. Raises what finding it does."""
        asked = self._clock()
        with self._changing:
            found = self._found
            if found is not None and not self._is_quick(found.value):
                beyond = asked - found.began - AGE_FACTOR * found.took
                if beyond >= 0 and not self._refreshing:
                    self._refreshing = True
                    self._threads.submit(self._refresh)
                if beyond < GRACE_SECONDS:
                    return found.value
        return self._found_since(asked)

    def _found_since(self, moment: float) -> Value:
        """Find the value, unless another thread has found it meanwhile, having begun at this moment or later."""
        with self._finding:
            if self._found is None or self._found.began < moment:
                began = self._clock()
                value = self._find()
                self._found = _Found(value, began, self._clock() - began)
            return self._found.value

    def _refresh(self) -> None:
        try:
            self._found_since(self._clock())
        except LedgerError as error:  # whoever waits for it is told so
            logger.warning("figures of the ledger stay as they were: %s", error)
        finally:
            with self._changing:
                self._refreshing = False


class LedgerFigures:
    """How many requests there are, and how long those that wait will. Every method may raise `LedgerError`."""

    def __init__(self, ledger: RequestLedger) -> None:
        self._ledger = ledger
        self._threads = DaemonThreads(1, "ledger-figures")
        self._counts = Remembered(
            ledger.counts_by_type, lambda counts: sum(counts.values()) <= QUICKLY_COUNTED, self._threads
        )
        self._rates = Remembered(
            ledger.rates, lambda rates: sum(rate.requests for rate in rates.values()) <= QUICKLY_TIMED, self._threads
        )

    def close(self) -> None:
        """Find nothing again; a second call does nothing."""
        self._threads.close()

    def counts(self, task_type: str | None = None) -> dict[RequestState, int]:
        """Return how many requests, of this type or (None) of all, are in each state; with 0 for those without any.

        As it is now where there are at most `QUICKLY_COUNTED`; else some seconds old.
        """
        counts = dict.fromkeys(RequestState, 0)
        for (kind, state), number in self._counts.get().items():
            if task_type is None or kind == task_type:
                counts[state] += number
        return counts

    def seconds_until_done(self, row: RequestRow) -> float | None:
        """Return how long a request that waits takes until it is done, at the rate of the last ones; None: no rate."""
        rate = self._rates.get().get(row.modality)
        if rate is None:
            return None
        ahead = self._ledger.waiting_before(row, MOST_COUNTED)
        if ahead >= MOST_COUNTED:
            ahead = max(ahead, self.counts(row.task_type)[RequestState.PENDING] - 1)
        return rate.seconds_for(ahead + 1)

    def seconds_behind_all(self, modality: Modality, task_type: str) -> float | None:
        """Return how long a new request takes until it is done, behind all of its type that wait; None: no rate."""
        rate = self._rates.get().get(modality)
        return None if rate is None else rate.seconds_for(self.counts(task_type)[RequestState.PENDING] + 1)
