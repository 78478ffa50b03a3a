"""A real Redis for tests: the machine's own program, started on a free port with its data in a folder.

`python -m tests.servers.redis` looks for it, and installs it where root runs this on Debian. Nothing here knows the
project's own code.
"""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.servers.packages import UnavailableError, ensure
from tests.servers.ports import free_ports
from tests.servers.process import ServerProcess

PROGRAM = "redis-server"
_ANSWER_SECONDS = 60.0


@dataclass
class Server(ServerProcess):
    """A server with its data in `folder`, which it makes, at a port of `host` that it keeps.

    `password`: None asks for none, and lets in this machine alone.

    With `appendonly` it keeps what it was told when it is killed and started again, else it forgets everything.
    """

    name = "Redis"
    folder: Path
    password: str | None = None
    appendonly: bool = False
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self.port: int = free_ports(1)[0]
        self._logged_before = 0

    @property
    def url(self) -> str:
        """The address of its first database."""
        user = "" if self.password is None else f":{self.password}@"
        return f"redis://{user}{self.host}:{self.port}/0"

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers. Raises `RuntimeError` with its log if not."""
        if self._process is None:
            self._logged_before = self.log.stat().st_size if self.log.exists() else 0
        super().start()

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Let it answer nobody in the body, though its connections stay."""
        assert self._process is not None, "it runs"
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def empty(self) -> None:
        """Forget everything that it was told."""
        assert self.said(b"FLUSHALL").startswith(b"+OK"), "the server is not empty"

    def said(self, command: bytes) -> bytes:
        """Return the beginning of its answer to a command, which may need no password."""
        with socket.create_connection((self.host, self.port), timeout=_ANSWER_SECONDS) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(64)

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def _command(self) -> list[str]:
        command = [PROGRAM, "--port", str(self.port), "--bind", self.host, "--dir", str(self.folder), "--save", ""]
        command += ["--appendonly", "yes" if self.appendonly else "no", "--appendfsync", "no"]
        return command if self.password is None else [*command, "--requirepass", self.password]

    def _is_ready(self) -> bool:
        """Return whether it answers: this one, which says so in its log, and no other that has its port."""
        if b"Ready to accept connections" not in self.log.read_bytes()[self._logged_before :]:
            return False
        try:
            answer = self.said(b"PING")
        except OSError:
            return False
        return answer.startswith((b"+PONG", b"-NOAUTH"))  # while it loads its data it says -LOADING


def install() -> None:
    """Install the server where it is missing. Raises `UnavailableError`."""
    ensure(PROGRAM, PROGRAM)


@contextmanager
def running(password: str | None = None, *, appendonly: bool = False) -> Iterator[Server]:
    """A server with a folder of its own. Raises `UnavailableError`."""
    install()
    with (
        TemporaryDirectory(prefix="vectorize-redis-") as folder,
        Server(Path(folder) / "server", password, appendonly) as server,
    ):
        yield server


def main() -> None:
    """Look for the server. Where it is missing, its tests are left out, which is a failure only where CI is set."""
    try:
        install()
    except UnavailableError as error:
        print(f"tests on Redis are left out: {error}", file=sys.stderr)
        sys.exit(os.environ.get("CI") == "true")


if __name__ == "__main__":
    main()
