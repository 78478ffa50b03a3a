"""The programs of a Kubernetes cluster for tests, and what KEDA adds to one, once a machine from published Go modules.

`python -m tests.servers.kubernetes.programs` builds them, which `make servers` calls: about ten minutes on two cores,
and some hundred modules to download. Nothing here knows the project's own code.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.servers.go_programs import built, run_go
from tests.servers.packages import UnavailableError, ensure

VERSION = "1.34.4"
HELM_VERSION = "3.22.0"
KEDA_VERSION = "2.21.0"
_SOURCE = Path(__file__).parent / "control_plane"
_HELM_MODULE = f"helm.sh/helm/v3/cmd/helm@v{HELM_VERSION}"
_KEDA_MODULE = f"github.com/kedacore/keda/v2@v{KEDA_VERSION}"
#: Its kinds of objects, and what its scalers take.
_KEDA_FILES = (
    "config/crd/bases/keda.sh_scaledobjects.yaml",
    "config/crd/bases/keda.sh_triggerauthentications.yaml",
    "pkg/scalers/prometheus_scaler.go",
    "pkg/scalers/redis_scaler.go",
)
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
    return built(f"kubernetes-{VERSION}", "control-plane", "a control plane of Kubernetes", _build_control_plane)


def helm() -> Path:
    """The program `helm`, likewise."""
    return built(f"helm-{HELM_VERSION}", "helm", "helm", _build_helm)


def keda() -> Path:
    """A folder with files of KEDA's source (`_KEDA_FILES`), likewise: it is fetched, and not built."""
    return built(f"keda-{KEDA_VERSION}", "source", "the kinds of objects of KEDA", _fetch_keda)


def _build_control_plane(go: str, place: Path) -> None:
    flags = ("-trimpath", "-mod=readonly", f"-ldflags=-s -w {_LINK}", "-o", str(place / "control-plane"))
    run_go(go, "build", *flags, ".", folder=_SOURCE, programs=place)


def _build_helm(go: str, place: Path) -> None:
    run_go(go, "install", "-trimpath", "-ldflags=-s -w", _HELM_MODULE, folder=place, programs=place)


def _fetch_keda(go: str, place: Path) -> None:
    command = [go, "mod", "download", "-json", _KEDA_MODULE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=place)
    if done.returncode:
        raise UnavailableError(f"`{' '.join(command[1:])}` failed: {(done.stderr or done.stdout).strip()[-1000:]}")
    module = Path(json.loads(done.stdout)["Dir"])
    (place / "source").mkdir()
    for file in _KEDA_FILES:
        shutil.copyfile(module / file, place / "source" / Path(file).name)


def main() -> None:
    """Build all. Where that fails, tests on Kubernetes are left out, which is a failure only where CI is set."""
    try:
        ensure("ip", "iproute2")
        control_plane()
        helm()
        keda()
    except UnavailableError as error:
        print(f"tests on Kubernetes are left out: {error}", file=sys.stderr)
        sys.exit(os.environ.get("CI") == "true")


if __name__ == "__main__":
    main()
