"""The page of a whole server in a real browser: real rows and requests, behind the door that asks for a token."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.gateway.installations import NO_DAGSTER, ended, ledger_of, new_row, taken_up
from tests.gateway.page.site import ATTACKS
from tests.gateway.page.visit import Watched
from tests.gateway.running import serving
from tests.gateway.searching import DOCUMENTS, PICTURES, TEXTS, store_pictures, store_texts
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.encoders.configured import lease_configured
from vectorize_pipelines.gateway.app import create_app
from vectorize_pipelines.gateway.door.tokens import Scope, Tokens, TokensFile
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, Settings, load_settings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.conformance.records import row, table

HOSTILE = "hostile"


@dataclass
class Server:
    """The server, its ledger, a token of each scope, and the files of its pictures."""

    url: str
    ledger: RequestLedger
    tokens: dict[Scope, str]
    pictures: list[Path]


@pytest.fixture(scope="module")
def server(exported_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Texts, pictures and hostile texts to search, and a request that waits and one that is being processed."""
    folder = tmp_path_factory.mktemp("whole")
    home, pictures = folder / "home", folder / "pictures"
    home.mkdir()
    pictures.mkdir()
    (home / "encoders").symlink_to(exported_models)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VECTORIZE_HOME", str(home))
        environment.setenv("VECTORIZE_GALLERY__PATH", str(pictures))
        settings = load_settings()
    store_texts(settings)
    files = store_pictures(settings, pictures)
    store_hostile(settings)
    file = TokensFile.of(settings)
    made = {scope: file.add(f"<b>{scope}", [scope]) for scope in (Scope.READ, Scope.SUBMIT)}
    with (
        ledger_of(settings) as ledger,
        serving(lambda address: create_app(settings, NO_DAGSTER, Tokens.open(settings), address)) as url,
    ):
        ledger.record([new_row("waits"), taken_up(new_row("busy", sent=1))])
        ledger.record([taken_up(new_row(attack, sent=-1 - number)) for number, attack in enumerate(ATTACKS)])
        yield Server(url, ledger, made, files)


def store_hostile(settings: Settings) -> None:
    """Rows whose every text is an attack."""
    with lease_configured(settings, DEFAULT_TEXT_MODEL) as encoder:
        vectors, spec = encoder.encode(list(ATTACKS)), encoder.spec
    rows = [
        row(
            attack,
            text=f"hostile {attack}",
            uri=f"javascript:{attack}",
            run_id=attack,
            vector=vector,
            metadata={"title": attack, "section": attack, attack: attack},
        )
        for attack, vector in zip(ATTACKS, vectors, strict=True)
    ]
    store = open_store(settings.store, settings.home)
    store.ensure_collection(HOSTILE, spec)
    store.upsert(HOSTILE, table(rows, spec.dimension))
    store.flush((HOSTILE,))
    store.close()


@pytest.fixture
def page(opened: Browser, server: Server) -> Iterator[Page]:
    """A page of the browser in which nothing may go wrong, and that may ask nothing of another server."""
    context = opened.new_context(base_url=server.url, locale="en-US", timezone_id="UTC")
    context.set_default_timeout(60_000)
    page = context.new_page()
    watched = Watched(page)
    yield page
    context.close()
    assert watched.errors == []
    assert watched.elsewhere(server.url) == []


def sign_in(page: Page, server: Server, scope: Scope, address: str = "/") -> None:
    """Go to an address, and pass the form that comes first."""
    page.goto(address)
    page.get_by_label("Token").fill(server.tokens[scope])
    page.keyboard.press("Enter")
    expect(page.get_by_role("tablist")).to_be_visible()


