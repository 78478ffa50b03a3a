"""Tokens and sessions: whom each lets through the door, and for how long."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http.cookies import SimpleCookie
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated
from urllib.parse import parse_qs, quote, unquote, urljoin, urlsplit

import anyio
import httpx2
import pytest
from fastapi import Depends, FastAPI, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from starlette.types import ASGIApp, Message

from tests.commands import Vectorize
from tests.gateway.asking import HOST, Answer, Exchange, ask, open_socket, scope_of
from tests.gateway.running import serving, until
from vectorize_pipelines.errors import SettingsError, StateError
from vectorize_pipelines.gateway import problems
from vectorize_pipelines.gateway.app import create_app
from vectorize_pipelines.gateway.dagster.client import DagsterAddress
from vectorize_pipelines.gateway.door.auth import Access, Caller, Door, Scope, local_path, requires
from vectorize_pipelines.gateway.door.limits import Limits
from vectorize_pipelines.gateway.door.listening import check_exposure
from vectorize_pipelines.gateway.door.sessions import COOKIE, Sessions
from vectorize_pipelines.gateway.door.tokens import Tokens, TokensFile, as_entry, from_setting
from vectorize_pipelines.gateway.routes import signin
from vectorize_pipelines.settings import GatewaySettings, Settings, load_settings

HERE = ("Origin", f"http://{HOST}")
FORM = ("Content-Type", "application/x-www-form-urlencoded")
BROWSER = (("Accept", "text/html,application/xhtml+xml,*/*;q=0.8"), ("Sec-Fetch-Mode", "navigate"))
UNKNOWN = "vec_" + "A" * 43


@pytest.fixture
def file(tmp_path: Path) -> TokensFile:
    return TokensFile(tmp_path / "tokens.json")


@pytest.fixture
def door(file: TokensFile) -> ASGIApp:
    """The door of a server that others reach, in front of a route for each scope."""
    return door_of(file, loopback=False)


def door_of(file: TokensFile, *, loopback: bool, fixed: str = "") -> ASGIApp:
    tokens = Tokens(file, from_setting(SecretStr(fixed)), every_seconds=0)
    access = Access(tokens, loopback=loopback)
    app = FastAPI()
    problems.install(app)
    app.state.sign_in = signin.SignIn(access)
    app.include_router(signin.router)
    for scope in Scope:
        for method in ("GET", "POST", "DELETE"):
            app.add_api_route(f"/{scope}", named(scope), methods=[method])
    app.add_api_route("/livez", alive)
    app.add_api_route("/static/style.css", alive)
    app.add_api_route("/events", events)
    app.add_api_websocket_route("/socket", echoing)
    return Door(app, access)


def named(scope: Scope) -> Callable[..., Awaitable[str]]:
    async def route(caller: Annotated[Caller, Depends(requires(scope))]) -> str:
        return caller.name

    return route


async def alive() -> PlainTextResponse:
    return PlainTextResponse("alive")


async def events(_: Annotated[Caller, Depends(requires(Scope.READ))]) -> StreamingResponse:
    async def lines() -> AsyncIterator[bytes]:
        while True:
            yield b": still there\n\n"
            await anyio.sleep(0.01)

    return StreamingResponse(lines(), media_type="text/event-stream")


async def echoing(socket: WebSocket, caller: Annotated[Caller, Depends(requires(Scope.READ))]) -> None:
    await socket.accept()
    async for text in socket.iter_text():
        await socket.send_text(f"{caller.name}: {text}")


def bearer(token: str) -> tuple[str, str]:
    return "Authorization", f"Bearer {token}"


def test_a_scope_includes_those_before_it(door: ASGIApp, file: TokensFile) -> None:
    allowed = {Scope.READ: ["read"], Scope.SUBMIT: ["read", "submit"], Scope.ADMIN: ["read", "submit", "admin"]}
    for scope, routes in allowed.items():
        token = file.add(scope, [scope])
        for route in Scope:
            answer = ask(door, f"/{route}", [bearer(token)])
            assert answer.status == (200 if route in routes else 403)
            if answer.status == 200:
                assert answer.json == scope
            else:
                assert answer.problem() == f"the token {scope.value!r} lacks the scope {route}"


def test_clients_of_openai_are_told_in_their_own_form(door: ASGIApp, file: TokensFile) -> None:
    file.add("alice", [Scope.READ])
    answer = ask(door, "/v1/embeddings", [bearer(UNKNOWN)])
    assert answer.status == 401
    assert answer.json["error"] == {
        **{"message": answer.problem(), "type": "invalid_request_error"},
        **{"param": None, "code": "invalid_api_key"},
    }
    assert "error" not in ask(door, "/read", [bearer(UNKNOWN)]).json


def test_several_scopes_are_as_much_as_the_highest(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("both", [Scope.READ, Scope.ADMIN])
    assert ask(door, "/submit", [bearer(token)]).status == 200


def test_nobody_gets_in_without_a_token_that_counts(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("alice", [Scope.ADMIN])
    revoked = file.add("bob", [Scope.ADMIN])
    file.remove("bob")
    for path in ("/read", "/admin", "/events", "/openapi.json", "/docs", "/none", "/static", "/livez/", "/signin/x"):
        for headers in (
            [],
            [bearer(UNKNOWN)],
            [bearer(revoked)],
            [bearer("")],
            [bearer(token[:-1])],
            [bearer(token.upper())],
            [("Authorization", token)],
            [("Authorization", f"Basic {token}")],
            [("Cookie", f"{COOKIE}={token}")],
            [("X-Forwarded-For", "127.0.0.1")],
        ):
            answer = ask(door, path, headers)
            assert answer.status == 401, (path, headers)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert token not in answer.problem()
        assert ask(door, f"{path}?token={token}&access_token={token}").status == 401
    assert ask(door, "/read", [("authorization", f"bearer  {token} ")]).status == 200


def test_what_everybody_may_ask(door: ASGIApp, file: TokensFile) -> None:
    file.add("alice", [Scope.ADMIN])
    for path in ("/livez", "/signin", "/static/style.css"):
        assert ask(door, path).status == 200
        assert ask(door, path, [bearer(UNKNOWN)]).status == 200


def test_a_repeated_header_is_refused(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("alice", [Scope.ADMIN])
    for twice in ([bearer(token), bearer(token)], [bearer(token), bearer(UNKNOWN)]):
        answer = ask(door, "/read", twice)
        assert answer.status == 400
        assert "Authorization" in answer.problem()
    unasked = door_of(TokensFile(Path("none")), loopback=True)
    assert ask(unasked, "/read", [bearer("a"), bearer("b")]).status == 400


_header = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=200)


@given(st.one_of(_header, _header.map("Bearer {}".format), _header.map("bearer vec_{}".format)))
def test_whatever_stands_in_the_header_nobody_gets_in(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    door = door_of(TokensFile(tmp_path_factory.getbasetemp() / "none" / "tokens.json"), loopback=False)
    assert ask(door, "/read", [("Authorization", value)]).status == 401


def test_on_loopback_nobody_is_asked_until_there_is_a_token(file: TokensFile) -> None:
    door = door_of(file, loopback=True)
    for headers in ([], [bearer(UNKNOWN)], [("Cookie", f"{COOKIE}=of another server")]):
        assert ask(door, "/admin", headers).json == "anonymous"
    assert open_socket(door, "/socket")[0]["type"] == "websocket.accept"
    signing = ask(door, "/signin?next=/docs")
    assert (signing.status, signing.headers["location"]) == (303, "/docs")
    token = file.add("alice", [Scope.READ])
    assert ask(door, "/admin").status == 401
    assert ask(door, "/admin", [bearer(token)]).status == 403
    file.remove("alice")
    assert ask(door, "/admin").status == 401, "who revokes a token does not mean to open the door"
    assert ask(door_of(file, loopback=True), "/admin").status == 200


def test_elsewhere_nobody_gets_in_without_tokens(door: ASGIApp) -> None:
    assert ask(door, "/read").status == 401


def test_a_token_of_the_environment_counts(file: TokensFile) -> None:
    door = door_of(file, loopback=True, fixed=as_entry("ci", [Scope.SUBMIT], "of the environment"))
    assert ask(door, "/submit", [bearer("of the environment")]).json == "ci"
    assert ask(door, "/read").status == 401


def test_a_damaged_file_lets_nobody_in(file: TokensFile, tmp_path: Path) -> None:
    for loopback in (True, False):
        door = door_of(file, loopback=loopback)
        token = file.add(f"alice{loopback}", [Scope.ADMIN])
        cookie = sign_in(door, token)
        assert ask(door, "/read", [bearer(token)]).status == 200
        whole = (tmp_path / "tokens.json").read_bytes()
        (tmp_path / "tokens.json").write_text("{")
        for headers in ([], [bearer(token)], [cookie]):
            answer = ask(door, "/read", headers)
            assert answer.status == 503
            assert answer.headers["retry-after"]
            assert str(tmp_path) not in answer.problem(), "where it lies is not for everybody"
        assert ask(door, "/signin").status == 503
        assert ask(door, "/signin", [FORM], "POST", [f"token={token}".encode()]).status == 503
        assert ask(door, "/livez").status == 200
        (tmp_path / "tokens.json").write_bytes(whole)
        assert ask(door, "/read", [bearer(token)]).status == 200


# Sessions


def send_form(door: ASGIApp, fields: str, *headers: tuple[str, str]) -> Answer:
    return ask(door, "/signin", [FORM, HERE, *headers], "POST", [fields.encode()])


def cookie_of(answer: Answer) -> SimpleCookie:
    return SimpleCookie(answer.headers["set-cookie"])


def sign_in(door: ASGIApp, token: str) -> tuple[str, str]:
    """The header with which a browser that has signed in comes back."""
    answer = send_form(door, f"token={token}&next=/docs")
    assert (answer.status, answer.headers["location"]) == (303, "/docs")
    return "Cookie", f"other=1; {COOKIE}={cookie_of(answer)[COOKIE].value}"


def test_signing_in_sets_a_cookie_that_is_no_token(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("alice", [Scope.SUBMIT])
    answer = send_form(door, f"token=+{token}+&next=/dagster/runs%3Fa%3D1")
    assert answer.status == 303
    assert answer.headers["location"] == "/dagster/runs?a=1"
    cookie = cookie_of(answer)[COOKIE]
    assert cookie["httponly"] is True
    assert (cookie["samesite"].lower(), cookie["path"], cookie["domain"]) == ("strict", "/", "")
    assert not cookie["secure"], "over plain HTTP, a browser would not keep it"
    assert 0 < int(cookie["max-age"]) <= 12 * 3600
    assert len(cookie.value) >= 40
    assert token not in answer.headers["set-cookie"]
    assert token.removeprefix("vec_")[:8] not in cookie.value
    session = ("Cookie", f"{COOKIE}={cookie.value}")
    assert ask(door, "/submit", [session]).json == "alice"
    assert ask(door, "/admin", [session]).status == 403
    again = cookie_of(send_form(door, f"token={token}"))[COOKIE].value
    assert again != cookie.value


def test_under_tls_the_cookie_stays_there(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("alice", [Scope.READ])
    behind_a_proxy = ask(door, "/signin", [FORM, ("Origin", f"https://{HOST}")], "POST", [f"token={token}".encode()])
    assert cookie_of(behind_a_proxy)[COOKIE]["secure"] is True


def test_signing_in_again_or_out_ends_the_session(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("alice", [Scope.READ])
    first = sign_in(door, token)
    answer = send_form(door, f"token={token}", first)
    second = ("Cookie", f"{COOKIE}={cookie_of(answer)[COOKIE].value}")
    assert ask(door, "/read", [first]).status == 401
    assert ask(door, "/read", [second]).status == 200
    out = ask(door, "/signout", [second, HERE], "POST")
    assert (out.status, out.headers["location"]) == (303, "/signin")
    assert cookie_of(out)[COOKIE].value == ""
    assert cookie_of(out)[COOKIE]["max-age"] == "0"
    assert ask(door, "/read", [second]).status == 401


def test_a_session_ends_with_its_token(door: ASGIApp, file: TokensFile) -> None:
    session = sign_in(door, file.add("alice", [Scope.ADMIN]))
    other = sign_in(door, file.add("bob", [Scope.READ]))
    file.remove("alice")
    file.add("alice", [Scope.ADMIN])
    assert ask(door, "/read", [session]).status == 401, "another token of the same name is another one"
    assert ask(door, "/read", [other]).json == "bob"


def test_of_two_sessions_none_counts(door: ASGIApp, file: TokensFile) -> None:
    """A page of a neighbouring host can add a cookie, and would have the user work as somebody else."""
    mine, theirs = (sign_in(door, file.add(name, [Scope.READ]))[1] for name in ("alice", "mallory"))
    assert ask(door, "/read", [("Cookie", f"{mine}; {theirs}")]).status == 401
    assert ask(door, "/read", [("Cookie", mine), ("Cookie", theirs)]).status == 401
    assert ask(door, "/read", [("Cookie", f"{mine}; {mine}")]).status == 200


def test_with_a_cookie_changes_come_from_pages_of_the_server(door: ASGIApp, file: TokensFile) -> None:
    session = sign_in(door, file.add("alice", [Scope.ADMIN]))
    foreign = [[], [("Origin", "http://evil.example")], [("Origin", "http://localhost:3000")], [("Origin", "null")]]
    for method in ("POST", "DELETE"):
        for headers in foreign:
            answer = ask(door, "/admin", [session, *headers], method)
            assert answer.status == 403
            assert "Origin" in answer.problem()
        assert ask(door, "/admin", [session, HERE], method).status == 200
        assert ask(door, "/admin", [session, ("Origin", f"https://{HOST}")], method).status == 200
    assert ask(door, "/admin", [session]).status == 200
    for headers in foreign:
        assert open_socket(door, "/socket", [session, *headers]) == [{"type": "websocket.close", "code": 1008}]
        assert ask(door, "/signout", [session, *headers], "POST").status == 403
    assert open_socket(door, "/socket", [session, HERE])[0]["type"] == "websocket.accept"


def test_with_a_token_a_program_needs_no_origin(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("alice", [Scope.ADMIN])
    assert ask(door, "/admin", [bearer(token)], "POST").status == 200
    assert open_socket(door, "/socket", [bearer(token)])[0]["type"] == "websocket.accept"


def test_a_wrong_token_shows_the_form_again(door: ASGIApp, file: TokensFile, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = file.add("<alice>", [Scope.READ])
    answer = send_form(door, f"token={UNKNOWN}&next=/a%22%3E%3Cscript%3E", *BROWSER)
    assert answer.status == 401
    assert answer.headers["content-type"].startswith("text/html")
    assert 'role="alert"' in answer.text
    assert "<script>" not in answer.text
    assert UNKNOWN not in answer.text
    assert "set-cookie" not in answer.headers
    assert "no such token" in send_form(door, f"token={UNKNOWN}").problem()
    sign_in(door, token)
    logged = [record.getMessage() for record in caplog.records if record.name.startswith("vectorize_pipelines")]
    assert any("'<alice>' has signed in" in line for line in logged)
    assert any("wrong token" in line for line in logged)
    assert not any("vec_" in record.getMessage() for record in caplog.records)


def test_many_wrong_tokens_are_held_up_and_a_right_one_is_not(
    door: ASGIApp, file: TokensFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = file.add("alice", [Scope.READ])
    now = time.monotonic()
    monkeypatch.setattr("vectorize_pipelines.gateway.routes.signin.time", SimpleNamespace(monotonic=lambda: now))
    statuses = [send_form(door, f"token=wrong{number}").status for number in range(20)]
    assert statuses == [401] * 10 + [429] * 10
    assert sign_in(door, token)
    held_up = send_form(door, "token=wrong", *BROWSER)
    assert (held_up.status, held_up.headers["retry-after"]) == (429, "1")
    assert "Too many" in held_up.text
    now += 1
    assert [send_form(door, "token=wrong").status for _ in range(2)] == [401, 429]
    now += 3600
    assert [send_form(door, "token=wrong").status for _ in range(11)] == [401] * 10 + [429]


@pytest.mark.parametrize(
    ("headers", "pieces", "status"),
    [
        ([], [b"token=a"], 415),
        ([("Content-Type", "application/json")], [b'{"token": "a"}'], 415),
        ([("Content-Type", "multipart/form-data; boundary=a")], [b"--a--"], 415),
        ([FORM], [b"token=" + b"a" * 1000] * 20, 413),
        ([FORM], [b"token=a&token=b"], 400),
        ([FORM], [b"&".join(b"f%d=1" % number for number in range(20))], 400),
        ([FORM], [b"token=%ff%fe"], 400),
        ([FORM], ["token=ü".encode()], 400),
        ([FORM], [b"token=a&next=//evil.example"], 400),
        ([FORM], [b"", b""], 401),
        ([FORM], [b"next=/"], 401),
        ([FORM, ("Origin", "http://evil.example")], [b"token=a"], 403),
        ([FORM, ("Origin", "null")], [b"token=a"], 403),
    ],
)
def test_a_form_that_is_none_is_refused(
    door: ASGIApp, headers: list[tuple[str, str]], pieces: list[bytes], status: int
) -> None:
    answer = ask(door, "/signin", headers, "POST", pieces)
    assert answer.status == status
    assert answer.problem()


def test_the_sign_in_page_has_no_script(door: ASGIApp) -> None:
    answer = ask(door, "/signin?next=/tasks%3Fpage%3D2%26x%3D%2522")
    assert answer.headers["content-type"].startswith("text/html")
    assert 'value="/tasks?page=2&amp;x=%22"' in answer.text
    assert '<form method="post" action="/signin">' in answer.text
    assert 'href="/static/style.css"' in answer.text
    assert not re.search(r"<script|<style|style=|\son\w+=|https?:", answer.text)
    assert ask(door, "/signin", [], "PUT").status == 405
    assert ask(door, "/signout", [], "GET").status == 401


@pytest.mark.parametrize("bad", ["//evil.example", "https://evil.example", "%2F%2Fevil.example", "/%5Cevil", ""])
def test_the_page_leads_nowhere_else(door: ASGIApp, bad: str) -> None:
    answer = ask(door, f"/signin?next={bad}")
    assert answer.status == 400
    assert [each["field"] for each in answer.json["errors"]] == ["next"]


def test_sessions_are_bounded_and_end() -> None:
    sessions = Sessions(most=3)
    ids = [sessions.begin(b"%d" % number) for number in range(5)]
    assert [sessions.token_of(each) for each in ids] == [None, None, b"2", b"3", b"4"]
    sessions.end(ids[3])
    sessions.end("unknown")
    assert sessions.token_of(ids[3]) is None
    over = Sessions(seconds=0)
    assert over.token_of(over.begin(b"1")) is None
    assert sessions.token_of("") is None


# Where a browser is sent


def test_a_browser_without_a_token_is_sent_to_the_sign_in_page_and_back(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("alice", [Scope.READ])
    place = "/dagster/runs/a%20b?view=all&x=%2F%26"
    answer = ask(door, place, BROWSER)
    assert answer.status == 303
    way = urlsplit(answer.headers["location"])
    assert way.path == "/signin"
    assert parse_qs(way.query) == {"next": [place]}
    page = ask(door, answer.headers["location"])
    shown = re.search(r'name="next" value="([^"]*)"', page.text)
    assert shown is not None
    back = send_form(door, f"token={token}&next={quote(shown[1].replace('&amp;', '&'))}")
    assert back.headers["location"] == place


def test_a_script_or_a_program_is_not_sent_anywhere(door: ASGIApp) -> None:
    for headers in (
        [],
        [("Accept", "*/*")],
        [("Accept", "application/json")],
        [BROWSER[0], ("Sec-Fetch-Mode", "cors")],
        [*BROWSER, bearer(UNKNOWN)],
    ):
        assert ask(door, "/read", headers).status == 401
    posted = ask(door, "/signout", [*BROWSER, HERE], "POST")
    assert (posted.status, posted.headers["location"]) == (303, "/signin")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_link_of_another_site_brings_the_cookie_at_the_second_go(door: ASGIApp, site: str) -> None:
    """It is SameSite=Strict: what the link asks for comes without it, what our own page asks for then does not."""
    answer = ask(door, "/dagster/runs/1?a=1&b=%22", [*BROWSER, ("Sec-Fetch-Site", site)])
    assert answer.status == 401
    assert '<meta http-equiv="refresh" content="0; url=/dagster/runs/1?a=1&amp;b=%22">' in answer.text
    assert ask(door, "/dagster/runs/1", [*BROWSER, ("Sec-Fetch-Site", "same-origin")]).status == 303


@pytest.mark.parametrize("target", ["//evil.example", "/%5C%5Cevil", "/%2F%2Fevil.example/", "/a\\b", "/..", "/a%00"])
def test_no_path_sends_a_browser_elsewhere(door: ASGIApp, target: str) -> None:
    for headers in (BROWSER, [*BROWSER, ("Sec-Fetch-Site", "cross-site")]):
        answer = ask(door, target, headers)
        if answer.status == 303:
            assert answer.headers["location"] == "/signin?next=/"
        else:
            assert 'content="0; url=/"' in answer.text


LOCAL = ["/", "/docs", "/dagster/runs?x=//a", "/tasks?page=1&next=https://a", "/a%20b", "/dagster/assets/a%2Fb", "/a#b"]
ELSEWHERE = [
    *(
        "",
        "docs",
        "?x",
        "#x",
        "//",
        "///",
        "//evil",
        "/\\evil",
        "\\\\evil",
        "/\t/evil",
        "/\n/evil",
        " //evil",
        "\t//evil",
    ),
    *(
        "https://evil",
        "http:evil",
        "javascript:alert(1)",
        "/%2Fevil",
        "/%2f%2fevil",
        "/%5Cevil",
        "/a/..//evil",
        "/.//evil",
    ),
    *("/%09/evil", "/%0a", "/a\x00", "/a\x7f", "/ä", "/a b", "/../a", "/%2e%2e/a", "/a//b", "/" + "a" * 3000),
]


@pytest.mark.parametrize("text", LOCAL)
def test_a_path_of_this_server_is_one(text: str) -> None:
    assert local_path(text) == text


@pytest.mark.parametrize("text", ELSEWHERE)
def test_what_could_lead_elsewhere_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="must be a"):
        local_path(text)


def as_a_browser(text: str) -> str:
    """What WHATWG's URL parser makes of an address before it looks at it."""
    return re.sub(r"[\t\n\r]", "", text.strip("".join(map(chr, range(0x21))))).replace("\\", "/")


