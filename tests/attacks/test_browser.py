"""Pages of other origins, in a real browser, try to start runs on `vectorize serve`; its own pages go on working."""

import http.client
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from tests.components import need
from tests.servers import browser
from tests.servers.browser import Browser, Page, PageError
from tests.servers.dev import NO_RUNS, DevServer, dev_server, until
from tests.servers.web import Web, answer, serving

pytestmark = pytest.mark.timeout(600)

EVIL = "evil.example"
#: What is said of a refusal, whichever part of the server it comes from.
REASONS = (
    "of another origin",
    "is not an address of this server",
    "GET is for queries",
    "is there more than once",
    "application/json only",
    "is not served",
    "control character",
)
#: Another address of the server, which its operator has allowed.
TUNNEL = "box.example:8443"
MUTATION = """mutation {launchRun(executionParams: {mode: "default", runConfigData: {}, selector: {
  repositoryLocationName: "vectorize_pipelines.definitions", repositoryName: "__repository__", jobName: "embed_corpus"},
  executionMetadata: {tags: [{key: "dagster/partition", value: "%s"}]}}) {__typename}}"""
RUNS = "{runsOrError {... on Runs {results {runId status}}}}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevServer]:
    """Nothing to embed, and no sensor that launches a run."""
    folder = tmp_path_factory.mktemp("dev")
    corpus = folder / "corpus"
    corpus.mkdir()
    settings = {**NO_RUNS, "VECTORIZE_CORPUS__PATH": str(corpus)}
    settings["VECTORIZE_GATEWAY__HOSTS"] = TUNNEL
    with dev_server(folder / "home", folder / "serve.log", settings, arguments=()) as server:
        server.wait_until_ready()
        until("the definitions", server.is_loaded)
        yield server


@pytest.fixture(scope="module")
def browser_program() -> None:
    need(browser.program)


@pytest.fixture(scope="module")
def chromium(browser_program: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """It takes the names of the attacker for addresses of this machine."""
    with Browser(tmp_path_factory.mktemp("browser"), {EVIL: "127.0.0.1"}) as chromium:
        yield chromium


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    with chromium.page() as page:
        yield page


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Web]:
    """The attacker's web server: an empty page at every path."""
    with serving(lambda handler: answer(handler, body=b"<p>hostile</p>", content_type="text/html")) as web:
        yield web


def mutation() -> str:
    """The launch of a run that a page of the UI may ask for."""
    return MUTATION % datetime.now(UTC).date()


def runs(server: DevServer) -> list[str]:
    """The runs that were launched."""
    return [run["runId"] for run in server.graphql(RUNS)["runsOrError"]["results"]]


# What a hostile page does with `url`, the address of GraphQL, and `mutation`; the value says what came of it.
_BODY = "JSON.stringify({query: mutation})"
_QUERY = "url + '?query=' + encodeURIComponent(mutation)"
_ELEMENT = (
    "new Promise(done => {{const it = document.createElement('{tag}'); it.onload = it.onerror = event => "
    "done(event.type); it.{address} = {value}; document.body.append(it)}})"
)
_FORM = (
    "const form = document.createElement('form'); form.method = 'post'; form.action = {action}; form.enctype = "
    "'{type}'; const field = document.createElement('input'); field.name = {name}; field.value = '\"}}'; "
    "form.append(field); document.body.append(form); form.submit()"
)
SCRIPTS = {
    "text posted": f"fetch(url, {{method: 'POST', mode: 'no-cors', body: {_BODY}}})",
    "text posted, query in the address": f"fetch({_QUERY}, {{method: 'POST', mode: 'no-cors'}})",
    "text that passes for JSON": (
        "fetch(url, {method: 'POST', mode: 'no-cors', headers: {'Content-Type': 'text/plain; application/json'}, "
        f"body: {_BODY}}})"
    ),
    "a form's fields posted": f"fetch({_QUERY}, {{method: 'POST', mode: 'no-cors', body: new URLSearchParams('a=b')}})",
    "a beacon": f"navigator.sendBeacon(url, {_BODY})",
    "JSON posted": (f"fetch(url, {{method: 'POST', headers: {{'Content-Type': 'application/json'}}, body: {_BODY}}})"),
    "JSON posted with cookies": (
        "fetch(url, {method: 'POST', credentials: 'include', headers: {'Content-Type': 'application/json'}, "
        f"body: {_BODY}}}).catch(error => error.name)"
    ),
    "a GET": f"fetch({_QUERY}, {{mode: 'no-cors'}})",
    "an image": _ELEMENT.format(tag="img", address="src", value=_QUERY),
    "a script": _ELEMENT.format(tag="script", address="src", value=_QUERY),
    "a frame": _ELEMENT.format(tag="iframe", address="src", value=_QUERY),
    "a style sheet": _ELEMENT.format(tag="link", address="rel = 'stylesheet'; it.href", value=_QUERY),
    "an event of an asset": (
        "fetch(url.replace('graphql', 'report_asset_materialization/corpus_embeddings'), "
        "{method: 'POST', mode: 'no-cors'})"
    ),
}
NAVIGATIONS = {
    "a link": f"location.href = {_QUERY}",
    "a window": f"window.open({_QUERY})",
    "a form of text": _FORM.format(action=_QUERY, type="text/plain", name='\'{"query": "\''),
    "a form of fields": _FORM.format(action=_QUERY, type="application/x-www-form-urlencoded", name="'a'"),
    "a form with a file": _FORM.format(action=_QUERY, type="multipart/form-data", name="'a'"),
}
_SOCKET = """new Promise(done => {const socket = new WebSocket(address, 'graphql-ws');
  socket.onopen = () => socket.send('{"type": "connection_init"}');
  socket.onmessage = event => done(JSON.parse(event.data).type); socket.onclose = () => done('closed')})"""
