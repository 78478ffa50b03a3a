"""A container for tests: a process in namespaces of its own, in a copy-on-write view of this machine's root folder."""

import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

#: How often the memory of a container with a limit is looked at.
_LOOK_SECONDS = 0.05
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: A shell as process 1, as `tini` is in real images: it hands SIGTERM on, and takes in what others leave behind.
#: Arguments: folder for the layers, whether the root is read-only, PATH, directory, mounts as SOURCE TARGET MODE, --,
#: command.
_INSIDE = r"""
set -e
layers=$1 read_only=$2 path=$3 directory=$4; shift 4
root=$layers/root
if [ -n "$HOSTNAME" ]; then hostname "$HOSTNAME"; fi
mount -t tmpfs tmpfs "$layers"
mkdir "$layers/upper" "$layers/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$layers/upper,workdir=$layers/work" "$root"
mkdir -p "$root$directory"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t proc proc "$root/proc"
while [ "$1" != -- ]; do
  # Links such as /var/run are those of the container.
  target=$root$(chroot "$root" realpath -m "$2")
  if [ -d "$1" ]; then mkdir -p "$target"; else mkdir -p "${target%/*}"; touch "$target"; fi
  mount --rbind "$1" "$target"
  if [ "$3" = ro ]; then mount -o remount,bind,ro "$target"; fi
  shift 3
done
shift
if [ "$read_only" = yes ]; then mount -o remount,bind,ro "$root"; fi
cd "$root"
chroot . /bin/sh -c 'cd "$0" && PATH=$1 && shift && exec "$@"' "$directory" "$path" "$@" &
child=$!
trap 'kill -TERM $child' TERM
set +e
wait $child; code=$?
while kill -0 $child 2>/dev/null; do wait $child; code=$?; done
exit $code
"""


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine, and where the container sees it."""

    source: Path
    target: str
    read_only: bool


@dataclass
class Container:
    """One start of a container, in the network namespace `network`. `limit_bytes`: memory of all its processes."""

    command: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    mounts: Sequence[Mount]
    network: str
    folder: Path
    read_only_root: bool = False
    limit_bytes: int | None = None
    out_of_memory: bool = field(default=False, init=False)

    def start(self) -> None:
        """Start it; what it writes is appended to the file `folder`.log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        mounts = [part for each in self.mounts for part in _words(each)]
        command = ["ip", "netns", "exec", self.network]
        command += [
            "unshare",
            "--mount",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child=SIGKILL",
            "--propagation",
            "private",
        ]
        command += ["bash", "-c", _INSIDE, "container", str(self.folder), "yes" if self.read_only_root else "no"]
        command += [self.environment.get("PATH", _PATH), self.directory, *mounts, "--", *self.command]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env={**self.environment, "PATH": _PATH},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        if self.limit_bytes is not None:
            threading.Thread(target=self._watch_memory, daemon=True).start()

    @property
    def log(self) -> Path:
        """What it wrote."""
        return self.folder.with_suffix(".log")

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait until it ends; return its exit code, 128 and the signal where one ended it, or None after `seconds`."""
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(seconds)
            return 128 - code if code < 0 else code
        return None

    def terminate(self) -> None:
        """Send SIGTERM."""
        first = self._first()
        if first is not None:
            with suppress(psutil.NoSuchProcess):
                first.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill all of its processes, and wait until they are gone."""
        self._process.kill()
        self._process.wait()

    def run(self, command: Sequence[str], seconds: float) -> bool:
        """Run a command inside, for a probe; return whether it succeeded within `seconds`."""
        first = self._first()
        children = first.children() if first is not None else []
        if not children:
            return False
        enter = ["nsenter", "--target", str(children[0].pid), "--mount", "--pid", "--net", "--root", "--wd"]
        environment = {"PATH": _PATH, **self.environment}
        try:
            done = subprocess.run(
                [*enter, *command], env=environment, capture_output=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def _first(self) -> psutil.Process | None:
        """Return its process 1."""
        try:
            return next(iter(psutil.Process(self._process.pid).children()), None)
        except psutil.NoSuchProcess:
            return None

    def _watch_memory(self) -> None:
        assert self.limit_bytes is not None
        while self._process.poll() is None:
            if _resident(self._process.pid) > self.limit_bytes:
                self.out_of_memory = True
                self._process.kill()
            time.sleep(_LOOK_SECONDS)


def _words(mount: Mount) -> tuple[str, str, str]:
    return str(mount.source), mount.target, "ro" if mount.read_only else "rw"


def _resident(pid: int) -> int:
    total = 0
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += int(process.memory_info().rss)
    return total
