"""ODT and ODP: the texts and presentations of OpenDocument, as LibreOffice writes them."""

from collections.abc import Iterator
from typing import Any

from vectorize_pipelines.core.notices import Notice, omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import CorruptDocumentError, EncryptedDocumentError
from vectorize_pipelines.documents.formats.equations import mathml_text
from vectorize_pipelines.documents.formats.outline import OutlineBuilder, pages
from vectorize_pipelines.documents.formats.package import (
    Package,
    attribute,
    name_of,
    number_of,
    open_package,
    text_of,
)
from vectorize_pipelines.documents.formats.table_text import MAX_COLUMNS, row_line
from vectorize_pipelines.documents.formats.values import iso_date, json_fields, one_line
from vectorize_pipelines.documents.types import ParsedDocument

MAX_SPACES = 1_000
_CHARACTERS = {"text:tab": "\t", "text:line-break": "\n"}
#: Deleted by a tracked change, the reading beside a ruby's characters, what is not shown as text.
_SKIPPED = frozenset((
    "text:tracked-changes", "text:ruby-text", "text:sequence-decls", "text:variable-decls", "text:user-field-decls",
    "text:note-citation", "office:forms", "office:event-listeners", "presentation:notes", "text:hidden-paragraph",
))  # fmt: skip
_TITLE_STYLES = ("title",)


