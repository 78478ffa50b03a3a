"""Processes that do the same, and commands that begin, at the same moment."""

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.synchronize import Barrier
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from tests.forks import CONTEXT, Fork, call

PROCESSES = 6
WAIT_SECONDS = 600
#: What is done, and to which home.
Attack: TypeAlias = tuple[Callable[[str], None], Path]
#: A command as a user calls it: `vectorize …` or `dagster …`.
Command: TypeAlias = Sequence[str]


def together(attacks: Sequence[Attack]) -> list[str]:
    """What went wrong in `PROCESSES` processes, each of which begins each attack at the same moment as the others."""
    return [said for code, said in _at_once(_attack, [(attacks,)] * PROCESSES) if code]


def _attack(barrier: Barrier, attacks: Sequence[Attack]) -> None:
    failed = False
    for attack, home in attacks:
        barrier.wait(WAIT_SECONDS)
        try:
            attack(str(home))
        except BaseException:  # noqa: BLE001 -- the test says what it was
            traceback.print_exc()
            failed = True
    sys.exit(failed)


def commands_together(
    commands: Sequence[Command], environment: Mapping[str, str] | None = None
) -> list[tuple[int, str]]:
    """Begin commands at the same moment, each in a process of its own; return exit code and output of each."""
    return _at_once(_command, [(command,) for command in commands], environment)


def _command(barrier: Barrier, command: Command) -> None:
    barrier.wait(WAIT_SECONDS)
    call(command)


def _at_once(
    function: Callable[..., None],
    calls: Sequence[tuple[object, ...]],
    environment: Mapping[str, str] | None = None,
) -> list[tuple[int, str]]:
    """The exit code and the output of a process for each of the calls, which begin behind a barrier that they share."""
    barrier = CONTEXT.Barrier(len(calls))
    with TemporaryDirectory() as folder, ExitStack() as held:
        outputs = [Path(folder, str(number)) for number in range(len(calls))]
        running = [
            Fork(function, barrier, *call, environment=environment, out=output, err=output)
            for call, output in zip(calls, outputs, strict=True)
        ]
        for process in running:
            held.callback(process.kill)
        return [
            (process.wait(WAIT_SECONDS), output.read_text(errors="replace"))
            for process, output in zip(running, outputs, strict=True)
        ]
