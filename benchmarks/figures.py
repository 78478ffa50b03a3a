"""What every benchmark gives and uses: figures with their bounds, and processes of their own. Called by all of them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: By this file's place: a GPU machine that only measures encoders need not have what the settings import.
PROJECT_ROOT = Path(__file__).resolve().parent.parent

#: Where plots lie; not under version control.
RESULTS = PROJECT_ROOT / "benchmarks" / ".results"


@dataclass(frozen=True)
class Figure:
    """What was measured, and what it was to be; `met` compares the two."""

    name: str
    measured: str
    wanted: str
    met: bool


def report(figures: Sequence[Figure]) -> int:
    """Prints a line for each; gives the exit code: 1 where one is missed."""
    width = max(len(figure.name) for figure in figures)
    for figure in figures:
        print(f"{'ok ' if figure.met else 'MISSED'} {figure.name:{width}}  {figure.measured}  (wanted {figure.wanted})")
    return 0 if all(figure.met for figure in figures) else 1


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


def peak_mib(pid: int | None = None) -> float:
    """The most memory that a process has held, by default this one (Linux).

    Not `getrusage`: its `ru_maxrss` also counts what the process that started this one held at that moment.
    """
    status = Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii", errors="replace")
    (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


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
