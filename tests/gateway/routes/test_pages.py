"""What a browser and a program get at `/`, `/docs` and `/static`, and that nothing else is served from there."""

import asyncio
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from importlib.resources import files

import httpx2
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.running import as_caller
from vectorize_pipelines.gateway import openapi, page, problems
from vectorize_pipelines.gateway.door.auth import Caller, Scope
from vectorize_pipelines.gateway.routes import pages
from vectorize_pipelines.gateway.routes.pages import prefers_html

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


def application(caller: Caller) -> FastAPI:
    app = FastAPI(title="vectorize-pipelines", version="1.2.3", docs_url=None, redoc_url=None)
    problems.install(app)
    openapi.install(app)
    app.include_router(pages.router)
    app.add_middleware(as_caller, caller=caller)
    return app


def ask(
    path: str, *, method: str = "GET", caller: Caller | None = None, headers: Mapping[str, str] | None = None
) -> httpx2.Response:
    """The answer to one request."""
    app = application(caller or Caller.of("reader", Scope.READ))

    async def asked() -> httpx2.Response:
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, headers=dict(headers or {}))

    return asyncio.run(asked())


@pytest.mark.parametrize("accept", ["*/*", "application/json", "", "text/plain", "application/json, text/html;q=0.9"])
def test_a_program_learns_what_the_server_is(accept: str) -> None:
    answer = ask("/", headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["vary"] == "Accept"
    said = answer.json()
    assert (said["service"], said["version"]) == ("vectorize-pipelines", "1.2.3")
    assert said["caller"] == {"name": "reader", "scopes": ["read"]}
    assert said["links"]["tasks"] == "/tasks"
    assert all(link.startswith("/") for link in said["links"].values())


def test_a_browser_gets_the_page() -> None:
    answer = ask("/", headers={"Accept": BROWSER})
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["vary"] == "Accept"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.text.startswith("<!doctype html>")


def test_the_scopes_include_those_below() -> None:
    said = ask("/", caller=Caller.of("operator", Scope.ADMIN)).json()
    assert said["caller"] == {"name": "operator", "scopes": ["read", "submit", "admin"]}


@pytest.mark.parametrize("path", ["/", "/cameras", "/docs"])
def test_who_may_not_read_gets_no_page(path: str) -> None:
    answer = ask(path, caller=Caller.of("nobody"), headers={"Accept": BROWSER})
    assert answer.status_code == 403
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/", "/cameras", "/docs"])
def test_no_script_or_style_of_another_origin_or_in_the_page_is_let_in(path: str) -> None:
    answer = ask(path, headers={"Accept": BROWSER})
    policy = dict(part.strip().partition(" ")[::2] for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["img-src"] == "'self' data:"
    assert policy["frame-ancestors"] == "'none'"
    assert not {"script-src", "style-src", "connect-src"} & set(policy)
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["index.html", "cameras.html", "signin.html", "docs.html"])
def test_a_page_names_only_files_that_there_are(name: str) -> None:
    found = _Resources()
    found.feed((files(page) / name).read_text("utf-8"))
    assert found.inline == []
    assert found.addresses
    assert {address.removeprefix("/static/") for address in found.addresses} <= page.STATIC


class _Resources(HTMLParser):
    """The files that a page loads, and what it has of scripts and styles itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img") and given.get("src"):
            self.addresses.append(str(given["src"]))
        if tag == "link":
            self.addresses.append(str(given["href"]))
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        self.inline += [name for name in given if name == "style" or name.startswith("on")]


@pytest.mark.parametrize("name", sorted(page.STATIC))
def test_files_have_their_type_and_are_sent_once(name: str) -> None:
    answer = ask(f"/static/{name}", caller=Caller.of("nobody"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == TYPES[name.rpartition(".")[2]]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    tag = answer.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
    for known in (tag, f'"other", {tag}', f"W/{tag}"):
        again = ask(f"/static/{name}", headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert ask(f"/static/{name}", headers={"If-None-Match": '"other"'}).status_code == 200
    assert ask(f"/static/{name}", method="HEAD").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/index.html",
        "/static/__init__.py",
        "/static/../pages.py",
        "/static/%2e%2e/pages.py",
        "/static/swagger%2f..%2f__init__.py",
        "/static//etc/passwd",
        "/static/%2Fetc%2Fpasswd",
        "/static/script.js%00.css",
        "/static/SCRIPT.JS",
        "/static/swagger/index.html",
    ],
)
def test_nothing_else_is_there(path: str) -> None:
    answer = ask(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/", "/docs", "/static/script.js"])
def test_files_are_only_read(path: str) -> None:
    assert ask(path, method="POST").status_code == 405
    assert ask(path, method="DELETE").status_code == 405


def test_the_description_of_the_api_has_the_root_alone() -> None:
    described = application(Caller.of("reader", Scope.READ)).openapi()
    assert set(described["paths"]) == {"/"}
    (operation,) = described["paths"]["/"].values()
    assert {"200", "401", "403"} <= set(operation["responses"])
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "text/html"}
    assert {"ProblemModel", "FieldProblem", "ServiceModel"} <= set(described["components"]["schemas"])


@pytest.mark.parametrize(
    ("accept", "html"),
    [
        (BROWSER, True),
        ("text/html", True),
        ("text/*", True),
        ("text/html, */*", True),
        ("TEXT/HTML;Q=0.9, application/json;q=0.8", True),
        ("text/html;level=1;q=0.5, application/json;q=0.4", True),
        ("*/*", False),
        ("application/json", False),
        ("text/html, application/json", False),
        ("text/html;q=0.4, application/json;q=0.5", False),
        ("text/html;q=0", False),
        ("text/html;q=0, */*;q=0", False),
        ("image/png", False),
        ("", False),
        (",;,q=", False),
    ],
)
def test_who_prefers_html(accept: str, html: bool) -> None:
    assert prefers_html(accept) is html


@given(st.text())
def test_any_accept_header_is_answered(accept: str) -> None:
    assert prefers_html(accept) in (True, False)


WEIGHTS = st.decimals(0, 1, places=3)


@given(WEIGHTS, WEIGHTS)
def test_the_greater_weight_wins(html: object, json: object) -> None:
    header = f"application/json;q={json}, text/html;q={html}"
    assert prefers_html(header) is (float(str(html)) > float(str(json)))


@given(st.text(), st.text())
def test_the_form_has_what_it_is_given_as_text(next_path: str, error: str) -> None:
    form = _Form()
    form.feed(bytes(page.answer_signin(next_path, error).body).decode())
    plain = _Form()
    plain.feed(bytes(page.answer_signin("", "").body).decode())
    assert form.tags == plain.tags
    assert form.next == next_path
    assert form.error == error


class _Form(HTMLParser):
    """The tags of the sign-in, the value of its field `next`, and its error."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.next: str | None = None
        self.error = ""
        self._in_error = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self._in_error = given.get("id") == "error"
        if given.get("name") == "next":
            self.next = given["value"]

    def handle_endtag(self, tag: str) -> None:
        self._in_error = False

    def handle_data(self, data: str) -> None:
        if self._in_error:
            self.error += data


def test_the_form_is_not_kept() -> None:
    answer = page.answer_signin("/", "This token is not known.")
    assert answer.headers["cache-control"] == "no-store"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
