"""HTML: the page as its reader sees it, block by block; its headings become sections."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from vectorize_pipelines.core.encodings import standard_name
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import damage_reported
from vectorize_pipelines.documents.formats.outline import OutlineBuilder
from vectorize_pipelines.documents.formats.style_sheets import StyleSheets, inline_style
from vectorize_pipelines.documents.formats.table_text import CELL_SEPARATOR
from vectorize_pipelines.documents.formats.text import Declaration, decode
from vectorize_pipelines.documents.formats.values import iso_date, json_fields, one_line
from vectorize_pipelines.documents.types import ParsedDocument

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

#: The standard has browsers look for the declaration in the first 1,024 bytes.
DECLARATION_BYTES = 1024

INVISIBLE = frozenset((
    "script", "style", "noscript", "template", "head", "nav", "iframe", "object", "canvas", "audio", "video",
    "datalist", "noframes", "noembed", "rp", "rt",
    # within MathML its source, and within SVG what is not drawn or drawn elsewhere
    "annotation", "annotation-xml", "title", "desc", "metadata", "defs", "symbol",
))  # fmt: skip
HEADING_LEVELS = {f"h{level}": level for level in range(1, 7)}
PARAGRAPHS = frozenset((
    "address", "article", "aside", "blockquote", "body", "details", "dialog", "div", "dl", "fieldset", "figcaption",
    "figure", "footer", "form", "header", "hgroup", "hr", "html", "main", "ol", "p", "pre", "search", "section",
    "summary", "table", "ul", "caption",
))  # fmt: skip
LINES = frozenset(("br", "dd", "dt", "li", "legend", "mtr", "text", "td", "th"))
CELLS = frozenset(("td", "th"))
#: A cell with more is a column of the page, not a value.
MAX_CELL_CHARACTERS = 1000
MAX_COLSPAN, MAX_ROWSPAN = 100, 10_000
#: A row with one of these in a cell is not a line of values.
NOT_IN_CELLS = "table, h1, h2, h3, h4, h5, h6, pre"
#: Parts of forms, which stand apart from the text around them without a space between.
CONTROLS = frozenset(("button", "input", "option", "select", "textarea"))
#: Types of `<input>` that show their value as text.
FIELDS = frozenset(
    ("date", "datetime-local", "email", "month", "number", "search", "tel", "text", "time", "url", "week")
)
PARTS_OF_FORMULAS = frozenset(("mi", "mn", "mo", "mrow", "msub", "msubsup", "msup", "msqrt", "mtd", "mtext"))
SOFT_HYPHEN = "\xad"

_SPACES = re.compile(r"[ \t\n\f\r]+")
_CHARSET = re.compile(r"charset[\t\n\f\r ]*=[\t\n\f\r ]*(?:\"([^\"]*)\"|'([^']*)'|([^\t\n\f\r ;\"']+))", re.IGNORECASE)
_XML_DECLARATION = re.compile(
    rb"<\?xml[\t\n\f\r ][^>]{0,900}?encoding[\x00-\x20]*=[\x00-\x20]*([\"'])([^\"'\x00-\x20>]+)\1"
)
_CHARSET_BYTES = re.compile(rb"charset", re.IGNORECASE)

Event = tuple[Literal["open", "close"], "LexborNode"]


def parse_html(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return visible text, a blank line between blocks, ` | ` between cells; sections; and the head's metadata."""
    from selectolax.lexbor import LexborHTMLParser

    with damage_reported("HTML"):
        declared = _declaration(content)
    html, notices = decode(content, context, declared)
    with damage_reported("HTML"):
        tree = LexborHTMLParser(html)
    builder = OutlineBuilder()
    if tree.root is not None:
        shown = _Shown(StyleSheets(tree, len(html)))
        _Reader(builder, _complex_rows(tree), repeatable=len(html)).read(shown.events(tree.root))
    text, sections = builder.build()
    metadata = _metadata(tree)
    metadata["title"] = metadata["title"] or builder.first_heading
    return ParsedDocument(text, json_fields(metadata | {"parser": "html"}), sections, notices=notices)


