"""Several confined processes that run the same service, each used by one thread at a time."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from queue import LifoQueue
from typing import TypeVar

from vectorize_pipelines.core.daemon_threads import DaemonThreads
from vectorize_pipelines.sandbox.budget import ByteBudget
from vectorize_pipelines.sandbox.process import ANSWERS_BYTES, ConfinedProcess, Failures, ServiceSpec

_T = TypeVar("_T")


class ProcessPool:
    """`count` processes, each started when first needed, and as many threads that wait for them.

    The processes end by themselves within seconds when this process dies. For POSIX systems.
    """

    def __init__(
        self, count: int, spec: ServiceSpec, failures: Failures, *, answers_bytes: int = ANSWERS_BYTES
    ) -> None:
        """Take `answers_bytes`, which bounds what answers take together while they are read."""
        self._name = failures.noun.replace(" ", "-")
        answers = ByteBudget(answers_bytes)
        self._processes = [ConfinedProcess(spec, failures, answers) for _ in range(count)]
        self._free: LifoQueue[ConfinedProcess] = LifoQueue()  # so that few tasks start few processes
        for process in self._processes:
            self._free.put(process)
        self._threads = DaemonThreads(count, self._name)
        self._ending = threading.Lock()

    def submit(self, function: Callable[[], _T]) -> Future[_T]:
        """Call the function in a thread of the pool; it takes a `process` when it needs one.

        Raises `RuntimeError` where the pool is closed.
        """
        if self._threads.closed:
            raise RuntimeError(f"the pool of {self._name} processes is closed")
        return self._threads.submit(function)

    @contextmanager
    def process(self) -> Iterator[ConfinedProcess]:
        """Wait for a process, which nobody else uses inside the context."""
        process = self._free.get()
        try:
            yield process
        finally:
            self._free.put(process)

    def close(self) -> None:
        """End everything now, from whatever thread; a second call does nothing. Tasks in hand get an error."""
        self._threads.close()
        for process in self._processes:
            process.kill()
        with self._ending:
            # A process that is in use comes back as soon as its thread has seen it die.
            for process in [self._free.get() for _ in self._processes]:
                process.end()
                self._free.put(process)