_pieces = st.sampled_from(
    [*"/\\.:@?#%;", "//", "%2f", "%5c", "%2e", "%09", "\t", "\r", "\n", "\x00", " ", "evil.example"]
)


@given(st.one_of(st.text(), st.lists(_pieces).map("".join), st.lists(_pieces).map(lambda parts: "/" + "".join(parts))))
def test_what_is_taken_for_a_path_of_this_server_leads_nowhere_else(text: str) -> None:
    try:
        taken = local_path(text)
    except ValueError:
        return
    for read in (taken, unquote(taken.partition("?")[0])):
        for own in ("https://own.example/signin", "http://own.example:8000/signin"):
            led = urlsplit(urljoin(own, as_a_browser(read)))
            assert (led.scheme, led.netloc) == urlsplit(own)[:2]
    assert "\r" not in taken
    assert "\n" not in taken


# What goes on for long


def test_a_websocket_without_a_token_is_refused(door: ASGIApp, file: TokensFile) -> None:
    file.add("alice", [Scope.READ])
    for headers in ([], [bearer(UNKNOWN)]):
        assert open_socket(door, "/socket", headers) == [{"type": "websocket.close", "code": 1008}]
        start, body = open_socket(door, "/socket", headers, extensions={"websocket.http.response": {}})
        assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
        assert (b"www-authenticate", b"Bearer") in start["headers"]
        assert body["type"] == "websocket.http.response.body"


