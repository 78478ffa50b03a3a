"""`vectorize serve --with-daemon`, which is `make dev`: what keeps it from starting is said; what is killed is started
again; nothing outlives it.
"""

import signal
import socket
from pathlib import Path

import psutil
import pytest
import requests

from tests.commands import Vectorize
from tests.servers.dev import (
    CODE_SERVER,
    DAEMON,
    HTTP_SERVER,
    LOADED_CODE,
    WEB_SERVER,
    DevServer,
    dev_server,
    is_free,
    is_running,
    until,
)
from vectorize_pipelines.cli.web_server import LOOPBACK
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.gateway.door.listening import bind

END_SECONDS = 120


def test_a_port_that_is_taken_is_named(vectorize_here: Vectorize) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = vectorize_here("serve", "--port", port)
    assert (done.code, done.out) == (SettingsError.exit_code, "")
    assert f"port {port} of 127.0.0.1 cannot be used" in done.err
    assert "`--port`" in done.err


def test_a_port_is_taken_from_the_moment_it_is_bound() -> None:
    """The server itself is up only seconds later."""
    with bind(LOOPBACK, 0) as bound:
        port = bound.getsockname()[1]
        with pytest.raises(SettingsError, match=f"port {port} of "):
            bind(LOOPBACK, port)
        with socket.create_connection((LOOPBACK, port), timeout=10):
            bound.accept()[0].close()
    with bind(LOOPBACK, port):
        pass


@pytest.mark.timeout(1200)
def test_what_is_killed_is_started_again(home: Path, tmp_path: Path, vectorize_here: Vectorize) -> None:
    with dev_server(home, tmp_path / "serve.log") as server:
        server.wait_until_ready()
        assert_the_only_one(server, home, vectorize_here)
        outer = server.part(CODE_SERVER)
        loaded = server.part(LOADED_CODE)
        loaded.kill()
        wait_for_another(server, LOADED_CODE, loaded)
        lost = f"the code server (process {outer.pid}) lost its process `api grpc`; it is started again"
        assert lost in server.said()
        parts = (
            (CODE_SERVER, "code server"),
            (DAEMON, "daemon"),
            (WEB_SERVER, "web server"),
            (HTTP_SERVER, "HTTP server"),
        )
        for words, name in parts:
            killed = server.part(words)
            killed.kill()
            if words == HTTP_SERVER:  # nobody who calls meanwhile is refused
                assert requests.get(f"{server.url}/livez", timeout=END_SECONDS).status_code == 200
            wait_for_another(server, words, killed)
            assert f"the {name} (process {killed.pid}) was ended by SIGKILL; it is started again" in server.said()
        server.wait_until_ready()
        until("the definitions", server.is_loaded)
        parts_at_last = server.parts()
        assert len(parts_at_last) >= 6
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(END_SECONDS) == 0
        assert not any(map(is_running, parts_at_last))
        assert is_free(server.port)


@pytest.mark.timeout(600)
def test_nothing_outlives_a_killed_parent(home: Path, tmp_path: Path) -> None:
    with dev_server(home, tmp_path / "serve.log") as server:
        parts = [server.part(words) for words in (HTTP_SERVER, WEB_SERVER, DAEMON, CODE_SERVER, LOADED_CODE)]
        server.process.kill()
        until("the end of all parts", lambda: not any(map(is_running, parts)), END_SECONDS)
        until("the port", lambda: is_free(server.port), END_SECONDS)
    with dev_server(home, tmp_path / "again.log", port=server.port) as again:
        until("another start", lambda: again.said() or again.process.poll() is not None)
        assert again.said().startswith(f"Serving {server.url}")


def wait_for_another(server: DevServer, words: tuple[str, ...], killed: psutil.Process) -> None:
    """Wait for the part that comes after one that was killed."""
    until(f"another one of {words}", lambda: is_other(server.part(words), killed))


def is_other(process: psutil.Process, killed: psutil.Process) -> bool:
    """Whether a part is the one that came after another."""
    return bool(process != killed and is_running(process))


def assert_the_only_one(server: DevServer, home: Path, vectorize_here: Vectorize) -> None:
    """A second one on the same home, at another port, says where the first one is."""
    done = vectorize_here("serve", "--port", 0)
    assert (done.code, done.out) == (SettingsError.exit_code, "")
    assert f"`vectorize serve` runs on {home} already" in done.err
    assert f"process {server.process.pid}, {server.url}" in done.err