def test_it_is_searched_after_signing_in(page: Page, server: Server) -> None:
    address = f"/?collection={TEXTS}&q=what+does+the+lamp+burn%3F&filter=year+%3C+1990&limit=2"
    page.goto(address)
    token = page.get_by_label("Token")
    token.fill("vec_" + "A" * 43)
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("no such token")
    token.fill(server.tokens[Scope.READ])
    page.keyboard.press("Enter")
    expect(page).to_have_url(server.url + address)
    hits = page.locator(".hit")
    expect(hits).to_have_count(2)
    first = hits.first
    text, metadata = DOCUMENTS["lamp.md"]
    expect(first.locator(".passage")).to_have_text(text)
    assert first.locator("mark").all_text_contents() == ["lamp", "burns"]
    first.get_by_text("Where it comes from").click()
    said = dict(
        zip(first.locator("dt:not(.part)").all_text_contents(), first.locator("dd").all_text_contents(), strict=True)
    )
    assert said["Chunker"] == "tokens/3 max=256 overlap=32 parser=4"
    assert said["Page"] == "2"
    assert said["year"] == str(metadata["year"])
    expect(first.get_by_role("link", name="run")).to_have_attribute("href", "/dagster/runs/run")

    page.get_by_label("Filter").fill("year <")
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_role("alert")).to_contain_text("filter")
    expect(page.get_by_label("Filter")).to_have_attribute("aria-invalid", "true")

    expect(page.get_by_role("button", name="Sign out")).to_contain_text("<b>read")
    page.get_by_role("button", name="Sign out").click()
    expect(token).to_be_visible()
    page.goto("/")
    expect(token).to_be_visible()


def test_pictures_are_shown_and_searched_by_one(page: Page, server: Server) -> None:
    sign_in(page, server, Scope.READ)
    page.get_by_label("Collection").select_option(PICTURES)
    page.get_by_label("Image").set_input_files(server.pictures[1])
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.locator(".hit")).to_have_count(3)
    expect(page.locator(".title").first).to_have_text("1.jpg")
    for index in range(3):
        expect(page.locator(".picture img").nth(index)).to_have_js_property("naturalWidth", 256)


def test_hostile_rows_do_nothing(page: Page, server: Server) -> None:
    sign_in(page, server, Scope.READ)
    page.get_by_label("Collection").select_option(HOSTILE)
    page.get_by_label("Search for").fill("hostile <img src=x onerror=window.hacked=1>")
    page.keyboard.press("Enter")
    hits = page.locator(".hit")
    expect(hits).to_have_count(len(ATTACKS))
    for index in range(len(ATTACKS)):
        hits.nth(index).get_by_text("Where it comes from").click()
    assert sorted(page.locator(".title").all_text_contents()) == sorted(ATTACKS)
    assert page.locator(".hit script, .hit svg, .hit [onerror], .hit [onload], .hit .place a").count() == 0
    page.get_by_role("tab", name="Requests").click()
    expect(page.locator(".task")).to_have_count(len(ATTACKS) + 2)
    assert set(page.locator(".task .id").all_text_contents()) == {*ATTACKS, "busy", "waits"}
    assert page.locator(".task script, .task svg, .task img").count() == 0
    assert page.evaluate("window.hacked") is None


def test_requests_are_followed(page: Page, server: Server) -> None:
    sign_in(page, server, Scope.SUBMIT, "/?tab=requests")
    expect(page.locator("#connection")).to_have_text("Live")
    busy, waits = (
        page.locator(".task").filter(has=page.get_by_role("heading", name=name)) for name in ("busy", "waits")
    )
    expect(busy.locator(".state")).to_have_text("Processing")
    expect(waits.locator(".state")).to_have_text("Pending")
    expect(waits.get_by_role("button", name="Cancel waits")).to_be_visible()
    row = taken_up(new_row("busy", sent=1))
    server.ledger.record([ended(row, RequestState.FAILED)])
    expect(busy.locator(".state")).to_have_text("Failed")
    expect(busy).to_contain_text("CorruptImageError: it is no image")
    expect(page.locator("#states label").filter(has_text="Failed")).to_have_text("Failed 1")


def test_the_api_is_described(page: Page, server: Server) -> None:
    sign_in(page, server, Scope.READ)
    page.get_by_role("link", name="API").click()
    expect(page.get_by_text("Search a collection")).to_be_visible()
    expect(page.locator(".errors-wrapper")).to_have_count(0)
    page.get_by_text("Search a collection").click()
    page.get_by_role("button", name="Try it out").click()
    expect(page.get_by_role("button", name="Execute")).to_be_visible()
