"""One confined process, as its parent sees it."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import Any, TypeVar

from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.sandbox.budget import ByteBudget
from vectorize_pipelines.sandbox.confinement import clean_environment, exposed_folders, module_folders, readable_paths
from vectorize_pipelines.sandbox.frames import Channel, InvalidAnswerError, Message

logger = logging.getLogger(__name__)

#: Parsers and codecs leak, and fragment what they free; a fresh process takes a quarter of a second.
TASKS_PER_PROCESS = 1_000
START_SECONDS = 120.0
MAX_REASON_CHARACTERS = 2_000
#: Of messages that are no answers.
SMALL_HEADER_BYTES = 64 * 2**10
#: What the answers of several processes may take together while they are read; a larger one is read alone.
ANSWERS_BYTES = 2**30
#: An answer that takes less than this part of it is read at once.
_SMALL_PART = 64

COMMAND = "import sys; sys.path[:] = {path!r}; from vectorize_pipelines.sandbox.worker import main; main()"

_T = TypeVar("_T")


def _held(size: int) -> AbstractContextManager[None]:
    """Hold nothing: for when nothing bounds what processes take together."""
    del size
    return nullcontext()


@dataclass(frozen=True, slots=True)
class ServiceSpec:
    """A service that a process runs, and what it may take.

    service  `module:function`: called in the process with `config`, a JSON value, it returns a `Service`
    """

    service: str
    config: Mapping[str, Any]
    memory_bytes: int
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class AnswerLimits:
    """The largest answer that is taken, in bytes of JSON and of body."""

    header: int
    body: int


@dataclass(frozen=True, slots=True)
class Failures:
    """The errors that tasks end in.

    noun, done  how the texts name the process and its work: "parser", "parsed"
    known       errors that a service may raise, by the names of their classes
    crashed     any other ending
    timeout, memory  ready-made: the process is beyond a limit
    """

    noun: str
    done: str
    known: Mapping[str, type[ItemError]]
    crashed: type[ItemError]
    timeout: Callable[[], ItemError]
    memory: Callable[[], ItemError]

    def closed(self) -> ItemError:
        """Return the error for a task that came to nothing since nobody wants it any more."""
        return self.crashed(f"was not {self.done}: the {self.noun} pool has been closed")


def known_errors(module: ModuleType, *others: type[ItemError]) -> dict[str, type[ItemError]]:
    """Return the `ItemError`s that a module defines, and others, by name: as `Failures.known` takes them."""
    defined = (each for each in vars(module).values() if isinstance(each, type) and issubclass(each, ItemError))
    own = [each for each in defined if each.__module__ == module.__name__]
    return {each.__name__: each for each in (*own, *others)}


class ConfinedProcess:
    """A process that is started when there is a task, and again after it has died or served its time.

    Used by one thread at a time, but for `kill`. Whatever ends it, at whatever moment, concerns the one task that it
    has. What it answers is believed as little as the bytes that it reads.
    """

    def __init__(self, spec: ServiceSpec, failures: Failures, answers: ByteBudget | None = None) -> None:
        """Take `answers`, which bounds what this process's answers take together with those of others."""
        self._answers = answers or ByteBudget(ANSWERS_BYTES)
        self._spec = spec
        self._failures = failures
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._tasks = 0
        self._closed = False
        self.lacking: Mapping[str, str] = {}

    def call(
        self,
        task: Message,
        limits: AnswerLimits,
        read: Callable[[Message], _T],
        *,
        descriptor: int | None = None,
        hold: Callable[[int], AbstractContextManager[None]] = _held,
        wanted: Callable[[], bool] | None = None,
    ) -> _T:
        """Return what `read` makes of the answer to a task; it raises `InvalidAnswerError` for one that cannot be.

        `descriptor` is handed over with the task. `hold` is entered with the bytes that the service reserves, until
        the task has ended. `wanted` is asked every second, and ends the task by being false. Raises the `ItemError`
        that the task ended in; the process may be gone then.
        """
        failures = self._failures
        try:
            return self._answer(self._given(task, descriptor), limits, read, hold, wanted)
        except TimeoutError as error:
            self.end()
            raise failures.timeout() from error
        except InvalidAnswerError as error:
            self.end()
            raise failures.crashed(
                f"made the {failures.noun} process answer what it must not ({error}); exclude it"
            ) from error
        except (EOFError, OSError) as error:
            ending = self.end()
            if self._closed or (wanted is not None and not wanted()):
                raise failures.closed() from error
            raise failures.crashed(
                f"ended the {failures.noun} process ({ending}); if it does so again, exclude it"
            ) from error
        except ItemError:  # what the process itself reported, in an answer that has been read to its end
            raise
        except BaseException:
            self.end()  # half an answer in the channel would be taken for the next one
            raise

    def start(self) -> None:
        """Start the process unless it runs. Raises `RuntimeError` where none can be started."""
        if self._channel is None:
            self._start()

    def kill(self) -> None:
        """Kill the process and let no other be started. The thread that waits for it then calls `end`."""
        with self._lock:
            self._closed = True
            if self._popen is not None:
                self._popen.kill()

    def end(self) -> str:
        """Kill the process unless it is dead, free what belonged to it, and say how it ended."""
        with self._lock:
            popen, self._popen = self._popen, None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._tasks = 0
        if popen is None:
            return "not running"
        popen.kill()
        return _ending(popen.wait())

    def _answer(
        self,
        channel: Channel,
        limits: AnswerLimits,
        read: Callable[[Message], _T],
        hold: Callable[[int], AbstractContextManager[None]],
        wanted: Callable[[], bool] | None,
    ) -> _T:
        with ExitStack() as room:
            answer = self._receive(channel, limits, wanted, room)
            if not isinstance(answer.header, dict) or "needs" not in answer.header:
                return self._read(answer, read)
            size = _size(answer.header["needs"])
            del answer
        with hold(size), ExitStack() as room:
            channel.send(Message({"granted": True}), time.monotonic() + START_SECONDS)
            return self._read(self._receive(channel, limits, wanted, room), read)

    def _receive(
        self, channel: Channel, limits: AnswerLimits, wanted: Callable[[], bool] | None, room: ExitStack
    ) -> Message:
        """Return the next message; `room` then holds what it takes, of what all answers may take."""
        deadline = time.monotonic() + self._spec.timeout_seconds
        largest = max(limits.header, SMALL_HEADER_BYTES)

        def admit(size: int) -> None:
            if size > self._answers.most // _SMALL_PART:
                room.enter_context(self._answers.hold(size))

        return channel.receive(largest, limits.body, deadline, wanted, admit)

    def _read(self, answer: Message, read: Callable[[Message], _T]) -> _T:
        """Raise the error that the process reports, where it reports one."""
        header = answer.header
        if not isinstance(header, dict) or len(header.keys() & {"answer", "error", "failed"}) != 1:
            raise InvalidAnswerError("neither an answer nor an error")
        if "answer" in header:
            found = read(Message(header["answer"], answer.body))
            self._count()
            return found
        self._count()
        if "failed" in header:
            logger.warning(
                "a %s process failed:\n%s", self._failures.noun, _printable(header.get("trace"), keep_lines=True)
            )
            raise self._failures.crashed(f"made the {self._failures.noun} fail with {_printable(header['failed'])}")
        if header["error"] == "MemoryError":
            self.end()  # what was left behind is unknown
            raise self._failures.memory()
        if not isinstance(header["error"], str) or header["error"] not in self._failures.known:
            raise InvalidAnswerError("an unknown error")
        raise self._failures.known[header["error"]](_printable(header.get("reason")))

    def _count(self) -> None:
        self._tasks += 1
        if self._tasks >= TASKS_PER_PROCESS:
            self.end()

    def _given(self, task: Message, descriptor: int | None) -> Channel:
        """Return the channel to a process that has taken the task. Raises EOFError or OSError if that died."""
        if self._channel is not None:
            try:
                return self._hand_over(self._channel, task, descriptor)
            except (EOFError, OSError):
                self.end()  # it had died with nothing to do: no fault of this task
        return self._hand_over(self._start(), task, descriptor)

    def _hand_over(self, channel: Channel, task: Message, descriptor: int | None) -> Channel:
        """Wait until the process confirms, or a death before the task would look like one because of it."""
        deadline = time.monotonic() + START_SECONDS
        if descriptor is not None:
            task = Message({**task.header, "descriptor": True}, task.body)
        try:
            channel.send(task, deadline, descriptor)
            self._confirmed(channel, "taken", deadline)
        except TimeoutError as error:
            raise EOFError("the process takes no task") from error
        return channel

    def _confirmed(self, channel: Channel, what: str, deadline: float) -> dict[str, Any]:
        header = channel.receive(SMALL_HEADER_BYTES, 0, deadline).header
        if not isinstance(header, dict) or header.get(what) is not True:
            raise InvalidAnswerError("no confirmation")
        return header

    def _start(self) -> Channel:
        """Start a process. Raises `RuntimeError` where none can be: a fault of the machine, not of the file."""
        spec = self._spec
        setup: dict[str, Any] = {
            "service": spec.service,
            "config": spec.config,
            "memory_bytes": spec.memory_bytes,
            "timeout_seconds": spec.timeout_seconds,
            "readable": readable_paths(),
        }
        try:
            channel = self._channel = self._launch()
            deadline = time.monotonic() + START_SECONDS
            channel.send(Message(setup), deadline)
            lacking = self._confirmed(channel, "ready", deadline).get("lacking")
        except (EOFError, OSError, InvalidAnswerError) as error:
            ending = self.end()
            if self._closed:
                raise self._failures.closed() from error
            raise RuntimeError(f"a {self._failures.noun} process could not start ({ending}): {error}") from error
        # It has read nothing hostile yet: this much of it can be believed.
        self.lacking = (lacking if isinstance(lacking, dict) else {}) | exposed_folders(setup["readable"])
        _tell_once(self.lacking)
        return channel

    def _launch(self) -> Channel:
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            if self._closed:
                ours.close()
                raise self._failures.closed()
            descriptor = theirs.fileno()
            # -P, or a folder's own html.py would be imported in place of the library's.
            command = COMMAND.format(path=module_folders())
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-c", command, str(descriptor), str(os.getpid())],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                env=clean_environment(),
                cwd="/",
            )
        return Channel(ours)


