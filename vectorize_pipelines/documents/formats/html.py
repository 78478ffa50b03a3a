"""HTML: the page as its reader sees it, block by block; its headings become sections."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import damage_reported
from vectorize_pipelines.documents.formats.outline import OutlineBuilder
from vectorize_pipelines.documents.formats.text import decode
from vectorize_pipelines.documents.formats.values import iso_date, json_fields, one_line
from vectorize_pipelines.documents.types import ParsedDocument

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

#: The standard has browsers look for the declaration in the first 1,024 bytes.
DECLARATION_BYTES = 1024

INVISIBLE = frozenset((
    "script", "style", "noscript", "template", "head", "nav", "svg", "math", "iframe", "object", "canvas", "audio",
    "video", "select", "datalist", "dialog",
))  # fmt: skip
HEADING_LEVELS = {f"h{level}": level for level in range(1, 7)}
PARAGRAPHS = frozenset((
    "address", "article", "aside", "blockquote", "body", "details", "div", "dl", "fieldset", "figcaption", "figure",
    "footer", "form", "header", "hgroup", "hr", "html", "main", "ol", "p", "pre", "search", "section", "summary",
    "table", "ul", "caption",
))  # fmt: skip
LINES = frozenset(("br", "dd", "dt", "li", "tr", "legend"))
CELLS = frozenset(("td", "th"))
CELL_SEPARATOR = " | "

_CHARSET = re.compile(rb"<meta[^>]+charset\s*=\s*[\"']?\s*([\w-]+)", re.IGNORECASE)

#: What pages declare and what browsers then read, by the encoding standard: supersets of the declared ones.
READ_AS = {
    "gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin1": "cp1252", "us-ascii": "cp1252",
    "ascii": "cp1252", "shift_jis": "cp932", "ks_c_5601-1987": "cp949", "euc-kr": "cp949",
    "utf-16": "utf-8", "utf-16le": "utf-8", "utf-16be": "utf-8",
}  # fmt: skip

Event = tuple[Literal["open", "close"], "LexborNode"]


def parse_html(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return visible text, a blank line between blocks, ` | ` between cells; sections; and the head's metadata."""
    from selectolax.lexbor import LexborHTMLParser

    del context
    html = decode(content, _declared_encoding(content))
    with damage_reported("HTML"):
        tree = LexborHTMLParser(html)
    builder = OutlineBuilder()
    if tree.root is not None:
        _Reader(builder).read(tree.root)
    text, sections = builder.build()
    metadata = _metadata(tree)
    metadata["title"] = metadata["title"] or builder.first_heading
    return ParsedDocument(text, json_fields(metadata | {"parser": "html"}), sections)


def _declared_encoding(content: bytes) -> str | None:
    match = _CHARSET.search(content[:DECLARATION_BYTES])
    if match is None:
        return None
    name = match[1].decode("ascii").lower()
    return READ_AS.get(name, name)


def _metadata(tree: "LexborHTMLParser") -> dict[str, str | None]:
    declared: dict[str, str] = {}
    for meta in tree.css("meta[content]"):
        name = meta.attributes.get("name") or meta.attributes.get("property") or meta.attributes.get("itemprop")
        value = one_line(meta.attributes.get("content") or "")
        if name and value:
            declared.setdefault(name.lower(), value)
    title = tree.css_first("head > title")
    root = tree.css_first("html")
    language = ((root.attributes.get("lang") if root else None) or "").split("-")[0].lower()

    def first(*names: str) -> str | None:
        return next((declared[name] for name in names if name in declared), None)

    return {
        "title": (one_line(title.text()) if title else "") or first("og:title", "dc.title"),
        "author": first("author", "article:author", "dc.creator"),
        "created": iso_date(first("article:published_time", "datepublished", "date", "dc.date", "dcterms.created")),
        "modified": iso_date(first("article:modified_time", "datemodified", "dcterms.modified", "last-modified")),
        "description": first("description", "og:description"),
        "language": language if len(language) == 2 and language.isalpha() else None,
    }


@dataclass(slots=True)
class _Reader:
    """A walk through the tree, which hands the builder one block after the other."""

    builder: OutlineBuilder
    parts: list[str] = field(default_factory=list)
    separator: str = "\n\n"
    in_heading: bool = False
    preformatted: bool = False

    def read(self, root: "LexborNode") -> None:
        for event, node in _visible(root):
            tag = node.tag or ""
            if tag == "-text":
                self.parts.append(_marked(node.text_content or "") if self.preformatted else node.text_content or "")
            elif tag in HEADING_LEVELS:
                self._flush(HEADING_LEVELS[tag] if event == "close" else None)
                self.in_heading = event == "open"
            elif tag in PARAGRAPHS or tag in LINES:
                self._end_block(tag)
            elif tag in CELLS and event == "close":
                self.parts.append(CELL_SEPARATOR)
            if tag == "pre":
                self.preformatted = event == "open"
        self._flush()

    def _end_block(self, tag: str) -> None:
        if self.in_heading:  # one heading, however many lines it is shown on
            self.parts.append(" ")
            return
        self._flush()
        if tag in PARAGRAPHS:
            self.separator = "\n\n"

    def _flush(self, level: int | None = None) -> None:
        text = _joined(self.parts)
        self.parts.clear()
        if not text:
            return
        if level is None:
            self.builder.block(text, self.separator)
        else:
            self.builder.heading(text, level)
        self.separator = "\n" if level is None else "\n\n"


def _visible(root: "LexborNode") -> Iterator[Event]:
    """Yield every node that is shown, when it opens and when it closes.

    Goes without recursion: a page may nest deeper than Python's stack.
    """
    node: LexborNode | None = root
    while node is not None:
        shown = _is_shown(node)
        if shown:
            yield "open", node
        child = node.child if shown else None
        if child is not None:
            node = child
            continue
        if shown and node.tag != "-text":
            yield "close", node
        while node is not None and node.mem_id != root.mem_id and node.next is None:
            node = node.parent
            if node is not None:
                yield "close", node
        node = None if node is None or node.mem_id == root.mem_id else node.next


def _is_shown(node: "LexborNode") -> bool:
    tag = node.tag or ""
    if tag == "-text":
        return True
    if tag.startswith("-") or tag.startswith("!") or tag in INVISIBLE:
        return False
    attributes = node.attributes
    return not (
        "hidden" in attributes or attributes.get("aria-hidden") == "true" or attributes.get("role") == "navigation"
    )


def _marked(text: str) -> str:
    """Mark preformatted text by a NUL at either end, so that it keeps its whitespace, until its block is joined."""
    return f"\0{text}\0"


def _joined(parts: list[str]) -> str:
    """Return the block's text, whitespace outside of preformatted text collapsed as browsers do."""
    pieces = "".join(parts).split("\0")
    for index in range(0, len(pieces), 2):
        pieces[index] = re.sub(r"[ \t\n\f\r]+", " ", pieces[index])
    text = "".join(pieces).strip()
    # The last cell of a row has no neighbour; a row of empty cells has nothing but separators.
    return "" if not text.strip(CELL_SEPARATOR) else text.removesuffix(CELL_SEPARATOR.rstrip()).rstrip()