def _declaration(content: bytes) -> Declaration | None:
    """Return the encoding that the page declares: in its first bytes, where browsers look before they read, or later.

    Later it counts too, but not for what is UTF-8 by its bytes.
    """
    first = content[:DECLARATION_BYTES]
    if declared := _meta_declaration(first):
        return declared
    if _XML_DECLARATION.match(first):
        return xml_declaration(first)
    if _CHARSET_BYTES.search(content, DECLARATION_BYTES) and not _is_utf8(content):
        return _meta_declaration(content)
    return None


def xml_declaration(content: bytes) -> Declaration | None:
    """Return the encoding that an XML declaration names; None where there is none, or it names none that is known."""
    match = _XML_DECLARATION.match(content)
    encoding = _as_read(match[2].decode("latin-1")) if match else None
    return Declaration(encoding, "its XML declaration") if encoding else None


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _meta_declaration(content: bytes) -> Declaration | None:
    """Return what the first `<meta>` says that names an encoding; one in a comment is none."""
    from selectolax.lexbor import LexborHTMLParser

    if _CHARSET_BYTES.search(content) is None:
        return None
    for meta in LexborHTMLParser(content.decode("latin-1")).css("meta[charset], meta[http-equiv]"):
        attributes = meta.attributes
        label = attributes.get("charset")
        if label is None and (attributes.get("http-equiv") or "").lower() == "content-type":
            match = _CHARSET.search(attributes.get("content") or "")
            label = (match[1] or match[2] or match[3]) if match else None
        if encoding := _as_read(label or ""):
            return Declaration(encoding, "its <meta>")
    return None


def _as_read(label: str) -> str | None:
    """Return the encoding that a page which declares this label is read in, by the standard."""
    encoding = standard_name(label)
    if encoding in ("utf-16le", "utf-16be"):  # the declaration itself was read as ASCII
        return "utf-8"
    return "windows-1252" if encoding == "x-user-defined" else encoding


def _complex_rows(tree: "LexborHTMLParser") -> frozenset[int]:
    """Return the rows, by `mem_id`, whose cells hold more than values: tables for layout, tables within tables."""
    rows: set[int] = set()
    for node in tree.css(", ".join(f"td {name}, th {name}" for name in NOT_IN_CELLS.split(", "))):
        above = node.parent
        while above is not None and above.tag != "tr":
            above = above.parent
        while above is not None and above.mem_id not in rows:
            rows.add(above.mem_id)
            above = above.parent
            while above is not None and above.tag != "tr":
                above = above.parent
    return frozenset(rows)


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


class _Block(NamedTuple):
    """A paragraph or line, and what divides it from the one before."""

    text: str
    separator: str


@dataclass(slots=True)
class _Row:
    """A row of a table that may be read as one line: its cells so far, each a list of its blocks."""

    #: What divides it from what is before.
    separator: str
    cells: list[list[_Block]] = field(default_factory=list)
    #: Empty places before the next cell, since the last one spans more columns.
    places: int = 0

    def blocks(self) -> list[_Block]:
        """Return one line of the cells' texts, an empty place for an empty cell; each by itself where one is long."""
        texts = [" ".join([block.text for block in blocks]) for blocks in self.cells]
        if len(texts) > 1 and max(map(len, texts)) <= MAX_CELL_CHARACTERS:
            return [_Block(_SPACES.sub(" ", CELL_SEPARATOR.join(texts)), self.separator)] if any(texts) else []
        blocks = [block for blocks in self.cells for block in blocks]
        return [blocks[0]._replace(separator=self.separator), *blocks[1:]] if blocks else []


