"""Which format a document is in: by the mark of its content, by what its carrier says, by the ending of its name.

`FORMATS` is the one list of what can be read: a new format is an entry here and a module below `formats`.
"""

import codecs
import re
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


CODE_SUFFIXES = (
    ".py", ".pyi", ".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx", ".java", ".kt", ".scala", ".go", ".rs", ".c", ".h",
    ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cs", ".swift", ".rb", ".php", ".pl", ".lua", ".r", ".sh", ".bash", ".sql",
)  # fmt: skip

FORMATS: tuple[Format, ...] = (
    Format("text", "text:parse_text", (".txt",), ("text/plain",)),
    Format("markdown", "markdown:parse_markdown", (".md", ".markdown"), ("text/markdown", "text/x-markdown")),
    Format("html", "html:parse_html", (".html", ".htm"), ("text/html", "application/xhtml+xml")),
    Format("pdf", "pdf:parse_pdf", (".pdf",), ("application/pdf", "application/x-pdf"), binary=True),
    Format(
        "docx",
        "word:parse_docx",
        (".docx", ".docm", ".dotx", ".dotm"),
        (
            "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            "application/vnd.openxmlformats-officedocument.wordprocessingml.template",
            "application/vnd.ms-word.document.macroenabled.12",
        ),
        binary=True,
    ),
    Format(
        "pptx",
        "slides:parse_pptx",
        (".pptx", ".pptm", ".potx", ".potm", ".ppsx", ".ppsm"),
        (
            "application/vnd.openxmlformats-officedocument.presentationml.presentation",
            "application/vnd.openxmlformats-officedocument.presentationml.slideshow",
            "application/vnd.openxmlformats-officedocument.presentationml.template",
            "application/vnd.ms-powerpoint.presentation.macroenabled.12",
        ),
        binary=True,
    ),
    Format(
        "odt",
        "opendocument:parse_odt",
        (".odt", ".ott"),
        ("application/vnd.oasis.opendocument.text", "application/vnd.oasis.opendocument.text-template"),
        binary=True,
    ),
    Format(
        "odp",
        "opendocument:parse_odp",
        (".odp", ".otp"),
        ("application/vnd.oasis.opendocument.presentation", "application/vnd.oasis.opendocument.presentation-template"),
        binary=True,
    ),
    Format("rtf", "rich_text:parse_rtf", (".rtf",), ("application/rtf", "text/rtf"), binary=True),
    Format("epub", "epub:parse_epub", (".epub",), ("application/epub+zip",), binary=True),
    Format("eml", "mail:parse_eml", (".eml",), ("message/rfc822",)),
    Format("msg", "outlook:parse_msg", (".msg",), ("application/vnd.ms-outlook",), binary=True),
    Format("ipynb", "notebook:parse_notebook", (".ipynb",), ("application/x-ipynb+json",)),
    Format("json", "structured:parse_json", (".json",), ("application/json",)),
    Format("xml", "structured:parse_xml_document", (".xml",), ("application/xml", "text/xml")),
    Format("yaml", "structured:parse_yaml", (".yaml", ".yml"), ("application/yaml", "application/x-yaml", "text/yaml")),
    Format("subtitles", "subtitles:parse_subtitles", (".srt", ".vtt"), ("application/x-subrip", "text/vtt")),
    Format(
        "code",
        "code:parse_code",
        CODE_SUFFIXES,
        ("text/x-python", "text/javascript", "application/javascript", "application/sql"),
    ),
    Format("zip", "archive:parse_zip", (".zip",), ("application/zip", "application/x-zip-compressed"), binary=True),
    Format(
        "tar",
        "archive:parse_tar",
        (".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz"),
        ("application/x-tar", "application/x-gtar"),
        binary=True,
    ),
    Format("csv", "delimited:parse_csv", (".csv",), ("text/csv", "application/csv")),
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
_BY_MEDIA_TYPE = {media_type: each for each in FORMATS for media_type in each.media_types}
_TEXT = _BY_NAME["text"]

#: Lower case, with the dot; what `corpus.include` stands for when it is empty.
SUPPORTED_SUFFIXES: tuple[str, ...] = tuple(_BY_SUFFIX)

#: Formats that others are special kinds of, told apart by their names: a notebook is JSON, JSON Lines are nearly.
GENERAL_FORMATS = ("json", "xml")
#: Programs lay such files beside pictures to describe them: they make no folder of pictures one of documents.
SIDECAR_SUFFIXES = (".json", ".xml", ".yaml", ".yml")

#: Readers of PDF accept the mark anywhere in the first 1,024 bytes.
PDF_MARK_WITHIN = 1024
PARQUET_MARK = b"PAR1"
OLE_MARK = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

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
)

