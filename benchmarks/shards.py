"""The benchmark `shards`: four runs beside each other, a shard each, against one run over the whole folder."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.figures import PROJECT_ROOT, Figure, ProcessFailedError
from benchmarks.passages import write_documents
from vectorize_pipelines.core.shards import Shard

SHARDS = 4
ROUNDS = 3
#: Of one passage, so that a hash of their names gives each shard about as many passages.
FILES = 6_000
WORDS = 110


def run(place: Path) -> list[Figure]:
    """With an encoder that computes on all cores, and with one that only takes its time."""
    return [
        _figure(place, "encoding on the same cores", "auto", 0.95),
        _figure(place, "encoders that sleep", "sleeping", 3.6),
    ]


def _figure(place: Path, what: str, engine: str, least: float) -> Figure:
    """Measure how many times as fast the shards are: the median of several rounds, in turn with one run."""
    folder = place / f"docs-{engine}"
    write_documents(folder, FILES, 1, WORDS)
    rounds = [[_seconds(place, folder, engine, count) for count in (1, SHARDS)] for _ in range(ROUNDS)]
    times = statistics.median(alone / beside for alone, beside in rounds)
    alone, beside = (statistics.median(seconds) for seconds in zip(*rounds, strict=True))
    measured = f"{times:.2f} times as fast as one run ({beside:.1f} and {alone:.1f} s)"
    return Figure(f"{SHARDS} shards, {what}", measured, f"≥ {least}", times >= least)


def _seconds(place: Path, folder: Path, engine: str, count: int) -> float:
    """Return the time from when all processes are told to begin until the last one has written its last row."""
    home, exports = Path(tempfile.mkdtemp(dir=place)), place / "exports"
    exports.mkdir(exist_ok=True)
    (home / "encoders").symlink_to(exports)
    with ExitStack() as running:
        processes = [running.enter_context(_started(folder, home, engine, shard)) for shard in Shard.layout(count)]
        for process in processes:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise ProcessFailedError(f"a run over a shard was never ready; it ended with {process.wait()}")
        begun = time.monotonic()
        for process in processes:
            if process.stdin is not None:
                process.stdin.write("begin\n")
                process.stdin.flush()
        outcomes = [_outcome(process) for process in processes]
    documents = sum(outcome["documents"] for outcome in outcomes)
    if documents != FILES:
        raise ProcessFailedError(f"{documents} of {FILES} files were embedded by {count} runs")
    ended: float = max(outcome["ended"] for outcome in outcomes)
    return ended - begun


def _started(folder: Path, home: Path, engine: str, shard: Shard) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.shards_run", str(folder), str(home), engine, str(shard)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT)


def _outcome(process: "subprocess.Popen[str]") -> dict[str, Any]:
    printed, _ = process.communicate()
    if process.returncode:
        raise ProcessFailedError(f"a run over a shard ended with {process.returncode}")
    outcome: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return outcome
