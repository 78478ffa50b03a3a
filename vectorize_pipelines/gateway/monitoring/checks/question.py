"""A question to a part that may not answer. Called by `checks.report` and `monitoring.remembered`."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from vectorize_pipelines.core.daemon_threads import DaemonThreads

Answer = TypeVar("Answer")


class Question(Generic[Answer]):
    """A question to one part, which blocks while it is asked: in a thread of its own, and never twice at a time.

    A part that has stopped answering keeps that thread. Who asks meanwhile waits for the answer to come, not for
    another one. Belongs to one event loop.
    """

    def __init__(self, name: str, ask: Callable[[], Answer]) -> None:
        self._threads = DaemonThreads(1, f"health-{name}")
        self._ask = ask
        self._answer: asyncio.Future[Answer] | None = None

    def put(self) -> "asyncio.Future[Answer]":
        """Ask, unless that is under way, and return where the answer will be. Nobody has to wait for it."""
        if self._answer is None or self._answer.done():
            self._answer = asyncio.wrap_future(self._threads.submit(self._ask))
            self._answer.add_done_callback(_look_at)
        return self._answer

    async def answer(self, seconds: float) -> Answer:
        """Return the answer. Raises `TimeoutError` where it does not come in time, and what asking raises."""
        answer = self.put()
        done, _ = await asyncio.wait([answer], timeout=seconds)
        if not done:
            raise TimeoutError
        return answer.result()

    def close(self) -> None:
        """Ask nothing any more. Waits for nothing."""
        self._threads.close()


def _look_at(answer: "asyncio.Future[Answer]") -> None:
    """A failure that nobody waits for any more is no defect, which asyncio would call it."""
    if not answer.cancelled():
        answer.exception()
