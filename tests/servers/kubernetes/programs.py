"""The programs of a Kubernetes cluster for tests, built once a machine from their published Go modules.

`python -m tests.servers.kubernetes.programs` builds them, which `make servers` calls: about ten minutes on two cores,
and some hundred modules to download. Nothing here knows the project's own code.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import filelock

from tests.servers.packages import UnavailableError, ensure

VERSION = "1.34.4"
HELM_VERSION = "3.22.0"
_SOURCE = Path(__file__).parent / "control_plane"
_HELM_MODULE = f"helm.sh/helm/v3/cmd/helm@v{HELM_VERSION}"
_BUILD_SECONDS = 3600.0
_MAJOR, _MINOR, _ = VERSION.split(".")
#: What the API server says of its version, which charts ask for.
_LINK = " ".join(
    f"-X k8s.io/component-base/version.{name}={value}"
    for name, value in {"gitVersion": f"v{VERSION}", "gitMajor": _MAJOR, "gitMinor": _MINOR}.items()
)


def control_plane() -> Path:
    """The program that is etcd, API server, controller manager and scheduler; built where it has not been.

    Any number of processes may call it at once. Raises `UnavailableError`.
    """
    return _built(_folder(f"kubernetes-{VERSION}") / "control-plane", _build_control_plane)


def helm() -> Path:
    """The program `helm`, likewise."""
    return _built(_folder(f"helm-{HELM_VERSION}") / "helm", _build_helm)


def _folder(name: str) -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "vectorize-pipelines" / "servers" / name


def _built(program: Path, build: Callable[[str, Path], None]) -> Path:
    if program.exists():
        return program
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise UnavailableError(f"there is no Go to build {program.name} of Kubernetes with")
    program.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(program.parent / "build.lock", timeout=_BUILD_SECONDS):
        if not program.exists():
            print(f"building {program.name} for tests on Kubernetes: minutes, once a machine", file=sys.stderr)
            with tempfile.TemporaryDirectory(dir=program.parent) as place:
                build(go, Path(place))
                (Path(place) / program.name).replace(program)
    return program


def _build_control_plane(go: str, place: Path) -> None:
    command = [go, "build", "-trimpath", "-mod=readonly", f"-ldflags=-s -w {_LINK}", "-o", str(place / "control-plane")]
    _run([*command, "."], place, _SOURCE)


def _build_helm(go: str, place: Path) -> None:
    _run([go, "install", "-trimpath", "-ldflags=-s -w", _HELM_MODULE], place, place)


def _run(command: list[str], place: Path, folder: Path) -> None:
    environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(place), "GOWORK": "off"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise UnavailableError(f"`{' '.join(command)}` failed: {done.stderr.strip()[-1000:]}")


def main() -> None:
    """Build all. Where that fails, tests on Kubernetes are left out, which is a failure only where CI is set."""
    try:
        ensure("ip", "iproute2")
        control_plane()
        helm()
    except UnavailableError as error:
        print(f"tests on Kubernetes are left out: {error}", file=sys.stderr)
        sys.exit(os.environ.get("CI") == "true")


if __name__ == "__main__":
    main()
