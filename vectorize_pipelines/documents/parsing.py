"""Parsing of a file's bytes to a `ParsedDocument`. Called by the parser processes, and in place by tests, clients."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    EmptyDocumentError,
    EncryptedDocumentError,
    NotTextError,
    TooLargeError,
    TooManyChunksError,
    UnsupportedFormatError,
)
from vectorize_pipelines.documents.formats import html, markdown, pdf, table, text, word
from vectorize_pipelines.documents.formats.language import language_of
from vectorize_pipelines.documents.formats.values import check_metadata, short_label
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.settings import DocumentSettings

#: Part of every chunk's fingerprint: raise it when the same bytes give another text than before.
PARSER_VERSION = 1

Parser = Callable[[bytes, DocumentSettings], ParsedDocument]

PARSERS: dict[str, Parser] = {
    "text": lambda content, settings: text.parse_text(content),
    "markdown": lambda content, settings: markdown.parse_markdown(content),
    "html": lambda content, settings: html.parse_html(content),
    "pdf": pdf.parse_pdf,
    "docx": word.parse_docx,
    "csv": table.parse_csv,
    "tsv": table.parse_tsv,
    "json-lines": table.parse_json_lines,
    "parquet": table.parse_parquet,
}

FORMATS_BY_SUFFIX = {
    ".txt": "text",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "json-lines",
    ".ndjson": "json-lines",
    ".parquet": "parquet",
}

#: Lower case, with the dot; what `corpus.include` stands for when it is empty.
SUPPORTED_SUFFIXES: tuple[str, ...] = tuple(FORMATS_BY_SUFFIX)

BINARY_FORMATS = frozenset(("pdf", "docx", "parquet"))

#: Metadata that name a document, and are shown.
LABELS = ("title", "author")

#: Readers of PDF accept the mark anywhere in the first 1,024 bytes.
PDF_MARK_WITHIN = 1024
OLE_MARK = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")

OTHER_MARKS = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"{\\rtf", "a rich text (RTF) document"),
)


def parse(content: bytes, name: str, settings: DocumentSettings) -> ParsedDocument:
    """Return the document in `content`. `name` is its path or URI: its ending chooses the parser.

    Where the content bears the mark of another supported binary format, that one is believed instead.
    Raises a subclass of `ItemError` from `documents.errors`; its message does not repeat the name.
    """
    if len(content) > settings.max_file_bytes:
        raise too_large(settings)
    declared = format_of(name)
    if not content.strip():
        raise EmptyDocumentError("is empty; fill it, or exclude it by VECTORIZE_CORPUS__EXCLUDE")
    document = PARSERS[_actual_format(content, declared)](content, settings)
    if not document.text.strip():
        raise EmptyDocumentError("has no text that a reader would see")
    if len(document.sections) > settings.max_chunks:
        raise too_many_chunks(settings)
    document = replace(document, metadata={**document.metadata, **_short_labels(document.metadata)})
    check_metadata(document.metadata, settings, "its metadata")
    language = document.metadata.get("language") or language_of(document.text)
    return replace(document, metadata={**document.metadata, "language": language}) if language else document


def format_of(name: str) -> str:
    """Return the format that the name's ending stands for. Raises `UnsupportedFormatError`."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in FORMATS_BY_SUFFIX:
        raise UnsupportedFormatError(
            f"has {'the unsupported ending ' + suffix if suffix else 'no file ending'}; "
            f"supported are {' '.join(SUPPORTED_SUFFIXES)}; convert it, or leave it out with corpus.exclude"
        )
    return FORMATS_BY_SUFFIX[suffix]


def too_large(settings: DocumentSettings) -> TooLargeError:
    """Return the error for a file beyond the limit."""
    return TooLargeError(
        f"is larger than {settings.max_file_bytes:,} bytes; split it, or raise VECTORIZE_DOCUMENTS__MAX_FILE_BYTES"
    )


def too_many_chunks(settings: DocumentSettings) -> TooManyChunksError:
    """Return the error for a document beyond the limit."""
    return TooManyChunksError(
        f"is cut into more than {settings.max_chunks:,} passages; split it, or raise VECTORIZE_DOCUMENTS__MAX_CHUNKS"
    )


def _short_labels(metadata: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return what names a document, cut to the length of a name: a page without an end tag is all title."""
    labels = {name: metadata[name] for name in LABELS if name in metadata}
    return {name: short_label(text) for name, text in labels.items() if isinstance(text, str)}


def _actual_format(content: bytes, declared: str) -> str:
    marked = _marked_format(content)
    if marked:
        return marked
    for mark, kind in OTHER_MARKS:
        if content.startswith(mark):
            raise NotTextError(f"holds {kind}, whatever its name says; convert it, or exclude it")
    if content.startswith(OLE_MARK):
        raise _ole_error(content)
    if declared in BINARY_FORMATS:
        holds = "HTML" if content.lstrip()[:1] == b"<" else "something else"
        raise CorruptDocumentError(
            f"is no {declared.upper()} file but {holds}; it may be a failed download, fetch it again"
        )
    return declared


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