@dataclass(slots=True)
class _Reader:
    """What takes the events of a walk through the page, and hands the builder one block after the other."""

    builder: OutlineBuilder
    complex_rows: frozenset[int]
    #: How many more characters may be added for cells that span rows or columns: a few bytes can ask for any number.
    repeatable: int
    parts: list[str] = field(default_factory=list)
    separator: str = "\n\n"
    in_heading: bool = False
    preformatted: bool = False
    in_formula: bool = False
    row: _Row | None = None
    #: By column of the table: the text of a cell that spans rows, and how many rows below it still spans.
    spanning: dict[int, tuple[list[_Block], int]] = field(default_factory=dict)

    def read(self, events: Iterator[Event]) -> None:
        for event, node in events:
            tag = node.tag or ""
            if tag == "-text":
                self._text(node.text_content or "")
            elif tag in HEADING_LEVELS:
                self._flush(HEADING_LEVELS[tag] if event == "close" else None)
                self.in_heading = event == "open"
            elif tag == "tr":
                self._row(event, node)
            elif tag in CELLS and self.row is not None:
                self._cell(event, node, self.row)
            elif tag in PARAGRAPHS or tag in LINES:
                self._end_block(tag)
            elif tag in CONTROLS:
                self.parts += [" ", _input_value(node), " "] if event == "open" else [" "]
            elif tag in PARTS_OF_FORMULAS and event == "close":
                self.parts.append(_between_parts(node))
            if tag == "pre":
                self.preformatted = event == "open"
            elif tag == "math":
                self.in_formula = event == "open"
            elif tag == "table":
                self.spanning.clear()
        self._flush()

    def _text(self, text: str) -> None:
        if self.preformatted:
            self.parts.append(_marked(text))
        elif not self.in_formula or text.strip():  # between the parts of a formula is no space
            self.parts.append(text)

    def _row(self, event: str, node: "LexborNode") -> None:
        self._end_block("tr")
        if event == "open":
            if node.mem_id in self.complex_rows:
                self.spanning.clear()
            else:
                self.row = _Row(self.separator)
        elif self.row is not None:
            row, self.row = self.row, None
            self._fill_spanned(row)
            self.separator = row.separator
            for block in row.blocks():
                self.builder.block(*block)
                self.separator = "\n"

    def _cell(self, event: str, node: "LexborNode", row: _Row) -> None:
        self._flush()
        if event == "open":
            if row.places and self._may_repeat(row.places * len(CELL_SEPARATOR)):
                row.cells.extend([] for _ in range(row.places))
            if self.spanning:
                self._fill_spanned(row)
            row.cells.append([])
            return
        attributes = node.attributes
        row.places = _span(attributes["colspan"], MAX_COLSPAN) - 1 if "colspan" in attributes else 0
        rows = _span(attributes["rowspan"], MAX_ROWSPAN) if "rowspan" in attributes else 1
        if rows > 1:
            self.spanning[len(row.cells) - 1] = (row.cells[-1], rows - 1)

    def _fill_spanned(self, row: _Row) -> None:
        """Repeat in the next columns what cells of rows above have there: it is shown beside this row too."""
        while (column := len(row.cells)) in self.spanning:
            blocks, rows = self.spanning.pop(column)
            size = sum(len(block.text) for block in blocks) + len(CELL_SEPARATOR)
            row.cells.append(blocks if self._may_repeat(size) else [])
            if rows > 1:
                self.spanning[column] = (blocks, rows - 1)

    def _may_repeat(self, size: int) -> bool:
        self.repeatable -= size
        return self.repeatable >= 0

    def _end_block(self, tag: str) -> None:
        if self.in_heading:  # one heading, however many lines it is shown on
            self.parts.append(" ")
            return
        self._flush()
        if tag in PARAGRAPHS:
            self.separator = "\n\n"

    def _flush(self, level: int | None = None) -> None:
        if not self.parts:
            return
        text = _joined(self.parts)
        self.parts.clear()
        if not text:
            return
        if self.row is not None:
            if self.row.cells:
                self.row.cells[-1].append(_Block(text, self.separator))
                self.separator = "\n"
            return
        if level is None:
            self.builder.block(text, self.separator)
        else:
            self.builder.heading(text, level)
        self.separator = "\n" if level is None else "\n\n"


def _span(value: str | None, limit: int) -> int:
    number = (value or "").strip()
    return max(1, min(int(number), limit)) if number.isascii() and number.isdigit() and len(number) < 10 else 1


def _input_value(node: "LexborNode") -> str:
    """Return what a field of a form shows in it; nothing for other controls, whose text is in them."""
    if node.tag != "input":
        return ""
    attributes = node.attributes
    return (attributes.get("value") or "") if (attributes.get("type") or "text").lower() in FIELDS else ""


def _between_parts(node: "LexborNode") -> str:
    """Return what stands between a part of a formula and the next: a fraction's line, the columns of a matrix."""
    if node.tag == "mtd":
        return " "
    is_numerator = node.parent is not None and node.parent.tag == "mfrac" and _next_element(node) is not None
    return "/" if is_numerator else ""


