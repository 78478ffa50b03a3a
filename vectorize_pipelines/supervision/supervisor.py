"""Starts services one after another, starts again what ends, and ends with an error where that does not help."""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.supervision import guardian
from vectorize_pipelines.supervision.services import RunningService, Service

RESTARTS = 3
RESTARTS_WITHIN_SECONDS = 60.0
#: So long a service may take to end, and what it has started, before it is killed.
GRACE_SECONDS = 20.0
_POLL_SECONDS = 0.1
_END_POLL_SECONDS = 0.02
#: Looking at a group reads all processes of the machine.
_FORMER_SECONDS = 2.0
_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ServiceError(VectorizeError):
    """A service ended again and again, or cannot be started."""


class _Asked(Exception):  # noqa: N818
    """Somebody asked for the end."""


class Supervisor:
    """Runs services until a signal asks for their end, or one of them cannot be kept up.

    `folder` is removed at the end; `held` are file descriptors, such as of locks, that stay open until all has ended,
    also where this process is killed.
    """

    def __init__(
        self,
        services: Sequence[Service],
        folder: Path,
        held: tuple[int, ...] = (),
        grace_seconds: float = GRACE_SECONDS,
    ):
        self._services = services
        self._folder = folder
        self._held = held
        self._grace_seconds = grace_seconds
        self._running: list[RunningService] = []
        #: Of services that were started again: runs that they had launched go on in them.
        self._former: list[int] = []
        self._restarts: dict[str, list[float]] = {service.name: [] for service in services}
        self._looked = 0.0
        self._asked: list[int] = []
        self._guardian: subprocess.Popen[str]

    def run(self) -> int:
        """Return the exit status: 0 after SIGTERM, 130 after Ctrl-C. Raises `ServiceError`.

        Whichever it is, nothing that was started is left.
        """
        with self._signals():
            self._guardian = self._new_guardian()
            try:
                for service in self._services:
                    self._start(service)
                    self._watch_until(service)
                while True:
                    self._watch()
            except _Asked:
                return _INTERRUPTED if self._asked[0] == signal.SIGINT else 0
            finally:
                self._end()

    def _watch_until(self, service: Service) -> None:
        while not service.ready():
            self._watch()

    def _watch(self) -> None:
        """Look once at everything, and wait a moment."""
        if self._asked:
            raise _Asked
        for place, running in enumerate(self._running):
            ending = running.ending()
            if ending is not None:
                self._restart(place, ending)
        if self._guardian.poll() is not None:
            self._guardian = self._new_guardian()
        self._forget_former()
        time.sleep(_POLL_SECONDS)

    def _forget_former(self) -> None:
        """Forget groups of former processes in which nothing runs any more: their numbers may be used again."""
        now = time.monotonic()
        if self._former and now - self._looked >= _FORMER_SECONDS:
            self._looked = now
            for group in [group for group in self._former if not guardian.is_alive(group)]:
                self._former.remove(group)
                self._tell("ended", group)

    def _start(self, service: Service) -> None:
        try:
            running = RunningService(service)
        except OSError as error:
            raise ServiceError(f"the {service.name} cannot be started: {error}") from None
        self._running.append(running)
        self._tell("started", running.pid)

    def _restart(self, place: int, ending: str) -> None:
        running = self._running.pop(place)
        self._former.append(running.pid)
        name = running.service.name
        now = time.monotonic()
        recent = [at for at in self._restarts[name] if now - at < RESTARTS_WITHIN_SECONDS]
        if len(recent) >= RESTARTS:
            raise ServiceError(
                f"the {name} (process {running.pid}) {ending}, after it was started again {len(recent)} times within "
                f"{RESTARTS_WITHIN_SECONDS:.0f} s: its output above says why"
            )
        self._restarts[name] = [*recent, now]
        print(f"the {name} (process {running.pid}) {ending}; it is started again", file=sys.stderr, flush=True)
        self._start(running.service)
        self._running.insert(place, self._running.pop())

    def _new_guardian(self) -> "subprocess.Popen[str]":
        """Start the process that ends everything, in a session of its own."""
        arguments = [str(self._grace_seconds), str(self._folder), *map(str, self._groups())]
        return subprocess.Popen(
            [sys.executable, "-I", "-S", guardian.__file__, *arguments],
            stdin=subprocess.PIPE,
            text=True,
            bufsize=1,
            pass_fds=self._held,
            start_new_session=True,
        )

    def _tell(self, event: str, group: int) -> None:
        assert self._guardian.stdin is not None
        # Where the guardian was killed, the next look starts another one, which is given all groups.
        with contextlib.suppress(BrokenPipeError):
            self._guardian.stdin.write(f"{event} {group}\n")

    def _end(self) -> None:
        """Have the guardian end everything, and wait for it. After a further signal nothing is waited for."""
        asked = len(self._asked)
        while True:
            assert self._guardian.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._guardian.stdin.close()
            while self._guardian.poll() is None:
                self._forget_ended()
                if len(self._asked) > asked:
                    for group in self._groups():
                        guardian.send(group, signal.SIGKILL)
                time.sleep(_END_POLL_SECONDS)
            if self._guardian.returncode == 0:
                return
            self._guardian = self._new_guardian()

    def _forget_ended(self) -> None:
        """Reap what has ended, and forget groups that nobody is in: their numbers may be used again."""
        self._running = [each for each in self._running if each.reap() is None or guardian.existing([each.pid])]
        self._former = guardian.existing(self._former)

    def _groups(self) -> list[int]:
        return [*self._former, *(running.pid for running in self._running)]

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Note the signals that ask for the end; a shell may have had this process ignore that of Ctrl-C."""
        former = {number: signal.signal(number, lambda got, _: self._asked.append(got)) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
