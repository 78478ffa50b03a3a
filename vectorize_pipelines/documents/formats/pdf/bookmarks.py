"""A PDF's outline as headings of its text."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vectorize_pipelines.documents.formats.outline import Heading
from vectorize_pipelines.documents.types import Page

#: More of them are left out.
MAX_BOOKMARKS = 10_000
_MAX_WORDS = 40


@dataclass(frozen=True, slots=True)
class Bookmark:
    """An entry of the outline: 1 is the outermost level; pages are counted from 0."""

    title: str
    level: int
    page: int


def headings(text: str, pages: Sequence[Page], bookmarks: Sequence[Bookmark]) -> list[Heading]:
    """Return where the bookmarks' titles stand on their pages; the page's start where they do not."""
    found: list[Heading] = []
    reached: dict[int, int] = {}
    for bookmark in bookmarks:
        if bookmark.page >= len(pages):
            continue
        page = pages[bookmark.page]
        start, end = _place(text, max(page.start, reached.get(bookmark.page, 0)), page.end, bookmark.title)
        reached[bookmark.page] = max(end, reached.get(bookmark.page, 0))
        found.append(Heading(start, end, bookmark.level, bookmark.title))
    return sorted(found, key=lambda heading: heading.start)


def _place(text: str, start: int, end: int, title: str) -> tuple[int, int]:
    """Return where the title stands in that stretch, best as a line; its start, and nothing, where it does not."""
    words = title.split()[:_MAX_WORDS]
    pattern = r"\s+".join(map(re.escape, words))
    numbered = r"(?:[\w.]{1,12}[ \t]+)?" if not words[0][0].isdigit() else ""
    for expression in (rf"(?m)^{numbered}{pattern}[ \t]*$", rf"(?m)^{numbered}{pattern}", pattern):
        if match := re.compile(expression, re.IGNORECASE).search(text, start, end):
            return match.span()
    return start, start
