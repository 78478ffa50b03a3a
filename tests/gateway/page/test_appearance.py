"""How the pages look in a real browser: light and dark, wide and narrow, readable, and usable by keyboard.

`VECTORIZE_TEST_SCREENSHOTS` names a folder that the screenshots are kept in.
"""

import io
import os
from pathlib import Path

import pytest
from PIL import Image, ImageStat
from playwright.sync_api import Page, expect

from tests.gateway.page.visit import WIDE, Theme, Visit, Visiting

THEMES: tuple[Theme, ...] = ("light", "dark")
NARROW = (360, 740)

#: How far each visible text is from its background, as WCAG counts it; those below the least that it allows.
CONTRASTS = """() => {
  const channels = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const [x, y, z] = [r, g, b].map((c) => linear(c / 255));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const background = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const color = channels(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility() || node.closest(".unseen, noscript")) continue;
    const [text, behind] = [channels(getComputedStyle(node).color), background(node)].map(luminance);
    const ratio = (Math.max(text, behind) + 0.05) / (Math.min(text, behind) + 0.05);
    if (ratio < 4.5) found.push(`${walker.currentNode.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return found;
}"""
#: What shows where the focus is, with its outline; of a control that is not seen, its label or what stands for it.
FOCUS = """() => {
  const focused = document.activeElement;
  const outlined = (node) => node && getComputedStyle(node).outlineStyle !== "none";
  const shown = outlined(focused) || outlined(focused.nextElementSibling) || outlined(focused.closest("label"));
  return [focused.id || focused.className || focused.textContent.trim() || focused.tagName, Boolean(shown)];
}"""


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_it_can_be_read_and_has_no_scroll_bar_below(visiting: Visiting, theme: Theme, size: tuple[int, int]) -> None:
    visit = visiting(theme, size)
    page = visit.page
    name = f"{theme}-{'wide' if size == WIDE else 'narrow'}"
    visit.open()
    visit.search("when do the boats land at the lighthouse?")
    visit.hits.first.get_by_text("Where it comes from").click()
    page.get_by_text("How to write a filter").click()
    colours = [looked_at(page, f"search-{name}")]
    page.get_by_label("Filter").fill("language")
    visit.search("boat")
    colours.append(looked_at(page, f"problem-{name}"))
    page.get_by_label("Filter").fill("")
    visit.search("hostile", collection="hostile")
    colours.append(looked_at(page, f"hostile-{name}"))
    visit.search("boats at sea", collection="gallery")
    colours.append(looked_at(page, f"images-{name}"))
    visit.open("/?tab=requests")
    expect(page.locator("#connection")).to_have_text("Live")
    colours.append(looked_at(page, f"requests-{name}"))
    page.get_by_role("button", name="Cancel order-505").click()
    looked_at(page, f"cancel-{name}")
    visit.open("/signin?next=/")
    colours.append(looked_at(page, f"signin-{name}"))
    assert all(brightness > 160 if theme == "light" else brightness < 80 for brightness in colours), colours


def looked_at(page: Page, name: str) -> float:
    """How bright a screenshot is, of a page whose texts can be read and that is not wider than the window."""
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), name
    assert page.evaluate(CONTRASTS) == [], name
    shot = page.screenshot(full_page=not name.startswith(("requests", "cancel")))
    folder = os.environ.get("VECTORIZE_TEST_SCREENSHOTS")
    if folder:
        Path(folder, f"{name}.png").write_bytes(shot)
    with Image.open(io.BytesIO(shot)) as picture:
        brightness: float = ImageStat.Stat(picture.convert("L")).mean[0]
    return brightness


def test_tabs_by_keyboard(visit: Visit) -> None:
    page, press = visit.page, visit.page.keyboard.press
    visit.open()
    search, requests = page.get_by_role("tab", name="Search"), page.get_by_role("tab", name="Requests")
    search.focus()
    press("ArrowRight")
    expect(requests).to_be_focused()
    expect(requests).to_have_attribute("aria-selected", "true")
    expect(page.get_by_role("tabpanel", name="Requests")).to_be_visible()
    expect(page.get_by_role("tabpanel", name="Search")).to_be_hidden()
    press("Home")
    expect(search).to_be_focused()
    expect(page.get_by_role("tabpanel", name="Search")).to_be_visible()
    press("ArrowLeft")
    expect(requests).to_be_focused()
    press("End")
    expect(requests).to_be_focused()


@pytest.mark.parametrize("address", ["/?collection=corpus&q=lighthouse+boat", "/?tab=requests"])
def test_the_focus_is_seen_wherever_it_is(visit: Visit, address: str) -> None:
    page = visit.page
    visit.open(address)
    expect(page.locator(".hit, .task").first).to_be_visible()
    page.get_by_role("link", name="Skip to the content").focus()
    seen: list[str] = []
    for _ in range(30):
        name, shown = page.evaluate(FOCUS)
        seen.append(name)
        assert shown, name
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement === document.body"):
            break
    assert len(seen) > 8
    page.get_by_role("link", name="Skip to the content").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()


@pytest.mark.parametrize("theme", THEMES)
def test_the_sign_in_says_what_was_wrong(visiting: Visiting, theme: Theme) -> None:
    visit = visiting(theme)
    visit.open("/signin?next=/%3Ftab=requests")
    expect(visit.page.get_by_role("alert")).to_have_text("This token is not known.")
    expect(visit.page.get_by_label("Token")).to_be_focused()
    expect(visit.page.get_by_label("Token")).to_have_attribute("type", "password")
    assert visit.page.locator("input[name=next]").get_attribute("value") == "/?tab=requests"


def test_the_api_is_described_without_a_network(visit: Visit) -> None:
    visit.open("/docs")
    expect(visit.page.get_by_text("What this server is")).to_be_visible()
    visit.page.get_by_text("What this server is").click()
    expect(visit.page.get_by_role("button", name="Try it out")).to_be_visible()
    expect(visit.page.locator(".errors-wrapper")).to_have_count(0)
