"""The packages that office documents are: a ZIP of XML parts.

Used by `word`, `slides`, `opendocument` and `epub`; `workbook` checks its archives here, `structured` reads XML.
"""

import posixpath
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any
from urllib.parse import unquote

from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EncryptedDocumentError,
    damage_reported,
)

READ_BYTES = 1 << 20
ENCRYPTED_FLAG = 0x1

#: Both editions of Office's standard, the transitional one and the strict one, by the prefix that its texts use.
_PREFIXES = {
    "http://schemas.openxmlformats.org/wordprocessingml/2006/main": "w",
    "http://purl.oclc.org/ooxml/wordprocessingml/main": "w",
    "http://schemas.openxmlformats.org/drawingml/2006/main": "a",
    "http://purl.oclc.org/ooxml/drawingml/main": "a",
    "http://schemas.openxmlformats.org/presentationml/2006/main": "p",
    "http://purl.oclc.org/ooxml/presentationml/main": "p",
    "http://schemas.openxmlformats.org/officeDocument/2006/math": "m",
    "http://purl.oclc.org/ooxml/officeDocument/math": "m",
    "http://schemas.openxmlformats.org/officeDocument/2006/relationships": "r",
    "http://purl.oclc.org/ooxml/officeDocument/relationships": "r",
    "http://schemas.openxmlformats.org/drawingml/2006/chart": "c",
    "http://purl.oclc.org/ooxml/drawingml/chart": "c",
    "http://schemas.openxmlformats.org/drawingml/2006/diagram": "dgm",
    "http://purl.oclc.org/ooxml/drawingml/diagram": "dgm",
    "http://schemas.openxmlformats.org/markup-compatibility/2006": "mc",
    "urn:schemas-microsoft-com:office:office": "o",
    "http://www.w3.org/1998/Math/MathML": "math",
    "http://www.w3.org/1999/xhtml": "xhtml",
    "urn:oasis:names:tc:opendocument:xmlns:office:1.0": "office",
    "urn:oasis:names:tc:opendocument:xmlns:text:1.0": "text",
    "urn:oasis:names:tc:opendocument:xmlns:table:1.0": "table",
    "urn:oasis:names:tc:opendocument:xmlns:drawing:1.0": "draw",
    "urn:oasis:names:tc:opendocument:xmlns:presentation:1.0": "presentation",
    "urn:oasis:names:tc:opendocument:xmlns:meta:1.0": "meta",
    "urn:oasis:names:tc:opendocument:xmlns:manifest:1.0": "manifest",
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://purl.org/dc/terms/": "dcterms",
    "http://www.idpf.org/2007/opf": "opf",
    "http://www.idpf.org/2007/ops": "epub",
}


class _Names(dict[Any, str]):
    """Names of elements and attributes as `prefix:name`, whatever the edition; of other vocabularies the bare name."""

    def __missing__(self, tag: Any) -> str:
        name = ""  # a comment, an instruction, an entity
        if isinstance(tag, str):
            space, _, bare = tag.rpartition("}")
            prefix = _PREFIXES.get(space[1:])
            name = f"{prefix}:{bare}" if prefix else bare
        if len(self) < 10_000:  # a file may make up names without end
            self[tag] = name
        return name


#: `name_of[element.tag]` is the element's name, `w:p`.
name_of = _Names()


def attribute(element: Any, name: str) -> str | None:
    """Return the attribute of that `prefix:name`, or of that bare name without a namespace."""
    for key, value in element.attrib.items():
        if name_of[key] == name:
            return str(value)
    return None


def text_of(element: Any) -> str:
    """Return the text of an element and all below it."""
    return "".join(part for part in element.itertext() if isinstance(part, str))


def number_of(value: str | None, default: int, most: int) -> int:
    """Return a number that a file gives, within 0 and `most`."""
    try:
        return min(max(int(value), 0), most) if value else default
    except ValueError:
        return default


def parse_xml(content: bytes, encoding: str | None = None) -> Any:
    """Return the root of an XML document; entities from outside stay unresolved, and those that grow are refused.

    `encoding` is that of the bytes where it is known, whatever the document declares.
    Raises lxml's errors: put `damage_reported` around it.
    """
    from lxml import etree

    parser = etree.XMLParser(
        encoding=encoding, resolve_entities="internal", no_network=True, load_dtd=False, huge_tree=False
    )
    return etree.fromstring(content, parser)


@dataclass(frozen=True, slots=True)
class Relationship:
    """What a part refers to. kind: last part of its type; target: a part's name, or None outside of the package."""

    kind: str
    target: str | None


