"""EPUB: the chapters of a book in reading order, each through the HTML parser."""

import posixpath
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

from vectorize_pipelines.core.notices import Notice, omitted, within
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import CorruptDocumentError, EncryptedDocumentError, damage_reported
from vectorize_pipelines.documents.formats.html import parse_html
from vectorize_pipelines.documents.formats.package import Package, attribute, name_of, open_package, parse_xml, text_of
from vectorize_pipelines.documents.formats.values import iso_date, json_fields, one_line, short_label
from vectorize_pipelines.documents.types import ParsedDocument, Section

_PAGES = ("application/xhtml+xml", "text/html", "application/x-dtbook+xml")
#: Ways to hide nothing but fonts, which are no text.
_OF_FONTS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_BETWEEN = "\n\n"


def parse_epub(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return the text of the spine, a section a chapter and a heading in it, and the book's metadata.

    Raises `DecompressionLimitError`, `EncryptedDocumentError`, `CorruptDocumentError`.
    """
    with open_package(content, context.settings.max_decompressed_bytes, "EPUB") as package:
        _refuse_encrypted(package)
        opf, root = _book(package)
        parts = _spine(package, opf, root)
        titles = _titles(package, opf, root)
        text, sections, notices = _chapters(package, parts, titles, context)
        metadata = _metadata(root)
    return ParsedDocument(text, json_fields(metadata | {"parser": "epub"}), tuple(sections), notices=notices)


def _refuse_encrypted(package: Package) -> None:
    root = package.xml("META-INF/encryption.xml")
    methods = (
        () if root is None else [each.get("Algorithm", "") for each in root.iter() if _bare(each) == "EncryptionMethod"]
    )
    if any(method not in _OF_FONTS for method in methods):
        raise EncryptedDocumentError("is protected against copying (DRM); get it without, or exclude the file")


def _book(package: Package) -> tuple[str, Any]:
    """Return the description of the book: its name and its root. Raises `CorruptDocumentError`."""
    container = package.xml("META-INF/container.xml")
    names = (
        ()
        if container is None
        else [each.get("full-path", "") for each in container.iter() if _bare(each) == "rootfile"]
    )
    for name in names:
        root = package.xml(name)
        if root is not None:
            return name, root
    raise CorruptDocumentError("is a ZIP archive but not a book (EPUB); unpack it, or exclude the file")


def _items(opf: str, root: Any) -> dict[str, tuple[str, Any]]:
    """Return by id the files of the book: the name of each and its entry."""
    folder = posixpath.dirname(opf)
    items = [each for each in root.iter() if name_of[each.tag] == "opf:item"]
    return {each.get("id", ""): (_joined(folder, each.get("href", "")), each) for each in items}


def _spine(package: Package, opf: str, root: Any) -> list[tuple[str, bool]]:
    """Return the chapters' names in reading order, and whether each is there."""
    items = _items(opf, root)
    references = [each.get("idref", "") for each in root.iter() if name_of[each.tag] == "opf:itemref"]
    found = [items[reference] for reference in dict.fromkeys(references) if reference in items]
    return [(name, package.has(name)) for name, entry in found if entry.get("media-type", _PAGES[0]) in _PAGES]


def _titles(package: Package, opf: str, root: Any) -> Mapping[str, str]:
    """Return the chapters' titles by their names, as the table of contents has them, of either edition."""
    titles: dict[str, str] = {}
    for name, entry in _items(opf, root).values():
        is_old = entry.get("media-type") == "application/x-dtbncx+xml"
        if not is_old and "nav" not in (entry.get("properties") or "").split():
            continue
        contents = package.xml(name)
        if contents is None:
            continue
        folder = posixpath.dirname(name)
        for target, title in _old_entries(contents) if is_old else _entries(contents):
            titles.setdefault(_joined(folder, target), title)
    return titles


def _entries(contents: Any) -> list[tuple[str, str]]:
    navigation = [
        each for each in contents.iter() if _bare(each) == "nav" and attribute(each, "epub:type") in (None, "toc")
    ]
    links = [each for nav in navigation for each in nav.iter() if _bare(each) == "a"]
    return [(each.get("href", ""), one_line(text_of(each))) for each in links]


def _old_entries(contents: Any) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for point in (each for each in contents.iter() if _bare(each) == "navPoint"):
        label = next((one_line(text_of(each)) for each in point if _bare(each) == "navLabel"), "")
        target = next((each.get("src", "") for each in point if _bare(each) == "content"), "")
        found.append((target, label))
    return found


def _chapters(
    package: Package, parts: list[tuple[str, bool]], titles: Mapping[str, str], context: ParseContext
) -> tuple[str, list[Section], tuple[Notice, ...]]:
    """Return the chapters' text and sections, those without a heading under their title in the contents."""
    texts: list[str] = []
    sections: list[Section] = []
    notices: list[Notice] = []
    missing: list[str] = []
    position = 0
    for name, is_there in parts:
        if not is_there:
            missing.append(name)
            continue
        page = parse_html(_as_html(package.read(name)), context)
        notices += within(name, page.notices)
        if not page.text.strip():
            continue
        own = page.sections or (Section(0, len(page.text), ()),)
        title = titles.get(name.lower(), "")
        for section in own:
            path = section.path or ((short_label(title),) if title else ())
            sections.append(Section(position + section.start, position + section.end, path))
        texts.append(page.text)
        position += len(page.text) + len(_BETWEEN)
    if missing:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        notices.append(omitted(f"{len(missing)} of its chapters are missing in the file ({shown})", "replace it"))
    return _BETWEEN.join(texts), sections, tuple(notices)


def _as_html(content: bytes) -> bytes:
    """Return a page of XHTML as HTML: `<title/>` ends at once in the former only. Damaged XHTML stays as it is."""
    from lxml import etree

    try:
        with damage_reported("XHTML"):
            root = parse_xml(content)
    except CorruptDocumentError:
        return content
    for each in root.iter():
        if isinstance(each.tag, str):
            each.tag = etree.QName(each).localname
    head = next((each for each in root if each.tag == "head"), None)
    for each in () if head is None else list(head.iter("meta")):
        each.getparent().remove(each)  # whatever encoding it declares, this is another one
    page: bytes = etree.tostring(root, method="html", encoding="utf-8")
    return b'<!DOCTYPE html><meta charset="utf-8">' + page


def _metadata(root: Any) -> dict[str, str | None]:
    found: dict[str, str] = {}
    for each in root.iter():
        if name_of[each.tag].startswith("dc:"):
            found.setdefault(name_of[each.tag], one_line(text_of(each)))
    language = found.get("dc:language", "").split("-")[0].lower()
    return {
        "title": found.get("dc:title"),
        "author": found.get("dc:creator"),
        "created": iso_date(found.get("dc:date")),
        "language": language if len(language) == 2 and language.isalpha() else None,
    }


def _joined(folder: str, target: str) -> str:
    name = unquote(target.partition("#")[0])
    return posixpath.normpath(posixpath.join("/", folder, name)).lstrip("/").lower()


def _bare(element: Any) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
