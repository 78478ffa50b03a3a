"""How many calls may run side by side: as many as the provider bears."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class AdaptiveLimit:
    """A limit of concurrent calls that is halved when the provider fails, and grows again as calls succeed.

    It grows as TCP's window does: by one for each success, which doubles it each round, up to half of what the provider
    last bore before it failed; from there on by one for as many successes as it allows calls. Calls wait in order. Used
    by one event loop.
    """

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic):
        """Begin at `most`, which is never exceeded."""
        self._most = float(most)
        self._now = now
        self._limit = self._threshold = self._most
        # Successes that are lacking until the limit counts as borne: as many as it allowed when it was last reduced.
        self._unproven = 0
        self._running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._reduced_at = float("-inf")

    @property
    def limit(self) -> int:
        """The calls that may run side by side at present."""
        return int(self._limit)

    @property
    def running(self) -> int:
        """The calls that run."""
        return self._running

    @asynccontextmanager
    async def slot(self, seconds: float | None = None) -> AsyncIterator[float]:
        """Hold a place among the calls, waited for so long at most; gives the time of its beginning, for `failed`.

        Raises `TimeoutError`.
        """
        async with asyncio.timeout(seconds):
            await self._acquire()
        try:
            yield self._now()
        finally:
            self._running -= 1
            self._wake()

    def succeeded(self) -> None:
        """Note that the provider has answered a call."""
        self._unproven -= 1
        step = 1.0 if self._limit < self._threshold else 1.0 / self._limit
        self._limit = min(self._most, self._limit + step)
        self._wake()

    def failed(self, began: float) -> None:
        """Note that the provider failed a call that began at that time.

        A call that began before the limit was last reduced tells nothing about the limit that there is now.
        """
        if began < self._reduced_at:
            return
        self._reduced_at = self._now()
        half = max(1.0, self._limit / 2)
        if self._unproven <= 0:  # else the failure goes on, and says nothing new about what the provider bears
            self._threshold = half
        self._limit = half
        self._unproven = self.limit

    async def _acquire(self) -> None:
        if self._running < self.limit and not self._waiting:
            self._running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn had come
                self._running -= 1
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and self._running < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._running += 1
                turn.set_result(None)
