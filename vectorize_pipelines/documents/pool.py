"""Parses files in processes of their own, side by side, so that no file can take the run down with it.

Called by the sources. A process is used by one thread of the pool at a time and has a pipe of its own: whatever
ends it, at whatever moment, concerns the one file that it was reading.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from queue import LifoQueue
from types import TracebackType
from typing import Self

from vectorize_pipelines.documents.errors import ParserCrashedError, ParserMemoryError, ParseTimeoutError
from vectorize_pipelines.documents.parsing import too_large
from vectorize_pipelines.documents.worker import Handler, ParseOutcome, Task, read_and_parse
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.settings import DocumentSettings

__all__ = ["ParseOutcome", "ParserPool"]

#: Parsers leak, and fragment what they free; a fresh process takes a quarter of a second.
TASKS_PER_PROCESS = 1_000
START_SECONDS = 120.0

#: Each process parses one file at a time: more threads inside would only take the processors from its
#: neighbours, and their stacks and arenas count against the memory limit.
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}

COMMAND = "import sys; sys.path[:] = {path!r}; from vectorize_pipelines.documents.worker import main; main()"


class ParserPool:
    """A context manager around `settings.parser_processes` processes, each started when first needed.

    A file may take `settings.timeout_seconds`, then its process is killed, and `settings.memory_bytes` of
    address space; only Linux enforces the latter, elsewhere the system's own limits apply. Runs on POSIX systems.

    Leaving the context, or `close`, cancels what is pending and kills the processes at once. They also end by
    themselves within seconds when this process dies.
    """

    def __init__(self, settings: DocumentSettings, *, handler: Handler = read_and_parse) -> None:
        """`handler` is what the processes run: a function of a module that they can import."""
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.parser_processes, thread_name_prefix="parser")
        self._idle: LifoQueue[_Process] = LifoQueue()
        self._processes = [_Process(settings, handler) for _ in range(settings.parser_processes)]
        for process in self._processes:
            self._idle.put(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends everything now, from whatever thread; a second call does nothing. Files in hand get an error."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.kill()
        self._threads.shutdown(wait=True)
        for process in self._processes:
            process.end()

    def submit(
        self, uri: str, size: int | None = None, known_hash: str | None = None, content: bytes | None = None
    ) -> Future[ParseOutcome]:
        """Has the file read and parsed; a path without `://` is local.

        `size` in bytes, where the caller knows it, refuses a file that is too large without reading it. With
        `known_hash`, a file of the same content is not parsed: its outcome has no document. With `content` nothing
        is read: these are the bytes, and the ending of `uri` tells their format. The future raises a subclass of
        `ItemError` from `documents.errors`.
        """
        if size is not None and size > self._settings.max_file_bytes:
            refused: Future[ParseOutcome] = Future()
            refused.set_exception(too_large(self._settings))
            return refused
        return self._threads.submit(self._run, Task(uri, known_hash, content))

    def _run(self, task: Task) -> ParseOutcome:
        process = self._idle.get()
        try:
            return process.run(task)
        finally:
            self._idle.put(process)


class _Process:
    """One parser process, started when there is a task, and again after it has died or served its time."""

    def __init__(self, settings: DocumentSettings, handler: Handler) -> None:
        self._settings = settings
        self._handler = handler
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._tasks = 0
        self._closed = False

    def run(self, task: Task) -> ParseOutcome:
        """The task's outcome. Raises the `ItemError` that it ended in; the process may be gone then."""
        try:
            connection = self._given(task)
            if not connection.poll(self._settings.timeout_seconds):
                self.end()
                raise ParseTimeoutError(
                    f"took longer than {self._settings.timeout_seconds:g} s to parse; "
                    "exclude it, or raise VECTORIZE_DOCUMENTS__TIMEOUT_SECONDS"
                )
            answer: ParseOutcome | ItemError = connection.recv()
        except (EOFError, OSError) as error:
            raise ParserCrashedError(
                f"ended the parser process ({self.end()}); if it does so again, exclude it"
            ) from error
        self._tasks += 1
        # After running out of memory, what the parser left behind is unknown.
        if self._tasks >= TASKS_PER_PROCESS or isinstance(answer, ParserMemoryError):
            self.end()
        if isinstance(answer, ItemError):
            raise answer
        return answer

    def kill(self) -> None:
        """Kills the process and lets no other be started. The thread that waits for it then calls `end`."""
        with self._lock:
            self._closed = True
            if self._popen is not None:
                self._popen.kill()

    def end(self) -> str:
        """Kills the process unless it is dead, frees what belonged to it, and says how it ended."""
        with self._lock:
            popen, self._popen = self._popen, None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._tasks = 0
        if popen is None:
            return "not running"
        popen.kill()
        return _ending(popen.wait())

    def _given(self, task: Task) -> Connection:
        """The connection to a process that has taken the task. Raises EOFError or OSError if that died."""
        if self._connection is not None:
            try:
                return _hand_over(self._connection, task)
            except (EOFError, OSError):
                self.end()  # it had died with nothing to do: no fault of this task
        return _hand_over(self._start(), task)

    def _start(self) -> Connection:
        """Raises `RuntimeError` where no process can be started: a fault of the machine, not of the file."""
        try:
            connection = self._connection = self._launch()
            connection.send((self._handler, self._settings))
            if not connection.poll(START_SECONDS):
                raise TimeoutError(f"nothing heard of it for {START_SECONDS:g} s")
            connection.recv()
        except (EOFError, OSError) as error:
            ending = self.end()
            if self._closed:
                raise _pool_closed() from error
            raise RuntimeError(f"a parser process could not start ({ending}): {error}") from error
        return connection

    def _launch(self) -> Connection:
        ours, theirs = multiprocessing.Pipe()
        with theirs, self._lock:
            if self._closed:
                ours.close()
                raise _pool_closed()
            descriptor = theirs.fileno()
            # -P, or a folder's own html.py would be imported in place of the library's.
            command = COMMAND.format(path=[str(entry) for entry in sys.path])
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-c", command, str(descriptor), str(os.getpid())],
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                env=os.environ | SINGLE_THREADED,
            )
        return ours


def _hand_over(connection: Connection, task: Task) -> Connection:
    """Waits until the process confirms, or a death before the task would look like one because of it."""
    connection.send(task)
    if not connection.poll(START_SECONDS):
        raise TimeoutError("the parser process takes no task")
    connection.recv()
    return connection


def _pool_closed() -> ParserCrashedError:
    return ParserCrashedError("was not parsed: the parser pool has been closed")


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    name = signal.Signals(-code).name
    return f"{name}, perhaps for want of memory" if name == "SIGKILL" else name
