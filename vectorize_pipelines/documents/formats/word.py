"""DOCX: what Word shows of a document, in the order in which it stands there.

The package is read as it is, without python-docx: that refuses strict documents, templates, documents with macros and
relationships that lead nowhere, all of which Word opens, and knows no notes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from vectorize_pipelines.core.notices import Notice, omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.formats.drawings import drawing_text
from vectorize_pipelines.documents.formats.equations import equation_text
from vectorize_pipelines.documents.formats.html import parse_html
from vectorize_pipelines.documents.formats.outline import OutlineBuilder
from vectorize_pipelines.documents.formats.package import (
    Package,
    attribute,
    core_properties,
    main_part,
    name_of,
    number_of,
    open_package,
)
from vectorize_pipelines.documents.formats.symbols import symbol
from vectorize_pipelines.documents.formats.table_text import MAX_COLUMNS, row_line
from vectorize_pipelines.documents.formats.text import decode
from vectorize_pipelines.documents.formats.values import iso_date, json_fields, one_line
from vectorize_pipelines.documents.types import ParsedDocument

MAIN_PART = "word/document.xml"
BODY_TEXT_LEVEL = 9

_HEADING_STYLE = re.compile(r"heading (\d)", re.IGNORECASE)
_CHARACTERS = {"w:tab": "\t", "w:ptab": "\t", "w:br": "\n", "w:cr": "\n", "w:noBreakHyphen": "\u2011"}
_NOTE_PARTS = {"footnotes": "w:footnoteReference", "endnotes": "w:endnoteReference"}
#: Deleted by a tracked change, the reading beside a ruby's characters, properties.
_SKIPPED = frozenset(("w:del", "w:moveFrom", "w:pPr", "w:rPr", "w:rt", "w:rubyPr", "w:sectPr", "w:tblPr"))
_NO = ("0", "false", "off")


def parse_docx(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return text, sections and core properties. Paragraphs are divided by a blank line, list items and rows by a line.

    Footnotes, endnotes, comments and text boxes follow the paragraph or table that refers to them. Raises
    `DecompressionLimitError`, `EncryptedDocumentError`, `CorruptDocumentError`.
    """
    with open_package(content, context.settings.max_decompressed_bytes, "DOCX") as package:
        main = main_part(package, MAIN_PART, "Word document")
        reader = _Reader(package, main, context)
        reader.read()
        metadata = _metadata(core_properties(package))
    text, sections = reader.builder.build()
    metadata["title"] = metadata.get("title") or reader.builder.first_heading
    fields = json_fields(metadata | {"parser": "docx"})
    return ParsedDocument(text, fields, sections, notices=reader.notices())


def _metadata(properties: dict[str, str]) -> dict[str, str | None]:
    language = properties.get("language", "").strip().split("-")[0].lower()
    return {
        "title": one_line(properties.get("title", "")),
        "author": one_line(properties.get("author", "")),
        "created": iso_date(properties.get("created")),
        "modified": iso_date(properties.get("modified")),
        "language": language if len(language) == 2 else None,
    }


@dataclass(slots=True)
class _Inline:
    """What a paragraph shows on its line, and what it refers to, which is shown elsewhere."""

    parts: list[str] = field(default_factory=list)
    boxes: list[Any] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.parts)


