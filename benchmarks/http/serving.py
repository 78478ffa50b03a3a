"""`vectorize serve` in a process of its own, and clients that send it requests. Called by the benchmarks beside it.

The clients cost as little as they can, in the process that measures: server and clients share the cores.
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

import psutil
import uvloop

from benchmarks.figures import PROJECT_ROOT, ProcessFailedError, peak_mib
from tests.servers.ports import free_ports

COMMAND = (sys.executable, "-c", "from vectorize_pipelines.cli import main; main()", "serve")
_START_SECONDS = 120.0
_POLL_SECONDS = 0.01
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Server:
    """A server that answers: its address, how long it took to, and its process."""

    url: str
    start_seconds: float
    pid: int

    def peak_mib(self) -> float:
        """The most memory that its process has held, and those that it has started, each at its own time."""
        started = psutil.Process(self.pid).children(recursive=True)
        return sum(peak_mib(pid) for pid in (self.pid, *(process.pid for process in started)))


@contextmanager
def vectorize_serve(home: Path, **environment: str) -> Iterator[Server]:
    """Start it; Dagster's web server is not started beside it, unless `VECTORIZE_GATEWAY__DAGSTER_URL` names one."""
    port, metrics_port, nobody = free_ports(3)
    given = {"VECTORIZE_GATEWAY__DAGSTER_URL": f"http://127.0.0.1:{nobody}", **environment}
    command = [*COMMAND, "--port", str(port), "--metrics-port", str(metrics_port)]
    with serving(command, port, "/livez", VECTORIZE_HOME=str(home), **given) as server:
        yield server


@contextmanager
def serving(command: Sequence[str | Path], port: int, path: str, **environment: str) -> Iterator[Server]:
    """Start a server that listens at a port of the loopback, and wait until `path` answers."""
    started = time.perf_counter()
    process = subprocess.Popen(
        command,
        cwd=PROJECT_ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}{path}", process)
        yield Server(url, time.perf_counter() - started, process.pid)
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until an address of a process answers with 200. Raises `ProcessFailedError` where it does not."""
    deadline = time.perf_counter() + _START_SECONDS
    while not _answers(url):
        if process.poll() is not None or time.perf_counter() > deadline:
            command = " ".join(map(str, cast("list[str]", process.args)))
            raise ProcessFailedError(f"{command} does not answer; its exit status is {process.poll()}")
        time.sleep(_POLL_SECONDS)


def _answers(url: str) -> bool:
    try:
        with urlopen(url) as answer:
            return bool(answer.status == 200)
    except (URLError, ConnectionError):
        return False


@dataclass(frozen=True)
class Load:
    """What clients have seen: seconds from the first request to the last answer, and of each request."""

    seconds: float
    latencies: list[float]

    def percentile(self, percent: float) -> float:
        """Seconds within which so many of a hundred requests were answered."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def load(url: str, path: str, bodies: Sequence[bytes], clients: int, rate: float | None = None) -> Load:
    """Have clients send so many requests, each its next one when it has the answer to the one before.

    With `rate` so many a second are due, evenly; a request that finds every client waiting is late, and the time that
    it took counts from when it was due. Raises `ProcessFailedError` for an answer that is not 200.
    """
    address = urlsplit(url)
    head = b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    requests = [head % (path.encode(), address.netloc.encode(), len(body), body) for body in bodies]
    return uvloop.run(_load(cast(str, address.hostname), cast(int, address.port), requests, clients, rate))


async def _load(host: str, port: int, requests: Sequence[bytes], clients: int, rate: float | None) -> Load:
    loop = asyncio.get_running_loop()
    schedule = _Schedule(iter(enumerate(requests)), rate)
    connections = [_Client(schedule, loop.create_future()) for _ in range(clients)]
    for each in connections:
        await loop.create_connection(lambda each=each: each, host, port)  # type: ignore[misc]
    schedule.started = time.perf_counter()
    for each in connections:
        each.send_next()
    await asyncio.gather(*(each.done for each in connections))
    seconds = time.perf_counter() - schedule.started
    return Load(seconds, [latency for each in connections for latency in each.latencies])


@dataclass(eq=False)
class _Schedule:
    """The requests that all clients share."""

    coming: Iterator[tuple[int, bytes]]
    rate: float | None
    started: float = 0.0

    def next(self) -> tuple[float, bytes] | None:
        """When the next request is due, and what is sent; None after the last."""
        found = next(self.coming, None)
        if found is None:
            return None
        number, request = found
        return (time.perf_counter() if self.rate is None else self.started + number / self.rate), request


@dataclass(eq=False)
class _Client(asyncio.Protocol):
    """One connection. It takes its requests from those that all share."""

    schedule: _Schedule
    done: "asyncio.Future[None]"
    latencies: list[float] = field(default_factory=list)
    _buffer: bytes = b""
    _whole: int | None = None
    _due: float = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def send_next(self) -> None:
        """Send the next request when it is due, or end where there is none."""
        found = self.schedule.next()
        if found is None:
            self._transport.close()
            self.done.set_result(None)
            return
        self._due, request = found
        early = self._due - time.perf_counter()
        if early > 0:
            asyncio.get_running_loop().call_later(early, self._send, request)
        else:
            self._send(request)

    def _send(self, request: bytes) -> None:
        self._buffer, self._whole = b"", None
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
            self.latencies.append(time.perf_counter() - self._due)
            self.send_next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the server closed a connection: {exc}")

    def _fail(self, message: str) -> None:
        if not self.done.done():
            self.done.set_exception(ProcessFailedError(message))
