"""Markdown: kept as it is written, but for front matter and HTML comments; its headings become sections."""

import re

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.formats.front_matter import read_front_matter
from vectorize_pipelines.documents.formats.outline import Heading, sections
from vectorize_pipelines.documents.formats.text import decode
from vectorize_pipelines.documents.formats.values import iso_date, json_fields, one_line
from vectorize_pipelines.documents.types import ParsedDocument

#: Of a heading's line; what is kept of it as a name is shorter, and to look for links takes the square of the time.
MAX_TITLE_CHARACTERS = 4_000
_ATX_HEADING = re.compile(r" {0,3}(?P<marks>#{1,6})(?:[ \t]+(?P<title>.*))?")
_CLOSING_MARKS = re.compile(r"(?:^|(?<![ \t])[ \t]++)#++[ \t]*+$")
_SETEXT_UNDERLINE = re.compile(r" {0,3}(?:=+|-+)[ \t]*")
_FENCE = re.compile(r" {0,3}(?P<fence>`{3,}|~{3,})(?P<info>.*)")
_NOT_A_PARAGRAPH = re.compile(r" {0,3}(?:[-*+>][ \t]|\d{1,9}[.)][ \t]|\|)|(?: {4}|\t)")
_CODE_OR_COMMENT = re.compile(r"(?<!`)(`{1,8})(?!`)[^\n]*?(?<!`)\1(?!`)|<!--")
_INLINE_MARKUP = re.compile(r"!?\[([^\]]*)\]\([^)]*\)|[*`]+|(?<!\w)_+|_+(?!\w)")


def parse_markdown(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return text, sections, and the front matter as metadata; `title` is the first heading unless given there."""
    source, notices = decode(content, context)
    front = read_front_matter(source)
    text = without_comments(source[front.end :])
    headings = find_headings(text)
    metadata: dict[str, JsonValue] = json_fields(front.fields)
    if headings:
        metadata.setdefault("title", min(headings, key=lambda heading: heading.level).title)
    if created := iso_date(front.fields.get("date")):
        metadata.setdefault("created", created)
    metadata["parser"] = "markdown"
    return ParsedDocument(text, metadata, sections(text, headings), notices=(*notices, *front.notices))


def without_comments(text: str) -> str:
    """Return the text without HTML comments, but for those in code; lines that held nothing else go with them."""
    if "<!--" not in text:
        return text
    kept: list[str] = []
    fence: str | None = None
    last_close = text.rfind("-->")
    position = 0
    blank_before = True
    while position < len(text):
        end = _line_end(text, position)
        line = text[position:end]
        fence, inside = _fence_after(line.rstrip("\n"), fence)
        is_code = inside or (blank_before and line.startswith(("    ", "\t")))
        if not is_code and "<!--" in line:
            line, end = _line_without_comments(text, position, last_close)
        blank_before = not line.strip()
        kept.append(line)
        position = end
    return "".join(kept)


def _line_without_comments(text: str, position: int, last_close: int) -> tuple[str, int]:
    """Return the line at `position` without its comments, and where the next begins: a comment may end lines below.

    A comment that never ends is text; `last_close` is where the last end of one in the text is.
    """
    kept: list[str] = []
    copied = position
    end = _line_end(text, position)
    while match := _CODE_OR_COMMENT.search(text, position, end):
        position = match.end()
        if match[0] == "<!--" and last_close >= position - 2:  # which `<!-->`, a comment too, begins with
            kept.append(text[copied : match.start()])
            position = copied = text.find("-->", position - 2) + len("-->")
            end = _line_end(text, position)
    line = "".join((*kept, text[copied:end]))
    return ("" if kept and not line.strip() else line), end


def _line_end(text: str, position: int) -> int:
    end = text.find("\n", position)
    return len(text) if end < 0 else end + 1


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
    return one_line(_INLINE_MARKUP.sub(lambda match: match[1] or "", title[:MAX_TITLE_CHARACTERS]))