class _Reader:
    """A walk through a document, which hands the builder one block after the other."""

    def __init__(self, package: Package, main: str, context: ParseContext):
        self.builder = OutlineBuilder()
        self._package = package
        self._main = main
        self._context = context
        self._relationships = dict(package.relationships(main))
        self._styles = _Styles(package.xml(package.related(main, "styles", "word/styles.xml")))
        self._notes = {reference: self._numbered(kind, kind[:-1]) for kind, reference in _NOTE_PARTS.items()}
        if context.settings.office_comments:
            self._notes["w:commentReference"] = self._numbered("comments", "comment")
        self._objects = 0
        self._old_equations = 0
        self._chunks: list[str] = []
        self._of_chunks: list[Notice] = []

    def read(self) -> None:
        """Read the whole body."""
        root = self._package.xml(self._main)
        if root is not None:
            self._blocks(root, in_box=False)

    def notices(self) -> tuple[Notice, ...]:
        """Return what of the document is not in its text."""
        found = list(self._of_chunks)
        if self._objects:
            found.append(
                omitted(
                    f"{self._objects} embedded object(s), as workbooks and presentations in a document are, are not "
                    "in its text",
                    "save them as files of their own",
                )
            )
        if self._old_equations:
            found.append(
                omitted(
                    f"{self._old_equations} equation(s) of the old equation editor are not in its text",
                    "convert them in Word to its own equations",
                )
            )
        if self._chunks:
            found.append(
                omitted(
                    f"what it takes in from {', '.join(sorted(set(self._chunks)))} is not in its text",
                    "open it in Word and save it again",
                )
            )
        return tuple(found)

    def _numbered(self, kind: str, element: str) -> dict[str, Any]:
        """Return the notes or comments of a part by their number."""
        root = self._package.xml(self._package.related(self._main, kind, f"word/{kind}.xml"))
        notes = () if root is None else [each for each in root if name_of[each.tag] == f"w:{element}"]
        return {attribute(each, "w:id") or "": each for each in notes if attribute(each, "w:type") in (None, "normal")}

    def _blocks(self, container: Any, *, in_box: bool) -> None:
        """Hand over paragraphs and tables in order, also those inside content controls and tracked insertions."""
        for child in container:
            name = name_of[child.tag]
            if name == "w:p":
                self._paragraph(child, in_box=in_box)
            elif name == "w:tbl":
                self._table(child)
            elif name == "w:altChunk":
                self._chunk(attribute(child, "r:id"))
            elif name == "mc:AlternateContent":
                self._blocks(_chosen(child), in_box=in_box)
            elif name not in _SKIPPED:
                self._blocks(child, in_box=in_box)

    def _paragraph(self, paragraph: Any, *, in_box: bool) -> None:
        inline = self._inline(paragraph)
        style, outline, is_numbered = _properties(paragraph)
        level = None if in_box else self._styles.heading_level(style, outline)
        if level is not None:
            self.builder.heading(inline.text, level)
        else:
            is_item = is_numbered or self._styles.is_list_item(style)
            self.builder.block(inline.text, "\n" if is_item else "\n\n")
        self._beside(inline)

    def _beside(self, inline: _Inline) -> None:
        """Hand over what was referred to: text boxes, notes, comments, charts."""
        for box in inline.boxes:
            self._blocks(box, in_box=True)
        for text in inline.beside:
            self.builder.block(text)

    def _table(self, table: Any) -> None:
        """Hand over a line for each row; a table inside a cell is read as part of that cell."""
        beside = _Inline()
        separator = "\n\n"
        for row in _nearest(table, "w:tr"):
            cells, is_deleted = self._cells(row, beside)
            line = "" if is_deleted else row_line(cells)
            if line:
                self.builder.block(line, separator)
                separator = "\n"
        self._beside(beside)

    def _cells(self, row: Any, beside: _Inline) -> tuple[list[str], bool]:
        """Return the texts of a row's cells, those that span columns followed by empty ones, and if it is deleted."""
        cells: list[str] = []
        for properties in (each for each in row if name_of[each.tag] == "w:trPr"):
            if any(name_of[each.tag] == "w:del" for each in properties):
                return [], True
            cells += [""] * _number(properties, "w:gridBefore", 0)
        for cell in _nearest(row, "w:tc"):
            texts: list[str] = []
            for paragraph in _nearest(cell, "w:p"):
                inline = self._inline(paragraph)
                texts.append(inline.text)
                beside.boxes += inline.boxes
                beside.beside += inline.beside
            span = max((_number(each, "w:gridSpan", 1) for each in cell if name_of[each.tag] == "w:tcPr"), default=1)
            cells += [one_line(" ".join(texts)), *[""] * (span - 1)]
        return cells, False

    def _chunk(self, id_: str | None) -> None:
        """Hand over a file of another format that Word takes in when it opens the document."""
        related = self._relationships.get(id_ or "")
        if related is None or related.target is None:
            return
        ending = related.target.rpartition(".")[2].lower()
        if ending in ("htm", "html", "xhtml"):
            page = parse_html(self._package.read(related.target), replace(self._context, media_type=None))
            self.builder.block(page.text)
            self._of_chunks += page.notices
        elif ending == "txt":
            text, notices = decode(self._package.read(related.target), replace(self._context, media_type=None))
            self.builder.block(text)
            self._of_chunks += notices
        else:
            self._chunks.append(related.target)

    def _inline(self, paragraph: Any) -> _Inline:
        inline = _Inline()
        self._collect(paragraph, inline)
        return inline

    def _collect(self, element: Any, inline: _Inline) -> None:
        """Collect all that an element shows: runs, links, insertions, controls, equations; and what it refers to."""
        for child in element:
            name = name_of[child.tag]
            if name == "w:t":
                inline.parts.append(child.text or "")
            elif name in _CHARACTERS:
                inline.parts.append(_CHARACTERS[name])
            elif name in _SKIPPED or (name == "w:r" and _is_hidden(child)):
                continue
            elif name == "w:txbxContent":
                inline.boxes.append(child)
            elif name == "mc:AlternateContent":
                self._collect(_chosen(child), inline)
            elif name == "w:sym":
                inline.parts.append(symbol(attribute(child, "w:font") or "", attribute(child, "w:char") or ""))
            elif name == "m:oMath":
                inline.parts.append(equation_text(child))
            elif name in self._notes:
                inline.beside.append(self._note(name, attribute(child, "w:id") or "", inline))
            elif name in ("c:chart", "dgm:relIds"):
                inline.beside.append(drawing_text(self._package, self._relationships, child))
            else:
                self._count_object(name, child)
                self._collect(child, inline)

    def _note(self, reference: str, number: str, inline: _Inline) -> str:
        """Return the text of a note or a comment where it is first referred to."""
        note = self._notes[reference].pop(number, None)
        if note is None:
            return ""
        lines: list[str] = []
        for paragraph in _nearest(note, "w:p"):
            inner = self._inline(paragraph)
            lines.append(inner.text.strip())
            inline.boxes += inner.boxes
            lines += inner.beside
        text = "\n".join(filter(None, lines))
        author = attribute(note, "w:author")
        return f"Comment by {author}: {text}" if text and reference == "w:commentReference" and author else text

    def _count_object(self, name: str, element: Any) -> None:
        if name == "o:OLEObject":
            is_equation = (attribute(element, "ProgID") or "").startswith("Equation")
            self._old_equations += is_equation
            self._objects += not is_equation


