"""Figures over all requests of the ledger: among millions of rows they take long to find.

Shown by the routes of tasks and by `gateway.routes.metrics`, and asked by `tasks.estimates`.
"""

from dataclasses import dataclass
from types import TracebackType
from typing import Self

from anyio import to_thread

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.monitoring.remembered import Reading, Remembered
from vectorize_pipelines.state.request_rows import RequestRow
from vectorize_pipelines.state.request_totals import DURATION_BOUNDS, RequestSums, RequestTotals

#: So many requests are counted in about 10 ms, and for each caller again.
QUICKLY_COUNTED = 100_000
#: The same of the newest completed requests, by which rates go.
QUICKLY_TIMED = 1_000
#: Waiting requests before one that are counted; where there are more, all that wait are taken to be before it.
MOST_COUNTED = 10_000


class Since:
    """The growth of sums since they were first seen, as Prometheus' counters: never less than before.

    Old requests are cleaned up, and sums shrink: what finished between two looks with a clean-up in between may be
    missed, in part or in whole.
    """

    def __init__(self) -> None:
        self._last: RequestSums | None = None
        self._grown = RequestSums(0, (0,) * (len(DURATION_BOUNDS) + 1), 0.0)

    def take(self, sums: RequestSums) -> RequestSums:
        """Return by how much they have grown up to these."""
        last = self._last or sums
        self._last = sums
        durations = zip(self._grown.durations, last.durations, sums.durations, strict=True)
        self._grown = RequestSums(
            self._grown.vectors + max(0, sums.vectors - last.vectors),
            tuple(grown + max(0, new - old) for grown, old, new in durations),
            self._grown.seconds + max(0.0, sums.seconds - last.seconds),
        )
        return self._grown


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums over what the ledger has, and how much they have grown since the server has started."""

    present: RequestSums
    since_start: RequestSums


class LedgerFigures:
    """The number of requests by state, and the expected time of those that wait. An async context manager.

    Every method may raise `LedgerError`, and `Problem` where it takes too long for the first time.
    """

    def __init__(self, totals: RequestTotals) -> None:
        since = Since()

        def sums() -> Sums:
            present = totals.sums()
            return Sums(present, since.take(present))

        self._totals = totals
        self._counts = Remembered(
            "counts", totals.counts_by_type, lambda counts: sum(counts.values()) <= QUICKLY_COUNTED
        )
        self._rates = Remembered(
            "rates", totals.rates, lambda rates: sum(rate.requests for rate in rates.values()) <= QUICKLY_TIMED
        )
        self._sums = Remembered("sums", sums)

    async def counts(self, task_type: str | None = None) -> Reading[dict[RequestState, int]]:
        """Return how many requests, of this type or (None) of all, are in each state; with 0 for those without any.

        As it is now where there are at most `QUICKLY_COUNTED`; else some seconds old.
        """
        reading = await self._counts.latest()
        counts = dict.fromkeys(RequestState, 0)
        for (kind, state), number in reading.value.items():
            if task_type is None or kind == task_type:
                counts[state] += number
        return Reading(counts, reading.as_of, reading.began, reading.due)

    async def sums(self) -> Reading[Sums]:
        """Return the sums."""
        return await self._sums.latest()

    async def seconds_until_done(self, row: RequestRow) -> float | None:
        """Return how long a request that waits takes until it is done, at the rate of the last ones; None: no rate."""
        rate = (await self._rates.latest()).value.get(row.modality)
        if rate is None:
            return None
        ahead = await to_thread.run_sync(self._totals.waiting_before, row, MOST_COUNTED)
        if ahead >= MOST_COUNTED:
            ahead = max(ahead, await self._waiting(row.task_type) - 1)
        return rate.seconds_for(ahead + 1)

    async def seconds_behind_all(self, modality: Modality, task_type: str) -> float | None:
        """Return how long a new request takes until it is done, behind all of its type that wait; None: no rate."""
        rate = (await self._rates.latest()).value.get(modality)
        return None if rate is None else rate.seconds_for(await self._waiting(task_type) + 1)

    async def __aenter__(self) -> Self:
        self._counts.begin()
        self._sums.begin()  # counters count from here on
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for remembered in (self._counts, self._rates, self._sums):
            remembered.close()

    async def _waiting(self, task_type: str | None) -> int:
        return (await self.counts(task_type)).value[RequestState.PENDING]
