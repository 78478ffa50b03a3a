"""The page's search in a real browser: as a user does it, also by keyboard alone, and with hostile data."""

import re
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlencode

import pytest
from PIL import Image
from playwright.sync_api import Route, expect

from tests.gateway.page.site import ATTACKS, BOATS, CHUNKER, DOCUMENTS, MODEL, RUN
from tests.gateway.page.visit import Visit, Visiting
from vectorize_pipelines.gateway.problems import Problem


def test_a_search_by_keyboard_alone(visit: Visit) -> None:
    page, press = visit.page, visit.page.keyboard.press
    visit.open()
    expect(page.get_by_label("Search for")).to_be_focused()
    page.keyboard.type("supply boat")
    press("Enter")
    expect(visit.hits).to_have_count(1)
    expect(page.get_by_role("status").first).to_have_text(re.compile(r"^1 hit in "))
    summary = visit.hits.first.get_by_text("Where it comes from")
    for _ in range(12):
        press("Tab")
        if summary.evaluate("each => each === document.activeElement"):
            break
    expect(summary).to_be_focused()
    press("Enter")
    expect(visit.hits.first.get_by_text("Content hash")).to_be_visible()
    press("Tab")
    press("Tab")
    expect(visit.hits.first.get_by_role("link", name=RUN)).to_be_focused()


def test_what_matched_is_marked(visit: Visit) -> None:
    visit.open()
    visit.search("When do the boats land at the lighthouse?")
    hit = visit.hits.filter(has_text="Visitor FAQ")
    assert [mark.lower() for mark in hit.locator("mark").all_text_contents()] == [
        "boat",
        "lands",
        "lighthouse",
        "boats",
    ]
    expect(hit.locator(".passage")).to_have_text(BOATS["text"])


def test_words_of_a_script_without_spaces_and_with_accents_are_marked(visit: Visit) -> None:
    visit.open()
    visit.site.collections = {"corpus": [{**DOCUMENTS[2], "text": "灯塔建于1897年。Der Café-Besuch auf der Straße"}]}
    visit.open()
    visit.search("灯塔 cafe strasse auf")
    assert {"灯塔", "Straße", "auf"} <= set(visit.hits.locator("mark").all_text_contents())
    assert any("Café" in mark for mark in visit.hits.locator("mark").all_text_contents())


def test_a_hit_says_where_it_comes_from(visit: Visit) -> None:
    visit.open()
    visit.search("supply boat", collection="corpus")
    hit = visit.hits.first
    expect(hit.locator(".title")).to_have_text("Visitor FAQ")
    expect(hit.locator(".number")).to_have_text("0.950")
    places = hit.locator(".place > *").all_text_contents()
    assert places == [BOATS["uri"], "page 3", "Getting there > By boat"]
    hit.get_by_text("Where it comes from").click()
    terms = hit.locator("dt:not(.part)").all_text_contents()
    said = dict(zip(terms, hit.locator("dd").all_text_contents(), strict=True))
    assert said == {
        "Source": "visitors/visitor-faq.html",
        "Address": BOATS["uri"],
        "Page": "3",
        "Characters": f"1,200 to {BOATS['end']:,}",
        "Position": "1",
        "Model": MODEL,
        "Chunker": CHUNKER,
        "Run": RUN,
        "Embedded": "Nov 21, 2026, 9:15:30 AM",
        "Time of the source": "Nov 20, 2026, 8:00:00 AM",
        "Partition": "2026-11-20",
        "Content hash": BOATS["content_hash"],
        "Id": BOATS["id"],
        "title": "Visitor FAQ",
        "section": "Getting there > By boat",
        "language": "en",
        "year": "2026",
    }
    expect(hit.get_by_role("link", name=RUN)).to_have_attribute("href", f"/dagster/runs/{RUN}")
    expect(hit.locator(".place").get_by_role("link")).to_have_attribute("href", BOATS["uri"])