_told: set[tuple[tuple[str, str], ...]] = set()


def _tell_once(lacking: Mapping[str, str]) -> None:
    """Say in the log, once, what does not confine the processes on this machine."""
    key = tuple(sorted(lacking.items()))
    if lacking and key not in _told:
        _told.add(key)
        logger.warning("parser and image processes are not wholly confined on this machine: %s", describe(lacking))


def describe(lacking: Mapping[str, str]) -> str:
    """Say what a file that takes over a process could do; `lacking` as `confinement.confine` returns it."""
    could = {
        "network": "use the network, start programs and change files",
        "files": "read the files of this user",
        "project": "read the project's own files",
    }
    return "; ".join(f"a hostile file could {could.get(name, name)} ({reason})" for name, reason in lacking.items())


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidAnswerError("a reservation of no size")
    return value


def _printable(text: object, *, keep_lines: bool = False) -> str:
    """Return a text of the process for logs and errors: bounded, and without what would move a terminal's cursor."""
    if not isinstance(text, str):
        raise InvalidAnswerError("an error without a text")
    kept = "\n" if keep_lines else ""
    limit = 4 * MAX_REASON_CHARACTERS if keep_lines else MAX_REASON_CHARACTERS
    return "".join(each if each.isprintable() or each in kept else " " for each in text[:limit])


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name
