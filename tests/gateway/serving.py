"""The HTTP server with a client, in a thread of the test or in a process that may be killed, and load on it."""

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import httpx2

from tests.gateway.running import as_caller, running
from vectorize_pipelines.gateway.app import create_routes
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.settings import Settings, load_settings

#: Nothing listens there.
NO_DAGSTER = DagsterAddress("http://127.0.0.1:1")
_SECONDS = 60.0


def text(content: str = "a boat at sea", **fields: Any) -> dict[str, Any]:
    """A request for one text."""
    return {"task_type": "text_vectorization", "data": content, **fields}


@contextmanager
def served(
    settings: Settings, dagster: DagsterAddress = NO_DAGSTER, scope: Scope = Scope.SUBMIT
) -> Iterator[httpx2.Client]:
    """A client of a server of these settings. An answer whose status OpenAPI does not have fails the test."""
    app = as_caller(create_routes(settings, dagster), Caller.of("somebody", scope))
    with running(app) as url, httpx2.Client(base_url=url, timeout=_SECONDS) as client:
        paths: dict[str, Any] = client.get("/openapi.json").json()["paths"]

        def check(answer: httpx2.Response) -> None:
            path = answer.request.url.path
            documented = paths[path if path in paths else "/tasks/{task_id}"][answer.request.method.lower()]
            assert str(answer.status_code) in documented["responses"], (path, answer.status_code)
            if answer.status_code >= 400:
                assert answer.headers["content-type"] == "application/problem+json"

        client.event_hooks = {"response": [check]}
        yield client


@dataclass
class ServerProcess:
    """A server in a process of its own."""

    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()


@contextmanager
def server_process() -> Iterator[ServerProcess]:
    """A server of the settings in the environment."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.gateway.serving"], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        try:
            assert process.stdout is not None
            yield ServerProcess(process.stdout.readline().strip(), process)
        finally:
            process.kill()


@dataclass
class Load:
    """Clients that submit without pause, one request or ten at a time, until they are stopped or the server is gone.

    accepted     ids that were answered with 200
    refused      those of which an error said that nothing was accepted
    unconfirmed  those of which an error said that nobody knows
    """

    url: str
    clients: int = 4
    accepted: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    unconfirmed: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._submit, daemon=True) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let each client finish the request that it is at."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(_SECONDS)
            assert not thread.is_alive()
        assert not self.unexpected, self.unexpected

    def _submit(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=_SECONDS) as client, suppress(httpx2.TransportError):
            for turn in count():
                if self._stopped.is_set():
                    return
                # Ids of its own: an error need not tell those that the server has made.
                requests = [text(task_id=str(uuid.uuid4())) for _ in range(10 if turn % 4 == 0 else 1)]
                if len(requests) == 1:
                    answer = client.post("/tasks/submit", json=requests[0])
                else:
                    answer = client.post("/tasks/batch", json=requests)
                self._note(requests, answer)

    def _note(self, requests: list[dict[str, Any]], answer: httpx2.Response) -> None:
        ids, content = [each["task_id"] for each in requests], answer.json()
        if answer.status_code == 200:
            if [each["task_id"] for each in content.get("tasks", [content])] != ids:
                self.unexpected.append(answer.text)
            self.accepted += ids
        elif answer.status_code not in (429, 503):
            self.unexpected.append(answer.text)
        elif "tasks" in content:
            for each in content["tasks"]:
                known = {"pending": self.accepted, "refused": self.refused, "unconfirmed": self.unconfirmed}
                known[each["status"]].append(each["task_id"])
        else:
            self.refused += ids


def _serve() -> None:
    """Serve at any free port until a signal; the first line of the output is the address."""
    settings = load_settings()
    app = as_caller(create_routes(settings, NO_DAGSTER), Caller.of("somebody", Scope.SUBMIT))
    with running(app) as url:
        print(url, flush=True)
        signal.pause()


if __name__ == "__main__":
    _serve()