def test_a_long_passage_is_opened_and_closed(visit: Visit) -> None:
    visit.open()
    visit.search("lamp")
    passage = visit.hits.first.locator(".passage")
    cut = passage.bounding_box()
    button = visit.hits.first.get_by_role("button", name="Show the whole passage")
    button.press("Enter")
    whole = passage.bounding_box()
    assert cut
    assert whole
    assert whole["height"] > cut["height"]
    less = visit.hits.first.get_by_role("button", name="Show less of it")
    expect(less).to_have_attribute("aria-expanded", "true")
    expect(less).to_be_focused()


def test_the_address_can_be_sent_and_back_works(visit: Visit, visiting: Visiting) -> None:
    page = visit.page
    visit.open()
    page.get_by_label("Filter").fill("language = en")
    page.get_by_label("Hits").fill("7")
    visit.search("lighthouse lamp")
    first = visit.titles()
    assert first == ["Operations manual", "Visitor FAQ"]
    assert visit.parameters() == {
        "collection": "corpus",
        "q": "lighthouse lamp",
        "filter": "language = en",
        "limit": "7",
    }
    assert page.title() == "lighthouse lamp · corpus · vectorize"
    page.get_by_label("Filter").fill("")
    visit.search("灯塔")
    expect(visit.hits.locator(".title")).to_have_text(["灯塔"])

    page.go_back()
    expect(visit.hits.locator(".title")).to_have_text(first)
    expect(page.get_by_label("Search for")).to_have_value("lighthouse lamp")
    expect(page.get_by_label("Filter")).to_have_value("language = en")
    page.get_by_role("tab", name="Requests").click()
    expect(page).to_have_url(re.compile(r"\?tab=requests$"))
    page.go_back()
    expect(visit.hits.locator(".title")).to_have_text(first)

    other = visiting()
    other.open(page.url)
    expect(other.hits.locator(".title")).to_have_text(first)
    expect(other.page.get_by_label("Hits")).to_have_value("7")


def test_what_is_searched_for_is_what_was_asked(visit: Visit) -> None:
    visit.open()
    visit.page.get_by_label("Filter").fill(" year = 2026 ")
    visit.page.get_by_label("Hits").fill("3")
    visit.search('  "quoted" & <b> 灯塔 boat ')
    assert visit.site.asked == [{"query": '"quoted" & <b> 灯塔 boat', "limit": 3, "filter": "year = 2026"}]


def test_a_wrong_filter_is_said_in_words(visiting: Visiting) -> None:
    visit = visiting()
    visit.open()
    field = visit.page.get_by_label("Filter")
    field.fill("language")
    visit.search("boat")
    alert = visit.page.locator("#search-error")
    expect(alert).to_have_text(re.compile(r"^filter: expected =, found the end; .*language=en\.$"))
    expect(field).to_have_attribute("aria-invalid", "true")
    field.fill("language = en")
    visit.search("boat")
    expect(alert).to_be_hidden()
    assert field.get_attribute("aria-invalid") is None
    assert len(visit.refused) == 1


AWAY = Problem(HTTPStatus.SERVICE_UNAVAILABLE, "the store does not answer", headers={"Retry-After": "5"})
FULL = Problem(HTTPStatus.TOO_MANY_REQUESTS, "too many texts wait", headers={"Retry-After": "1"})
SIGNED_OUT = Problem(HTTPStatus.UNAUTHORIZED, "no token")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (AWAY, "the store does not answer. Try again in 5 seconds."),
        (FULL, "too many texts wait. Try again in 1 second."),
        (SIGNED_OUT, "your session has ended"),
    ],
)
def test_a_search_that_fails_is_said_in_words(visiting: Visiting, failure: Problem, said: str) -> None:
    visit = visiting()
    visit.open()
    visit.search("boat")
    visit.site.failures["/collections/corpus/search"] = failure
    visit.search("lamp")
    alert = visit.page.get_by_role("alert")
    expect(alert).to_contain_text(said)
    expect(visit.hits).to_have_count(0)
    if failure.status is HTTPStatus.UNAUTHORIZED:
        link = alert.get_by_role("link", name="Sign in")
        expect(link).to_have_attribute("href", "/signin?next=%2F%3Fcollection%3Dcorpus%26q%3Dlamp")
        link.click()
        expect(visit.page.get_by_label("Token")).to_be_focused()
        assert visit.page.locator("input[name=next]").get_attribute("value") == "/?collection=corpus&q=lamp"