_OF_IMAGES = (
    "have it embedded as an image (image_vectorization in a request, `vectorize ingest --kind images`), convert it to "
    "PDF and turn on OCR, or exclude it"
)

ZIP_MARKS = (b"PK\x03\x04", b"PK\x05\x06")
COMPRESSION_MARKS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")
TAR_MARK, TAR_MARK_AT = b"ustar", 257

#: What a ZIP holds by what its parts are called: the format, and how errors name it.
_PARTS = (
    ("word/", "docx", "a Word document"),
    ("xl/", "xlsx", "an Excel workbook"),
    ("ppt/", "pptx", "a PowerPoint presentation"),
    ("visio/", "vsdx", "a Visio drawing"),
    ("index/document.iwa", "iwork", "a document of Apple's iWork"),
)
#: The same by the content type of its main part, which counts for Office.
_MAIN_PARTS = (
    (b"wordprocessingml", "docx"),
    (b"ms-word", "docx"),
    (b"spreadsheetml", "xlsx"),
    (b"ms-excel", "xlsx"),
    (b"presentationml", "pptx"),
    (b"ms-powerpoint", "pptx"),
)
_MAIN_PART = re.compile(rb"ContentType\s*=\s*[\"']application/vnd\.([^\"']{1,200})\.main(?:\+xml)?[\"']")
#: The same by the member `mimetype`.
_MIMETYPES = (
    ("application/epub+zip", "epub", "a book (EPUB)"),
    ("application/vnd.oasis.opendocument.text", "odt", "an OpenDocument text"),
    ("application/vnd.oasis.opendocument.presentation", "odp", "an OpenDocument presentation"),
    ("application/vnd.oasis.opendocument.spreadsheet", "ods", "an OpenDocument spreadsheet"),
    ("application/vnd.oasis.opendocument.", "odf", "an OpenDocument drawing or formula"),
)
_NAMES = {name: shown for _, name, shown in (*_PARTS, *_MIMETYPES)}
_IN_ZIP = ("docx", "pptx", "xlsx", "odt", "odp", "ods", "epub")
_READ_OF_MEMBER = 1 << 20

#: What an OLE file holds by its streams' names, those of which it has several first.
_STREAMS = (
    ("EncryptedPackage", "encrypted", ""),
    ("__properties_version1.0", "msg", "an Outlook message"),
    ("WordDocument", "doc", "a document of Word before 2007; save it as .docx"),
    ("PowerPoint Document", "ppt", "a presentation of PowerPoint before 2007; save it as .pptx"),
    ("Workbook", "xls", "a workbook of Excel before 2007; save it as .xlsx"),
    ("Book", "xls", "a workbook of Excel before 97; save it as .xlsx"),
    ("VisioDocument", "vsd", "a Visio drawing; save it as PDF"),
)


def ending(name: str) -> str:
    """Return the ending of a name, lower case, with its dot: ".gz" of most compressed files, ".tar.gz" of archives."""
    lowered = name.lower()
    longer = (suffix for suffix in SUPPORTED_SUFFIXES if suffix.count(".") > 1 and lowered.endswith(suffix))
    return next(longer, PurePosixPath(lowered).suffix)


