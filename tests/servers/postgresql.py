"""A real PostgreSQL for tests: the machine's own programs, started on a free port with its data in a folder.

`python -m tests.servers.postgresql` looks for it, and installs it where CI runs as root on Debian. Nothing here knows
the project's own code.
"""

import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Self

from tests.servers.packages import UnavailableError
from tests.servers.ports import free_ports

_PACKAGE = "postgresql"
_DEBIAN = Path("/usr/lib/postgresql")
_READY_SECONDS = 60.0
_STOP_SECONDS = 20.0
#: The server refuses to run as root.
_ACCOUNTS = ("postgres", "nobody")


def programs() -> Path:
    """The folder of `initdb` and `postgres`, newest version first. Raises `UnavailableError`."""
    found = [folder for folder in _DEBIAN.glob("*/bin") if (folder / "initdb").exists()]
    if found:
        return max(found, key=lambda folder: [int(part) for part in re.findall(r"\d+", folder.parent.name)])
    on_path = shutil.which("initdb")
    if on_path is not None and (Path(on_path).resolve().parent / "postgres").exists():
        return Path(on_path).resolve().parent
    raise UnavailableError(f"there is no PostgreSQL here; on Debian: apt-get install {_PACKAGE}")


@dataclass
class Server:
    """A server with its data below `folder`, which it makes. Starting it again finds that data, at the same port.

    The superuser is `vectorize`, with the password `s3cret-of-tests`. It listens at `host`, for all in that network.
    """

    folder: Path
    password: str = "s3cret-of-tests"
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self.port: int = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        """The address of a database of it."""
        return f"postgresql://vectorize:{self.password}@{self.host}:{self.port}/{database}"

    def start(self) -> None:
        """Starts it, unless it runs, and waits until it answers. Raises `RuntimeError` with its log if not."""
        if self._process is not None:
            return
        data, log = self.folder / "data", self.folder / "postgresql.log"
        if not data.exists():
            self._initialise(data)
        command = [str(programs() / "postgres"), "-D", str(data), "-p", str(self.port), "-k", "", "-h", self.host]
        # Nothing of a test has to outlive a power cut.
        command += ["-c", "fsync=off", "-c", "full_page_writes=off", "-c", "shared_buffers=32MB"]
        with log.open("ab") as output:
            self._process = self._popen(command, output)
        deadline = time.monotonic() + _READY_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end(signal.SIGQUIT)
                raise RuntimeError(f"PostgreSQL does not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Ends it at once, and in good order: its clients lose their connections."""
        self._end(signal.SIGINT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _initialise(self, data: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        secret = self.folder / "password"
        secret.write_text(self.password)
        account = _account()
        if account is not None:
            for path in (self.folder, secret):
                os.chown(path, account.pw_uid, account.pw_gid)
            for place in self.folder.parents:
                mode = place.stat().st_mode
                if not mode & 0o001:
                    place.chmod(mode | 0o011)  # the server, which runs under that account, has to get there
        command = [str(programs() / "initdb"), "-D", str(data), "-U", "vectorize", "-A", "scram-sha-256"]
        command += [f"--pwfile={secret}", "-E", "UTF8", "--locale=C.UTF-8", "--no-sync"]
        log = self.folder / "initdb.log"
        with log.open("ab") as output:
            if self._popen(command, output).wait(_READY_SECONDS):
                raise RuntimeError(f"PostgreSQL cannot be set up: {log.read_text(errors='replace')[-2000:]}")
        with (data / "pg_hba.conf").open("a") as access:
            access.write("host all all samenet scram-sha-256\n")

    def _popen(self, command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        account = _account()
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=self.folder,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8"},
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
        )

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(_STOP_SECONDS)
        self._process = None

    def _is_ready(self) -> bool:
        command = [str(programs() / "pg_isready"), "-q", "-h", self.host, "-p", str(self.port)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


@contextmanager
def running() -> Iterator[Server]:
    """A server with a folder of its own.

    It is not one of pytest's: each session that starts closes those to other accounts, and the server may have another.
    """
    with TemporaryDirectory(prefix="vectorize-postgresql-") as folder, Server(Path(folder) / "server") as server:
        yield server


def _account() -> pwd.struct_passwd | None:
    """Who runs the server where root runs the tests; None: who runs the tests."""
    if os.geteuid() != 0:
        return None
    for name in _ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise UnavailableError(f"PostgreSQL does not run as root, and there is no account {' or '.join(_ACCOUNTS)}")


def _install() -> None:
    """In CI, as root on Debian. The package would make and start a server of its own, which nobody needs."""
    print(f"installing {_PACKAGE}", file=sys.stderr)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    settings = Path("/etc/postgresql-common/createcluster.d/vectorize-tests.conf")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text("create_main_cluster = false\n")
    for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", _PACKAGE]):
        subprocess.run(["apt-get", *command], env=environment, check=True, stdout=sys.stderr)


def main() -> None:
    """Looks for the server. Where it is missing, its tests are left out, which is a failure only where CI is set."""
    in_ci = os.environ.get("CI") == "true"
    try:
        programs()
    except UnavailableError as error:
        if in_ci and os.geteuid() == 0 and shutil.which("apt-get"):
            _install()
            programs()
            return
        print(f"tests on PostgreSQL are left out: {error}", file=sys.stderr)
        sys.exit(in_ci)


if __name__ == "__main__":
    main()
