"""What every benchmark gives and uses: figures with their bounds, and processes of their own. Called by `run.py`."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vectorize_pipelines.settings import PROJECT_ROOT

#: Where plots lie; not under version control.
RESULTS = PROJECT_ROOT / "benchmarks" / ".results"


@dataclass(frozen=True)
class Figure:
    """What was measured, and what it was to be; `met` compares the two."""

    name: str
    measured: str
    wanted: str
    met: bool


class ProcessFailedError(Exception):
    """A process that was to be measured failed; the message has the end of what it wrote to stderr."""


def process(*command: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """A process of its own, whose output is looked at only when it fails. Raises `ProcessFailedError`."""
    done = subprocess.run(
        command,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        cwd=PROJECT_ROOT,
        env={**os.environ, **environment},
    )
    if done.returncode:
        written = " ".join(map(str, command))
        raise ProcessFailedError(
            f"{written} ended with {done.returncode}:\n{done.stderr[-3000:] or done.stdout[-3000:]}"
        )
    return done


def python(*arguments: str | Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """`process` with the Python that runs this."""
    return process(sys.executable, *arguments, stdin=stdin, **environment)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Columns as wide as they need to be; the first is set left, the others right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, ["─" * width for width in widths], *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