class _Styles:
    """A document's paragraph styles: what a paragraph is, its style tells."""

    def __init__(self, root: Any | None):
        styles = () if root is None else [each for each in root if name_of[each.tag] == "w:style"]
        self._by_id = {attribute(style, "w:styleId"): style for style in styles}
        self._levels: dict[str | None, int | None] = {None: None}

    def heading_level(self, style: str | None, outline: int | None) -> int | None:
        """Return 0 for the title, 1 to 9 for headings; a style derived from a heading's is one too.

        `outline` is the paragraph's own level, from 0, if it has one.
        """
        if outline is not None:
            return None if outline >= BODY_TEXT_LEVEL else outline + 1
        if style not in self._levels:
            self._levels[style] = self._level(style)
        return self._levels[style]

    def is_list_item(self, style: str | None) -> bool:
        """Return whether it is a style of lists."""
        return style in self._by_id and (_value(self._by_id[style], "w:name") or "").startswith("List")

    def _level(self, style_id: str | None) -> int | None:
        for _ in range(len(self._by_id)):  # bounded: damaged files have styles that derive from themselves
            style = self._by_id.get(style_id)
            if style is None:
                return None
            level = _level_by_name(_value(style, "w:name") or "")
            if level is not None:
                return level
            _, outline, _ = _properties(style)
            if outline is not None:
                return None if outline >= BODY_TEXT_LEVEL else outline + 1
            style_id = _value(style, "w:basedOn")
        return None


def _level_by_name(name: str) -> int | None:
    """Return the level by a built-in style's English name, which Word keeps in the file, whatever its language."""
    if name == "Title":
        return 0
    match = _HEADING_STYLE.fullmatch(name)
    return int(match[1]) if match else None


def _value(element: Any, name: str) -> str | None:
    """Return the value of a child such as `<w:name w:val="Title"/>`."""
    return next((attribute(child, "w:val") for child in element if name_of[child.tag] == name), None)


def _number(element: Any, name: str, default: int) -> int:
    return number_of(_value(element, name), default, MAX_COLUMNS)


def _properties(paragraph: Any) -> tuple[str | None, int | None, bool]:
    """Return the style, the outline level from 0 if given, and whether it is numbered, of a paragraph or a style."""
    for properties in paragraph:
        if name_of[properties.tag] == "w:pPr":
            outline = _value(properties, "w:outlineLvl")
            level = number_of(outline, BODY_TEXT_LEVEL, BODY_TEXT_LEVEL) if outline else None
            is_numbered = any(name_of[each.tag] == "w:numPr" for each in properties)
            return _value(properties, "w:pStyle"), level, is_numbered
    return None, None, False


def _is_hidden(run: Any) -> bool:
    """Return whether a run is formatted as hidden text."""
    for properties in run:
        if name_of[properties.tag] == "w:rPr":
            return any(name_of[each.tag] == "w:vanish" and attribute(each, "w:val") not in _NO for each in properties)
    return False


def _chosen(alternatives: Any) -> Any:
    """Return one rendering of what has several: the first, and not the one for older programs, if there is another."""
    for name in ("mc:Choice", "mc:Fallback"):
        for each in alternatives:
            if name_of[each.tag] == name:
                return each
    return ()


def _nearest(element: Any, name: str) -> Iterator[Any]:
    """Yield descendants of this name that are not inside another one of it."""
    for child in element:
        found = name_of[child.tag]
        if found == name:
            yield child
        elif found == "mc:AlternateContent":
            yield from _nearest(_chosen(child), name)
        elif found not in _SKIPPED:
            yield from _nearest(child, name)
