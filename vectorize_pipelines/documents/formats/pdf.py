"""PDF: the text layer page by page, through PDFium, and through pypdf where PDFium fails or is not wanted."""

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from io import BytesIO
from typing import TYPE_CHECKING

from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EncryptedDocumentError,
    NoTextLayerError,
    damage_reported,
)
from vectorize_pipelines.documents.formats.values import clean_text, iso_date, json_fields
from vectorize_pipelines.documents.types import Page, ParsedDocument
from vectorize_pipelines.settings import DocumentSettings

if TYPE_CHECKING:
    from pypdfium2 import PdfDocument

PAGE_SEPARATOR = "\n\n"

#: Points; PDFium's other function for text loses what lies beyond Unicode's first plane, and this one by default
#: what reaches over the edge of the page.
EVERYWHERE = 1e6

#: PDFium writes U+FFFE or U+0002 for a hyphen that only divides a word at the end of a line.
_SOFT_HYPHEN = re.compile("[\x02\ufffe\uffff]\n?")


def parse_pdf(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return text, pages and the document information; an empty user password is tried.

    Raises `EncryptedDocumentError`, `NoTextLayerError`, `CorruptDocumentError`, `DecompressionLimitError`.
    """
    settings = context.settings
    if settings.pdf_engine == "pdfium":
        return _with_pdfium(content, settings)
    if settings.pdf_engine == "pypdf":
        return _with_pypdf(content, settings)
    try:
        return _with_pdfium(content, settings)
    except CorruptDocumentError:
        return _with_pypdf(content, settings)


def _with_pdfium(content: bytes, settings: DocumentSettings) -> ParsedDocument:
    import pypdfium2
    from pypdfium2 import raw

    with damage_reported("PDF"):
        try:
            opened = pypdfium2.PdfDocument(content)
        except pypdfium2.PdfiumError as error:
            if error.err_code == raw.FPDF_ERR_PASSWORD:
                raise _encrypted() from error
            raise
        with closing(opened) as document:
            return _document(
                (_pdfium_page(document, number) for number in range(len(document))),
                document.get_metadata_dict(),
                "pdfium",
                settings.max_decompressed_bytes,
            )


def _pdfium_page(document: "PdfDocument", number: int) -> str:
    # Closed page by page: a document of thousands would otherwise keep all of them decoded.
    with closing(document[number]) as page, closing(page.get_textpage()) as text_page:
        return str(text_page.get_text_bounded(-EVERYWHERE, -EVERYWHERE, EVERYWHERE, EVERYWHERE))


def _with_pypdf(content: bytes, settings: DocumentSettings) -> ParsedDocument:
    from pypdf import PdfReader
    from pypdf.errors import LimitReachedError

    with damage_reported("PDF"):
        try:
            reader = PdfReader(BytesIO(content))
            if reader.is_encrypted and not reader.decrypt(""):
                raise _encrypted()
            information = {key.removeprefix("/"): str(value) for key, value in (reader.metadata or {}).items()}
            return _document(
                (page.extract_text() for page in reader.pages), information, "pypdf", settings.max_decompressed_bytes
            )
        except LimitReachedError as error:
            raise DecompressionLimitError(f"unpacks to more than the PDF reader allows ({error})") from error


def _encrypted() -> EncryptedDocumentError:
    return EncryptedDocumentError("is encrypted; remove the password (`qpdf --decrypt`), or exclude the file")


def _document(
    page_texts: Iterator[str], information: Mapping[str, str], parser: str, max_characters: int
) -> ParsedDocument:
    """Return pages in order; each reaches to where the next one starts, so that together they cover the text."""
    parts: list[str] = []
    starts: list[int] = []
    length = 0
    for page_text in page_texts:
        starts.append(length)
        part = _SOFT_HYPHEN.sub("", clean_text(page_text)).strip() + PAGE_SEPARATOR
        length += len(part)
        parts.append(part)
        if length > max_characters:
            raise DecompressionLimitError(
                f"holds more than {max_characters:,} characters; "
                "split it, or raise VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"
            )
    text = "".join(parts)
    if not text.strip():
        raise NoTextLayerError(
            f"has {len(starts)} page(s) but no text layer, as scans have; run OCR first (`ocrmypdf in.pdf out.pdf`)"
        )
    pages = tuple(
        Page(start, end, number)
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], length], strict=True), start=1)
    )
    metadata = {
        "title": information.get("Title"),
        "author": information.get("Author"),
        "created": iso_date(information.get("CreationDate")),
        "modified": iso_date(information.get("ModDate")),
        "page_count": len(pages),
        "parser": parser,
    }
    return ParsedDocument(text, json_fields(metadata), pages=pages)
