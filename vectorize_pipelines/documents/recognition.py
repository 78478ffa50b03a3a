"""Which format a document is in: by the mark of its content, by what its carrier says, by the ending of its name.

`FORMATS` is the one list of what can be read: a new format is an entry here and a module below `formats`.
"""

import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
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
    Format("markdown", "markdown:parse_markdown", (".md", ".markdown"), ("text/markdown",)),
    Format("html", "html:parse_html", (".html", ".htm"), ("text/html",)),
    Format("pdf", "pdf:parse_pdf", (".pdf",), ("application/pdf",), binary=True),
    Format(
        "docx",
        "word:parse_docx",
        (".docx",),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document",),
        binary=True,
    ),
    Format("csv", "delimited:parse_csv", (".csv",), ("text/csv",)),
    Format("tsv", "delimited:parse_tsv", (".tsv",), ("text/tab-separated-values",)),
    Format(
        "json-lines",
        "table:parse_json_lines",
        (".jsonl", ".ndjson"),
        ("application/x-ndjson", "application/jsonl"),
    ),
    Format(
        "xlsx",
        "workbook:parse_xlsx",
        (".xlsx", ".xlsm", ".xltx", ".xltm", ".xlsb"),
        (
            "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
            "application/vnd.openxmlformats-officedocument.spreadsheetml.template",
            "application/vnd.ms-excel.sheet.macroenabled.12",
            "application/vnd.ms-excel.template.macroenabled.12",
            "application/vnd.ms-excel.sheet.binary.macroenabled.12",
        ),
        binary=True,
    ),
    Format("xls", "workbook:parse_xls", (".xls", ".xlt"), ("application/vnd.ms-excel",), binary=True),
    Format(
        "ods",
        "workbook:parse_ods",
        (".ods", ".ots"),
        (
            "application/vnd.oasis.opendocument.spreadsheet",
            "application/vnd.oasis.opendocument.spreadsheet-template",
        ),
        binary=True,
    ),
    Format("parquet", "table:parse_parquet", (".parquet",), ("application/vnd.apache.parquet",), binary=True),
)

_BY_NAME = {each.name: each for each in FORMATS}
_BY_SUFFIX = {suffix: each for each in FORMATS for suffix in each.suffixes}

#: Lower case, with the dot; what `corpus.include` stands for when it is empty.
SUPPORTED_SUFFIXES: tuple[str, ...] = tuple(_BY_SUFFIX)

#: Readers of PDF accept the mark anywhere in the first 1,024 bytes.
PDF_MARK_WITHIN = 1024
OLE_MARK = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
ENCRYPTED_PACKAGE = "EncryptedPackage".encode("utf-16-le")
XLS_STREAM = "Workbook".encode("utf-16-le")

OTHER_MARKS = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "gzip-compressed data"),
    (b"\x7fELF", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"{\\rtf", "a rich text (RTF) document"),
)


def declared_format(name: str) -> Format:
    """Return the format that the name's ending stands for. Raises `UnsupportedFormatError`."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in _BY_SUFFIX:
        raise UnsupportedFormatError(
            f"has {'the unsupported ending ' + suffix if suffix else 'no file ending'}; "
            f"supported are {' '.join(SUPPORTED_SUFFIXES)}; convert it, or leave it out with corpus.exclude"
        )
    return _BY_SUFFIX[suffix]


def actual_format(content: bytes, declared: Format) -> Format:
    """Return the binary format whose mark the content bears, else the declared one.

    Raises `ItemError`s for content in a format that is not read, and for a binary format without its mark.
    """
    marked = _marked_format(content)
    if marked:
        return _BY_NAME[marked]
    for mark, kind in OTHER_MARKS:
        if content.startswith(mark):
            raise NotTextError(f"holds {kind}, whatever its name says; convert it, or exclude it")
    if content.startswith(OLE_MARK):
        raise _ole_error(content)
    if declared.binary:
        holds = "HTML" if content.lstrip()[:1] == b"<" else "something else"
        raise CorruptDocumentError(
            f"is no {declared.name.upper()} file but {holds}; it may be a failed download, fetch it again"
        )
    return declared


def _marked_format(content: bytes) -> str | None:
    if content.startswith(b"PK\x03\x04"):
        return _zip_format(content)
    if content.startswith(OLE_MARK) and ENCRYPTED_PACKAGE not in content and XLS_STREAM in content:
        return "xls"
    if content.startswith(b"PAR1"):
        return "parquet"
    # Text about PDF may name the mark somewhere; the end of a file is marked too.
    mark = content.find(b"%PDF-", 0, PDF_MARK_WITHIN)
    return "pdf" if mark == 0 or (mark > 0 and b"%%EOF" in content[-PDF_MARK_WITHIN:]) else None


def _zip_format(content: bytes) -> str:
    """Return the format of an archive by the names of its members."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            names = archive.namelist()
            mimetype = archive.read("mimetype")[:200] if "mimetype" in names else b""
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error):
        return "docx"  # whose parser says what is wrong
    if any(name.startswith("xl/") for name in names):
        return "xlsx"
    return "ods" if mimetype.startswith(b"application/vnd.oasis.opendocument.spreadsheet") else "docx"


def _ole_error(content: bytes) -> EncryptedDocumentError | UnsupportedFormatError:
    if ENCRYPTED_PACKAGE in content:
        return EncryptedDocumentError("is encrypted; remove the password in Word, or exclude the file")
    return UnsupportedFormatError("is in the old binary format of Office; save it as .docx")
