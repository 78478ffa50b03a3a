"""A visit to the page in a real browser, and what went on in it. Used by the fixtures and the tests beside it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import ConsoleMessage, Dialog, Locator, Page, expect

from tests.gateway.page.site import Site

Theme = Literal["light", "dark"]
WIDE = (1280, 900)
_REFUSED = "Failed to load resource"


@dataclass
class Watched:
    """What goes on in a page of the browser.

    requests  addresses that it asked for
    errors    of scripts, and what the browser has against the page
    refused   what the browser says of each answer that is an error
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._asked)
        self.page.on("console", self._said)

    def elsewhere(self, url: str) -> list[str]:
        """What it asked of others than the server at an address."""
        return [each for each in self.requests if not each.startswith((f"{url}/", "data:", "about:"))]

    def _asked(self, dialog: Dialog) -> None:
        self.errors.append(f"a script asks: {dialog.message}")
        dialog.dismiss()

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            kind = self.refused if message.text.startswith(_REFUSED) else self.errors
            kind.append(f"{message.text} ({message.location})")


@dataclass
class Visit:
    """A page of the browser at a site of the tests."""

    page: Page
    site: Site

    def __post_init__(self) -> None:
        self.watched = Watched(self.page)

    def open(self, address: str = "/") -> None:
        """Go to an address of the site."""
        self.page.goto(address)

    def search(self, query: str, *, collection: str = "corpus") -> None:
        """Fill the form and send it, and wait for what comes of it."""
        self.page.get_by_label("Collection").select_option(collection)
        self.page.get_by_label("Search for").fill(query)
        with self.page.expect_response(lambda response: response.url.endswith("/search")):
            self.page.get_by_role("button", name="Search", exact=True).click()
        expect(self.page.locator("#hits")).to_have_attribute("aria-busy", "false")

    @property
    def refused(self) -> list[str]:
        """What the browser says of each answer that is an error."""
        return self.watched.refused

    @property
    def hits(self) -> Locator:
        """The hits on the page."""
        return self.page.locator(".hit")

    def titles(self) -> list[str]:
        """The titles of the hits."""
        return self.hits.locator(".title").all_text_contents()

    def request(self, task_id: str) -> Locator:
        """A request in the list."""
        return self.page.locator(".task").filter(has=self.page.get_by_role("heading", name=task_id, exact=True))

    def parameters(self) -> dict[str, str]:
        """What stands in the address behind the question mark."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.page.url).query).items()}


#: Makes a visit: in a theme, with a size of the window.
Visiting = Callable[..., Visit]
