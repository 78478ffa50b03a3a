"""`vectorize serve` in a process of its own, and clients that send it requests as fast as it answers.

Called by the benchmarks of the HTTP server. The clients cost as little as they can: server and clients share the cores.
"""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import urlopen

import uvloop

from benchmarks.figures import PROJECT_ROOT, ProcessFailedError
from tests.servers.ports import free_ports

COMMAND = ("-c", "from vectorize_pipelines.cli import main; main()", "serve")
_START_SECONDS = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@contextmanager
def server(home: Path, **environment: str) -> Iterator[str]:
    """The address of a server that answers; Dagster's web server is not started beside it."""
    port, metrics_port, nobody = free_ports(3)
    given = {"VECTORIZE_GATEWAY__DAGSTER_URL": f"http://127.0.0.1:{nobody}", **environment}
    process = subprocess.Popen(
        [sys.executable, *COMMAND, "--port", str(port), "--metrics-port", str(metrics_port)],
        cwd=PROJECT_ROOT,
        env={**os.environ, "VECTORIZE_HOME": str(home), **given},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ProcessFailedError(f"vectorize serve does not answer; its exit status is {process.poll()}")
            time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/livez") as answer:
            return bool(answer.status == 200)
    except URLError:
        return False


@dataclass(frozen=True)
class Load:
    """What clients have seen: seconds from the first request to the last answer, and of each request."""

    seconds: float
    latencies: list[float]


def load(url: str, path: str, bodies: Sequence[bytes], clients: int) -> Load:
    """Have clients send so many requests, each its next one when it has the answer to the one before.

    Raises `ProcessFailedError` for an answer that is not 200.
    """
    address = urlsplit(url)
    head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    requests = [head % (path.encode(), address.netloc.encode(), len(body), body) for body in bodies]
    return uvloop.run(_load(cast(str, address.hostname), cast(int, address.port), requests, clients))


async def _load(host: str, port: int, requests: Sequence[bytes], clients: int) -> Load:
    loop = asyncio.get_running_loop()
    coming = iter(requests)
    connections = [_Client(coming, loop.create_future()) for _ in range(clients)]
    for each in connections:
        await loop.create_connection(lambda each=each: each, host, port)  # type: ignore[misc]
    started = time.perf_counter()
    for each in connections:
        each.send()
    await asyncio.gather(*(each.done for each in connections))
    return Load(time.perf_counter() - started, [seconds for each in connections for seconds in each.latencies])


@dataclass(eq=False)
class _Client(asyncio.Protocol):
    """One connection. It takes its requests from those that all share."""

    coming: Iterator[bytes]
    done: "asyncio.Future[None]"
    latencies: list[float] = field(default_factory=list)
    _buffer: bytes = b""
    _whole: int | None = None
    _sent: float = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send(self) -> None:
        """Send the next request, or end where there is none."""
        request = next(self.coming, None)
        if request is None:
            self._transport.close()
            self.done.set_result(None)
            return
        self._buffer, self._whole, self._sent = b"", None, time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._whole is None:
            head, separator, _ = self._buffer.partition(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if not separator:
                return
            if not head.startswith(b"HTTP/1.1 200 ") or length is None:
                self._fail(f"a request was answered with {self._buffer[:300]!r}")
                return
            self._whole = len(head) + len(separator) + int(length[1])
        if len(self._buffer) >= self._whole:
            self.latencies.append(time.perf_counter() - self._sent)
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the server closed a connection: {exc}")

    def _fail(self, message: str) -> None:
        if not self.done.done():
            self.done.set_exception(ProcessFailedError(message))