def parse_odt(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return text, sections and the document's own metadata; notes and comments follow their paragraph.

    Raises `DecompressionLimitError`, `EncryptedDocumentError`, `CorruptDocumentError`.
    """
    with _opened(content, context, "ODT") as package:
        reader = _Reader(package, context)
        reader.blocks(_body(package, "office:text"))
        metadata = _metadata(package)
    return _document(reader, metadata, "odt", ())


def parse_odp(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return text, a page and a section for each slide, its notes behind it. Raises as `parse_odt`."""
    starts: list[int] = []
    with _opened(content, context, "ODP") as package:
        reader = _Reader(package, context)
        for slide in _body(package, "office:presentation"):
            if name_of[slide.tag] == "draw:page":
                starts.append(reader.builder.length)
                reader.slide(slide)
        metadata = _metadata(package)
    return _document(reader, metadata, "odp", tuple(starts))


def _opened(content: bytes, context: ParseContext, kind: str) -> Any:
    return open_package(content, context.settings.max_decompressed_bytes, kind)


def _body(package: Package, kind: str) -> Any:
    """Return the element with the content. Raises `EncryptedDocumentError`, `CorruptDocumentError`."""
    manifest = package.xml("META-INF/manifest.xml")
    if manifest is not None and any(name_of[each.tag] == "manifest:encryption-data" for each in manifest.iter()):
        raise EncryptedDocumentError("is encrypted; remove the password in LibreOffice, or exclude the file")
    root = package.xml("content.xml")
    found = () if root is None else [each for each in root.iter() if name_of[each.tag] == kind]
    if not found:
        raise CorruptDocumentError("is a ZIP archive but not an OpenDocument file; unpack it, or exclude the file")
    return found[0]


def _document(
    reader: "_Reader", metadata: dict[str, str | None], parser: str, starts: tuple[int, ...]
) -> ParsedDocument:
    text, sections = reader.builder.build()
    fields: dict[str, Any] = metadata | {"parser": parser}
    fields["title"] = fields["title"] or reader.builder.first_heading
    if starts:
        fields["page_count"] = len(starts)
    return ParsedDocument(text, json_fields(fields), sections, pages(starts, len(text)), notices=reader.notices())


def _metadata(package: Package) -> dict[str, str | None]:
    root = package.xml("meta.xml")
    found = {} if root is None else {name_of[each.tag]: text_of(each) for each in root.iter()}
    language = found.get("dc:language", "").strip().split("-")[0].lower()
    return {
        "title": one_line(found.get("dc:title", "")),
        "author": one_line(found.get("meta:initial-creator", "") or found.get("dc:creator", "")),
        "created": iso_date(found.get("meta:creation-date")),
        "modified": iso_date(found.get("dc:date")),
        "language": language if len(language) == 2 else None,
    }


class _Reader:
    """A walk through a document, which hands the builder one block after the other."""

    def __init__(self, package: Package, context: ParseContext):
        self.builder = OutlineBuilder()
        self._package = package
        self._comments = context.settings.office_comments
        self._objects = 0
        #: What the paragraph in hand refers to, and is shown elsewhere.
        self._beside: list[Any] = []

    def notices(self) -> tuple[Notice, ...]:
        """Return what of the document is not in its text."""
        if not self._objects:
            return ()
        what = f"{self._objects} embedded object(s), as spreadsheets and charts are, are not in its text"
        return (omitted(what, "save them as files of their own"),)

    def blocks(self, container: Any, *, separator: str = "\n\n", in_frame: bool = False) -> None:
        """Hand over headings, paragraphs, lists and tables in order."""
        for child in container:
            name = name_of[child.tag]
            if name == "text:h" and not in_frame:
                self._heading(child)
            elif name in ("text:p", "text:h"):
                self._paragraph(child, separator, in_frame=in_frame)
            elif name == "text:list":
                self.blocks(child, separator="\n", in_frame=in_frame)
            elif name == "table:table":
                self._table(child)
            elif name in _SKIPPED or _is_hidden(child, name):
                continue
            elif name in ("draw:object", "draw:object-ole"):
                self._object(child)
            elif name == "office:annotation":
                self._annotation(child)
            else:
                self.blocks(child, separator=separator, in_frame=in_frame)

    def slide(self, slide: Any) -> None:
        """Hand over a slide: its title, its frames, its notes."""
        frames = [each for each in slide if isinstance(each.tag, str)]
        title = next((each for each in frames if attribute(each, "presentation:class") == "title"), None)
        heading = "" if title is None else one_line(" ".join(self._texts(title)))
        if heading:
            self.builder.heading(heading, 1)
        else:
            self.builder.end_section()
        self._flush()
        for frame in frames:
            if frame is not title and name_of[frame.tag] != "presentation:notes":
                self.blocks([frame], in_frame=True)
        for notes in (each for each in frames if name_of[each.tag] == "presentation:notes"):
            self.blocks(notes, in_frame=True)

    def _heading(self, heading: Any) -> None:
        self.builder.heading(self._text(heading), number_of(attribute(heading, "text:outline-level"), 1, 10))
        self._flush()

    def _paragraph(self, paragraph: Any, separator: str, *, in_frame: bool) -> None:
        text = self._text(paragraph)
        if not in_frame and (attribute(paragraph, "text:style-name") or "").lower() in _TITLE_STYLES:
            self.builder.heading(text, 0)
        else:
            self.builder.block(text, separator)
        self._flush()

    def _flush(self) -> None:
        """Hand over what the paragraph refers to: text boxes, notes, comments."""
        beside, self._beside = self._beside, []
        for each in beside:
            name = name_of[each.tag]
            if name == "office:annotation":
                self._annotation(each)
            elif name == "text:note":
                bodies = [body for body in each if name_of[body.tag] == "text:note-body"]
                self.builder.block("\n".join(text for body in bodies for text in self._texts(body)))
            else:
                self.blocks([each], in_frame=True)

    def _annotation(self, annotation: Any) -> None:
        if self._comments:
            author = next((text_of(each) for each in annotation if name_of[each.tag] == "dc:creator"), "")
            text = "\n".join(self._texts(annotation))
            self.builder.block(f"Comment by {author}: {text}" if author and text else text)

    def _texts(self, container: Any) -> list[str]:
        """Return the texts of all paragraphs in a note, a cell or a comment."""
        return [text for text in map(self._text, _paragraphs(container)) if text]

    def _text(self, paragraph: Any) -> str:
        parts: list[str] = []
        self._collect(paragraph, parts)
        return "".join(parts).strip()

    def _collect(self, element: Any, parts: list[str]) -> None:
        parts.append(_collapsed(element.text))
        for child in element:
            name = name_of[child.tag]
            if name == "text:s":
                parts.append(" " * number_of(attribute(child, "text:c"), 1, MAX_SPACES))
            elif name in _CHARACTERS:
                parts.append(_CHARACTERS[name])
            elif name in ("text:note", "office:annotation"):
                self._beside.append(child)
            elif name.startswith("draw:"):
                if not self._formula(child, parts):
                    self._beside.append(child)
            elif name and name not in _SKIPPED and not _is_hidden(child, name):
                self._collect(child, parts)
            parts.append(_collapsed(child.tail))

    def _formula(self, frame: Any, parts: list[str]) -> bool:
        """Add the text of a formula that stands in a line; False for any other frame."""
        for each in frame.iter():
            root = self._mathml(each)
            if root is not None:
                parts.append(mathml_text(root))
                return True
        return False

    def _mathml(self, element: Any) -> Any | None:
        """Return the formula that an element holds or refers to; None for any other."""
        name = name_of[element.tag]
        if name == "math:math":
            return element
        if name != "draw:object":
            return None
        target = (attribute(element, "href") or "").removeprefix("./").rstrip("/")
        root = self._package.xml(f"{target}/content.xml") if target else None
        return root if root is not None and name_of[root.tag] == "math:math" else None

    def _object(self, element: Any) -> None:
        root = self._mathml(element)
        if root is not None:
            self.builder.block(mathml_text(root))
        elif not any(name_of[each.tag] in ("table:table", "math:math") for each in element.iter()):
            self._objects += 1

    def _table(self, table: Any) -> None:
        """Hand over a line for each row; a table inside a cell is read as part of that cell."""
        separator = "\n\n"
        outer, self._beside = self._beside, []
        for row in _rows(table):
            line = row_line(self._cells(row))
            if line:
                self.builder.block(line, separator)
                separator = "\n"
        self._flush()
        self._beside = outer

    def _cells(self, row: Any) -> list[str]:
        cells: list[str] = []
        for cell in row:
            name = name_of[cell.tag]
            if name in ("table:table-cell", "table:covered-table-cell") and len(cells) < MAX_COLUMNS:
                text = one_line(" ".join(self._texts(cell)))
                times = number_of(attribute(cell, "table:number-columns-repeated"), 1, MAX_COLUMNS)
                cells += [text] * max(times, 1)
        return cells[:MAX_COLUMNS]


def _paragraphs(container: Any) -> Iterator[Any]:
    """Yield the paragraphs and headings of a container, not those that others refer to."""
    for child in container:
        name = name_of[child.tag]
        if name in ("text:p", "text:h"):
            yield child
        elif name and name not in _SKIPPED and not _is_hidden(child, name):
            yield from _paragraphs(child)


def _rows(table: Any) -> list[Any]:
    """Return the rows of a table, those of its head and of groups included, not those of tables inside."""
    found: list[Any] = []
    for child in table:
        name = name_of[child.tag]
        if name == "table:table-row":
            found.append(child)
        elif name in ("table:table-header-rows", "table:table-rows", "table:table-row-group"):
            found += _rows(child)
    return found


def _is_hidden(element: Any, name: str) -> bool:
    """Return whether a section or text is switched off."""
    return name in ("text:section", "text:hidden-text") and (
        attribute(element, "text:display") == "none" or attribute(element, "text:is-hidden") == "true"
    )


def _collapsed(text: str | None) -> str:
    """Return characters as OpenDocument has them: white space is one space, several are written as an element."""
    if not text:
        return ""
    words = " ".join(text.split())
    if not words:
        return " "
    return (" " if text[0].isspace() else "") + words + (" " if text[-1].isspace() else "")
