"""`vectorize ingest --shards N`: the same command for each shard, in processes beside each other."""

import contextlib
import json
import logging
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

from vectorize_pipelines.cli.reporting import EXIT_FAILED, EXIT_INTERRUPTED
from vectorize_pipelines.cli.showing import FIGURES, FILE_FIGURES
from vectorize_pipelines.core.shards import Shard

logger = logging.getLogger(__name__)

_COMMAND = "from vectorize_pipelines.cli import main; main()"
#: A shard whose process is killed is brought up to date by another one, so often at most.
MOST_DEATHS = 2


class ShardProcesses:
    """The processes of one command, as many at once as there are cores. A context manager: ends what is left."""

    def __init__(self, command: str, arguments: Sequence[str]):
        """`arguments`: those of the command for one shard, without the shard."""
        self._command = [sys.executable, "-c", _COMMAND, command]
        self._arguments = arguments
        self._running: set[subprocess.Popen[str]] = set()
        self._is_interrupted = False

    def __enter__(self) -> "ShardProcesses":
        return self

    def __exit__(self, *error: object) -> None:
        self.interrupt()

    def run(self, shards: Sequence[Shard]) -> list[dict[str, Any]]:
        """Return the outcome of each shard's run, as the command prints it, and its `exit_code`."""
        from vectorize_pipelines.encoders.hardware.machine import physical_cores

        with ThreadPoolExecutor(min(len(shards), physical_cores())) as threads:
            return list(threads.map(self._outcome, shards))

    def interrupt(self) -> None:
        """Have what is under way end, and begin nothing more."""
        self._is_interrupted = True
        for process in tuple(self._running):
            process.terminate()

    def _outcome(self, shard: Shard) -> dict[str, Any]:
        for deaths in range(MOST_DEATHS + 1):
            if self._is_interrupted:
                return _no_outcome(shard, EXIT_INTERRUPTED, "not begun")
            code, printed = self._run(shard)
            if code >= 0 or self._is_interrupted:
                break
            again = "" if deaths == MOST_DEATHS else "; it is repeated"
            logger.warning("the process of shard %s ended by signal %d%s", shard, -code, again)
        with contextlib.suppress(json.JSONDecodeError):
            return {**json.loads(printed), "exit_code": code}
        if self._is_interrupted:
            return _no_outcome(shard, EXIT_INTERRUPTED, "interrupted")
        return _no_outcome(shard, code if code > 0 else EXIT_FAILED, f"ended with {code}; see above")

    def _run(self, shard: Shard) -> tuple[int, str]:
        arguments = [*self._command, "--shard", str(shard), "--json", *self._arguments]
        # A group of its own: Ctrl-C would reach it twice, from the terminal and from here.
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, process_group=0) as process:
            self._running.add(process)
            if self._is_interrupted:  # while it was being started
                process.terminate()
            printed, _ = process.communicate()
            self._running.discard(process)
            return process.returncode, printed


@contextlib.contextmanager
def ended_by_signals(processes: ShardProcesses) -> Iterator[None]:
    """End the processes at SIGINT, SIGTERM and SIGHUP; their outcomes are awaited all the same.

    SIGHUP is left alone where it is ignored, as by `nohup`.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        processes.interrupt()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summed(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the outcome of all shards together."""
    failed = [outcome for outcome in outcomes if outcome["status"] != "succeeded"]
    return {
        "status": "failed" if failed else "succeeded",
        **{name: sum(outcome[name] for outcome in outcomes) for name in (*FIGURES, *FILE_FIGURES)},
        "other_kinds": dict(sum((Counter(outcome["other_kinds"]) for outcome in outcomes), Counter[str]())),
        "days": sorted({day for outcome in outcomes for day in outcome["days"]}),
        "failures": [failure for outcome in outcomes for failure in outcome["failures"]],
        "notices": [notice for outcome in outcomes for notice in outcome["notices"]],
        "errors": [f"shard {outcome['shard']}: {error}" for outcome in outcomes for error in outcome["errors"]],
        "runs": {outcome["shard"]: outcome["run_id"] for outcome in outcomes},
        "exit_code": max((outcome["exit_code"] for outcome in failed or outcomes), default=0),
    }


def _no_outcome(shard: Shard, code: int, error: str) -> dict[str, Any]:
    """Return the outcome of a run that printed none."""
    figures = dict.fromkeys((*FIGURES, *FILE_FIGURES), 0)
    lists: dict[str, list[str]] = {"days": [], "failures": [], "notices": [], "errors": [error]}
    return {
        "shard": str(shard),
        "run_id": "",
        "status": "failed",
        **figures,
        "other_kinds": {},
        **lists,
        "exit_code": code,
    }
