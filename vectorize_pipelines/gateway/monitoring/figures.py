"""Figures over all requests of the ledger, looked up in the background. `gateway.routes.metrics` shows them.

With millions of rows such a look takes seconds. It is taken when somebody asks, again only after a pause that is many
times as long, and by one thread: whoever asks meanwhile is told what the last one found, and when that was.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from types import TracebackType
from typing import Generic, Self, TypeVar

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.monitoring.checks.question import Question
from vectorize_pipelines.gateway.problems import Problem
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_totals import DURATION_BOUNDS, RequestSums, RequestTotals

#: The least time between two looks, and how many times as long as a look the pause after it is at least.
LEAST_PAUSE_SECONDS = 1.0
PAUSE_FACTOR = 20
#: So long a look is waited for where there is an older one to show, and where there is none.
PATIENCE_SECONDS = 0.5
FIRST_SECONDS = 30.0

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Reading(Generic[Found]):
    """What a look found, and when it began. `due`: the monotonic time from which on another one may be taken."""

    found: Found
    as_of: datetime
    due: float


class Refreshed(Generic[Found]):
    """The latest of something that takes a while to look up. Belongs to one event loop."""

    def __init__(self, name: str, look: Callable[[], Found]) -> None:
        self._look = look
        self._question = Question(name, self._take)
        self._reading: Reading[Found] | None = None

    def begin(self) -> None:
        """Take the first look, which nobody waits for."""
        self._question.put()

    async def latest(self) -> Reading[Found]:
        """Return the latest. Raises what a look raises, and `Problem` where the first one takes too long."""
        reading = self._reading
        if reading is not None and time.monotonic() < reading.due:
            return reading
        with suppress(TimeoutError):  # then the older one has to do
            await self._question.answer(FIRST_SECONDS if reading is None else PATIENCE_SECONDS)
        if self._reading is None:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the requests are being counted for the first time since the server has started",
                headers={"Retry-After": "10"},
            )
        return self._reading

    def close(self) -> None:
        """Look no more."""
        self._question.close()

    def _take(self) -> None:
        as_of, began = datetime.now(UTC), time.monotonic()
        found = self._look()
        ended = time.monotonic()
        pause = max(LEAST_PAUSE_SECONDS, PAUSE_FACTOR * (ended - began))
        self._reading = Reading(found, as_of, ended + pause)


class Since:
    """How much sums have grown since they were seen first, as counters of Prometheus are: never less than before.

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


class Figures:
    """The figures of one installation. An async context manager."""

    def __init__(self, ledger: RequestLedger, totals: RequestTotals) -> None:
        since = Since()

        def sums() -> Sums:
            present = totals.sums()
            return Sums(present, since.take(present))

        self._counts: Refreshed[dict[RequestState, int]] = Refreshed("counts", ledger.counts)
        self._sums = Refreshed("sums", sums)

    async def counts(self) -> Reading[dict[RequestState, int]]:
        """Return how many requests are in each state. Raises `LedgerError` and `Problem`."""
        return await self._counts.latest()

    async def sums(self) -> Reading[Sums]:
        """Return the sums. Raises `LedgerError` and `Problem`."""
        return await self._sums.latest()

    async def __aenter__(self) -> Self:
        self._counts.begin()
        self._sums.begin()  # counters count from here on
        await asyncio.sleep(0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._counts.close()
        self._sums.close()
