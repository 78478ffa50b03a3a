"""Streams of Server-Sent Events as a client reads them, and a server that ends them when it stops."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import uvicorn
from starlette.types import ASGIApp

from tests.servers.dev import until
from vectorize_pipelines.gateway.live.stopping import StreamingServer


@dataclass(frozen=True)
class Event:
    """One event."""

    kind: str
    id: str
    data: dict[str, Any]

    @property
    def state(self) -> tuple[str, str]:
        """Which request, and its state."""
        return self.data["task_id"], self.data["status"]


@dataclass
class Stream:
    """A stream, and the comments in what has been read of it."""

    response: httpx2.Response
    comments: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lines = self.response.iter_lines()

    def next(self) -> Event | None:
        """The next event, which is waited for; None at the end."""
        while (block := self._block()) is not None:
            fields = dict(block)
            if "data" in fields:
                return Event(fields["event"], fields["id"], json.loads(fields["data"]))
        return None

    def several(self, number: int) -> list[Event]:
        """So many events."""
        return [event for event in (self.next() for _ in range(number)) if event is not None]

    def rest(self) -> list[Event]:
        """All events up to the end."""
        return list(iter(self.next, None))

    def begun(self) -> "Stream":
        """The same, once the server has begun it."""
        self._block()
        return self

    def _block(self) -> list[tuple[str, str]] | None:
        """The fields up to the next blank line; None at the end."""
        fields: list[tuple[str, str]] = []
        for line in self._lines:
            if not line:
                return fields
            name, _, value = line.partition(": ")
            if name:
                fields.append((name, value))
            else:
                self.comments.append(value)
        return None


@contextmanager
def listening(client: httpx2.Client, path: str, last_id: str | None = None) -> Iterator[Stream]:
    """A stream, once its answer has begun."""
    headers = {"Accept": "text/event-stream"} | ({} if last_id is None else {"Last-Event-ID": last_id})
    with client.stream("GET", path, headers=headers) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-accel-buffering"] == "no"
        yield Stream(response)


@dataclass
class Stoppable:
    """A server that the test stops."""

    url: str
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        """Ask it to stop, as a signal does, and wait until it has."""
        self.server.should_exit = True
        self.thread.join(60)
        assert not self.thread.is_alive()


@contextmanager
def stoppable(app: ASGIApp, ending: Callable[[], None]) -> Iterator[Stoppable]:
    """A server that waits without limit for requests under way."""
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = StreamingServer(uvicorn.Config(app, log_config=None), ending)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        until("the server", lambda: server.started or not thread.is_alive())
        running = Stoppable(f"http://127.0.0.1:{bound.getsockname()[1]}", server, thread)
        try:
            yield running
        finally:
            running.stop()