#: Pages of another site, of another port of this machine, and of a name that every browser takes for this machine.
ORIGINS = (EVIL, "localhost", "127.0.0.1", "rebind.localhost")


def attack(page: Page, url: str, script: str) -> object:
    """What becomes of a script in a page, with the address of GraphQL and the mutation as its variables."""
    return page.run(f"(() => {{const url = {json.dumps(url)}, mutation = {json.dumps(mutation())}; {script}}})()")


def try_to(page: Page, url: str, script: str) -> None:
    """Wait until the browser is done with an attack, whether or not it lets the page see what came of it."""
    attack(page, url, f"return Promise.resolve({script}).then(() => 'done', error => error.name)")


@pytest.mark.parametrize("host", ORIGINS)
@pytest.mark.parametrize("target", ["localhost", "127.0.0.1"])
def test_a_page_of_another_origin_starts_nothing(
    server: DevServer, page: Page, elsewhere: Web, host: str, target: str
) -> None:
    known = runs(server)
    page.open(elsewhere.url(host=host))
    assert page.run("location.hostname") == host
    for name, script in SCRIPTS.items():
        try_to(page, f"http://{target}:{server.port}/dagster/graphql", script)
        assert runs(server) == known, name
    assert events(server) == 0


def hostname_of(page: Page) -> object:
    """Return where the page is; None while it is on its way, when Chromium gives up what it was asked to run."""
    try:
        return page.run("location.hostname")
    except PageError as error:
        if "navigated" not in str(error):
            raise
        return None


@pytest.mark.parametrize("name", NAVIGATIONS)
def test_a_page_that_goes_there_starts_nothing(server: DevServer, page: Page, elsewhere: Web, name: str) -> None:
    known = runs(server)
    before = len(elsewhere.asked)
    page.open(elsewhere.url(host=EVIL))
    assert len(elsewhere.asked) > before
    attack(page, f"{server.ui}/graphql", NAVIGATIONS[name])
    if name == "a window":
        try_to(page, f"{server.ui}/graphql", "fetch(url, {mode: 'no-cors'})")
    else:
        until("the answer", lambda: hostname_of(page) == "localhost")
        assert is_refusal(str(page.run("document.body.innerText")))
    assert runs(server) == known


@pytest.mark.parametrize("host", [EVIL, "rebind.localhost"])
def test_a_name_that_is_pointed_here_gets_nothing(server: DevServer, page: Page, host: str) -> None:
    """The page is at the same origin as what it asks, as after a rebinding; it cannot even read."""
    known = runs(server)
    page.open(f"http://{host}:{server.port}/dagster/")
    assert page.run("location.host") == f"{host}:{server.port}"
    assert is_refusal(str(page.run("document.body.innerText")))
    url = f"http://{host}:{server.port}/dagster/graphql"
    for name, script in SCRIPTS.items():
        try_to(page, url, script)
        assert runs(server) == known, name
    headers = "{method: 'POST', headers: {'Content-Type': 'application/json'}, body: '{\"query\": \"{version}\"}'}"
    assert attack(page, url, f"return fetch(url, {headers}).then(answer => answer.status)") == 403
    assert attack(page, url, f"const address = url.replace('http', 'ws'); return {_SOCKET}") == "closed"


