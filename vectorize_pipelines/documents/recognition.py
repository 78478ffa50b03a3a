"""Which format a document is in: by the mark of its content, by what its carrier says, by the ending of its name.

`FORMATS` is the one list of what can be read: a new format is an entry here and a module below `formats`.
"""

import codecs
from dataclasses import dataclass
from pathlib import PurePosixPath

from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    EncryptedDocumentError,
    NotTextError,
    UnsupportedFormatError,
)


@dataclass(frozen=True, slots=True)
class Format:
    """A kind of document.

    name         what errors call it; its rows' `parser` may differ
    parser       "module:function" below `documents.formats`: takes the bytes and a `ParseContext`, returns a
                 `ParsedDocument`, raises `ItemError`s; imported in parser processes only
    suffixes     endings of names, lower case, with the dot
    media_types  content types, lower case, without parameters
    binary       whether its content bears a mark by which it is recognised whatever its name
    """

    name: str
    parser: str
    suffixes: tuple[str, ...]
    media_types: tuple[str, ...]
    binary: bool = False


FORMATS: tuple[Format, ...] = (
    Format("text", "text:parse_text", (".txt",), ("text/plain",)),
    Format("markdown", "markdown:parse_markdown", (".md", ".markdown"), ("text/markdown", "text/x-markdown")),
    Format("html", "html:parse_html", (".html", ".htm"), ("text/html", "application/xhtml+xml")),
    Format("pdf", "pdf:parse_pdf", (".pdf",), ("application/pdf", "application/x-pdf"), binary=True),
    Format(
        "docx",
        "word:parse_docx",
        (".docx",),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document",),
        binary=True,
    ),
    Format("csv", "table:parse_csv", (".csv",), ("text/csv", "application/csv")),
    Format("tsv", "table:parse_tsv", (".tsv",), ("text/tab-separated-values",)),
    Format(
        "json-lines",
        "table:parse_json_lines",
        (".jsonl", ".ndjson"),
        ("application/x-ndjson", "application/jsonl"),
    ),
    Format("parquet", "table:parse_parquet", (".parquet",), ("application/vnd.apache.parquet",), binary=True),
)

_BY_NAME = {each.name: each for each in FORMATS}
_BY_SUFFIX = {suffix: each for each in FORMATS for suffix in each.suffixes}
_BY_MEDIA_TYPE = {media_type: each for each in FORMATS for media_type in each.media_types}
_TEXT = _BY_NAME["text"]

#: Lower case, with the dot; what `corpus.include` stands for when it is empty.
SUPPORTED_SUFFIXES: tuple[str, ...] = tuple(_BY_SUFFIX)

#: Formats that others are special kinds of, told apart by their names: a notebook is JSON, JSON Lines are nearly.
GENERAL_FORMATS = ("json", "xml")

#: Readers of PDF accept the mark anywhere in the first 1,024 bytes.
PDF_MARK_WITHIN = 1024
OLE_MARK = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")

#: So far into a page its first tag is looked for, behind comments.
HTML_MARK_WITHIN = 16 * 1024
_HTML_MARKS = (b"<!doctype html", b"<html")

OTHER_MARKS = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"{\\rtf", "a rich text (RTF) document"),
)


def recognised_format(content: bytes, name: str, media_type: str | None = None) -> Format:
    """Return the format of a document: by the mark of a binary format, then by its media type, then by its name.

    name        its path or URI, without a query
    media_type  as in `ParseContext`. One that says nothing (`application/octet-stream`), that is not known, or that
                says a binary format whose mark is missing, counts for nothing; `text/plain` for text of any kind, and
                JSON and XML for what the name says in them

    Raises `ItemError`s for content in a format that is not read, for a binary format without its mark, and
    `UnsupportedFormatError` where nothing tells the format.
    """
    hinted = _believed(_format_of_type(media_type), _BY_SUFFIX.get(_suffix(name)))
    marked = _marked_format(content)
    if marked:
        return _BY_NAME[marked]
    for mark, kind in OTHER_MARKS:
        if content.startswith(mark):
            raise NotTextError(f"holds {kind}, whatever its name says; convert it, or exclude it")
    if content.startswith(OLE_MARK):
        raise _ole_error(content)
    declared = hinted or (_BY_NAME["html"] if _begins_as_html(content) else None)
    if declared is None:
        raise UnsupportedFormatError(_unsupported(name, media_type))
    if declared.binary:
        holds = "HTML" if content.lstrip()[:1] == b"<" else "something else"
        raise CorruptDocumentError(
            f"is no {declared.name.upper()} file but {holds}; it may be a failed download, fetch it again"
        )
    return declared


def _believed(by_type: Format | None, by_name: Format | None) -> Format | None:
    """Return the format that counts, of what the media type and the name say, where the content bears no mark."""
    if by_type is None or by_name is None or by_name.binary:
        return by_type or by_name
    is_general = by_type is _TEXT or (by_type.name in GENERAL_FORMATS and by_name is not _TEXT)
    return by_name if by_type.binary or is_general else by_type


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _format_of_type(media_type: str | None) -> Format | None:
    """Return the format that a media type stands for, its parameters aside; None for one that says nothing."""
    essence = (media_type or "").partition(";")[0].strip().lower()
    structured = essence.rpartition("+")[2] if "+" in essence else ""  # as in `application/ld+json`
    found = _BY_MEDIA_TYPE.get(essence) or _BY_MEDIA_TYPE.get(f"application/{structured}")
    # A type of text that is not known is read as plain text, by RFC 2046.
    return found or (_TEXT if essence.startswith("text/") else None)


def _begins_as_html(content: bytes) -> bool:
    head = content[:HTML_MARK_WITHIN].removeprefix(codecs.BOM_UTF8).lstrip()
    while head.startswith((b"<!--", b"<?xml")):
        head = head.partition(b"-->" if head.startswith(b"<!--") else b"?>")[2].lstrip()
    return head[:20].lower().startswith(_HTML_MARKS)


def _unsupported(name: str, media_type: str | None) -> str:
    suffix = _suffix(name)
    ending = f"the unsupported ending {suffix[:50]}" if suffix else "no file ending"
    carried = f", the unsupported content type {media_type.partition(';')[0].strip()[:100]}" if media_type else ""
    return (
        f"has {ending}{carried}{' and no mark of a known format' if media_type else ''}; "
        f"supported are {' '.join(SUPPORTED_SUFFIXES)}; convert it, or leave it out with corpus.exclude"
    )


def _marked_format(content: bytes) -> str | None:
    if content.startswith(b"PK\x03\x04"):
        return "docx"
    if content.startswith(b"PAR1"):
        return "parquet"
    # Text about PDF may name the mark somewhere; the end of a file is marked too.
    mark = content.find(b"%PDF-", 0, PDF_MARK_WITHIN)
    return "pdf" if mark == 0 or (mark > 0 and b"%%EOF" in content[-PDF_MARK_WITHIN:]) else None


def _ole_error(content: bytes) -> EncryptedDocumentError | UnsupportedFormatError:
    if ENCRYPTED_PACKAGE in content:
        return EncryptedDocumentError("is encrypted; remove the password in Word, or exclude the file")
    return UnsupportedFormatError("is in the old binary format of Office; save it as .docx")