def test_what_is_typed_before_the_collections_are_known_is_kept_and_searched_for(visit: Visit) -> None:
    held: list[Route] = []
    visit.page.route("**/collections", lambda route: held.append(route))
    with visit.page.expect_request("**/collections"):
        visit.open()
    visit.page.get_by_label("Search for").fill("supply boat")
    visit.page.keyboard.press("Enter")
    (loading,) = held
    loading.continue_()
    expect(visit.hits.locator(".title")).to_have_text(["Visitor FAQ"])
    expect(visit.page.get_by_label("Search for")).to_have_value("supply boat")
    assert visit.parameters() == {"collection": "corpus", "q": "supply boat"}


def test_a_server_that_is_gone_is_said_in_words(visiting: Visiting) -> None:
    visit = visiting()
    visit.open()
    visit.page.route("**/search", lambda route: route.abort("connectionrefused"))
    visit.page.get_by_label("Search for").fill("boat")
    visit.page.keyboard.press("Enter")
    expect(visit.page.get_by_role("alert")).to_have_text("The server cannot be reached.")


def test_nothing_found_and_nothing_asked(visit: Visit) -> None:
    visit.open()
    visit.search("zeppelin")
    expect(visit.page.get_by_text("Nothing found.")).to_be_visible()
    visit.page.get_by_label("Search for").fill("   ")
    visit.page.keyboard.press("Enter")
    expect(visit.page.get_by_text("Say what you are looking for.")).to_be_visible()
    assert len(visit.site.asked) == 1


def test_without_a_collection_it_says_how_to_make_one(visit: Visit) -> None:
    visit.site.collections = {}
    visit.open()
    expect(visit.page.get_by_text("vectorize ingest ~/documents")).to_be_visible()


def test_an_answer_that_comes_late_does_not_replace_a_newer_one(visit: Visit) -> None:
    page = visit.page
    visit.open()
    held: list[Route] = []

    def hold(route: Route) -> None:
        if "lamp" in (route.request.post_data or ""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/search", hold)
    page.get_by_label("Search for").fill("lamp")
    with page.expect_request("**/search"):
        page.keyboard.press("Enter")
    expect(page.get_by_text("Searching…")).to_be_visible()
    expect(page.locator("#hits")).to_have_attribute("aria-busy", "true")
    visit.search("supply boat")
    assert visit.titles() == ["Visitor FAQ"]
    (late,) = held
    late.continue_()
    expect(page.locator("#hits")).to_have_attribute("aria-busy", "false")
    assert visit.titles() == ["Visitor FAQ"]


def test_images_are_shown_and_searched_by_one(visiting: Visiting, tmp_path: Path) -> None:
    visit = visiting()
    page = visit.page
    visit.open()
    expect(page.get_by_label("Image")).to_be_hidden()
    visit.search("a boat", collection="gallery")
    expect(visit.hits).to_have_count(6)
    pictures = page.locator(".picture img")
    expect(pictures).to_have_count(5)  # the last one's file is gone
    expect(visit.hits.last).to_contain_text("No preview")
    pictures.first.scroll_into_view_if_needed()
    expect(pictures.first).to_have_js_property("naturalWidth", 320)
    expect(pictures.first).to_have_attribute("alt", "boat-0.jpg")
    visit.hits.first.get_by_text("Where it comes from").click()
    expect(visit.hits.first.get_by_text("ViT-B/32@openai dim=512 normalized=true")).to_be_visible()
    assert len(visit.refused) == 1

    picture = tmp_path / "<b>red.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    page.get_by_label("Image").set_input_files(picture)
    expect(page.locator("#chosen-name")).to_have_text("<b>red.png")
    expect(page.get_by_role("button", name="Search", exact=True)).to_be_focused()
    expect(page.get_by_label("Search for")).to_be_disabled()
    with page.expect_response(lambda response: response.url.endswith("/search")):
        page.keyboard.press("Enter")
    assert visit.site.asked[-1]["image"].startswith("data:image/png;base64,")
    assert "query" not in visit.site.asked[-1]
    page.go_back()
    expect(page.get_by_label("Search for")).to_have_value("a boat")
    page.go_forward()
    expect(page.locator("#chosen-name")).to_have_text("<b>red.png")
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_label("Search for")).to_be_enabled()
    expect(page.get_by_label("Search for")).to_be_focused()


