"""Markdown: kept as it is written, but for the front matter; its headings become sections."""

import re
from typing import Any

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.formats.outline import Heading, sections
from vectorize_pipelines.documents.formats.text import decode
from vectorize_pipelines.documents.formats.values import iso_date, json_fields, one_line
from vectorize_pipelines.documents.types import ParsedDocument

MAX_FRONT_MATTER_CHARACTERS = 64 * 1024

_FRONT_MATTER = re.compile(r"---[ \t]*\n(?P<yaml>.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_ATX_HEADING = re.compile(r" {0,3}(?P<marks>#{1,6})(?:[ \t]+(?P<title>.*))?")
_CLOSING_MARKS = re.compile(r"(?:^|(?<![ \t])[ \t]++)#++[ \t]*+$")
_SETEXT_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)[ \t]*")
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<info>.*)")
_NOT_A_PARAGRAPH = re.compile(r" {0,3}(?:[-*+>][ \t]|\d{1,9}[.)][ \t]|\|)|(?: {4}|\t)")
_INLINE_MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*`]+|(?<!\w)_+|_+(?!\w)")


def parse_markdown(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return text, sections, and the front matter as metadata; `title` is the first heading unless given there."""
    del context
    fields, text = _split_front_matter(decode(content))
    headings = find_headings(text)
    metadata: dict[str, JsonValue] = json_fields(fields)
    if headings:
        metadata.setdefault("title", min(headings, key=lambda heading: heading.level).title)
    if created := iso_date(fields.get("date")):
        metadata.setdefault("created", created)
    metadata["parser"] = "markdown"
    return ParsedDocument(text, metadata, sections(text, headings))


def _split_front_matter(text: str) -> tuple[dict[Any, Any], str]:
    """Return the fields between two lines of `---` at the very top, and the text after; none where it is no mapping."""
    import yaml

    match = _FRONT_MATTER.match(text, 0, MAX_FRONT_MATTER_CHARACTERS)
    if match is None:
        return {}, text
    try:
        fields = yaml.safe_load(match["yaml"])
    except (yaml.YAMLError, ValueError, RecursionError):
        return {}, text  # a page that merely begins with a ruler
    return (fields, text[match.end() :]) if isinstance(fields, dict) else ({}, text)


def find_headings(text: str) -> list[Heading]:
    """Return ATX (`# Title`) and setext (underlined) headings, in order; those inside fenced code are not headings."""
    headings: list[Heading] = []
    fence: str | None = None
    position = 0
    previous: tuple[int, str] | None = None  # the line before, where it may be a paragraph's
    for line in text.split("\n"):
        start, position = position, position + len(line) + 1
        fence, inside = _fence_after(line, fence)
        if inside:
            previous = None
        elif heading := _atx_heading(line, start):
            headings.append(heading)
            previous = None
        elif previous and _SETEXT_UNDERLINE.fullmatch(line):
            level = 1 if "=" in line else 2
            headings.append(Heading(previous[0], start + len(line), level, _plain(previous[1])))
            previous = None
        else:
            previous = (start, line) if line.strip() and not _NOT_A_PARAGRAPH.match(line) else None
    return [heading for heading in headings if heading.title]


def _fence_after(line: str, fence: str | None) -> tuple[str | None, bool]:
    """Return the fence that is open after this line, and whether the line belongs to fenced code."""
    match = _FENCE.fullmatch(line)
    if fence is None:
        if match is None or (match["fence"][0] == "`" and "`" in match["info"]):
            return None, False
        return match["fence"], True
    closes = match is not None and match["fence"].startswith(fence) and not match["info"].strip()
    return (None if closes else fence), True


def _atx_heading(line: str, start: int) -> Heading | None:
    match = _ATX_HEADING.fullmatch(line)
    if match is None:
        return None
    title = _CLOSING_MARKS.sub("", match["title"] or "")
    return Heading(start, start + len(line), len(match["marks"]), _plain(title))


def _plain(title: str) -> str:
    return one_line(_INLINE_MARKUP.sub(lambda match: match[1] or "", title))
