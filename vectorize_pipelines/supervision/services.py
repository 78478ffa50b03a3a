"""One service: the process that is started for it, and what tells that it does no more."""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from signal import Signals

import psutil

#: Looking at the children of a process reads all of the machine's: not more often than this.
_CHILD_SECONDS = 1.0
_TIMES_MISSING = 2


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Service:
    """A program to be kept running.

    inherited  file descriptors that the process gets
    child      words of the command line of a child without which the process does nothing, though it lives on
    ready      whether the services behind it may be started
    """

    name: str
    command: Sequence[str]
    inherited: tuple[int, ...] = ()
    child: tuple[str, ...] = ()
    ready: Callable[[], bool] = _always


class RunningService:
    """The process of a service, in a process group of its own together with all that it starts."""

    def __init__(self, service: Service):
        self.service = service
        self._process = subprocess.Popen(
            service.command, stdin=subprocess.DEVNULL, pass_fds=service.inherited, process_group=0
        )
        self._child = _Child(self._process.pid, service.child) if service.child else None

    @property
    def pid(self) -> int:
        """The number of its process, and of its process group."""
        return self._process.pid

    def reap(self) -> int | None:
        """Return the exit status once it has ended."""
        return self._process.poll()

    def ending(self) -> str | None:
        """Return how the service ended; None while it works.

        A process without its child is killed, by itself: what else it has started, such as runs, goes on.
        """
        status = self._process.poll()
        if status is None and self._child is not None and self._child.is_gone():
            self._process.kill()
            self._process.wait()
            return f"lost its process `{' '.join(self.service.child)}`"
        if status is None:
            return None
        return f"was ended by {Signals(-status).name}" if status < 0 else f"ended with exit code {status}"


class _Child:
    """A look, once in a while, whether a child of a process is there."""

    def __init__(self, parent: int, words: tuple[str, ...]):
        self._parent = parent
        self._words = words
        self._seen = False
        self._missing = 0
        self._looked = 0.0

    def is_gone(self) -> bool:
        """Return whether it was there once and is not any more."""
        now = time.monotonic()
        if now - self._looked >= _CHILD_SECONDS:
            self._looked = now
            present = self._is_there()
            self._seen = self._seen or present
            self._missing = 0 if present else self._missing + 1
        return self._seen and self._missing >= _TIMES_MISSING

    def _is_there(self) -> bool:
        try:
            children = psutil.Process(self._parent).children()
        except psutil.NoSuchProcess:
            return False
        return any(self._is_it(child) for child in children)

    def _is_it(self, process: psutil.Process) -> bool:
        try:
            command = process.cmdline()
            return process.status() != psutil.STATUS_ZOMBIE and set(self._words) <= set(command)
        except psutil.Error:
            return False
