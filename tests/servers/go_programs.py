"""Programs that tests run, built once a machine from their published Go modules.

Nothing here knows the project's own code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import filelock

from tests.servers.packages import UnavailableError

#: How long one process waits for another one that builds the same.
_BUILD_SECONDS = 3600.0


def built(place: str, name: str, what: str, build: Callable[[str, Path], None]) -> Path:
    """Return a program, built (minutes) where it has not been. Any number of processes may call it at once.

    place  its folder among those of the tests' programs, with its version
    what   what it is, for people
    build  called with the program `go` and an empty folder, into which it puts the program under its name

    Raises `UnavailableError` where there is no Go, or where it cannot build it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = cache / "vectorize-pipelines" / "servers" / place / name
    if program.exists():
        return program
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise UnavailableError(f"there is no Go to build {what} with")
    program.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(program.parent / "build.lock", timeout=_BUILD_SECONDS):
        if not program.exists():
            print(f"building {what}: minutes, once a machine", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=program.parent) as folder:
                build(go, Path(folder))
                (Path(folder) / name).replace(program)
    return program


def run_go(go: str, *arguments: str, folder: Path, programs: Path) -> None:
    """Run `go` in `folder`; what it installs goes to `programs`. Raises `UnavailableError` where it fails."""
    environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(programs), "GOWORK": "off"}
    done = subprocess.run([go, *arguments], env=environment, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise UnavailableError(f"`go {' '.join(arguments)}` failed: {done.stderr.strip()[-1000:]}")
