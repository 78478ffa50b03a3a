"""Processes that begin with everything imported: each is forked from a server that has done nothing else.

Starting Python and importing what a run needs takes seconds, most of a short run. For tests of what a process does
beside others, or leaves behind when it dies. Where the start itself is what is tested, use `subprocess`.
"""

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

from tests.commands import Done

#: What runs and commands import. None of it has a thread, which a fork would lose, nor reads the settings, as
#: `definitions` does. lancedb has a thread: here is what it imports.
_PRELOADED = (
    "adlfs",
    "dagster._cli",
    "lance_namespace",
    "pyarrow.dataset",
    "pytest",
    "tests.attacks.killer_folder_run",
    "tests.attacks.killer_run",
    "tests.pipeline.files.machine",
    "vectorize_pipelines.assets.assessments",
    "vectorize_pipelines.assets.checks.generations",
    "vectorize_pipelines.assets.checks.requests",
    "vectorize_pipelines.assets.checks.vectors",
    "vectorize_pipelines.assets.files",
    "vectorize_pipelines.assets.maintenance",
    "vectorize_pipelines.assets.requests",
    "vectorize_pipelines.assets.risk",
    "vectorize_pipelines.assets.single_request",
    "vectorize_pipelines.cli.collections",
    "vectorize_pipelines.cli.doctor",
    "vectorize_pipelines.cli.ingest",
    "vectorize_pipelines.cli.requests",
    "vectorize_pipelines.runs.instance",
    "vectorize_pipelines.schedules",
    "vectorize_pipelines.sensors.assessments",
    "vectorize_pipelines.sensors.files",
    "vectorize_pipelines.sensors.following",
    "vectorize_pipelines.sensors.requests",
    "vectorize_pipelines.sensors.run_failures",
)
_KILL_SECONDS = 30.0
#: The status of a process can be read once, and each start looks whether others have ended.
_LOCK = threading.Lock()

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(list(_PRELOADED))


class Fork:
    """A process that calls a function of a module, with the environment that the test has now."""

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
        out: Path | None = None,
        err: Path | None = None,
    ) -> None:
        """What it prints is appended to the files `out` and `err`, which may be the same one."""
        given = dict(os.environ if environment is None else environment)
        self._process = CONTEXT.Process(target=_begin, args=(function, arguments, given, (out, err)))
        with _LOCK:
            self._process.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """The exit status, or the negative number of the signal that it died of; None while it runs."""
        with _LOCK:
            return self._process.exitcode

    def wait(self, seconds: float) -> int:
        """Wait until it has ended, and return how. Raises `TimeoutError`."""
        wait([self._process.sentinel], seconds)
        code = self.poll()
        if code is None:
            raise TimeoutError(f"process {self.pid} runs on after {seconds:g} s")
        return code

    def kill(self) -> None:
        """End it as a crash would, unless it has ended, and wait for that."""
        with _LOCK:
            self._process.kill()
        self.wait(_KILL_SECONDS)


def _begin(
    function: Callable[..., object],
    arguments: Sequence[Any],
    environment: Mapping[str, str],
    outputs: Sequence[Path | None],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path in enumerate(outputs, 1):
        if path is not None:
            with path.open("ab") as file:
                os.dup2(file.fileno(), descriptor)
    function(*arguments)


def call(command: Sequence[str]) -> NoReturn:
    """Carry out `vectorize …` or `dagster …` in this process, as the script of that name does."""
    from dagster._cli import main as dagster

    from vectorize_pipelines.cli import main as vectorize

    sys.argv[:] = command
    {"dagster": dagster, "vectorize": vectorize}[command[0]]()
    sys.exit(0)


def run(*command: object, environment: Mapping[str, str] | None = None, seconds: float = 280) -> Done:
    """Carry out `vectorize …` or `dagster …` in a process of its own, to its end."""
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = Fork(call, [str(each) for each in command], environment=environment, out=out, err=err)
        try:
            return Done(process.wait(seconds), *(each.read_text(errors="replace") for each in (out, err)))
        finally:
            process.kill()
