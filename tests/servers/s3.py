"""A server that speaks S3, for tests: moto's, started on a free port, with its objects in memory.

It knows conditional writes, and takes any credentials. Nothing here knows the project's own code.
"""

import importlib.util
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from tests.servers.packages import UnavailableError
from tests.servers.ports import free_ports
from tests.servers.process import ServerProcess

#: What clients sign with in tests, which no output may show. The server takes any.
SECRET = "the-secret-of-the-object-store"
_ANSWER_SECONDS = 60.0


def installed() -> None:
    """Raise `UnavailableError` where the server's package is missing."""
    if importlib.util.find_spec("moto") is None:
        raise UnavailableError("there is no moto here: `make setup` installs it")


@dataclass
class Server(ServerProcess):
    """A server with its log in `folder`. It forgets everything when it ends."""

    name = "S3"
    folder: Path

    def __post_init__(self) -> None:
        self._port: int = free_ports(1)[0]

    @property
    def url(self) -> str:
        """The address that clients take for the endpoint."""
        return f"http://127.0.0.1:{self._port}"

    def make_bucket(self, name: str) -> None:
        """Make a bucket; it is not there yet."""
        self._ask("PUT", name)

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Return the names of the objects, a thousand at most."""
        tree = ElementTree.fromstring(self._ask("GET", f"{bucket}?list-type=2&prefix={prefix}"))
        return [str(key.text) for key in tree.iter() if key.tag.endswith("}Key")]

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object."""
        self._ask("DELETE", f"{bucket}/{key}")

    def _ask(self, method: str, path: str) -> bytes:
        # Whoever gives no name at all may not delete; what the name is signed with is not looked at.
        name = {"Authorization": "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request"}
        request = urllib.request.Request(f"{self.url}/{path}", method=method, headers=name)
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            return bytes(answer.read())

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}

    def _is_ready(self) -> bool:
        try:
            self._ask("GET", "moto-api/")
        except (urllib.error.URLError, OSError):
            return False
        return True


@contextmanager
def running() -> Iterator[Server]:
    """A server. Raises `UnavailableError`."""
    installed()
    with TemporaryDirectory(prefix="vectorize-s3-") as folder, Server(Path(folder)) as server:
        yield server
