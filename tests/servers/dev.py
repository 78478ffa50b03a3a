"""A `vectorize serve` of a test's own, as `make dev` has it: the process that users start, and what it starts."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.commands import COMMAND
from tests.servers.ports import free_ports

#: What the command lines of its parts contain.
HTTP_SERVER = ("vectorize_pipelines.gateway.server",)
WEB_SERVER = ("vectorize_pipelines.cli.web_server",)
DAEMON = ("vectorize_pipelines.cli.daemon",)
CODE_SERVER = ("code-server", "start")
LOADED_CODE = ("api", "grpc")
#: Settings under which no sensor launches a run.
NO_RUNS = {"VECTORIZE_CORPUS__WATCH": "false"}
_READY_SECONDS = 300.0
_POLL_SECONDS = 0.1


def until(what: str, look: Callable[[], Any], seconds: float = _READY_SECONDS) -> Any:
    """Return what `look` returns once that is something; an error names what was waited for."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(_POLL_SECONDS)
    return found


@dataclass
class DevServer:
    """`vectorize serve --with-daemon` at a free port, and what it says."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def url(self) -> str:
        """The address of the server."""
        return f"http://localhost:{self.port}"

    @property
    def ui(self) -> str:
        """The address of Dagster's UI."""
        return f"{self.url}/dagster"

    def said(self) -> str:
        """What it has written so far."""
        return self.log.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait until the UI answers."""
        until(f"the UI ({self.log})", lambda: self.process.poll() is not None or self.answers("/dagster/server_info"))
        assert self.process.poll() is None, self.said()

    def parts(self) -> list[psutil.Process]:
        """All processes that it has started and that run."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        return [process for process in found if is_running(process)]

    def part(self, words: tuple[str, ...]) -> psutil.Process:
        """The process with these words in its command line; waits for it."""
        found: psutil.Process = until(" ".join(words), lambda: next(iter(self._with(words)), None))
        return found

    def graphql(self, query: str, **variables: Any) -> dict[str, Any]:
        """What a query answers that is sent as README does it: JSON by POST, without a page that it comes from."""
        body = {"query": query, "variables": variables}
        answer = requests.post(f"{self.url}/graphql", json=body, timeout=60)
        answer.raise_for_status()
        content: dict[str, Any] = answer.json()
        assert "errors" not in content, content["errors"]
        return dict(content["data"])

    def is_loaded(self) -> bool:
        """Whether the web server has the definitions from the code server."""
        kind = self.graphql("{repositoriesOrError {__typename}}")["repositoriesOrError"]["__typename"]
        return bool(kind == "RepositoryConnection")

    def answers(self, path: str) -> bool:
        """Whether there is an answer, and no error, at a path."""
        with suppress(requests.RequestException):
            answer = requests.get(f"{self.url}{path}", timeout=10)
            return answer.status_code == 200
        return False

    def _with(self, words: tuple[str, ...]) -> list[psutil.Process]:
        found = []
        for process in self.parts():
            with suppress(psutil.Error):
                if set(words) <= set(process.cmdline()):
                    found.append(process)
        return found


def is_running(process: psutil.Process) -> bool:
    """Whether it runs: one that has ended and was not waited for does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def is_free(port: int) -> bool:
    """Whether nothing listens at a port of the loopback address."""
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def dev_server(
    home: Path,
    log: Path,
    environment: Mapping[str, str] = NO_RUNS,
    port: int | None = None,
    arguments: Sequence[str] = ("--with-daemon",),
) -> Iterator[DevServer]:
    """Start it, without waiting until it is ready; end it with all that it started."""
    port = free_ports(1)[0] if port is None else port
    own = {"VECTORIZE_HOME": str(home), "VECTORIZE_GATEWAY__METRICS_PORT": "0"}
    variables = {**os.environ, **own, **environment}
    command = [*COMMAND, "serve", "--port", str(port), *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=output, start_new_session=True)
    server = DevServer(process, port, log)
    try:
        yield server
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(120)
