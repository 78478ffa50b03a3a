"""The HTTP server as tests start it: a real one, in a thread of the test's own process."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from vectorize_pipelines.gateway.door.auth import Caller
from vectorize_pipelines.gateway.door.connections import BoundedWebSocket, bounded_connections
from vectorize_pipelines.gateway.door.origins import ServerAddress
from vectorize_pipelines.settings import GatewaySettings

LOOPBACK = "127.0.0.1"
_SECONDS = 30


@contextmanager
def serving(
    app_at: Callable[[ServerAddress], ASGIApp], settings: GatewaySettings | None = None, **options: Any
) -> Iterator[str]:
    """The address of a server as `vectorize serve` configures it, whose app is made once its port is known.

    `options` are further ones of `uvicorn.Config`.
    """
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((LOOPBACK, 0))
    port = bound.getsockname()[1]
    config = uvicorn.Config(
        app_at(ServerAddress(LOOPBACK, port)),
        http=bounded_connections(settings or GatewaySettings()),
        ws=BoundedWebSocket,
        log_config=None,
        timeout_graceful_shutdown=1,
        **options,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    try:
        until(lambda: server.started or not thread.is_alive())
        assert server.started, "the server has not started; its log says why"
        yield f"http://{LOOPBACK}:{port}"
    finally:
        server.should_exit = True
        thread.join(_SECONDS)
        bound.close()


@contextmanager
def running(app: ASGIApp) -> Iterator[str]:
    """Serve an app that need not know its port; the value is its address."""
    with serving(lambda address: app) as url:
        yield url


def until(condition: Callable[[], object]) -> None:
    """Return once something is so."""
    deadline = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it has not become so"
        time.sleep(0.01)


def as_caller(app: ASGIApp, caller: Caller) -> ASGIApp:
    """An app as if the door had let this caller in."""

    async def called(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            scope.setdefault("state", {})["caller"] = caller
        await app(scope, receive, send)

    return called
