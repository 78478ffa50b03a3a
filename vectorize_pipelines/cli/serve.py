"""`vectorize serve`: the HTTP server, and Dagster's web server, code server and daemon behind it, in the foreground.

All of them are watched: what is killed is started again, and nothing of it outlives this process. Only the HTTP server
has a port; Dagster's web server listens at a Unix socket in a folder that nobody else can enter. `make dev` is this
command with the daemon.
"""

import fcntl
import json
import os
import socket
import ssl
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.gateway.door.listening import bind, bind_metrics, check_exposure
from vectorize_pipelines.gateway.door.tokens import Tokens
from vectorize_pipelines.gateway.paths import PATH_PREFIX
from vectorize_pipelines.settings import GatewaySettings, Settings, load_settings
from vectorize_pipelines.state import home
from vectorize_pipelines.supervision import Service, Supervisor

LOCATION = "vectorize_pipelines.definitions"
#: The import of the definitions may take this long; Dagster's own limit for code servers that it starts itself.
_LOAD_SECONDS = 180


@click.command()
@click.option("--host", help="Address to listen at; any but loopback needs a token.  [gateway.host]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen at; 0: any free one.  [gateway.port]")
@click.option(
    "--metrics-port", type=click.IntRange(0, 65535), help="Port of Prometheus' metrics.  [gateway.metrics_port]"
)
@click.option("--with-daemon", is_flag=True, help="Start Dagster's daemon too: sensors, schedules and backfills.")
def command(host: str | None, port: int | None, metrics_port: int | None, with_daemon: bool) -> int:
    """Serve the HTTP API, search and embeddings, and Dagster's UI behind them, until Ctrl-C.

    Options win over the settings that they name. Dagster's own services are started too, unless `gateway.dagster_url`
    names a web server of Dagster.
    """
    given = {"host": host, "port": port, "metrics_port": metrics_port}
    settings = load_settings(gateway={name: value for name, value in given.items() if value is not None})
    home.keep_private(settings)
    return serve(settings, with_daemon=with_daemon)


def serve(settings: Settings, *, with_daemon: bool, beside: Sequence[Service] = ()) -> int:
    """Serve until a signal, and return the exit status. `beside`: further services, which start last and end first.

    Raises `SettingsError`, and `ServiceError` where a service cannot be kept up.
    """
    tokens = Tokens.open(settings)
    _check(settings, tokens, with_daemon=with_daemon)
    with ExitStack() as stack:
        bound = stack.enter_context(_bound(settings.gateway))
        metrics = bind_metrics(settings.gateway)
        if metrics is not None:
            stack.enter_context(metrics)
        home.use_dagster_home(settings)
        url = _url(settings.gateway, bound)
        held = () if settings.gateway.dagster_url else (stack.enter_context(_only_one(settings, url)),)
        click.echo(_greeting(settings, tokens, url, with_daemon=with_daemon))
        # Nobody else can enter it, so nobody else can speak to the code server and to Dagster's web server.
        folder = Path(tempfile.mkdtemp(prefix=home.server_folder_prefix(settings)))
        services = _services(settings.gateway, folder, bound, metrics, with_daemon=with_daemon)
        return Supervisor([*services, *beside], folder, held=held).run()


def _check(settings: Settings, tokens: Tokens, *, with_daemon: bool) -> None:
    """Raise `SettingsError` for what cannot be served so, or must not be."""
    gateway = settings.gateway
    if with_daemon and gateway.dagster_url is not None:
        raise SettingsError(
            "--with-daemon starts a daemon beside a web server of its own, and gateway.dagster_url names another one: "
            "run `dagster-daemon` beside that"
        )
    check_exposure(settings, tokens)
    if gateway.tls_certificate is not None:
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            # Without a password it would be asked for at the terminal.
            context.load_cert_chain(gateway.tls_certificate, gateway.tls_key, password="")
        except OSError as error:
            raise SettingsError(f"gateway.tls_certificate and gateway.tls_key cannot be used: {error}") from None


