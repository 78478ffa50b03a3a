"""Sections made from headings. Used by the formats that have headings."""

from collections.abc import Sequence
from dataclasses import dataclass

from vectorize_pipelines.documents.formats.values import clean_text, one_line, short_label
from vectorize_pipelines.documents.types import Page, Section


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading at the characters `start` to `end` of the text; 1 is the outermost level, 0 a title above it.

    One without a title is not in the text: what follows it has no heading of its own.
    """

    start: int
    end: int
    level: int
    title: str


def sections(text: str, headings: Sequence[Heading]) -> tuple[Section, ...]:
    """Return the sections that the headings, given in order, divide the text into; none without a heading."""
    if not headings:
        return ()
    found: list[Section] = []
    path: list[Heading] = []
    start = 0
    if text[: headings[0].start].strip():
        found.append(Section(0, headings[0].start, ()))
        start = headings[0].start
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        while path and path[-1].level >= heading.level:
            path.pop()
        path.append(heading)
        end = following.start if following else len(text)
        if following and not text[heading.end : end].strip():
            continue  # nothing under it: `start` stays, so that it belongs to what follows
        found.append(Section(start, end, tuple(short_label(outer.title) for outer in path if outer.title)))
        start = end
    return tuple(found)


def pages(starts: Sequence[int], length: int) -> tuple[Page, ...]:
    """Return pages numbered from 1 that begin at these characters and cover a text of that length; none for none."""
    ends = [*starts[1:], length] if starts and length else []
    return tuple(
        Page(start, end, number) for number, (start, end) in enumerate(zip(starts, ends, strict=False), start=1)
    )


class OutlineBuilder:
    """A builder that puts a text together block by block and remembers where its headings are."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._headings: list[Heading] = []

    def block(self, text: str, separator: str = "\n\n") -> None:
        """Add a paragraph, or a line with `separator="\\n"`; blank ones are dropped."""
        text = clean_text(text).strip()
        if not text:
            return
        if self._parts:
            self._append(separator)
        self._append(text)

    def heading(self, text: str, level: int) -> None:
        """Add a heading as a paragraph of its own; a blank one is dropped."""
        title = one_line(clean_text(text))
        if not title:
            return
        self.block(title)
        self._headings.append(Heading(self._length - len(title), self._length, level, title))

    def end_section(self) -> None:
        """Have what follows belong to no heading of level 1 or below: a slide without a title begins."""
        self._headings.append(Heading(self._length, self._length, 1, ""))

    def _append(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)

    @property
    def length(self) -> int:
        """The number of characters so far."""
        return self._length

    @property
    def first_heading(self) -> str | None:
        """The first heading of the outermost level there is."""
        titled = [heading for heading in self._headings if heading.title]
        return min(titled, key=lambda heading: heading.level).title if titled else None

    def build(self) -> tuple[str, tuple[Section, ...]]:
        """Return the whole text and its sections."""
        text = "".join(self._parts)
        return text, sections(text, self._headings if self.first_heading else ())
