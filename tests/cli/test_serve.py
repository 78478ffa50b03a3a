"""`vectorize serve`: what it serves, what it refuses, and how it ends."""

import json
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from tests.commands import COMMAND, Vectorize
from tests.gateway.dagster.upstream import Upstream
from tests.gateway.running import running
from tests.servers.dagster_web import LAUNCH, RUNS, dagster_web
from tests.servers.dev import DAEMON, HTTP_SERVER, WEB_SERVER, DevServer, dev_server, is_running, until
from tests.servers.ports import free_ports
from vectorize_pipelines.cli.web_server import LOOPBACK
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.gateway.door.listening import bind

GRAPHQL_WS = Subprotocol("graphql-ws")

pytestmark = pytest.mark.timeout(600)

END_SECONDS = 120
HTML = {"Accept": "text/html"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    folder = tmp_path_factory.mktemp("serve")
    with dev_server(folder / "home", folder / "serve.log", arguments=()) as server:
        server.wait_until_ready()
        until("the definitions", server.is_loaded)
        yield server


def test_dagsters_ui_lies_below_its_path(server: DevServer) -> None:
    page = requests.get(server.ui, headers=HTML, timeout=60)
    assert (page.status_code, page.url) == (200, f"{server.ui}/")
    assert "/dagster/_next/static/" in page.text
    assert server.graphql("{version}")["version"]
    jobs = server.graphql("{repositoriesOrError {... on RepositoryConnection {nodes {jobs {name}}}}}")
    names = {job["name"] for node in jobs["repositoriesOrError"]["nodes"] for job in node["jobs"]}
    assert "embed_text" in names


def test_events_come_by_websocket(server: DevServer) -> None:
    url = server.ui.replace("http", "ws") + "/graphql"
    with connect(url, subprotocols=[GRAPHQL_WS], origin=Origin(server.url), proxy=None) as websocket:
        websocket.send('{"type": "connection_init"}')
        assert json.loads(websocket.recv(60))["type"] == "connection_ack"


def test_a_message_by_websocket_has_a_bound(server: DevServer) -> None:
    url = server.url.replace("http", "ws") + "/graphql"
    with connect(url, subprotocols=[GRAPHQL_WS], origin=Origin(server.url), proxy=None) as websocket:
        websocket.send("x" * (2**20 + 1))
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(60)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009


def test_without_the_option_there_is_no_daemon(server: DevServer) -> None:
    lines = [" ".join(part.cmdline()) for part in server.parts()]
    assert any(WEB_SERVER[0] in line for line in lines)
    assert not any(DAEMON[0] in line for line in lines)


def test_only_the_http_server_has_a_port(server: DevServer) -> None:
    """Dagster's web server asks nobody who they are."""
    web_server = server.part(WEB_SERVER)
    listening = [each for each in web_server.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert listening == []
    (unix,) = {each.laddr for each in web_server.net_connections("unix") if each.laddr}
    assert Path(unix).parent.stat().st_mode & 0o077 == 0


def test_who_waits_for_events_does_not_keep_it_from_ending(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(Upstream()) as dagster:
        monkeypatch.setenv("VECTORIZE_GATEWAY__DAGSTER_URL", dagster)
        with dev_server(home, tmp_path / "serve.log", arguments=()) as server:
            server.wait_until_ready()
            url = server.url.replace("http", "ws") + "/graphql"
            with connect(url, subprotocols=[GRAPHQL_WS], origin=Origin(server.url), proxy=None) as websocket:
                part = server.part(HTTP_SERVER)
                part.send_signal(signal.SIGTERM)
                with pytest.raises(ConnectionClosed):
                    websocket.recv(60)
                until("the end", lambda: not is_running(part), END_SECONDS)
            assert "Traceback" not in server.said()


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A web server of Dagster is named that nothing listens at."""
    monkeypatch.setenv("VECTORIZE_GATEWAY__DAGSTER_URL", f"http://127.0.0.1:{free_ports(1)[0]}/")


def test_it_does_not_wait_for_dagster(home: Path, tmp_path: Path, nowhere: None) -> None:
    with dev_server(home, tmp_path / "serve.log", arguments=()) as server:
        until("an answer", lambda: starting(server))
        answer = requests.get(f"{server.ui}/server_info", timeout=60)
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(server.parts()) == 2  # the HTTP server, and what ends it with its parent
        with dev_server(home, tmp_path / "second.log", arguments=()) as second:
            until("an answer of a second one on the same home", lambda: starting(second))


def starting(server: DevServer) -> bool:
    try:
        answer = requests.get(f"{server.ui}/runs", headers=HTML, timeout=60)
    except requests.ConnectionError:
        return False
    return answer.status_code == 503 and "Dagster is starting" in answer.text


def test_it_stands_before_a_web_server_that_the_operator_runs(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_ports(1)[0]
    monkeypatch.setenv("VECTORIZE_GATEWAY__DAGSTER_URL", f"http://localhost:{port}")
    listening = ("--port", str(port), "--path-prefix", "/dagster")
    with (
        dagster_web(tmp_path / "web", tmp_path / "web.log", *listening),
        dev_server(home, tmp_path / "serve.log", arguments=()) as server,
    ):
        server.wait_until_ready()
        assert server.graphql(LAUNCH)["launchRun"]["__typename"] == "LaunchRunSuccess"
        assert len(server.graphql(RUNS)["runsOrError"]["results"]) == 1
        url = server.url.replace("http", "ws") + "/graphql"
        with connect(url, subprotocols=[GRAPHQL_WS], origin=Origin(server.url), proxy=None) as websocket:
            websocket.send('{"type": "connection_init"}')
            assert json.loads(websocket.recv(60))["type"] == "connection_ack"


@pytest.fixture
def refused(vectorize_here: Vectorize) -> Callable[..., str]:
    """What one says that does not start; it has been called with these options."""

    def call(*arguments: str) -> str:
        done = vectorize_here("serve", *arguments)
        assert (done.code, done.out) == (SettingsError.exit_code, "")
        return done.err

    return call


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "box.example"])
def test_others_than_this_machine_are_not_let_in_unasked(refused: Callable[..., str], host: str) -> None:
    assert f"gateway.host: {host} is reached by other machines, and there is no token" in refused(
        "--host", host, "--port", "0"
    )


def test_a_daemon_beside_another_web_server_is_refused(refused: Callable[..., str], nowhere: None) -> None:
    assert "gateway.dagster_url" in refused("--with-daemon", "--port", "0")


def certificate(folder: Path, encryption: KeySerializationEncryption) -> tuple[Path, Path]:
    """A certificate of this machine that it has signed itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(built.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    return chain, private


def use(chain: Path, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTORIZE_GATEWAY__TLS_CERTIFICATE", str(chain))
    monkeypatch.setenv("VECTORIZE_GATEWAY__TLS_KEY", str(key))


def test_a_certificate_that_cannot_be_used_is_said_before_anything_starts(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, key = certificate(tmp_path, NoEncryption())
    for first, second in ((tmp_path / "none", key), (chain, tmp_path / "none"), (chain, chain), (key, key)):
        use(first, second, monkeypatch)
        assert "gateway.tls_certificate and gateway.tls_key cannot be used" in refused("--port", "0")


def test_nobody_is_asked_for_the_password_of_a_key(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(*certificate(tmp_path, BestAvailableEncryption(b"secret")), monkeypatch)
    assert "cannot be used" in refused("--port", "0")


def test_with_a_certificate_it_speaks_tls_alone(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere: None
) -> None:
    chain, key = certificate(tmp_path, NoEncryption())
    use(chain, key, monkeypatch)
    with dev_server(home, tmp_path / "serve.log", arguments=()) as server:
        url = f"https://localhost:{server.port}/dagster/server_info"
        until("an answer", lambda: server.process.poll() is not None or status_of(url, chain) == 503)
        assert f"Serving https://localhost:{server.port}" in server.said()
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{server.ui}/server_info", timeout=60)
        context = ssl.create_default_context(cafile=str(chain))
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=60) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            assert secure.version() in ("TLSv1.2", "TLSv1.3")


def status_of(url: str, chain: Path) -> int | None:
    try:
        return requests.get(url, verify=str(chain), timeout=60).status_code
    except requests.ConnectionError:
        return None


def test_a_database_that_cannot_be_used_is_said_without_a_stack_trace(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere: None
) -> None:
    """By the HTTP server alone: what starts it would start it four times before it gives up."""
    database = tmp_path / "ledger.db"
    database.write_bytes(b"no database at all" * 1000)
    monkeypatch.setenv("VECTORIZE_LEDGER__URL", f"sqlite:///{database}")
    with bind(LOOPBACK, 0) as bound:
        server = [sys.executable, "-m", HTTP_SERVER[0], "--socket", str(bound.fileno())]
        done = subprocess.run(server, capture_output=True, text=True, timeout=END_SECONDS, pass_fds=[bound.fileno()])
    assert done.returncode not in (0, -signal.SIGKILL)
    assert str(database) in done.stderr
    assert "Traceback" not in done.stderr


def test_it_listens_where_the_settings_say_unless_an_option_does(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nowhere: None
) -> None:
    first, second = free_ports(2)
    monkeypatch.setenv("VECTORIZE_MASTER_PORT", str(first))
    monkeypatch.setenv("VECTORIZE_MASTER_HOST", "127.0.0.1")
    log = tmp_path / "serve.log"
    with log.open("ab") as output:
        process = subprocess.Popen([*COMMAND, "serve"], stdout=output, stderr=output, start_new_session=True)
    try:
        until("an answer", lambda: starting(DevServer(process, first, log)))
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(END_SECONDS) == 130
    with dev_server(home, tmp_path / "second.log", port=second, arguments=()) as server:
        until("the greeting", server.said)
        assert server.said().startswith(f"Serving http://localhost:{second} ")