def _services(
    gateway: GatewaySettings, folder: Path, bound: socket.socket, metrics: socket.socket | None, *, with_daemon: bool
) -> list[Service]:
    """Return the services in the order of their start; they end the other way round."""
    python = [sys.executable, "-m"]
    http_server = [*python, "vectorize_pipelines.gateway.server", "--socket", str(bound.fileno())]
    sockets = [bound.fileno()]
    if metrics is not None:
        http_server += ["--metrics-socket", str(metrics.fileno())]
        sockets.append(metrics.fileno())
    if gateway.dagster_url is not None:
        return [Service("HTTP server", http_server, inherited=tuple(sockets))]
    code_socket, web_socket, workspace = folder / "code.sock", folder / "web.sock", folder / "workspace.yaml"
    location = {"grpc_server": {"location_name": LOCATION, "socket": str(code_socket)}}
    workspace.write_text(json.dumps({"load_from": [location]}))  # JSON is YAML
    code_server = ["dagster", "code-server", "start", "--socket", str(code_socket), "--location-name", LOCATION]
    code_server += ["--module-name", LOCATION, "--inject-env-vars-from-instance", "--log-level", "warning"]
    code_server += ["--startup-timeout", str(_LOAD_SECONDS)]
    http_server += ["--dagster-socket", str(web_socket)]
    web_server = ["vectorize_pipelines.cli.web_server", "--workspace", str(workspace), "--uds", str(web_socket)]
    web_server += ["--path-prefix", PATH_PREFIX]
    daemon = ["vectorize_pipelines.cli.daemon", "--workspace", str(workspace)]
    services = [
        # Behind a process that does not import the definitions is one that does: so the UI can load them again.
        Service("code server", [*python, *code_server], child=("api", "grpc")),
        # Does not ask the code server, so it is not kept waiting for that; the two behind it do.
        Service("HTTP server", http_server, inherited=tuple(sockets), ready=lambda: _answers(code_socket)),
        Service("web server", [*python, *web_server]),
    ]
    return [*services, Service("daemon", [*python, *daemon])] if with_daemon else services


def _answers(path: Path) -> bool:
    """Return whether a server listens at a socket."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(path))
        except OSError:
            return False
    return True


def _bound(gateway: GatewaySettings) -> socket.socket:
    """Return the socket of the HTTP server, which stays here when that ends. Raises `SettingsError`."""
    try:
        return bind(gateway.host, gateway.port)
    except SettingsError as error:
        raise SettingsError(f"{error}; `--port` takes another one") from None


def _url(gateway: GatewaySettings, bound: socket.socket) -> str:
    """Return the address of the server as a browser on this machine has it."""
    scheme = "http" if gateway.tls_certificate is None else "https"
    return f"{scheme}://localhost:{bound.getsockname()[1]}"


def _greeting(settings: Settings, tokens: Tokens, url: str, *, with_daemon: bool) -> str:
    if tokens.current():
        who = f"Browsers sign in with a token at {url}/signin; programs send it as `Authorization: Bearer …`."
    else:
        who = (
            "No token is asked for: whoever reaches this address of the machine may do everything "
            "(`vectorize tokens create` makes the first)."
        )
    lines = [
        f"Serving {url}  (state in {os.environ['DAGSTER_HOME']}; Ctrl-C ends it)",
        f"Dagster's UI: {url}{PATH_PREFIX}",
        who,
    ]
    if not with_daemon:
        what = "runs" if settings.kafka.bootstrap_servers else "requests, which become runs without Kafka,"
        lines.append(f"Dagster's daemon is not started here: queued {what} wait for one (--with-daemon starts it).")
    return "\n".join(lines)


@contextmanager
def _only_one(settings: Settings, url: str) -> Iterator[int]:
    """Hold a lock of the installation, so that it has one daemon, and one code server that launches its runs.

    Raises `SettingsError` where another process holds it.
    """
    file = home.server_lock(settings)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise SettingsError(f"{file} cannot be opened: {error.strerror}") from None
    with os.fdopen(descriptor, "r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"`vectorize serve` runs on {settings.home} already, or is just ending ({lock.read().strip()}); "
                "end it first, or name another VECTORIZE_HOME"
            ) from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()}, {url}\n")
        lock.flush()
        yield lock.fileno()