def _next_element(node: "LexborNode") -> "LexborNode | None":
    following = node.next
    while following is not None and following.tag == "-text":
        following = following.next
    return following


@dataclass(slots=True)
class _Shown:
    """What of a page is shown, by its elements, their attributes and the page's own style sheets."""

    styles: StyleSheets
    #: The elements around the current one that set `visibility`, which theirs have from them, and what they set.
    visibility: list[tuple[int, bool]] = field(default_factory=list)

    def events(self, root: "LexborNode") -> Iterator[Event]:
        """Yield every node that is shown, when it opens and when it closes.

        Goes without recursion: a page may nest deeper than Python's stack.
        """
        node: LexborNode | None = root
        while node is not None:
            shown = self._opens(node)
            if shown:
                yield "open", node
            child = node.child if shown else None
            if child is not None:
                node = child
                continue
            if shown and node.tag != "-text":
                yield self._closed(node)
            while node is not None and node.mem_id != root.mem_id and node.next is None:
                node = node.parent
                if node is not None:
                    yield self._closed(node)
            node = None if node is None or node.mem_id == root.mem_id else node.next

    def _closed(self, node: "LexborNode") -> Event:
        if self.visibility and self.visibility[-1][0] == node.mem_id:
            self.visibility.pop()
        return "close", node

    def _opens(self, node: "LexborNode") -> bool:
        """Return whether the node, or something in it, may be shown; note what it sets for what is in it."""
        tag = node.tag or ""
        if tag == "-text":
            return not self.visibility or self.visibility[-1][1]
        if tag.startswith(("-", "!")) or tag in INVISIBLE:
            return tag == "script" and _is_source_of_formula(node)
        attributes = node.attributes
        if ("hidden" in attributes and attributes["hidden"] != "until-found") or attributes.get("role") == "navigation":
            return False
        if (tag == "dialog" and "open" not in attributes) or (tag == "option" and "selected" not in attributes):
            return False
        if attributes.get("aria-hidden") == "true" and _is_second_rendering(node):
            return False
        style = attributes.get("style")
        if not style and not self.styles.apply:
            return True
        inline = inline_style(style) if style else {}
        displayed = self.styles.shown("display", node, inline.get("display"))
        if displayed is False and not _is_behind_picture(node):
            return False
        visible = self.styles.shown("visibility", node, inline.get("visibility"))
        if visible is not None:
            self.visibility.append((node.mem_id, visible))
        return True


def _is_source_of_formula(script: "LexborNode") -> bool:
    """Return whether a script is the source of a formula that is not in the page otherwise, as MathJax leaves it."""
    if not (script.attributes.get("type") or "").startswith("math/tex"):
        return False
    before = script.prev
    rendered = before is not None and before.tag == "span" and "MathJax" in (before.attributes.get("class") or "")
    return not (rendered and before is not None and before.text(strip=True))


def _is_second_rendering(node: "LexborNode") -> bool:
    """Return whether an element that is hidden from screen readers shows what MathML beside it says to them."""
    beside = [near for near in (node.prev, node.next) if near is not None and not (near.tag or "-").startswith("-")]
    return any(near.tag == "math" or near.css_first("math") is not None for near in beside)


def _is_behind_picture(node: "LexborNode") -> bool:
    """Return whether an element that is not shown is the MathML of a formula that is shown as a picture, after it."""
    following = _next_element(node)
    return following is not None and following.tag == "img" and node.css_first("math") is not None


def _marked(text: str) -> str:
    """Mark preformatted text by a NUL at either end, so that it keeps its whitespace, until its block is joined."""
    return f"\0{text}\0"


def _joined(parts: list[str]) -> str:
    """Return the block's text, whitespace outside of preformatted text collapsed as browsers do."""
    text = "".join(parts).replace(SOFT_HYPHEN, "")
    if "\0" not in text:
        return _SPACES.sub(" ", text).strip()
    pieces = text.split("\0")
    for index in range(0, len(pieces), 2):
        pieces[index] = _SPACES.sub(" ", pieces[index])
    return "".join(pieces).strip()