def test_an_image_is_dropped_on_the_form(visiting: Visiting) -> None:
    visit = visiting()
    visit.open()
    drop = """(name) => {
      const files = new DataTransfer();
      files.items.add(new File([new Uint8Array(4)], name, {type: name.endsWith("png") ? "image/png" : "text/plain"}));
      const options = {dataTransfer: files, bubbles: true, cancelable: true};
      return document.querySelector("#query").dispatchEvent(new DragEvent("drop", options));
    }"""
    expect(visit.page.locator("#collection")).to_have_attribute("required", "")  # all that was asked for is there
    assert visit.page.evaluate(drop, "a.png") is False  # the browser does not open it instead
    expect(visit.page.locator("#chosen")).to_be_hidden()  # the collection has no images
    visit.page.get_by_label("Collection").select_option("gallery")
    visit.page.evaluate(drop, "a.txt")
    expect(visit.page.get_by_role("alert")).to_have_text("That is no image.")
    visit.page.evaluate(drop, "a.png")
    expect(visit.page.locator("#chosen-name")).to_have_text("a.png")
    expect(visit.page.get_by_role("alert")).to_be_hidden()
    visit.page.get_by_label("Collection").select_option("corpus")
    expect(visit.page.locator("#chosen")).to_be_hidden()
    expect(visit.page.get_by_label("Search for")).to_be_enabled()


def test_nothing_in_a_hit_becomes_markup_or_a_script(visit: Visit) -> None:
    visit.open()
    visit.search("hostile <img src=x onerror=window.hacked=1>", collection="hostile")
    expect(visit.hits).to_have_count(len(ATTACKS))
    assert sorted(visit.titles()) == sorted(ATTACKS)
    for index in range(len(ATTACKS)):
        hit = visit.hits.nth(index)
        hit.get_by_text("Where it comes from").click()
        title = hit.locator(".title").text_content()
        expect(hit.locator(".passage")).to_have_text(f"hostile {title}")
        terms = hit.locator("dt").all_text_contents()
        assert {title, "__proto__"} <= set(terms)
        run = hit.locator("dd a[href^='/dagster/runs/']").get_attribute("href")
        assert run is not None
        assert "/" not in run.removeprefix("/dagster/runs/")
        assert not set('<>"') & set(run)
    links = visit.page.locator(".hit a").evaluate_all("links => links.map(link => link.protocol)")
    assert set(links) == {"http:", "https:"}
    assert visit.page.locator(".hit script, .hit svg, .hit [onerror], .hit [onload]").count() == 0
    assert visit.page.evaluate("window.hacked") is None


def test_an_address_with_markup_does_nothing(visiting: Visiting) -> None:
    visit = visiting()
    for attack in ATTACKS:
        visit.page.goto("about:blank")
        visit.page.goto(f"{visit.site.url}/?{_query(collection=attack, q=attack, filter=attack, limit=attack)}")
        expect(visit.page.get_by_label("Search for")).to_have_value(attack)
        expect(visit.page.get_by_role("alert")).to_be_visible()
        visit.page.goto(f"{visit.site.url}/?{_query(tab='requests', state=attack)}")
        expect(visit.page.locator("#requests-status")).to_have_text("0 requests")
        assert visit.page.evaluate("window.hacked") is None


def _query(**parameters: str) -> str:
    return urlencode(parameters)
