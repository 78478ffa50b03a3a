"""Dagster's web server with `BrowserGuard` in front of it, in one process: no other port leads to it.

    python -m vectorize_pipelines.cli.web_server --workspace workspace.yaml --port 3000

takes the place of `dagster-webserver`. It asks nobody who they are: let only those reach it who may start runs.
`vectorize serve` starts it too, at a Unix socket that only its own HTTP server can reach, which asks.
"""

import argparse
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vectorize_pipelines.core.installation import default_file
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.gateway.door.listening import bind
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.home import use_dagster_home

if TYPE_CHECKING:
    import uvicorn

LOOPBACK = "127.0.0.1"
#: Open WebSockets, which every page of the UI has, end no sooner by themselves.
_GRACEFUL_SECONDS = 2


def _serve_at_port(bound: socket.socket, workspace: Path, path_prefix: str, allowed_hosts: list[str]) -> None:
    """Serve Dagster's UI, its GraphQL and its other endpoints until SIGINT or SIGTERM."""
    from vectorize_pipelines.gateway.door.origins import loopback_hosts

    hosts = loopback_hosts(bound.getsockname()[1]) | set(allowed_hosts)
    with _server(workspace, path_prefix, hosts) as server:
        server.run(sockets=[bound])


def _serve_at_socket(path: Path, workspace: Path, path_prefix: str) -> None:
    """Serve the same at a Unix socket, which is made when the server is ready: until then nobody has to wait there."""
    with _server(workspace, path_prefix, {"localhost"}, uds=str(path)) as server:
        server.run()


@contextlib.contextmanager
def _server(workspace: Path, path_prefix: str, hosts: set[str], uds: str | None = None) -> "Iterator[uvicorn.Server]":
    import dagster as dg
    import uvicorn

    from vectorize_pipelines.compat import configure_web_logging, web_app
    from vectorize_pipelines.gateway.door.browser_guard import BrowserGuard

    configure_web_logging()  # before the instance opens, and may tell what it mends
    with dg.DagsterInstance.get() as instance, web_app(instance, workspace, path_prefix) as app:
        guarded = BrowserGuard(app, hosts, path_prefix)
        yield uvicorn.Server(
            uvicorn.Config(guarded, uds=uds, log_level="warning", timeout_graceful_shutdown=_GRACEFUL_SECONDS)
        )


def _close_abandoned_runs(settings: Settings, folder: Path) -> None:
    """Close what an earlier `vectorize serve` could not: a run that seems to go on keeps its part of a topic."""
    import dagster as dg

    from vectorize_pipelines.runs.dead import close_abandoned_runs

    with dg.DagsterInstance.get() as instance:
        for run_id in close_abandoned_runs(instance, settings, folder):
            print(f"run {run_id} ended together with an earlier `vectorize serve`: marked as failed", file=sys.stderr)


def main() -> None:
    """Listen where the arguments say, and serve."""
    arguments = _arguments()
    # uvicorn handles both signals while it serves, and raises them again once it has ended.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        try:
            settings = load_settings()
            use_dagster_home(settings)
            if arguments.uds is not None:
                _close_abandoned_runs(settings, arguments.workspace.parent)
            else:
                bound = bind(arguments.host, arguments.port)
                print(f"Dagster's UI at port {arguments.port} (state in {os.environ['DAGSTER_HOME']})", flush=True)
        except VectorizeError as error:
            sys.exit(f"error: {error}")
        if arguments.uds is not None:
            _serve_at_socket(arguments.uds, arguments.workspace, arguments.path_prefix)
        else:
            _serve_at_port(bound, arguments.workspace, arguments.path_prefix, arguments.allow_host)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default=LOOPBACK, help="address to listen at; any other than loopback is open to all")
    parser.add_argument("--port", type=int, default=3000)
    parser.add_argument("--workspace", "-w", type=Path, default=default_file("workspace.yaml"))
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME:PORT", help="another address of it")
    parser.add_argument(
        "--path-prefix",
        default="",
        metavar="/PATH",
        help="path below which all of it lies; /dagster for a server behind `vectorize serve`",
    )
    parser.add_argument("--uds", type=Path, metavar="PATH", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
