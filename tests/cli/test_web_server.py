"""Dagster's web server by itself, as an operator runs it beside a daemon: no page of another origin gets anything."""

import http.client
import json
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.servers.dagster_web import LAUNCH, RUNS, dagster_web
from tests.servers.dev import is_free, until
from tests.servers.ports import free_ports

pytestmark = pytest.mark.timeout(600)

JSON = {"Content-Type": "application/json"}
_LAUNCH = json.dumps({"query": LAUNCH})


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder, (port,) = tmp_path_factory.mktemp("web"), free_ports(1)
    log = folder / "web.log"
    with dagster_web(folder, log, "--port", str(port)) as process:
        until(f"the server ({log})", lambda: process.poll() is not None or not is_free(port))
        assert process.poll() is None, log.read_text(errors="replace")
        yield port


def ask(port: int, method: str, path: str, headers: dict[str, str] | None = None, body: str = "") -> tuple[int, str]:
    """The status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body.encode(), {"Host": f"localhost:{port}", **(headers or {})})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def runs(port: int) -> int:
    status, said = ask(port, "POST", "/graphql", JSON, json.dumps({"query": RUNS}))
    assert status == 200
    return len(json.loads(said)["data"]["runsOrError"]["results"])


def test_the_ui_and_its_graphql_are_served(port: int) -> None:
    for path in ("/", "/runs", "/server_info", "/graphql?query=%7Bversion%7D"):
        assert ask(port, "GET", path)[0] == 200, path
    known = runs(port)
    status, said = ask(port, "POST", "/graphql", {**JSON, "Origin": f"http://localhost:{port}"}, _LAUNCH)
    assert (status, json.loads(said)["data"]["launchRun"]["__typename"]) == (200, "LaunchRunSuccess")
    assert runs(port) == known + 1


@pytest.mark.parametrize(
    ("method", "path", "headers", "body", "status"),
    [
        ("POST", "/graphql", {"Content-Type": "text/plain"}, _LAUNCH, 415),
        ("POST", f"/graphql?query={quote(LAUNCH)}", {}, "", 415),
        ("POST", "/graphql", {**JSON, "Origin": "http://evil.example"}, _LAUNCH, 403),
        ("POST", "/graphql", {**JSON, "Host": "evil.example"}, _LAUNCH, 403),
        ("POST", "/graphql", {**JSON, "Sec-Fetch-Site": "cross-site"}, _LAUNCH, 403),
        ("GET", f"/graphql?query={quote(LAUNCH)}", {}, "", 405),
        ("PUT", "/graphql", JSON, _LAUNCH, 405),
        ("GET", "/notebook?path=/tmp/hostile.ipynb&repoLocName=small", {}, "", 403),
    ],
)
def test_what_a_page_could_make_a_browser_send_is_refused(
    port: int, method: str, path: str, headers: dict[str, str], body: str, status: int
) -> None:
    known = runs(port)
    found, said = ask(port, method, path, headers, body)
    assert (found, said.startswith("refused: ")) == (status, True)
    assert runs(port) == known
