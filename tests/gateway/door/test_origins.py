"""What browsers may send to the HTTP server: names, origins, methods, content types, and paths with tricks in them."""

import asyncio
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.gateway.asking import JSON, Answer, ask, open_socket, scope_of
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.gateway.door.listening import is_loopback
from vectorize_pipelines.gateway.door.origins import Origins, ServerAddress, path_trick
from vectorize_pipelines.settings import Settings, load_settings

APP = "https://app.example"
HERE = "http://localhost:8000"
LINK = (("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document"))
SITES = ("cross-site", "same-site")


async def reached(scope: Scope, receive: Receive, send: Send) -> None:
    """What lies behind."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        return
    await PlainTextResponse(scope["path"])(scope, receive, send)


def settings_of(**gateway: object) -> Settings:
    return load_settings({}, gateway=gateway)


def guarded(address: ServerAddress | None = None, **gateway: object) -> ASGIApp:
    return Origins(reached, settings_of(**gateway), address or ServerAddress("127.0.0.1", 8000))


def asked(host: str, address: ServerAddress | None = None, **gateway: object) -> int:
    return ask(guarded(address, **gateway), "/", [("Host", host)]).status


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:8000"])
def test_this_machine_has_three_names(host: str) -> None:
    assert asked(host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "localhost:80",
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example:8000",
        "10.0.0.5:8000",
    ],
)
def test_another_name_is_not_this_servers(host: str) -> None:
    answer = ask(guarded(), "/", [("Host", host)])
    assert answer.status == 403
    assert "gateway.hosts" in answer.problem()


def test_where_it_listens_it_is_reached() -> None:
    at = ServerAddress("10.0.0.5", 8443, tls=True)
    assert [asked(host, at) for host in ("10.0.0.5:8443", "10.0.0.5", "10.0.0.6:8443")] == [200, 403, 403]
    assert asked("[fd00::5]:8000", ServerAddress("fd00::5", 8000)) == 200
    assert asked("Docs.example", ServerAddress("docs.example", 443, tls=True)) == 200
    assert asked("docs.example", ServerAddress("docs.example", 443)) == 403
    assert asked("docs.example", ServerAddress("docs.example", 80)) == 200


@pytest.mark.parametrize("everywhere", ["0.0.0.0", "::"])
def test_at_all_addresses_a_number_is_no_rebound_name(everywhere: str) -> None:
    at = ServerAddress(everywhere, 8000)
    numbers = ["10.0.0.5:8000", "192.0.2.1", "[fd00::5]:30080", "127.0.0.1:8000", "localhost:8000"]
    assert {asked(host, at) for host in numbers} == {200}
    names = ["box", "box:8000", "10.0.0.5.nip.example:8000", "", ":8000", "[docs]:8000"]
    assert {asked(host, at) for host in names} == {403}
    assert asked("box:8000", at, hosts="Box:8000,docs.example") == 200
    assert asked("docs.example", at, hosts="Box:8000,docs.example") == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "127.5.0.1", "::1", "localhost", "LOCALHOST"])
def test_loopback_is_what_only_this_machine_reaches(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.5", "localhost.example", "box", "", "127.0.0.1.example", "127.1"]
)
def test_everything_else_is_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "origin",
    ["http://evil.example", "http://localhost:1", "https://app.example", "null", "", "file://", "localhost:8000"],
)
def test_a_page_of_another_origin_sends_nothing(origin: str) -> None:
    for method, more in (("GET", ()), ("POST", (JSON,)), ("DELETE", ())):
        answer = ask(guarded(), "/tasks", [("Origin", origin), *more], method)
        assert answer.status == 403
        assert "another origin" in answer.problem()
    assert open_socket(guarded(), "/graphql", [("Origin", origin)]) == [{"type": "websocket.close", "code": 1008}]


def test_pages_of_its_own_and_programs_send_what_they_like() -> None:
    for headers in (
        [],
        [("Origin", HERE)],
        [("Origin", "https://LOCALHOST:8000")],
        [("Sec-Fetch-Site", "same-origin")],
    ):
        assert ask(guarded(), "/tasks", headers).status == 200
        assert ask(guarded(), "/tasks", [*headers, JSON], "POST").status == 200
        assert open_socket(guarded(), "/graphql", headers) == [{"type": "websocket.accept"}]
    assert ask(guarded(), "/tasks", [("Sec-Fetch-Site", "none")]).status == 200


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("path", ["/", "/docs", "/signin?next=/", "/dagster", "/dagster/", "/dagster/runs/1?x=1"])
def test_a_link_leads_to_a_page(site: str, path: str) -> None:
    assert ask(guarded(), path, [("Sec-Fetch-Site", site), *LINK]).status == 200
    assert ask(guarded(), path, [("Sec-Fetch-Site", site)]).status == 403, "an image, or a script's request"
    assert ask(guarded(), path, [("Sec-Fetch-Site", site), *LINK, JSON], "POST").status == 403
    assert ask(guarded(), path, [("Sec-Fetch-Site", site), LINK[0], ("Sec-Fetch-Dest", "iframe")]).status == 403


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize(
    "path", ["/tasks", "/tasks/a/result", "/graphql", "/dagster/graphql", "/dagster/logs/a", "/static/a.js", "/health"]
)
def test_a_link_leads_nowhere_else(site: str, path: str) -> None:
    assert ask(guarded(), path, [("Sec-Fetch-Site", site), *LINK]).status == 403


def test_an_origin_that_is_trusted_calls_and_reads() -> None:
    app = guarded(cors_origins=[APP, "http://localhost:5173"])
    page = [("Origin", APP), ("Sec-Fetch-Site", "cross-site")]
    answer = ask(app, "/tasks/submit", [*page, JSON], "POST")
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == APP
    assert "access-control-allow-credentials" not in answer.headers, "its pages send a token, not our cookie"
    preflight = [
        ("Access-Control-Request-Method", "POST"),
        ("Access-Control-Request-Headers", "authorization,content-type"),
    ]
    allowed = ask(app, "/tasks/submit", [*page, *preflight], "OPTIONS")
    assert allowed.status == 200
    assert allowed.headers["access-control-allow-origin"] == APP
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    assert ask(app, "/tasks", [("Origin", "https://app.example.evil"), JSON], "POST").status == 403
    assert ask(app, "/tasks", [("Origin", f"{APP}:8443"), JSON], "POST").status == 403
    assert ask(app, "/tasks", [("Sec-Fetch-Site", "cross-site")]).status == 403


def test_without_the_setting_no_origin_is_trusted() -> None:
    headers = [("Origin", APP), ("Access-Control-Request-Method", "POST")]
    answer = ask(guarded(), "/tasks", headers, "OPTIONS")
    assert answer.status == 403
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert not any(name.startswith("access-control") for name in ask(guarded(), "/tasks", [("Origin", HERE)]).headers)


@pytest.mark.parametrize(
    "wrong", ["*", "app.example", "https://app.example/", "https://*.example", "ftp://a", "https://a@b"]
)
def test_what_is_no_origin_is_refused_as_a_setting(wrong: str) -> None:
    with pytest.raises(SettingsError, match=r"gateway\.cors_origins.*must be origins"):
        settings_of(cors_origins=wrong)


@pytest.mark.parametrize(
    "name", ["Host", "Origin", "Content-Type", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest"]
)
def test_a_header_that_is_there_twice_is_refused(name: str) -> None:
    answer = ask(guarded(), "/", [(name, "localhost:8000"), (name, "evil.example")])
    assert answer.status == 400
    assert "more than once" in answer.problem()


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "CONNECT", "QUERY", "GETT"])
def test_other_methods_are_not_served(method: str) -> None:
    answer = ask(guarded(), "/tasks", [JSON], method)
    assert answer.status == 405
    assert answer.headers["allow"] == "GET, HEAD, POST, DELETE, OPTIONS"
    assert method in answer.problem()


@pytest.mark.parametrize(
    "kind",
    [
        *("", "text/plain", "text/plain; application/json", "application/x-www-form-urlencoded", "multipart/form-data"),
        *("*/*", "application/jsonp", "application/graphql", "application/vnd.api+json"),
    ],
)
def test_bodies_are_json(kind: str) -> None:
    headers = [("Content-Type", kind)] if kind else []
    for path in (
        "/tasks/submit",
        "/graphql",
        "/dagster/graphql",
        "/dagster/report_asset_materialization/a",
        "/signin/",
    ):
        assert ask(guarded(), path, headers, "POST").status == 415, path


def test_json_and_the_forms_of_signing_in_are_taken() -> None:
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        assert ask(guarded(), "/tasks/submit", [("Content-Type", kind)], "POST").status == 200
    form = [("Content-Type", "application/x-www-form-urlencoded")]
    assert ask(guarded(), "/signin", form, "POST").status == 200
    assert ask(guarded(), "/signout", [], "POST").status == 200
    assert ask(guarded(), "/tasks/a", [], "DELETE").status == 200


TRICKS = [
    *("//", "//tasks", "/tasks//a", "/static//a", "//evil.example/", "/dagster//graphql"),
    *("/..", "/static/../tasks", "/static/./a", "/%2e%2e/tasks", "/static/%2E%2e/a", "/.", "/tasks/..", "/tasks/../x"),
    *(
        "/static/..%2ftasks",
        "/%2Ftasks",
        "/tasks%2fa",
        "/dagster%2Fgraphql",
        "/dagster/graphql%2f",
        "/%2f%2fevil.example",
    ),
    *("/dagster/logs/a%2Fb", "/dagster%2Fruns", "/graphql%2F", "/dagster/runs/..%2Fgraphql", "/static/a%2Fb"),
    *("/v1/models%2Fa", "/v1%2Fmodels/a", "/v1/models/..%2F..%2Fgraphql", "/v1/models/a%5Cb", "/collections/a%2Fb"),
    *("/api/v1/diagnosis/tasks/..%2fa/submit", "/api/v1/diagnosis/workers%2fstatus", "/api/v1/diagnosis/workers/a%5Cb"),
    *("/\\evil", "/static\\a", "/%5c", "/static/a%5Cb", "/dagster/runs/a%5Cb", "/tasks/a\\b"),
    *("/%00", "/tasks/a%00", "/tasks%0a", "/tasks/%0d%0aSet-Cookie:a", "/\x7f", "/a%1f", "/graphql%0A"),
    *("tasks", "", "*", "http:/x"),
]


@pytest.mark.parametrize("target", TRICKS)
def test_a_path_with_a_trick_in_it_is_refused(target: str) -> None:
    for method in ("GET", "POST"):
        answer = ask(guarded(), target, [JSON], method)
        assert answer.status == 400
        assert answer.problem().startswith("the path ")
    assert open_socket(guarded(), target, [("Origin", HERE)]) == [{"type": "websocket.close", "code": 1008}]


PLAIN = [
    *(
        "/",
        "/tasks",
        "/tasks/",
        "/tasks/a%20b",
        "/tasks/%E7%81%AF",
        "/v1/models",
        "/v1/models/sentence-transformers%2Fall-MiniLM-L6-v2",
    ),
    *("/tasks/vectorize.text/0/12", "/tasks/vectorize.text%2F0%2F12", "/tasks/a%5Cb", "/tasks/a%252Fb", "/tasks/..."),
    *("/api/v1/diagnosis/tasks/vectorize.text%2F0%2F12/submit", "/api/v1/diagnosis/tasks/a%5Cb/submit"),
    *("/tasks?next=//a/../b%2f%5c", "/dagster/assets/a%2Fb", "/dagster/assets/s3%3A%2F%2Fbucket%2Fa", "/.well-known/x"),
    *("/dagster/locations/a@b%2Fc/jobs/d", "/static/a..b.js", "/static/.a"),
]


@pytest.mark.parametrize("target", PLAIN)
def test_a_path_that_has_one_meaning_is_not(target: str) -> None:
    answer = ask(guarded(), target)
    assert answer.status == 200
    assert answer.text == unquote(target.partition("?")[0])


@given(
    st.lists(
        st.sampled_from(
            ["/", "%2f", "%2F", "\\", "%5c", ".", "..", "%2e", "a", "%00", "tasks", "v1", "models", "dagster", "runs"]
        )
    )
)
def test_what_is_let_through_has_no_second_reading(parts: list[str]) -> None:
    """Read once more decoded, or with its dots resolved, it names the same thing in the same place."""
    raw = "/" + "".join(parts)
    if path_trick(scope_of(raw)) is not None:
        return
    path = unquote(raw)
    assert "//" not in raw
    assert not {".", ".."} & set(path.split("/"))
    assert "\x00" not in path
    first = raw.split("/")[1]
    assert "%2" not in first.lower().replace("%2e", "")
    assert path.split("/")[1] == unquote(first), "what the path begins with is what it seems to begin with"
    if first != "tasks":
        assert "\\" not in path


@pytest.mark.parametrize(
    "path", ["/dagster/notebook", "/dagster/dagit/notebook", "/dagster/%6Eotebook", "/dagster/notebook/"]
)
@pytest.mark.parametrize("site", ["none", "same-origin", ""])
def test_notebooks_are_not_served(path: str, site: str) -> None:
    answer = ask(guarded(), f"{path}?path=/tmp/a.ipynb", [("Sec-Fetch-Site", site)] if site else [])
    assert answer.status == 403
    assert "notebooks" in answer.problem()


def policies(answer: Answer) -> list[str]:
    return answer.headers.getlist("content-security-policy")


def test_every_answer_is_protected() -> None:
    for target, status in (("/", 200), ("/%00", 400)):
        answer = ask(guarded(), target)
        assert answer.status == status
        (policy,) = policies(answer)
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "same-origin", (
            "`no-referrer` would make the origin of our form null"
        )


def test_dagsters_pages_and_what_an_answer_says_itself_stay() -> None:
    async def answering(scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"Content-Security-Policy": "script-src 'nonce-1'", "Cache-Control": "max-age=60"}
        await PlainTextResponse("", headers=headers)(scope, receive, send)

    app = Origins(answering, settings_of(), ServerAddress("127.0.0.1", 8000))
    dagster = ask(app, "/dagster/runs")
    assert policies(dagster) == ["script-src 'nonce-1'", "frame-ancestors 'self'"]
    assert dagster.headers["x-frame-options"] == "SAMEORIGIN"
    own = ask(app, "/docs")
    assert policies(own) == ["script-src 'nonce-1'"]
    assert own.headers.getlist("cache-control") == ["max-age=60"]


def test_a_server_that_knows_how_refuses_a_websocket_by_http() -> None:
    app, headers = guarded(), [("Origin", "http://evil.example")]
    start, body = open_socket(app, "/graphql", headers, extensions={"websocket.http.response": {}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)
    assert b"another origin" in body["body"]


def test_what_the_server_itself_says_passes() -> None:
    passed = []

    async def noting(scope: Scope, receive: Receive, send: Send) -> None:
        passed.append(scope["type"])

    async def nothing() -> dict[str, object]:
        return {}

    async def ignored(message: object) -> None:
        return

    app = Origins(noting, settings_of(), ServerAddress("127.0.0.1", 8000))
    asyncio.run(app({"type": "lifespan"}, nothing, ignored))
    assert passed == ["lifespan"]