@pytest.mark.parametrize("host", ORIGINS)
def test_a_page_of_another_origin_gets_no_subscription(
    server: DevServer, page: Page, elsewhere: Web, host: str
) -> None:
    page.open(elsewhere.url(host=host))
    for target in ("localhost", "127.0.0.1"):
        address = f"ws://{target}:{server.port}/dagster/graphql"
        assert page.run(f"(() => {{const address = {address!r}; return {_SOCKET}}})()") == "closed"


REQUESTS = {
    "a POST without a type": ("POST", "/dagster/graphql?query={query}", {}, ""),
    "text": ("POST", "/dagster/graphql?query={query}", {"Content-Type": "text/plain"}, ""),
    "application/graphql": ("POST", "/dagster/graphql", {"Content-Type": "application/graphql"}, "{mutation}"),
    "JSON of another page": ("POST", "/dagster/graphql", {"Origin": "http://evil.example"}, "{json}"),
    "JSON of another port": ("POST", "/dagster/graphql", {"Origin": "http://localhost:1"}, "{json}"),
    "JSON of a page without origin": ("POST", "/dagster/graphql", {"Origin": "null"}, "{json}"),
    "JSON from another site": ("POST", "/dagster/graphql", {"Sec-Fetch-Site": "cross-site"}, "{json}"),
    "JSON from another port": ("POST", "/dagster/graphql", {"Sec-Fetch-Site": "same-site"}, "{json}"),
    "a GET": ("GET", "/dagster/graphql?query={query}", {}, ""),
    "a GET of one of two": ("GET", "/dagster/graphql?query={query_and_more}&operationName=Read", {}, ""),
    "a GET with two queries": ("GET", "/dagster/graphql?query=%7Bversion%7D&query={query}", {}, ""),
    "a GET behind a line end": ("GET", "/dagster/graphql%0A?query={query}", {}, ""),
    "a GET by another spelling": ("GET", "/dagster/%67raphql?query={query}", {}, ""),
    "another name": ("POST", "/dagster/graphql", {"Host": "evil.example"}, "{json}"),
    "a name of this machine at another port": ("POST", "/dagster/graphql", {"Host": "localhost:1"}, "{json}"),
    "a name in front of ours": ("POST", "/dagster/graphql", {"Host": "localhost.evil.example:{port}"}, "{json}"),
    "another method": ("PUT", "/dagster/graphql", {}, "{json}"),
    "an event of an asset": (
        "POST",
        "/dagster/report_asset_materialization/corpus_embeddings",
        {"Content-Type": ""},
        "",
    ),
    "an event of another page": (
        "POST",
        "/dagster/report_asset_check/a?check_name=b&passed=true",
        {"Origin": "null"},
        "{{}}",
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_what_a_page_could_make_a_browser_send_is_refused(server: DevServer, name: str) -> None:
    known = runs(server)
    method, path, headers, body = REQUESTS[name]
    texts = {
        "port": str(server.port),
        "query": quote(mutation()),
        "query_and_more": quote("query Read {version} " + mutation().replace("mutation", "mutation Change", 1)),
        "json": json.dumps({"query": mutation()}),
        "mutation": mutation(),
    }
    sent = {"Host": f"localhost:{server.port}", "Content-Type": "application/json"}
    sent |= {header: value.format(**texts) for header, value in headers.items()}
    if method == "GET" or not sent["Content-Type"] or name == "a POST without a type":
        del sent["Content-Type"]
    status, said = ask(server, method, path.format(**texts), sent, body.format(**texts))
    assert 400 <= status < 500
    assert is_refusal(said)
    assert runs(server) == known
    assert events(server) == 0


def test_headers_that_are_there_twice_are_refused(server: DevServer) -> None:
    known = runs(server)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.putrequest("POST", "/dagster/graphql", skip_host=True)
    body = json.dumps({"query": mutation()}).encode()
    address = f"localhost:{server.port}"
    for header, value in (("Host", address), ("Origin", f"http://{address}"), ("Origin", f"http://{EVIL}")):
        connection.putheader(header, value)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    assert connection.getresponse().status == 400
    assert runs(server) == known


def test_programs_and_links_get_what_they_ask_for(server: DevServer) -> None:
    host = {"Host": f"localhost:{server.port}"}
    assert ask(server, "GET", "/dagster/server_info", host)[0] == 200
    assert ask(server, "HEAD", "/dagster/server_info", host)[0] == 200
    assert ask(server, "GET", "/dagster/server_info", {"Host": f"127.0.0.1:{server.port}"})[0] == 200
    assert ask(server, "GET", "/dagster/server_info", {"Host": f"LOCALHOST:{server.port}"})[0] == 200
    status, said = ask(server, "GET", "/dagster/graphql?query=" + quote("query Read {version}"), host)
    assert status == 200
    assert "version" in json.loads(said)["data"]
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ask(server, "GET", "/dagster/runs", {**host, **linked})[0] == 200


def test_a_link_leads_to_pages_of_the_ui_only(server: DevServer) -> None:
    host = {"Host": f"localhost:{server.port}"}
    linked = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    for path in ("", "assets/notebook", "locations/a/jobs/b", "overview?view=runs"):
        assert ask(server, "GET", f"/dagster/{path}", {**host, **linked})[0] == 200, path
    for path in ("graphql", "server_info", "logs/a", "download_debug/a", "/runs", "%6eotebook", "favicon.png"):
        status, _ = ask(server, "GET", f"/dagster/{path}", {**host, **linked})
        assert status in (400, 403), path


@pytest.mark.parametrize("path", ["notebook", "dagit/notebook", "%6Eotebook", "notebook/", "notebook%0A"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_notebook_is_shown_whoever_asks(server: DevServer, method: str, path: str) -> None:
    """A link in a mail is opened as if the user had typed it."""
    for site in ({}, {"Sec-Fetch-Site": "none"}, {"Sec-Fetch-Site": "same-origin"}):
        headers = {"Host": f"localhost:{server.port}", **site}
        status, said = ask(server, method, f"/dagster/{path}?path=/tmp/hostile.ipynb&repoLocName=x", headers)
        assert status in (400, 403)
        assert "notebook" in said or "control character" in said or method == "HEAD"


def test_an_address_that_the_operator_allows_is_one_of_the_server(server: DevServer) -> None:
    headers = {"Host": TUNNEL, "Content-Type": "application/json", "Origin": f"https://{TUNNEL}"}
    body = json.dumps({"query": "{version}"})
    assert ask(server, "POST", "/dagster/graphql", headers, body)[0] == 200
    other = {**headers, "Origin": f"http://localhost:{server.port}"}
    assert ask(server, "POST", "/dagster/graphql", other, body)[0] == 403


def test_the_ui_itself_works(server: DevServer, page: Page) -> None:
    known = runs(server)
    page.open(f"{server.ui}/jobs")
    until("the UI", lambda: "embed_corpus" in page.run("document.body.innerText"), 60)
    address = server.ui.replace("http", "ws") + "/graphql"
    assert page.run(f"(() => {{const address = {address!r}; return {_SOCKET}}})()") == "connection_ack"
    headers = "{'Content-Type': 'application/json'}"
    script = f"fetch('/dagster/graphql', {{method: 'POST', headers: {headers}, body: {_BODY}}})"
    said = attack(page, "", f"return {script}.then(answer => answer.text())")
    assert json.loads(str(said))["data"]["launchRun"]["__typename"] == "LaunchRunSuccess"
    assert len(runs(server)) == len(known) + 1


def is_refusal(said: str) -> bool:
    """Whether an answer gives a reason why something is not let through."""
    return any(reason in said for reason in REASONS)


def ask(server: DevServer, method: str, path: str, headers: dict[str, str], body: str = "") -> tuple[int, str]:
    """The status and the text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(method, path, body.encode(), headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def events(server: DevServer) -> int:
    """How often something has been reported of the asset, outside a run too."""
    query = '{assetOrError(assetKey: {path: ["corpus_embeddings"]}) {... on Asset {assetMaterializations {runId}}}}'
    return len(server.graphql(query)["assetOrError"].get("assetMaterializations", []))
