"""How many calls may run side by side: as many as the provider bears."""

import asyncio
import time
from collections import deque
from collections.abc import Callable

#: Each success pays for so much of a failure, and so many are paid for ahead at most: a provider that fails one call in
#: a hundred bears what it bears, and halving for each would leave some 14 calls, the square root of twice 100.
TOLERATED_SHARE = 0.05
MOST_TOLERATED = 3.0


class AdaptiveLimit:
    """A limit of concurrent calls that is halved when the provider fails, and grows again as calls succeed.

    Failures that are few among successes change nothing, by the account that Finagle's retry budget keeps.

    It grows as TCP's window does: by one for each success, which doubles it each round, up to half of what the provider
    last bore before it failed; from there on by one for as many successes as it allows calls. Calls wait in order. Used
    by one event loop.
    """

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic):
        """Begin at `most`, which is never exceeded. `now`: the clock of `failed`."""
        self._most = float(most)
        self.now = now
        self._limit = self._threshold = self._most
        # Successes that are lacking until the limit counts as borne: as many as it allowed when it was last reduced.
        self._unproven = 0
        self._tolerated = 0.0
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

    @property
    def has_room(self) -> bool:
        """Return whether a place could be taken at once, before nobody who waits."""
        return self._running < self.limit and not self._waiting

    def enter(self) -> bool:
        """Take a place among the calls where there is room, until `leave`; return whether there was."""
        if not self.has_room:
            return False
        self._running += 1
        return True

    async def wait(self, seconds: float | None = None) -> None:
        """Take a place among the calls, until `leave`; wait for it for so long at most. Raises `TimeoutError`."""
        async with asyncio.timeout(seconds):
            await self._acquire()

    def leave(self) -> None:
        """Give a place back."""
        self._running -= 1
        self._wake()

    def succeeded(self) -> None:
        """Note that the provider has answered a call."""
        self._unproven -= 1
        self._tolerated = min(MOST_TOLERATED, self._tolerated + TOLERATED_SHARE)
        step = 1.0 if self._limit < self._threshold else 1.0 / self._limit
        self._limit = min(self._most, self._limit + step)
        self._wake()

    def failed(self, began: float) -> None:
        """Note that the provider failed a call that began at that time.

        A call that began before the limit was last reduced tells nothing about the limit that there is now.
        """
        if began < self._reduced_at:
            return
        if self._tolerated >= 1:
            self._tolerated -= 1
            return
        self._reduced_at = self.now()
        half = max(1.0, self._limit / 2)
        if self._unproven <= 0:  # else the failure goes on, and says nothing new about what the provider bears
            self._threshold = half
        self._limit = half
        self._unproven = self.limit

    async def _acquire(self) -> None:
        if self.enter():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn had come
                self.leave()
            raise

    def _wake(self) -> None:
        while self._waiting and self._running < self.limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self._running += 1
                turn.set_result(None)
