"""A real Redis for tests: the machine's own program, started on a free port with its data in a folder.

`python -m tests.servers.redis` looks for it, and installs it where root runs this on Debian. Nothing here knows the
project's own code.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from tests.servers.packages import UnavailableError, ensure
from tests.servers.ports import free_ports

PROGRAM = "redis-server"
_READY_SECONDS = 60.0
_STOP_SECONDS = 20.0


@dataclass
class Server:
    """A server with its data in `folder`, which it makes, at a port that it keeps. `password`: None asks for none.

    With `appendonly` it keeps what it was told when it is killed and started again, else it forgets everything.
    """

    folder: Path
    password: str | None = None
    appendonly: bool = False

    def __post_init__(self) -> None:
        self.port: int = free_ports(1)[0]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """The address of its first database."""
        user = "" if self.password is None else f":{self.password}@"
        return f"redis://{user}127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it, unless it runs, and wait until it answers. Raises `RuntimeError` with its log if not."""
        if self._process is not None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        log = self.folder / "redis.log"
        command = [PROGRAM, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        command += ["--appendonly", "yes" if self.appendonly else "no", "--appendfsync", "no"]
        if self.password is not None:
            command += ["--requirepass", self.password]
        with log.open("ab") as output:
            begun = output.tell()
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=self.folder
            )
        deadline = time.monotonic() + _READY_SECONDS
        while self._process.poll() is not None or not self._is_ready(log, begun):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"Redis does not start: {log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

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
        with socket.create_connection(("127.0.0.1", self.port), timeout=_READY_SECONDS) as connection:
            connection.sendall(command + b"\r\n")
            return connection.recv(64)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_STOP_SECONDS)
        self._process = None

    def _is_ready(self, log: Path, begun: int) -> bool:
        """Return whether it answers: this one, which says so in its log, and no other that has its port."""
        if b"Ready to accept connections" not in log.read_bytes()[begun:]:
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
