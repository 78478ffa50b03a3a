"""The benchmark `first-vector`: what a user waits for a first vector, and for the hits of `vectorize search`."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import Figure, ProcessFailedError, python
from benchmarks.passages import write_documents
from vectorize_pipelines.settings import PROJECT_ROOT

ROUNDS = 5

FIRST_VECTOR = """
from vectorize_pipelines.encoders import load_encoder
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL

vectors = load_encoder(DEFAULT_TEXT_MODEL).encode(["how long until the first vector?"])
assert vectors.shape == (1, 384)
from benchmarks.figures import peak_mib
print(peak_mib(), flush=True)
"""
COMMAND = ("-c", "from vectorize_pipelines.cli import main; main()")
SEARCH = (*COMMAND, "search", "what a customer has to pay", "--collection", "small", "--limit", "5")


def run(place: Path) -> list[Figure]:
    """Medians of several processes each, from their start to the line that they print."""
    folder, home = place / "docs", place / "home"
    write_documents(folder, 20, 10, 110)
    python(*COMMAND, "ingest", folder, "--collection", "small", VECTORIZE_HOME=str(home))
    vectors = [_until_printed(("-c", FIRST_VECTOR), home) for _ in range(ROUNDS)]
    searches = [_until_printed(SEARCH, home) for _ in range(ROUNDS)]
    first = statistics.median(seconds for seconds, _ in vectors)
    resident = statistics.median(float(printed) for _, printed in vectors)
    hits = statistics.median(seconds for seconds, _ in searches)
    return [
        Figure("first vector from a cached export", f"{first:.2f} s", "≤ 1.2 s", first <= 1.2),
        Figure("first vector, peak resident memory", f"{resident:.0f} MiB", "< 300 MiB", resident < 300),
        Figure("vectorize search, to the last hit printed", f"{hits:.2f} s", "≤ 2 s", hits <= 2),
    ]


def _until_printed(arguments: tuple[str, ...], home: Path) -> tuple[float, str]:
    """Seconds from the start of a process to the last line that it prints, and what it printed."""
    environment = {**os.environ, "VECTORIZE_HOME": str(home)}
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, cwd=PROJECT_ROOT, env=environment
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            seconds = time.perf_counter() - started
    if process.returncode or not lines:
        raise ProcessFailedError(
            f"{' '.join(arguments)} ended with {process.returncode} and printed {len(lines)} lines"
        )
    return seconds, "".join(lines)
