"""The process of the HTTP server: the gateway's app, at a socket that `vectorize serve` has bound.

    python -m vectorize_pipelines.gateway.server --socket NUMBER [--metrics-socket NUMBER] [--dagster-socket PATH]

When it ends it is started again, and no connection is refused meanwhile: the socket stays with its parent. It imports
no Dagster: it knows where Dagster's web server is, and does not wait for that.
"""

import argparse
import contextlib
import gc
import logging
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.gateway.app import create_app
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.connections import BoundedWebSocket, bounded_connections
from vectorize_pipelines.gateway.door.origins import ServerAddress
from vectorize_pipelines.gateway.door.tokens import Tokens
from vectorize_pipelines.gateway.live.stopping import StreamingServer
from vectorize_pipelines.settings import GatewaySettings, Settings
from vectorize_pipelines.state.home import enter_home

logger = logging.getLogger(__name__)

#: Less than the grace after which a supervisor kills a service.
GRACEFUL_SECONDS = 15
#: Longer than clients keep idle connections: none is closed just when a client uses it.
_KEEP_ALIVE_SECONDS = 75
#: A message of a client by WebSocket holds one document and its variables.
_SOCKET_MESSAGE_BYTES = 2**20
_PING_SECONDS = 20.0
_OBJECTS_BETWEEN_COLLECTIONS = 50_000


def dagster_address(settings: Settings, at_socket: Path | None) -> DagsterAddress:
    """Return where Dagster's web server is: where the settings say, or at the socket of the one that was started."""
    if settings.gateway.dagster_url is not None:
        return DagsterAddress(settings.gateway.dagster_url.rstrip("/"))
    return DagsterAddress("http://localhost", at_socket)


def configuration(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """Return how uvicorn serves the app. It believes no proxy, and logs no requests, whose addresses may be private."""
    gateway = settings.gateway
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=bounded_connections(gateway),
        ws=BoundedWebSocket,
        ws_max_size=_SOCKET_MESSAGE_BYTES,
        ws_ping_interval=_PING_SECONDS,
        ws_ping_timeout=_PING_SECONDS,
        lifespan="on",
        log_config=None,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        ssl_certfile=gateway.tls_certificate,
        ssl_keyfile=gateway.tls_key,
    )


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--socket", type=int, required=True, metavar="NUMBER", help="listens already")
    parser.add_argument("--metrics-socket", type=int, metavar="NUMBER", help="listens already, for Prometheus")
    parser.add_argument("--dagster-socket", type=Path, metavar="PATH", help="where Dagster's web server listens")
    arguments = parser.parse_args()
    # uvicorn handles both signals while it serves, and raises them again once it has ended.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), ExitStack() as ending:
        try:
            settings = enter_home()
            tokens = Tokens.open(settings)
        except VectorizeError as error:
            sys.exit(f"error: {error}")
        _log(settings.log_level)
        bound = socket.socket(fileno=arguments.socket)
        settings = _as_bound(settings, bound)
        app = create_app(
            settings,
            dagster_address(settings, arguments.dagster_socket),
            tokens,
            _address(settings.gateway),
            metrics_port=None if arguments.metrics_socket is None else socket.socket(fileno=arguments.metrics_socket),
            ending=ending,
        )
        _collect_rarely()
        StreamingServer(configuration(_plain_start(app), settings), ending.close).run(sockets=[bound])


def _collect_rarely() -> None:
    """Have the garbage collector look for circles seldom, and never among what lives as long as the process.

    By default it looks each time that 700 objects more than before are there, a few of which make a request: in batches
    of a thousand it took half of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)


def _as_bound(settings: Settings, bound: socket.socket) -> Settings:
    """The settings with the address at which the socket listens, where options or port 0 have it differ."""
    host, port = bound.getsockname()[:2]
    gateway = settings.gateway.model_copy(update={"host": host, "port": port})
    return settings.model_copy(update={"gateway": gateway})


def _address(gateway: GatewaySettings) -> ServerAddress:
    return ServerAddress(gateway.host, gateway.port, tls=gateway.tls_certificate is not None)


def _log(level: str) -> None:
    """Log to stderr. Libraries say what is wrong, no more: some log addresses with what was asked in them."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("vectorize_pipelines").setLevel(level)


def _plain_start(app: ASGIApp) -> ASGIApp:
    """The app, whose failure to start is said without a stack trace where its message is written for users."""

    async def starting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await app(scope, receive, send)
            return
        trace = ""

        async def without_trace(message: Message) -> None:
            nonlocal trace
            trace = message.get("message", "")
            await send({"type": message["type"]})

        try:
            await app(scope, receive, without_trace)
        except VectorizeError as error:
            logger.error("%s", error)  # noqa: TRY400 -- the message says it all
            raise
        except BaseException:
            logger.error("%s", trace)  # noqa: TRY400 -- it is the trace
            raise

    return starting


if __name__ == "__main__":
    main()
