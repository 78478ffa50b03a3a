"""A PDF's outline as headings of its text."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vectorize_pipelines.documents.formats.outline import Heading
from vectorize_pipelines.documents.types import Page

#: More of them are left out.
MAX_BOOKMARKS = 10_000
_MAX_WORDS = 40
#: Of so many bookmarks whose title is not on their page it is looked up which line stands where they point at.
MAX_LOOKED_UP = 200


@dataclass(frozen=True, slots=True)
class Bookmark:
    """An entry of the outline: 1 is the outermost level; pages are counted from 0.

    height  where on the page it points at, in points from its lower edge; None where it does not say
    """

    title: str
    level: int
    page: int
    height: float | None = None


#: Returns the line that stands at a height of a page, counted from 0, or below it; empty where none does.
LineAt = Callable[[int, float], str]


def headings(text: str, pages: Sequence[Page], bookmarks: Sequence[Bookmark], line_at: LineAt) -> list[Heading]:
    """Return where the sections begin that the bookmarks name.

    That is where a bookmark's title stands on its page, else the line that it points at, else the page's start.
    """
    found: list[Heading] = []
    reached: dict[int, int] = {}
    looked_up = 0
    for bookmark in bookmarks:
        if bookmark.page >= len(pages):
            continue
        page = pages[bookmark.page]
        start = max(page.start, reached.get(bookmark.page, 0))
        place = _title_at(text, start, page.end, bookmark.title)
        if place is None and bookmark.height is not None and looked_up < MAX_LOOKED_UP:
            looked_up += 1
            place = _line_at(text, start, page.end, line_at(bookmark.page, bookmark.height))
        begin, end = place or (start, start)
        reached[bookmark.page] = max(end, start)
        found.append(Heading(begin, end, bookmark.level, bookmark.title))
    return sorted(found, key=lambda heading: heading.start)


def _title_at(text: str, start: int, end: int, title: str) -> tuple[int, int] | None:
    """Return where the title stands in that stretch, best as a line of its own, else at the start of one."""
    words = title.split()[:_MAX_WORDS]
    pattern = r"\s+".join(map(re.escape, words))
    numbered = r"(?:[\w.]{1,12}[ \t]+)?" if not words[0][0].isdigit() else ""
    for expression in (rf"(?m)^{numbered}{pattern}[ \t]*$", rf"(?m)^{numbered}{pattern}"):
        if match := re.compile(expression, re.IGNORECASE).search(text, start, end):
            return match.span()
    return None


def _line_at(text: str, start: int, end: int, line: str) -> tuple[int, int] | None:
    """Return where a line stands in that stretch; the heading itself has no length, since it is another text."""
    place = text.find(line, start, end) if line else -1
    return None if place < 0 else (place, place)
