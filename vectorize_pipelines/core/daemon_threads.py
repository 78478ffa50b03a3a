"""Threads that nobody waits for: an interpreter that ends leaves a call that hangs, where the standard library's
executor would wait for it. Used by `sandbox.pool`, `sources.reading_threads` and `gateway.monitoring`.
"""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")


class DaemonThreads:
    """Threads that call functions side by side, in the order in which they come, each started when first needed."""

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._changed = threading.Condition()
        self._tasks: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._threads = self._idle_threads = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """True once `close` has been called."""
        return self._closed

    def submit(self, call: Callable[[], Result]) -> Future[Result]:
        """Have the function called. After `close` the future is cancelled."""
        future: Future[Result] = Future()
        with self._changed:
            if self._closed:
                _cancel(future)
                return future
            self._tasks.append((future, call))
            if self._idle_threads < len(self._tasks) and self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._threads}", daemon=True).start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Cancel what has not begun, and wait for nothing. Called from any thread; a second call does nothing."""
        with self._changed:
            self._closed = True
            waiting = [future for future, _ in self._tasks]
            self._tasks.clear()
            self._changed.notify_all()
        for future in waiting:
            _cancel(future)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._idle_threads += 1
                self._changed.wait_for(lambda: self._tasks or self._closed)
                self._idle_threads -= 1
                if not self._tasks:
                    return
                future, call = self._tasks.popleft()
            _run(future, call)
            del future, call  # or the last result would be held until the next one


def _run(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 (handed to the caller that asks for the result)
        future.set_exception(error)
    else:
        future.set_result(result)


def _cancel(future: Future[Any]) -> None:
    future.cancel()
    future.set_running_or_notify_cancel()
