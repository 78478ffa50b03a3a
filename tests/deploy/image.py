"""Builds the images of deploy/docker with buildah, and tries them as they are meant to be run.

    python -m tests.deploy.image --folder /var/tmp/vectorize-images cpu

which is `make test-containers`.

No container engine, and no registry of images, is needed: the base image is made by debootstrap. What is run then has
the image's own user, environment and working directory, a root that is read-only, no network, no capability, and
nothing to write but the volumes and /tmp. Needs root on Debian, takes minutes, and some 6 GB in the folder (`cuda`: 40
GB).
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.paths import CHECKOUT
from tests.servers.packages import ensure

DOCKERFILE = CHECKOUT / "deploy" / "docker" / "Dockerfile"
#: What is tried in an image: a command, and the exit code that it must have.
_STEPS: tuple[tuple[str, int], ...] = (
    ("vectorize --version", 0),
    ('test "$(id -u)" = 10001', 0),
    ("touch /opt/vectorize/x /etc/vectorize/x", 1),
    ("vectorize doctor", 0),
    ("vectorize ingest /documents --collection notes", 0),
    ("vectorize search --collection notes --json 'when is the tide measured' | grep -q tide.md", 0),
)
#: Ends with the exit code of the image's own command, once its own health check has succeeded.
_SERVING = """
{command} & serving=$!
until {healthcheck}; do kill -0 $serving || exit 9; sleep 1; done
kill -TERM $serving; wait $serving
"""
#: Enters the root of an image as an engine does: its root, the folder of its volumes, what is mounted at /documents.
_ENTER = """
set -eu
root=$1 volumes=$2 documents=$3
shift 3
ip link set lo up
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs -o ro sysfs "$root/sys"
mount --rbind /dev "$root/dev"
echo 127.0.0.1 localhost > "$root/etc/hosts"
mount -t tmpfs -o size=1g,mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/documents"
for path in var/lib/vectorize models; do mount --bind "$volumes/$path" "$root/$path"; done
mount --bind "$documents" "$root/documents"
mount -o remount,bind,ro "$root"
exec chroot "$root" setpriv --no-new-privs --bounding-set=-all --inh-caps=-all --clear-groups "$@"
"""


@dataclass(frozen=True)
class Buildah:
    """Images in a folder of their own; this machine's own ones are not looked at."""

    folder: Path

    def __call__(self, *arguments: str) -> str:
        """Return what a command of buildah prints on stdout; its stderr is passed on. Raises `CalledProcessError`."""
        places = ["--root", str(self.folder / "storage"), "--runroot", str(self.folder / "run")]
        command = ["buildah", "--storage-driver", "overlay", *places, *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def make_base(self, name: str) -> None:
        """Make the image that the Dockerfile begins with, such as debian:bookworm-slim, unless it is there.

        The certificate authorities that this machine was given beside Debian's are in it.
        """
        if any(f"/{name}" in each for each in self("images", "--noheading", "--format", "{{.Name}}:{{.Tag}}").split()):
            return
        release = re.fullmatch(r"debian:(\w+)-slim", name)
        assert release is not None, f"{name} is none that debootstrap makes"
        root = self.folder / "base"
        subprocess.run(["debootstrap", "--variant=minbase", release[1], root], check=True, stdout=sys.stderr)
        own = Path("/usr/local/share/ca-certificates")
        if own.is_dir():
            subprocess.run(["cp", "-r", own, root / "usr/local/share"], check=True)
        container = self("from", "scratch")
        self("add", "--quiet", container, f"{root}/", "/")
        self("commit", "--quiet", "--rm", container, f"docker.io/library/{name}")

    def build(self, target: str) -> "Image":
        """Build one of the images from the Dockerfile."""
        command = ["bud", "--isolation", "chroot", "--pull-never", "--layers", "--format", "docker"]
        print(self(*command, "--target", target, "--tag", target, "--file", str(DOCKERFILE), str(CHECKOUT)))
        return Image(self, target)


@dataclass(frozen=True)
class Image:
    """A built image."""

    buildah: Buildah
    name: str

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """What the image says of how it is run."""
        config: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", self.name))["Docker"]["config"]
        return config

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """Yield the root of a container made of it, which is removed at the end."""
        container = self.buildah("from", "--pull-never", self.name)
        try:
            yield Path(self.buildah("mount", container))
        finally:
            self.buildah("rm", container)


class Container:
    """Runs commands in the root of an image, with volumes that outlive each of them."""

    def __init__(self, image: Image, root: Path, folder: Path) -> None:
        self._image, self._root = image, root
        self._volumes, self._documents = folder / "volumes", folder / "documents"
        self._documents.mkdir()
        (self._documents / "tide.md").write_text("# Tide\n\nThe tide gauge is read every six minutes.\n")
        (self._documents / "lamp.txt").write_text("The lamp of the lighthouse is cleaned on Mondays.\n")
        for volume in image.config["Volumes"]:
            place = self._volumes / volume.strip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            # An engine fills a new volume with what the image has there, modes and owners included.
            subprocess.run(["cp", "-a", root / volume.strip("/"), place], check=True)

    def run(self, script: str, **variables: str) -> int:
        """Return the exit code of a shell's commands."""
        user, _, group = self._image.config["User"].partition(":")
        environment = dict(each.split("=", 1) for each in self._image.config["Env"]) | variables
        inside = [
            "--reuid",
            user,
            "--regid",
            group,
            "env",
            "--chdir",
            self._image.config["WorkingDir"],
            "sh",
            "-c",
            script,
        ]
        places = [str(self._root), str(self._volumes), str(self._documents)]
        namespaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
        print(f"$ {script.strip()}", flush=True)
        return subprocess.run(
            [*namespaces, "sh", "-c", _ENTER, "enter", *places, *inside, "sh", "-c", script], env=environment
        ).returncode


def try_image(image: Image, folder: Path) -> None:
    """Run the steps in an image, then its own command until its own health check is content. Raises `SystemExit`."""
    with image.mounted() as root:
        container = Container(image, root, folder)
        for step, expected in _STEPS:
            code = container.run(step)
            if code != expected:
                sys.exit(f"{image.name}: `{step}` exited with {code}, not {expected}")
        config = image.config
        script = _SERVING.format(
            command=shlex.join([*config["Entrypoint"], *config["Cmd"]]),
            healthcheck=shlex.join(config["Healthcheck"]["Test"][1:]) + " 2> /dev/null",
        )
        # A hash that no token has: the server listens to the network only where it asks for one.
        served = {"VECTORIZE_GATEWAY__TOKENS": "trial:read:" + 64 * "0", "VECTORIZE_GATEWAY__PLAIN_HTTP": "true"}
        code = container.run(script, **served)
        if code != 0:
            sys.exit(f"{image.name}: its own command exited with {code}, not 0")
    print(f"{image.name}: all of it works")


def main() -> None:
    """Build and try the images that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*", default=["cpu"], metavar="TARGET", help="cpu (the default), cuda")
    parser.add_argument("--folder", type=Path, required=True, help="for images, and kept: the next build is quicker")
    arguments = parser.parse_args()
    for program in ("buildah", "debootstrap"):
        ensure(program, program)
    folder: Path = arguments.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    buildah = Buildah(folder)
    found = re.search(r"^FROM (\S+) AS base$", DOCKERFILE.read_text(), re.MULTILINE)
    assert found is not None, "the Dockerfile has a stage called base"
    buildah.make_base(found[1])
    for target in arguments.targets:
        trial = folder / f"trial-{target}"
        subprocess.run(["rm", "-rf", trial], check=True)
        trial.mkdir()
        try_image(buildah.build(target), trial)


if __name__ == "__main__":
    main()
