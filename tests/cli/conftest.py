"""Runs the command as a user does: a process of its own."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vectorize_pipelines.cli import main

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
    """`vectorize("search", "…")` on an installation of the test's own; `stdin="…"` is what it reads."""

    def call(*arguments: object, stdin: str | None = None) -> Done:
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)], input=stdin, capture_output=True, text=True, check=False, timeout=280
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def vectorize_here(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Vectorize:
    """The same in the test's own process, without the second that a start takes."""

    def call(*arguments: object, stdin: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["vectorize", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return Done(int(ended.value.code or 0), out, err)

    return call