class Package:
    """An open package. All its parts together unpack to no more than it was opened with."""

    def __init__(self, archive: zipfile.ZipFile):
        self._archive = archive
        # Some programs of Windows write their own separator.
        self._names = {member.filename.lower().replace("\\", "/"): member for member in archive.infolist()}

    @property
    def names(self) -> list[str]:
        """The parts' names in lower case: for Office the case of names does not count."""
        return list(self._names)

    def has(self, name: str) -> bool:
        """Return whether there is such a part."""
        return name.lower() in self._names

    def read(self, name: str) -> bytes:
        """Return the bytes of a part. Raises `KeyError`, and what zipfile raises over damage."""
        return self._archive.read(self._names[name.lower()])

    def xml(self, name: str | None) -> Any | None:
        """Return the root of a part; None where it is not there."""
        if name is None or not self.has(name):
            return None
        content = self.read(name)
        return parse_xml(content) if content.strip() else None

    def relationships(self, part: str) -> Mapping[str, Relationship]:
        """Return by id what a part refers to; "" is the package itself. What leads nowhere has no target."""
        folder, file = posixpath.split(part)
        root = self.xml(posixpath.join(folder, "_rels", f"{file}.rels"))
        if root is None:
            return {}
        return {
            each.get("Id", ""): Relationship(each.get("Type", "").rpartition("/")[2], self._target(folder, each))
            for each in root
            if isinstance(each.tag, str)
        }

    def related(self, part: str, kind: str, default: str) -> str | None:
        """Return the first part of a kind that a part refers to, else the one that usually is it, if it is there."""
        for each in self.relationships(part).values():
            if each.kind == kind and each.target:
                return each.target
        return default if self.has(default) else None

    def _target(self, folder: str, relationship: Any) -> str | None:
        if relationship.get("TargetMode", "").lower() == "external":
            return None
        target = unquote(relationship.get("Target", "").partition("#")[0])
        if not target:
            return None
        name = posixpath.normpath(posixpath.join("/", folder, target)).lstrip("/")
        return name if self.has(name) else None


@contextmanager
def open_package(content: bytes, max_bytes: int, kind: str) -> Iterator[Package]:
    """Open a package; otherwise as `open_archive`."""
    with open_archive(content, max_bytes, kind) as archive:
        yield Package(archive)


@contextmanager
def open_archive(content: bytes, max_bytes: int, kind: str) -> Iterator[zipfile.ZipFile]:
    """Open the archive that a document is, once it is known to unpack to no more than `max_bytes`.

    What libraries raise inside of the block becomes a `CorruptDocumentError` that names the `kind`. Raises
    `DecompressionLimitError`, `EncryptedDocumentError`, `CorruptDocumentError`.
    """
    with damage_reported(kind), zipfile.ZipFile(BytesIO(content)) as archive:
        check_archive(archive, max_bytes)
        yield archive


def check_archive(archive: zipfile.ZipFile, max_bytes: int) -> None:
    """Refuse a package that unpacks to more than `max_bytes`, by what it declares and by what it really holds."""
    members = archive.infolist()
    if any(member.flag_bits & ENCRYPTED_FLAG for member in members):
        raise EncryptedDocumentError("is an encrypted archive; remove the password, or exclude the file")
    if sum(member.file_size for member in members) > max_bytes:
        raise too_large(max_bytes)
    actual = 0
    for member in members:
        with archive.open(member) as stream:
            while block := stream.read(READ_BYTES):
                actual += len(block)
                if actual > max_bytes:
                    raise too_large(max_bytes)


def too_large(max_bytes: int) -> DecompressionLimitError:
    """Return the error for a package beyond the limit."""
    return DecompressionLimitError(
        f"unpacks to more than {max_bytes:,} bytes, as decompression bombs do; "
        "if it is genuine, raise VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"
    )


def core_properties(package: Package) -> dict[str, str]:
    """Return title, author, created, modified and language as Office keeps them, raw; none where it does not."""
    root = package.xml(package.related("", "core-properties", "docProps/core.xml"))
    if root is None:
        return {}
    known = {
        "dc:title": "title",
        "dc:creator": "author",
        "dc:language": "language",
        "dcterms:created": "created",
        "dcterms:modified": "modified",
    }
    return {known[name]: text_of(each) for each in root if (name := name_of[each.tag]) in known}


def main_part(package: Package, default: str, kind: str) -> str:
    """Return the name of the part that the document is. Raises `CorruptDocumentError`."""
    part = package.related("", "officeDocument", default)
    if part is None:
        raise CorruptDocumentError(f"is a ZIP archive but not a {kind}; unpack it, or exclude the file")
    return part
