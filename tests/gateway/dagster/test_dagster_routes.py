"""Dagster's real web server behind the gateway, for a reader and for an administrator."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from tests.gateway.graphql_documents import MUTATIONS
from tests.gateway.running import as_caller, running
from tests.servers.dagster_web import ASSET, LAUNCH, RUNS, dagster_web, socket_of
from tests.servers.dev import until
from vectorize_pipelines.gateway.app import create_routes
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.settings import load_settings

GRAPHQL_WS = Subprotocol("graphql-ws")

pytestmark = pytest.mark.timeout(600)

HTML = {"Accept": "text/html"}
_WAIT_SECONDS = 60.0
TERMINATE = """mutation End($run: String!) {
  terminateRun(runId: $run, terminatePolicy: MARK_AS_CANCELED_IMMEDIATELY) {__typename}}"""
#: The same mutation, as forms that a reader may try.
FORMS: dict[str, dict[str, Any]] = {
    "JSON": {"json": {"query": LAUNCH}},
    "a name that picks the query": {"json": {"query": f"{RUNS} {LAUNCH}", "operationName": "Runs"}},
    "a name that picks the mutation": {"json": {"query": f"{RUNS} {LAUNCH}", "operationName": "Launch"}},
    "an alias": {"json": {"query": LAUNCH.replace("launchRun(", "runsOrError: launchRun(")}},
    "a batch": {"json": [{"query": RUNS}, {"query": LAUNCH}]},
    "two keys": {
        "content": json.dumps({"query": RUNS})[:-1] + ", " + json.dumps({"query": LAUNCH})[1:],
        "headers": {"Content-Type": "application/json"},
    },
    "application/graphql": {"content": LAUNCH, "headers": {"Content-Type": "application/graphql"}},
    "a form": {"data": {"query": LAUNCH}},
    "a form with parts": {"files": {"query": (None, LAUNCH)}},
    "in the address": {"params": {"query": LAUNCH}, "json": {"query": RUNS}},
    "in the address of a form": {"params": {"query": LAUNCH}, "data": {"a": "b"}},
}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterAddress]:
    folder = tmp_path_factory.mktemp("web")
    path, log = folder / "web.sock", folder / "web.log"
    with dagster_web(folder, log, "--uds", str(path), "--path-prefix", "/dagster") as process:
        yield DagsterAddress("http://localhost", socket_of(process, path, log))


def client_of(address: DagsterAddress, home: Path, caller: Caller) -> Iterator[httpx2.Client]:
    app = create_routes(load_settings({"VECTORIZE_HOME": str(home)}), address)
    with (
        running(as_caller(app, caller)) as url,
        httpx2.Client(base_url=url, timeout=_WAIT_SECONDS, trust_env=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def reader(address: DagsterAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    yield from client_of(address, tmp_path_factory.mktemp("reader"), Caller.of("reader", Scope.READ))


@pytest.fixture(scope="module")
def admin(address: DagsterAddress, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    yield from client_of(address, tmp_path_factory.mktemp("admin"), Caller.of("admin", Scope.ADMIN))


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


@pytest.mark.parametrize("path", ["/graphql", "/dagster/graphql"])
@pytest.mark.parametrize("form", FORMS)
def test_a_reader_starts_nothing(reader: httpx2.Client, form: str, path: str) -> None:
    known = runs(reader)
    answer = reader.post(path, **FORMS[form])
    assert answer.status_code in (400, 403, 415)
    assert answer.headers["content-type"] == "application/problem+json"
    assert runs(reader) == known


def test_nobody_starts_anything_by_get(admin: httpx2.Client) -> None:
    known = runs(admin)
    for query in (LAUNCH, f"{RUNS} {LAUNCH}", f"{LAUNCH} {RUNS}"):
        for more in ("", "&operationName=Runs", "&operationName=Launch", f"&query={quote(RUNS)}"):
            for path in ("/graphql", "/dagster/graphql", "/dagster/graphql/", "/dagster//graphql"):
                answer = admin.get(f"{path}?query={quote(query)}{more}")
                assert answer.status_code in (400, 405)
    assert runs(admin) == known


def test_an_administrator_starts_a_run_and_whoever_reads_sees_its_events(
    reader: httpx2.Client, admin: httpx2.Client
) -> None:
    launched = graphql(admin, LAUNCH)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess"
    run_id = launched["run"]["runId"]
    assert run_id in runs(reader)
    query = """subscription Logs($run: ID!) {pipelineRunLogs(runId: $run) {__typename
      ... on PipelineRunLogsSubscriptionSuccess {messages {__typename}}}}"""
    url = str(reader.base_url.copy_with(scheme="ws", path="/dagster/graphql"))
    with connect(url, subprotocols=[GRAPHQL_WS], proxy=None) as websocket:
        websocket.send('{"type": "connection_init", "payload": {}}')
        assert json.loads(websocket.recv(_WAIT_SECONDS))["type"] == "connection_ack"
        payload = {"query": query, "variables": {"run": run_id}, "operationName": "Logs"}
        websocket.send(json.dumps({"type": "start", "id": "1", "payload": payload}))
        wait_for(websocket, "RunEnqueuedEvent")
        assert graphql(admin, TERMINATE, run=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"
        wait_for(websocket, "RunCanceledEvent")


def wait_for(websocket: ClientConnection, event: str) -> None:
    """Receive events of a run until this one comes."""
    names: list[str] = []
    while event not in names:
        message = json.loads(websocket.recv(_WAIT_SECONDS))
        assert (message["type"], message["id"]) == ("data", "1")
        names += [each["__typename"] for each in message["payload"]["data"]["pipelineRunLogs"]["messages"]]


@pytest.mark.parametrize("mutation", [LAUNCH, *MUTATIONS.values()], ids=["a run", *MUTATIONS])
def test_nobody_starts_anything_by_websocket(admin: httpx2.Client, mutation: str) -> None:
    known = runs(admin)
    url = str(admin.base_url.copy_with(scheme="ws", path="/graphql"))
    with connect(url, subprotocols=[GRAPHQL_WS], proxy=None) as websocket:
        for kind in ("start", "subscribe"):
            websocket.send(json.dumps({"type": kind, "id": "1", "payload": {"query": mutation}}))
            assert json.loads(websocket.recv(_WAIT_SECONDS))["type"] == "error"
    assert runs(admin) == known


def test_events_of_assets_are_reported_by_administrators(reader: httpx2.Client, admin: httpx2.Client) -> None:
    path, before = f"/dagster/report_asset_materialization/{ASSET}", materializations(reader)
    assert reader.post(path, json={}).status_code == 403
    assert materializations(reader) == before
    assert admin.post(path, json={}).status_code == 200
    assert until("the event", lambda: materializations(reader) == before + 1)


@pytest.mark.parametrize("path", ["notebook", "dagit/notebook", "%6Eotebook", "notebook/", "/notebook"])
def test_no_notebook_is_shown(admin: httpx2.Client, path: str) -> None:
    answer = admin.get(f"/dagster/{path}?path=/tmp/hostile.ipynb&repoLocName=small", headers=HTML)
    assert answer.status_code == 403
    assert "notebooks are not served" in answer.text