def recognised_format(content: bytes, name: str, media_type: str | None = None) -> Format:
    """Return the format of a document: by the mark of a binary format, then by its media type, then by its name.

    name        its path or URI, without a query
    media_type  as in `ParseContext`. One that says nothing (`application/octet-stream`), that is not known, or that
                says a binary format whose mark is missing, counts for nothing; `text/plain` for text of any kind, and
                JSON and XML for what the name says in them

    Raises `ItemError`s for content in a format that is not read, for a binary format without its mark, and
    `UnsupportedFormatError` where nothing tells the format.
    """
    hinted = _believed(_format_of_type(media_type), _BY_SUFFIX.get(ending(name)))
    marked = _marked_format(content, hinted)
    if marked:
        return _format_named(marked)
    for mark, kind in OTHER_MARKS:
        if content.startswith(mark):
            remedy = _OF_IMAGES if kind.endswith("image") else "convert it, or exclude it"
            raise NotTextError(f"holds {kind}, whatever its name says; {remedy}")
    declared = hinted or (_BY_NAME["html"] if _begins_as_html(content) else None)
    if declared is None:
        raise UnsupportedFormatError(_unsupported(name, media_type))
    if declared.binary and not (declared.name == "xls" and export_format(content)):
        holds = "HTML" if content.lstrip()[:1] == b"<" else "something else"
        raise CorruptDocumentError(
            f"is no {declared.name.upper()} file but {holds}; it may be a failed download, fetch it again"
        )
    return declared


def bears_mark(content: bytes) -> bool:
    """Return whether a content begins as a binary format does, one that is read or one that is known and refused."""
    marks = (*ZIP_MARKS, OLE_MARK, b"PAR1", b"{\\rtf", *COMPRESSION_MARKS, *(mark for mark, _ in OTHER_MARKS))
    is_tar = content.startswith(TAR_MARK, TAR_MARK_AT)
    return is_tar or content.startswith(marks) or b"%PDF-" in content[:PDF_MARK_WITHIN]


def _believed(by_type: Format | None, by_name: Format | None) -> Format | None:
    """Return the format that counts, of what the media type and the name say, where the content bears no mark."""
    if by_type is None or by_name is None or by_name.binary:
        return by_type or by_name
    is_general = by_type is _TEXT or (by_type.name in GENERAL_FORMATS and by_name is not _TEXT)
    return by_name if by_type.binary or is_general else by_type


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


def export_format(content: bytes) -> str | None:
    """Return as what a content is read that calls itself an .xls without being one, as exports from web pages do.

    "html" where it is a page with a table, "tsv" where its first line has tabs; None for anything else.
    """
    head = content[:HTML_MARK_WITHIN].removeprefix(codecs.BOM_UTF8).lstrip(b" \r\n").lower()
    if head.startswith(b"<"):
        # Excel's XML of 2003 has elements of that name, too.
        return "html" if b"<table" in head and b"<workbook" not in head else None
    is_text = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" not in head
    return "tsv" if is_text and b"\t" in head.partition(b"\n")[0] else None


def _unsupported(name: str, media_type: str | None) -> str:
    suffix = ending(name)
    named = f"the unsupported ending {suffix[:50]}" if suffix else "no file ending"
    carried = f", the unsupported content type {media_type.partition(';')[0].strip()[:100]}" if media_type else ""
    return (
        f"has {named}{carried}{' and no mark of a known format' if media_type else ''}; "
        f"supported are {' '.join(SUPPORTED_SUFFIXES)}; convert it, or leave it out with corpus.exclude"
    )


def _format_named(name: str) -> Format:
    if name not in _BY_NAME:
        raise UnsupportedFormatError(
            f"is {_NAMES[name]}, whatever its name says, which is not read; export it as PDF, or exclude it"
        )
    return _BY_NAME[name]


