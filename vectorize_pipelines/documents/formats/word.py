"""DOCX: paragraphs, headings and tables in the order in which they stand in the document."""

import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EncryptedDocumentError,
    damage_reported,
)
from vectorize_pipelines.documents.formats.outline import OutlineBuilder
from vectorize_pipelines.documents.formats.values import iso_date, json_fields, one_line
from vectorize_pipelines.documents.types import ParsedDocument

READ_BYTES = 1 << 20
CELL_SEPARATOR = " | "
ENCRYPTED_FLAG = 0x1

_HEADING_STYLE = re.compile(r"heading (\d)", re.IGNORECASE)
_NAMESPACE = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_COMPATIBILITY = "{http://schemas.openxmlformats.org/markup-compatibility/2006}"
_PARAGRAPH, _TABLE, _ROW, _CELL = (_NAMESPACE + name for name in ("p", "tbl", "tr", "tc"))
_TEXT = _NAMESPACE + "t"
_CHARACTERS = {
    _NAMESPACE + "tab": "\t",
    _NAMESPACE + "br": "\n",
    _NAMESPACE + "cr": "\n",
    _NAMESPACE + "noBreakHyphen": "\u2011",
}
#: Deleted by a tracked change, or a second rendering of what stands beside it.
_SKIPPED = frozenset((_NAMESPACE + "del", _NAMESPACE + "moveFrom", _COMPATIBILITY + "Fallback", _NAMESPACE + "pPr"))


def parse_docx(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return text, sections and core properties. Paragraphs are divided by a blank line, list items and rows by a line.

    Raises `DecompressionLimitError`, `EncryptedDocumentError`, `CorruptDocumentError`.
    """
    import docx
    from docx.opc.constants import RELATIONSHIP_TYPE

    check_archive(content, context.settings.max_decompressed_bytes)
    with damage_reported("DOCX"):
        document = docx.Document(BytesIO(content))
        builder = OutlineBuilder()
        _Styles(document).read(document.element.body, builder)
        # python-docx invents properties for a file without them.
        relations = document.part.package.rels.values()
        has_properties = any(relation.reltype == RELATIONSHIP_TYPE.CORE_PROPERTIES for relation in relations)
        metadata = _metadata(document.core_properties) if has_properties else {}
    text, sections = builder.build()
    metadata["title"] = metadata.get("title") or builder.first_heading
    return ParsedDocument(text, json_fields(metadata | {"parser": "docx"}), sections)


def check_archive(content: bytes, max_bytes: int) -> None:
    """Refuse an archive that unpacks to more than `max_bytes`, by what it declares and by what it really holds."""
    with damage_reported("DOCX"), zipfile.ZipFile(BytesIO(content)) as archive:
        members = archive.infolist()
        if any(member.flag_bits & ENCRYPTED_FLAG for member in members):
            raise EncryptedDocumentError("is an encrypted archive; remove the password, or exclude the file")
        if sum(member.file_size for member in members) > max_bytes:
            raise _too_large(max_bytes)
        actual = 0
        for member in members:
            with archive.open(member) as stream:
                while block := stream.read(READ_BYTES):
                    actual += len(block)
                    if actual > max_bytes:
                        raise _too_large(max_bytes)
        if "word/document.xml" not in archive.namelist() and "[Content_Types].xml" not in archive.namelist():
            raise CorruptDocumentError("is a ZIP archive but not a Word document; unpack it, or exclude the file")


def _too_large(max_bytes: int) -> DecompressionLimitError:
    return DecompressionLimitError(
        f"unpacks to more than {max_bytes:,} bytes, as decompression bombs do; "
        "if it is genuine, raise VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"
    )


def _metadata(properties: Any) -> dict[str, str | None]:
    language = (properties.language or "").split("-")[0].lower()
    return {
        "title": one_line(properties.title or ""),
        "author": one_line(properties.author or ""),
        "created": iso_date(properties.created),
        "modified": iso_date(properties.modified),
        "language": language if len(language) == 2 else None,
    }


class _Styles:
    """A reader of a body, block by block; what a paragraph is, its style tells."""

    def __init__(self, document: Any) -> None:
        self._by_id = {style.style_id: style for style in document.styles}
        self._levels: dict[str | None, int | None] = {None: None}

    def read(self, body: Any, builder: OutlineBuilder) -> None:
        """Hand every paragraph and table of the body to the builder."""
        for block in _blocks(body):
            if block.tag == _TABLE:
                for position, row in enumerate(_rows(block)):
                    builder.block(row, "\n" if position else "\n\n")
                continue
            style = block.style
            level = self._heading_level(style)
            if level is not None:
                builder.heading(_paragraph_text(block), level)
            else:
                builder.block(_paragraph_text(block), "\n" if self._is_list_item(style) else "\n\n")

    def _heading_level(self, style_id: str | None) -> int | None:
        """Return 0 for the title, 1 to 9 for headings; a style derived from a heading's is one too."""
        if style_id not in self._levels:
            level = None
            style = self._by_id.get(style_id)
            for _ in range(len(self._by_id)):  # bounded: damaged files have styles that derive from themselves
                if style is None or level is not None:
                    break
                level = _level_by_name(style.name or "")
                style = style.base_style if hasattr(style, "base_style") else None
            self._levels[style_id] = level
        return self._levels[style_id]

    def _is_list_item(self, style_id: str | None) -> bool:
        style = self._by_id.get(style_id)
        return style is not None and (style.name or "").startswith("List")


def _level_by_name(name: str) -> int | None:
    """Return the level by a built-in style's English name, which Word keeps in the file, whatever its language."""
    if name == "Title":
        return 0
    match = _HEADING_STYLE.fullmatch(name)
    return int(match[1]) if match else None


def _blocks(container: Any) -> Iterator[Any]:
    """Yield paragraphs and tables in order, also those inside content controls and tracked insertions."""
    for child in container:
        if child.tag in (_PARAGRAPH, _TABLE):
            yield child
        elif child.tag not in _SKIPPED:
            yield from _blocks(child)


def _rows(table: Any) -> Iterator[str]:
    """Yield a line for each row, cells divided by ` | `; a table inside a cell is read as part of that cell."""
    for row in _nearest(table, _ROW):
        cells = (one_line(" ".join(map(_paragraph_text, _nearest(cell, _PARAGRAPH)))) for cell in _nearest(row, _CELL))
        yield CELL_SEPARATOR.join(cell for cell in cells if cell)


def _nearest(element: Any, tag: str) -> Iterator[Any]:
    """Yield descendants of this tag that are not inside another one of it."""
    for child in element:
        if child.tag == tag:
            yield child
        elif child.tag not in _SKIPPED:
            yield from _nearest(child, tag)


def _paragraph_text(paragraph: Any) -> str:
    """Return all that the paragraph shows: runs, links, tracked insertions, content controls, text boxes."""
    parts: list[str] = []
    pending = [iter(paragraph)]
    while pending:
        child = next(pending[-1], None)
        if child is None:
            pending.pop()
        elif child.tag == _TEXT:
            parts.append(child.text or "")
        elif child.tag in _CHARACTERS:
            parts.append(_CHARACTERS[child.tag])
        elif child.tag not in _SKIPPED:
            if child.tag == _PARAGRAPH and parts:
                parts.append("\n")
            pending.append(iter(child))
    return "".join(parts)
