"""Threads that read files some way ahead, and that nobody waits for where a read never ends.

A file may lie on a mount that hangs. The call that reads it then returns to nobody, but a run that is interrupted has
to end all the same: so its threads are no reason for the process to go on, and waiting for them ends with `close`.
"""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, InvalidStateError, wait
from contextlib import suppress
from typing import Any, TypeVar

from vectorize_pipelines.core.daemon_threads import DaemonThreads

Result = TypeVar("Result")


class ReadingThreads:
    """Threads that call functions side by side, in the order in which they come, each started when first needed."""

    def __init__(self, most: int, name: str):
        self._threads = DaemonThreads(most, name)
        self._closed: Future[None] = Future()

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Have the function called; after `close` its future is cancelled."""
        return self._threads.submit(call)

    def result(self, future: "Future[Result]") -> Result:
        """Return the function's result, or raise its error. Raises `CancelledError` once `close` has been called."""
        if not future.done():
            either: list[Future[Any]] = [future, self._closed]
            wait(either, return_when=FIRST_COMPLETED)
        if self._closed.done():
            raise CancelledError
        return future.result()

    def close(self) -> None:
        """Begin nothing more, and wait for nothing. Called from any thread; a second call does nothing."""
        with suppress(InvalidStateError):
            self._closed.set_result(None)
        self._threads.close()
