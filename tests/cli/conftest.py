"""Runs the command as a user does: a process of its own."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

COMMAND = [sys.executable, "-c", "from vectorize_pipelines.cli import main; main()"]


@dataclass(frozen=True)
class Done:
    """A finished command."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Vectorize = Callable[..., Done]


@pytest.fixture
def vectorize(home: Path) -> Vectorize:
    """`vectorize("search", "…")` on an installation of the test's own."""

    def call(*arguments: object) -> Done:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=280
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return call