def _marked_format(content: bytes, hinted: Format | None) -> str | None:
    if content.startswith(ZIP_MARKS):
        return _zip_format(content, "" if hinted is None else hinted.name)
    if content.startswith(OLE_MARK):
        return _ole_format(content)
    is_parquet = hinted is _BY_NAME["parquet"] or content.endswith(PARQUET_MARK)
    if is_parquet and content.startswith(PARQUET_MARK):
        return "parquet"
    if content.startswith(b"{\\rtf"):
        return "rtf"
    is_compressed_tar = hinted is _BY_NAME["tar"] and content.startswith(COMPRESSION_MARKS)
    if is_compressed_tar or content.startswith(TAR_MARK, TAR_MARK_AT):
        return "tar"
    # Text about PDF may name the mark somewhere; the end of a file is marked too.
    mark = content.find(b"%PDF-", 0, PDF_MARK_WITHIN)
    return "pdf" if mark == 0 or (mark > 0 and b"%%EOF" in content[-PDF_MARK_WITHIN:]) else None


def _zip_format(content: bytes, hinted: str) -> str:
    """Return the format of what is a ZIP: by the content type of its main part, its members' names, its `mimetype`.

    The hinted one where nothing tells, if that is a ZIP, else "zip". Raises `CorruptDocumentError`.
    """
    try:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            names = [name.lower().replace("\\", "/") for name in archive.namelist()]
            by_names = next((kind for part, kind, _ in _PARTS if any(name.startswith(part) for name in names)), None)
            by_type = _type_of_main_part(_member(archive, "[Content_Types].xml"))
            mimetype = _member(archive, "mimetype").decode("ascii", "replace").strip()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        if hinted in _IN_ZIP:
            return hinted
        raise CorruptDocumentError(
            f"cannot be read as ZIP archive ({error}); the file is damaged or cut short, replace it"
        ) from error
    if "[content_types].xml" in names and by_names and by_type and by_type != by_names:
        raise CorruptDocumentError(
            f"calls itself {_NAMES[by_type]} but has the parts of {_NAMES[by_names]}; open it in the program that made "
            "it and save it again"
        )
    by_mimetype = next((kind for start, kind, _ in _MIMETYPES if mimetype.startswith(start)), None)
    # Any archive may have a folder of such a name; a package of Office lists its parts' types.
    office = by_names if "[content_types].xml" in names or hinted == by_names else None
    return by_type or office or by_mimetype or (hinted if hinted in _IN_ZIP else "zip")


def _type_of_main_part(content_types: bytes) -> str | None:
    main = _MAIN_PART.search(content_types)
    return next((name for mark, name in _MAIN_PARTS if main and mark in main[1]), None)


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the beginning of a member; nothing where it is not there, or cannot be read."""
    try:
        with archive.open(name) as stream:
            return stream.read(_READ_OF_MEMBER)
    except (KeyError, RuntimeError, zlib.error, zipfile.BadZipFile, NotImplementedError):
        return b""


def _ole_format(content: bytes) -> str:
    """Return the format of an OLE file, if it is one that is read. Raises `ItemError`s that name the others."""
    found = _streams(content)
    name, shown = next(
        ((name, shown) for stream, name, shown in _STREAMS if stream in found),
        ("", "in the old binary format of Office; save it as .docx"),
    )
    if name == "encrypted":
        raise EncryptedDocumentError("is encrypted; remove the password in the program that made it, or exclude it")
    if name in _BY_NAME:
        return name
    raise UnsupportedFormatError(f"is {shown}, or exclude it")


def _streams(content: bytes) -> set[str]:
    """Return the names of the streams at the top of an OLE file; of a damaged one those that occur in it."""
    import olefile

    try:
        with olefile.OleFileIO(BytesIO(content)) as file:
            return {path[0] for path in file.listdir() if len(path) == 1}
    except Exception:  # noqa: BLE001 (over damaged bytes it raises what it meets; the parser says what is wrong)
        return {stream for stream, _, _ in _STREAMS if stream.encode("utf-16-le") in content}