def test_a_stream_ends_when_its_token_is_revoked(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("alice", [Scope.READ])

    async def streaming() -> Exchange:
        exchange = Exchange()

        async def sending(message: Message) -> None:
            await exchange.send(message)
            if len(exchange.sent) == 3:
                file.remove("alice")

        with anyio.fail_after(60):
            await door(scope_of("/events", [bearer(token)]), exchange.receive, sending)
        return exchange

    exchange = asyncio.run(streaming())
    assert len(exchange.sent) == 3
    assert not exchange.complete.is_set(), "the server closes the connection of an answer that is not complete"


def test_a_websocket_ends_when_its_token_is_revoked(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("alice", [Scope.READ])
    sent: list[Message] = []

    async def talking() -> None:
        incoming: list[Message] = [{"type": "websocket.connect"}]
        incoming += [{"type": "websocket.receive", "text": str(number)} for number in range(5)]

        async def receive() -> Message:
            if len(incoming) == 3:
                file.remove("alice")
            return incoming.pop(0)

        async def send(message: Message) -> None:
            sent.append(message)

        await door(scope_of("/socket", [bearer(token)], kind="websocket"), receive, send)

    asyncio.run(talking())
    assert [message.get("text") for message in sent[1:-1]] == ["alice: 0", "alice: 1"]
    assert (sent[-1]["type"], sent[-1]["code"]) == ("websocket.close", 1008)


# A server that runs


@pytest.fixture
def server(settings: Settings) -> Iterator[str]:
    """The whole server; nothing of Dagster's is asked of it."""
    tokens = Tokens.open(settings)
    with serving(lambda at: create_app(settings, DagsterAddress("http://localhost:1"), tokens, at)) as url:
        yield url


@pytest.mark.slow
def test_a_running_server_follows_what_the_command_does(server: str, vectorize_here: Vectorize) -> None:
    with httpx2.Client(base_url=server, trust_env=False) as client:
        assert client.get("/openapi.json").status_code == 200, "no token has been made"
        token = vectorize_here("tokens", "create", "alice", "--json").json["token"]
        until(lambda: client.get("/openapi.json").status_code == 401)
        headers = {"Authorization": f"Bearer {token}"}
        assert client.get("/openapi.json", headers=headers).status_code == 200
        assert vectorize_here("tokens", "revoke", "alice").code == 0
        until(lambda: client.get("/openapi.json", headers=headers).status_code == 401)
        assert client.get("/openapi.json").status_code == 401


def test_a_browser_signs_in_and_out(server: str, settings: Settings) -> None:
    token = TokensFile.of(settings).add("alice", [Scope.READ])
    with httpx2.Client(base_url=server, trust_env=False, headers=dict(BROWSER)) as client:
        until(lambda: client.get("/openapi.json").status_code == 303)
        way = client.get("/openapi.json").headers["location"]
        page = client.get(way)
        assert page.status_code == 200
        assert "default-src 'self'" in page.headers["content-security-policy"]
        form = {"token": token, "next": "/openapi.json"}
        assert client.post("/signin", data=form, headers={"Origin": "http://evil.example"}).status_code == 403
        answer = client.post("/signin", data=form, headers={"Origin": server})
        assert answer.headers["location"] == "/openapi.json"
        assert client.get("/openapi.json").json()["openapi"]
        assert client.post("/signout", headers={"Origin": server}).status_code == 303
        assert client.get("/openapi.json").status_code == 303


@pytest.mark.slow
def test_nothing_that_runs_logs_a_token(server: str, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    file = TokensFile.of(settings)
    token = file.add("alice", [Scope.READ])
    with httpx2.Client(base_url=server, trust_env=False) as client:
        until(lambda: client.get("/openapi.json").status_code == 401)
        client.get("/openapi.json", headers={"Authorization": f"Bearer {token}"})
        client.post("/signin", data={"token": token})
        client.post("/signin", data={"token": token + "x"})
        file.remove("alice")
        until(lambda: client.get("/openapi.json", headers={"Authorization": f"Bearer {token}"}).status_code == 401)
    ours = [record for record in caplog.records if not record.name.startswith("http")]
    assert not any(token in record.getMessage() or token[4:] in record.getMessage() for record in ours)


def test_openapi_says_how_to_send_a_token(door: ASGIApp, file: TokensFile) -> None:
    token = file.add("alice", [Scope.READ])
    said = ask(door, "/openapi.json", [bearer(token)]).json
    scheme = said["components"]["securitySchemes"]["token"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    assert said["paths"]["/read"]["get"]["security"] == [{"token": []}]
    assert "security" not in said["paths"]["/signin"]["post"]
    assert "application/x-www-form-urlencoded" in said["paths"]["/signin"]["post"]["requestBody"]["content"]


# Where a server may listen


def tokens_for(file: TokensFile, *, made: bool) -> Tokens:
    if made:
        file.add("alice", [Scope.READ])
    return Tokens(file)


TLS = {"tls_certificate": "/c.pem", "tls_key": "/k.pem"}


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.0.0.7"])
@pytest.mark.parametrize("made", [True, False])
def test_on_loopback_a_server_starts(file: TokensFile, host: str, made: bool) -> None:
    check_exposure(load_settings({}, gateway={"host": host}), tokens_for(file, made=made))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "192.0.2.1", "box", "fd00::5"])
def test_elsewhere_it_needs_tokens_and_tls(file: TokensFile, host: str) -> None:
    none = tokens_for(file, made=False)
    for more in ({}, TLS, {"plain_http": True}):
        with pytest.raises(SettingsError, match=r"(?s)gateway\.host: .*vectorize tokens create"):
            check_exposure(load_settings({}, gateway={"host": host, **more}), none)
    some = tokens_for(file, made=True)
    with pytest.raises(SettingsError, match=r"gateway\.plain_http: true"):
        check_exposure(load_settings({}, gateway={"host": host}), some)
    check_exposure(load_settings({}, gateway={"host": host, **TLS}), some)
    check_exposure(load_settings({}, gateway={"host": host, "plain_http": True}), some)


def test_with_tokens_that_cannot_be_read_no_server_starts(file: TokensFile, tmp_path: Path) -> None:
    tokens = tokens_for(file, made=True)
    (tmp_path / "tokens.json").write_text("{")
    with pytest.raises(StateError, match="damaged"):
        check_exposure(load_settings({}, gateway={"host": "0.0.0.0"}), tokens)


def test_the_door_lets_go_what_limits_have_counted(file: TokensFile) -> None:
    """A stream that is cut off does not stay counted."""
    app = Limits(door_of(file, loopback=False), GatewaySettings(max_requests=1))

    async def cut_off(name: str) -> int:
        token, exchange = file.add(name, [Scope.READ]), Exchange()

        async def sending(message: Message) -> None:
            await exchange.send(message)
            if len(exchange.sent) == 2:
                file.remove(name)

        with anyio.fail_after(60):
            await app(scope_of("/events", [bearer(token)]), exchange.receive, sending)
        return int(exchange.sent[0]["status"])

    assert [asyncio.run(cut_off(name)) for name in ("a", "b", "c")] == [200, 200, 200]
