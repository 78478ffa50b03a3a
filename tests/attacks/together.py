"""Processes that do the same, and commands that begin, at the same moment."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import TypeAlias

PROCESSES = 6
WAIT_SECONDS = 600
#: What is done, and to which home.
Attack: TypeAlias = tuple[Callable[[str], None], Path]
#: A command as a user calls it: `vectorize …` or `dagster …`.
Command: TypeAlias = Sequence[str]
#: The beginning of such a command, which waits with all that it needs imported until the others have come as far.
_COMMAND = """
import os, sys
import vectorize_pipelines.runs.instance
from dagster._cli import main as dagster
from vectorize_pipelines.cli import main as vectorize
ready, go = map(int, sys.argv[1:3])
del sys.argv[:3]
os.write(ready, b".")
os.read(go, 1)
{"dagster": dagster, "vectorize": vectorize}[sys.argv[0]]()
"""


def together(attacks: Sequence[Attack]) -> list[str]:
    """What went wrong in `PROCESSES` processes, each of which begins each attack at the same moment as the others."""
    context = multiprocessing.get_context("spawn")
    barrier, errors = context.Barrier(PROCESSES), context.Queue()
    processes = [context.Process(target=_attack, args=(attacks, barrier, errors)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    try:
        return [error for _ in processes for error in errors.get(timeout=WAIT_SECONDS)]
    finally:
        for process in processes:
            process.join(20)
            process.kill()


def _attack(attacks: Sequence[Attack], barrier: Barrier, errors: "multiprocessing.Queue[list[str]]") -> None:
    found = []
    for attack, home in attacks:
        barrier.wait(WAIT_SECONDS)
        try:
            attack(str(home))
        except BaseException:  # noqa: BLE001 -- the test says what it was
            found.append(traceback.format_exc())
    errors.put(found)


def commands_together(commands: Sequence[Command], environment: Mapping[str, str]) -> list[tuple[int, str]]:
    """Begin commands at the same moment, each in a process of its own; return exit code and output of each."""
    with ExitStack() as held:
        (ready, is_ready), (may_go, go) = os.pipe(), os.pipe()
        running = []
        for command in commands:
            output = held.enter_context(tempfile.TemporaryFile("w+"))
            arguments = [sys.executable, "-c", _COMMAND, str(is_ready), str(may_go), *command]
            process = subprocess.Popen(
                arguments, env=environment, pass_fds=(is_ready, may_go), stdout=output, stderr=subprocess.STDOUT
            )
            held.callback(process.kill)
            running.append((process, output))
        os.close(is_ready)
        waiting = 0
        while waiting < len(commands) and (came := os.read(ready, len(commands))):
            waiting += len(came)
        os.close(go)  # what they all wait for
        ended = [process.wait(WAIT_SECONDS) for process, _ in running]
        for descriptor in (ready, may_go):
            os.close(descriptor)
        for _, output in running:
            output.seek(0)
        said = [output.read() for _, output in running]
    assert waiting == len(commands), f"not all of them came to the start: {said}"
    return list(zip(ended, said, strict=True))
