"""Fixtures of the page's tests: the browser, the server that the page is opened on, and visits."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.components import need
from tests.gateway.page.site import Site, site
from tests.gateway.page.visit import WIDE, Theme, Visit, Visiting
from tests.servers import browser as chromium

#: For whatever is waited for in a page: a busy machine is no failure.
expect.set_options(timeout=60_000)


@pytest.fixture(scope="module")
def browser_program() -> None:
    need(chromium.program)


@pytest.fixture(scope="module")
def opened(browser_program: None) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []  # its sandbox does not run as root
        launched = playwright.chromium.launch(executable_path=chromium.program(), args=arguments)
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def running_site() -> Iterator[Site]:
    with site() as running_site:
        yield running_site


@pytest.fixture
def served(running_site: Site) -> Iterator[Site]:
    """What the page is opened on; another server with the same data may take its place."""
    yield running_site
    running_site.begin_again()


@pytest.fixture
def visiting(opened: Browser, served: Site) -> Iterator[Visiting]:
    """Make visits, in one theme and width each. At the end nothing may have gone wrong in any, or left the server."""
    visits: list[Visit] = []

    def visit(theme: Theme = "light", size: tuple[int, int] = WIDE, **options: Any) -> Visit:
        viewport = {"width": size[0], "height": size[1]}
        context = opened.new_context(
            base_url=served.url,
            viewport=viewport,  # type: ignore[arg-type]
            color_scheme=theme,
            locale="en-US",
            timezone_id="UTC",
            **options,
        )
        context.set_default_timeout(60_000)
        visits.append(Visit(context.new_page(), served))
        return visits[-1]

    yield visit
    for each in visits:
        each.page.context.close()
    assert [error for each in visits for error in each.watched.errors] == []
    assert [url for each in visits for url in each.watched.elsewhere(served.url)] == []


@pytest.fixture
def visit(visiting: Visiting) -> Iterator[Visit]:
    """One visit, in which the server refuses nothing."""
    made = visiting()
    yield made
    assert made.refused == []
