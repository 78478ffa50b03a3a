"""Dagster's real web server behind the whole gateway, for real tokens: of a reader, of an administrator, and none."""

import gzip
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from click.testing import CliRunner
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.gateway.graphql_documents import MUTATIONS
from tests.gateway.running import serving
from tests.servers.dagster_web import ASSET, LAUNCH, RUNS, dagster_web, socket_of
from tests.servers.dev import until
from vectorize_pipelines.cli import tokens
from vectorize_pipelines.gateway.app import create_app
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.tokens import Scope, Tokens
from vectorize_pipelines.settings import load_settings

GRAPHQL_WS = Subprotocol("graphql-ws")

pytestmark = pytest.mark.timeout(600)

HTML = {"Accept": "text/html"}
PATHS = ("/graphql", "/dagster/graphql")
_WAIT_SECONDS = 60.0
TERMINATE = """mutation End($run: String!) {
  terminateRun(runId: $run, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) {__typename}}"""
#: The field alone, without the operation around it.
_FIELD = LAUNCH.partition("{")[2].rpartition("}")[0]
#: Requests for the same mutation that start a run where an administrator sends them.
STARTING: dict[str, dict[str, Any]] = {
    "JSON": {"json": {"query": LAUNCH}},
    "a name that picks the mutation": {"json": {"query": f"{RUNS} {LAUNCH}", "operationName": "Launch"}},
    "an alias": {"json": {"query": f"mutation {{runsOrError: {_FIELD}}}"}},
    "a fragment": {"json": {"query": f"mutation {{...Read}} fragment Read on Mutation {{{_FIELD}}}"}},
    "an inline fragment": {"json": {"query": f"mutation {{... on Mutation {{... {{{_FIELD}}}}}}}"}},
    "the name of a query": {"json": {"query": f"mutation query {{{_FIELD}}}"}},
    "two keys": {
        "content": json.dumps({"query": RUNS})[:-1] + ", " + json.dumps({"query": LAUNCH})[1:],
        "headers": {"Content-Type": "application/json"},
    },
}
#: Further ones, which some servers would take for it, and which start nothing whoever sends them.
STARTING_NOTHING: dict[str, dict[str, Any]] = {
    "a batch": {"json": [{"query": RUNS}, {"query": LAUNCH}]},
    "a batch of one": {"json": [{"query": LAUNCH}]},
    "application/graphql": {"content": LAUNCH, "headers": {"Content-Type": "application/graphql"}},
    "text": {"content": json.dumps({"query": LAUNCH}), "headers": {"Content-Type": "text/plain"}},
    "compressed": {
        "content": gzip.compress(json.dumps({"query": LAUNCH}).encode()),
        "headers": {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    },
    "a form": {"data": {"query": LAUNCH}},
    "a form with parts": {"files": {"query": (None, LAUNCH)}},
    "in the address": {"params": {"query": LAUNCH}, "json": {"query": RUNS}},
    "in the address of a form": {"params": {"query": LAUNCH}, "data": {"a": "b"}},
}
#: One that an administrator may send, since its mutation is not the operation that is picked.
READING: dict[str, Any] = {"json": {"query": f"{RUNS} {LAUNCH}", "operationName": "Runs"}}
FORMS = {**STARTING, **STARTING_NOTHING, "a name that picks the query": READING}


@dataclass(frozen=True)
class Gateway:
    """The server with all its layers, and the tokens that were made for it."""

    url: str
    tokens: dict[Scope, str]

    @contextmanager
    def client(self, scope: Scope | None) -> Iterator[httpx2.Client]:
        """A client with a token, or without any."""
        headers = {} if scope is None else {"Authorization": f"Bearer {self.tokens[scope]}"}
        with httpx2.Client(base_url=self.url, headers=headers, timeout=_WAIT_SECONDS, trust_env=False) as client:
            yield client


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("web")
    path, log, home = folder / "web.sock", folder / "web.log", folder / "gateway"
    made = {scope: token_of(home, scope) for scope in (Scope.READ, Scope.ADMIN)}
    settings = load_settings({"VECTORIZE_HOME": str(home)})
    with dagster_web(folder, log, "--uds", str(path), "--path-prefix", "/dagster") as process:
        address = DagsterAddress("http://localhost", socket_of(process, path, log))
        with serving(lambda at: create_app(settings, address, Tokens.open(settings), at)) as url:
            yield Gateway(url, made)


def token_of(home: Path, scope: Scope) -> str:
    """A token that `vectorize tokens create` has made."""
    mask = os.umask(0o077)
    try:
        arguments = ["create", f"the {scope.value}", "--scope", scope.value, "--json"]
        done = CliRunner().invoke(tokens.command, arguments, env={"VECTORIZE_HOME": str(home)}, catch_exceptions=False)
    finally:
        os.umask(mask)
    return str(json.loads(done.stdout)["token"])


@pytest.fixture(scope="module")
def stranger(gateway: Gateway) -> Iterator[httpx2.Client]:
    with gateway.client(None) as stranger:
        yield stranger


@pytest.fixture(scope="module")
def reader(gateway: Gateway) -> Iterator[httpx2.Client]:
    with gateway.client(Scope.READ) as reader:
        yield reader


@pytest.fixture(scope="module")
def admin(gateway: Gateway) -> Iterator[httpx2.Client]:
    with gateway.client(Scope.ADMIN) as admin:
        yield admin


def websocket(client: httpx2.Client, path: str = "/graphql") -> ClientConnection:
    url = str(client.base_url.copy_with(scheme="ws", path=path))
    token = client.headers.get("Authorization")
    headers = {} if token is None else {"Authorization": token}
    return connect(url, subprotocols=[GRAPHQL_WS], additional_headers=headers, proxy=None)


def graphql(client: httpx2.Client, query: str, path: str = "/graphql", **variables: Any) -> dict[str, Any]:
    answer = client.post(path, json={"query": query, "variables": variables})
    assert answer.status_code == 200, answer.text
    return dict(answer.json()["data"])


def runs(client: httpx2.Client) -> list[str]:
    return [run["runId"] for run in graphql(client, RUNS)["runsOrError"]["results"]]


def materializations(client: httpx2.Client) -> int:
    query = """query Events($key: [String!]!) {assetOrError(assetKey: {path: $key}) {
      ... on Asset {assetMaterializations {runId}}}}"""
    return len(graphql(client, query, key=[ASSET])["assetOrError"].get("assetMaterializations", []))


def test_the_ui_is_served_whole(reader: httpx2.Client) -> None:
    page = reader.get("/dagster", headers=HTML, follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, "/dagster/")
    assert "text/html" in page.headers["content-type"]
    scripts = re.findall(r'src="(/dagster/_next/static/[^"]+\.js)"', page.text)
    assert scripts
    for script in scripts:
        loaded = reader.get(script)
        assert loaded.status_code == 200
        assert "javascript" in loaded.headers["content-type"]
        again = reader.get(script, headers={"If-None-Match": loaded.headers["etag"]})
        assert again.status_code == 304
    for path in ("/dagster/runs", "/dagster/assets/a%2Fb", "/dagster/locations/small/jobs/noop"):
        assert reader.get(path, headers=HTML).text.count("/dagster/_next") == page.text.count("/dagster/_next")
    assert reader.head("/dagster/server_info").status_code == 200
    assert reader.get("/dagster/server_info").json()["dagster_version"]


def test_graphql_has_two_addresses_and_a_playground(reader: httpx2.Client) -> None:
    for path in ("/graphql", "/dagster/graphql"):
        assert graphql(reader, "{version}", path)["version"]
        got = reader.get(
            path, params={"query": "query V($x: Boolean!) {version @skip(if: $x)}", "variables": '{"x": true}'}
        )
        assert got.json() == {"data": {}}
        playground = reader.get(path, headers=HTML)
        assert "GraphiQL" in playground.text
        assert reader.get("/dagster/vendor/graphiql/graphiql.min.js").status_code == 200


def test_what_dagster_finds_wrong_is_passed_on(reader: httpx2.Client) -> None:
    answer = reader.post("/graphql", json={"query": "{nothing}"})
    assert answer.status_code == 400
    assert "Cannot query field 'nothing'" in answer.json()["errors"][0]["message"]
    assert reader.get("/dagster/logs/none/out").status_code == 404


@pytest.mark.parametrize("path", PATHS)
def test_a_get_without_a_document_is_told_what_is_missing(reader: httpx2.Client, path: str) -> None:
    for query in ("", "?variables=%7B%7D"):
        answer = reader.get(f"{path}{query}")
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json")
        assert answer.json()["errors"] == [{"field": "query", "problem": "is missing"}]


@pytest.mark.parametrize("form", FORMS)
def test_a_reader_starts_nothing_and_a_stranger_is_not_heard(
    stranger: httpx2.Client, reader: httpx2.Client, form: str
) -> None:
    known = runs(reader)
    for path in PATHS:
        refused = reader.post(path, **FORMS[form])
        assert refused.status_code in (400, 403, 415)
        assert refused.headers["content-type"] == "application/problem+json"
        assert stranger.post(path, **FORMS[form]).status_code in (401, 415)
    assert runs(reader) == known


@pytest.mark.parametrize("form", STARTING)
def test_an_administrator_starts_a_run_by_each_form_that_is_one(admin: httpx2.Client, form: str) -> None:
    """So that it is the token that keeps a reader from it."""
    known = runs(admin)
    answer = admin.post("/graphql", **STARTING[form])
    assert answer.status_code == 200, answer.text
    assert len(runs(admin)) == len(known) + 1


def test_other_forms_start_nothing_whoever_sends_them(admin: httpx2.Client) -> None:
    known = runs(admin)
    for form in STARTING_NOTHING:
        assert admin.post("/graphql", **STARTING_NOTHING[form]).status_code in (400, 415), form
    assert admin.post("/graphql", **READING).status_code == 200
    assert runs(admin) == known


def test_nobody_starts_anything_by_get(stranger: httpx2.Client, admin: httpx2.Client) -> None:
    known = runs(admin)
    for query in (LAUNCH, f"{RUNS} {LAUNCH}", f"{LAUNCH} {RUNS}"):
        for more in ("", "&operationName=Runs", "&operationName=Launch", f"&query={quote(RUNS)}"):
            for path in (*PATHS, "/dagster/graphql/", "/dagster//graphql"):
                target = f"{path}?query={quote(query)}{more}"
                assert admin.get(target).status_code in (400, 405)
                assert stranger.get(target).status_code in (400, 401)
    assert runs(admin) == known


def test_a_session_has_the_rights_of_its_token(gateway: Gateway, reader: httpx2.Client) -> None:
    known = runs(reader)
    with gateway.client(None) as browser:
        form = {"token": gateway.tokens[Scope.READ], "next": "/dagster/"}
        assert browser.post("/signin", data=form).status_code == 303
        assert browser.get("/dagster/", headers=HTML).status_code == 200
        for headers in ({"Origin": gateway.url}, {}):
            assert browser.post("/graphql", json={"query": LAUNCH}, headers=headers).status_code == 403
        assert browser.post("/graphql", json={"query": RUNS}, headers={"Origin": gateway.url}).status_code == 200
    assert runs(reader) == known


def test_an_administrator_starts_a_run_and_whoever_reads_sees_its_events(
    reader: httpx2.Client, admin: httpx2.Client
) -> None:
    launched = graphql(admin, LAUNCH)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess"
    run_id = launched["run"]["runId"]
    assert run_id in runs(reader)
    query = """subscription Logs($run: ID!) {pipelineRunLogs(runId: $run) {__typename
      ... on PipelineRunLogsSubscriptionSuccess {messages {__typename}}}}"""
    with websocket(reader, "/dagster/graphql") as socket:
        socket.send('{"type": "connection_init", "payload": {}}')
        assert json.loads(socket.recv(_WAIT_SECONDS))["type"] == "connection_ack"
        payload = {"query": query, "variables": {"run": run_id}, "operationName": "Logs"}
        socket.send(json.dumps({"type": "start", "id": "1", "payload": payload}))
        wait_for(socket, "RunEnqueuedEvent")
        assert graphql(admin, TERMINATE, run=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"
        wait_for(socket, "RunCanceledEvent")


def wait_for(socket: ClientConnection, event: str) -> None:
    """Receive events of a run until this one comes."""
    names: list[str] = []
    while event not in names:
        message = json.loads(socket.recv(_WAIT_SECONDS))
        assert (message["type"], message["id"]) == ("data", "1")
        names += [each["__typename"] for each in message["payload"]["data"]["pipelineRunLogs"]["messages"]]


def test_nobody_starts_anything_by_websocket(reader: httpx2.Client, admin: httpx2.Client) -> None:
    known = runs(admin)
    launching = [form["json"] for form in (*STARTING.values(), READING) if "json" in form]
    for client in (reader, admin):
        with websocket(client) as socket:
            for payload in (*launching, *({"query": mutation} for mutation in MUTATIONS.values())):
                for kind in ("start", "subscribe"):
                    socket.send(json.dumps({"type": kind, "id": "1", "payload": payload}))
                    assert json.loads(socket.recv(_WAIT_SECONDS))["type"] == "error", payload
    assert runs(admin) == known


@pytest.mark.parametrize("path", PATHS)
def test_a_batch_by_websocket_ends_it(admin: httpx2.Client, path: str) -> None:
    start = {"type": "start", "id": "1", "payload": {"query": LAUNCH}}
    for batch in ([start], {**start, "payload": [{"query": LAUNCH}]}):
        with websocket(admin, path) as socket:
            socket.send(json.dumps(batch))
            with pytest.raises(ConnectionClosed) as closed:
                socket.recv(_WAIT_SECONDS)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


@pytest.mark.parametrize("path", PATHS)
def test_a_stranger_gets_no_websocket(stranger: httpx2.Client, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        websocket(stranger, path)
    assert refused.value.response.status_code == 401


def test_events_of_assets_are_reported_by_administrators(reader: httpx2.Client, admin: httpx2.Client) -> None:
    path, before = f"/dagster/report_asset_materialization/{ASSET}", materializations(reader)
    assert reader.post(path, json={}).status_code == 403
    assert materializations(reader) == before
    assert admin.post(path, json={}).status_code == 200
    assert until("the event", lambda: materializations(reader) == before + 1)


@pytest.mark.parametrize("path", ["notebook", "dagit/notebook", "%6Eotebook", "notebook/"])
def test_no_notebook_is_shown(admin: httpx2.Client, path: str) -> None:
    answer = admin.get(f"/dagster/{path}?path=/tmp/hostile.ipynb&repoLocName=small", headers=HTML)
    assert answer.status_code == 403
    assert "notebooks are not served" in answer.text
    assert admin.get(f"/dagster//{path}?path=/tmp/hostile.ipynb&repoLocName=small").status_code == 400
