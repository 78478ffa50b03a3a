"""PDF, page by page: the text layer through PDFium, through pypdf where PDFium does not read it, and OCR where asked.

`parse_pdf` is called by `documents.parsing`. `reader` has each page read by the engine that can (`pdfium`,
`pypdf_engine`, `ocr`), `layout` puts a page's lines in the order in which a person reads them, `additions` puts the
values of fields beside their labels, `words` mends words that were divided, `bookmarks` makes sections.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import accumulate, chain

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.core.notices import Notice, assumed, listed_numbers, omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EmptyDocumentError,
    NoTextLayerError,
)
from vectorize_pipelines.documents.formats.outline import sections
from vectorize_pipelines.documents.formats.pdf.bookmarks import headings
from vectorize_pipelines.documents.formats.pdf.reader import PageReader
from vectorize_pipelines.documents.formats.pdf.words import Hyphens, plain_letters
from vectorize_pipelines.documents.formats.values import clean_text, iso_date, json_fields, short_label
from vectorize_pipelines.documents.types import Page, ParsedDocument, Section
from vectorize_pipelines.settings import DocumentSettings

PAGE_SEPARATOR = "\n\n"

_REPORTLAB_DEFAULTS = {"Title": "untitled", "Author": "anonymous"}
_OCR_FIRST = "run OCR first (`ocrmypdf in.pdf out.pdf`)"


def parse_pdf(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return text, pages, sections by the outline, and the document information; an empty user password is tried.

    Raises `EncryptedDocumentError`, `NoTextLayerError`, `EmptyDocumentError`, `CorruptDocumentError`,
    `DecompressionLimitError`.
    """
    settings = context.settings
    with ExitStack() as stack:
        reader = PageReader(content, settings, stack)
        texts = _page_texts(reader, settings.max_decompressed_bytes)
        text = "".join(texts)
        if not text.strip():
            raise _nothing(reader, len(texts), settings)
        pages = _pages(reader, texts)
        notices = list(_notices(reader, len(texts), settings))
        try:
            divided = _sections(reader, text, pages)
        except CorruptDocumentError as error:
            divided = ()
            notices.append(omitted(f"its outline is left out: it {error}", "save it again with another program"))
        return ParsedDocument(
            text, json_fields(_fields(reader, len(pages))), sections=divided, pages=pages, notices=tuple(notices)
        )


def _page_texts(reader: PageReader, max_characters: int) -> list[str]:
    """Return each page's text. Raises `DecompressionLimitError` for more than is taken."""
    texts: list[str] = []
    length = 0
    for number in range(1, reader.ask(len) + 1):
        texts.append(plain_letters(clean_text(reader.page(number)).strip() + PAGE_SEPARATOR))
        length += len(texts[-1])
        if length > max_characters:
            raise DecompressionLimitError(
                f"holds more than {max_characters:,} characters; "
                "split it, or raise VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"
            )
    hyphens = Hyphens(texts)
    return [hyphens.joined(text) for text in texts]


def _pages(reader: PageReader, texts: Sequence[str]) -> tuple[Page, ...]:
    """Return pages that together cover the text: each reaches to where the next one starts."""
    ends = list(accumulate(map(len, texts)))
    bounds = zip([0, *ends], ends, strict=False)
    labels = _labels(reader, len(texts))
    pages = []
    for number, ((start, end), label) in enumerate(zip(bounds, labels, strict=True), start=1):
        fields: dict[str, JsonValue] = {}
        if label not in ("", str(number)):
            fields["page_label"] = short_label(label)
        if number in reader.outcome.confidence:
            fields["ocr_confidence"] = reader.outcome.confidence[number]
        pages.append(Page(start, end, number, fields))
    return tuple(pages)


def _labels(reader: PageReader, count: int) -> list[str]:
    """Return what each page calls itself. They are an extra: of a file whose labels are damaged there are none."""
    try:
        return reader.ask(lambda engine: [engine.label(number) for number in range(count)])
    except CorruptDocumentError:
        return [""] * count


def _attachments(reader: PageReader) -> int:
    """Return how many files are attached; none where the list of them is damaged."""
    try:
        return reader.ask(lambda engine: engine.attachments())
    except CorruptDocumentError:
        return 0


def _sections(reader: PageReader, text: str, pages: Sequence[Page]) -> tuple[Section, ...]:
    """Return the sections of the outline. Raises `CorruptDocumentError`."""
    bookmarks = reader.ask(lambda engine: engine.bookmarks())
    found = headings(
        text, pages, bookmarks, lambda page, height: reader.ask(lambda engine: engine.line_at(page, height))
    )
    return sections(text, found)


def _fields(reader: PageReader, page_count: int) -> dict[str, object]:
    """Return the document's metadata."""
    outcome = reader.outcome
    information = reader.ask(lambda engine: engine.information)
    missing = sorted(chain(outcome.damaged, outcome.without, outcome.illegible))
    confidences = outcome.confidence.values()
    return {
        "title": _stated(information, "Title"),
        "author": _stated(information, "Author"),
        "created": iso_date(information.get("CreationDate")),
        "modified": iso_date(information.get("ModDate")),
        "page_count": page_count,
        "pages_without_text": listed_numbers(missing) or None,
        "ocr_confidence": round(sum(confidences) / len(confidences), 3) if confidences else None,
        "parser": "+".join(engine for engine in ("pdfium", "pypdf", "ocr") if outcome.engines[engine]),
    }


def _stated(information: Mapping[str, str], name: str) -> str | None:
    """Return what the document's author says of it; None for what ReportLab writes where its author says nothing."""
    value = information.get(name)
    by_default = value == _REPORTLAB_DEFAULTS[name] and information.get("Producer", "").startswith("ReportLab")
    return None if by_default else value


def _notices(reader: PageReader, page_count: int, settings: DocumentSettings) -> Iterator[Notice]:
    """Yield what of the document is not in the text, by the numbers of its pages."""
    outcome = reader.outcome
    late = set(outcome.unrecognised)
    groups = (
        (outcome.without, "no text layer, as scans have"),
        (outcome.illegible, "text whose fonts do not say which letters they show"),
    )
    for pages, what in groups:
        if numbers := [number for number in pages if number not in late]:
            yield omitted(f"{_of(numbers, page_count)} have {what}", ocr_remedy(reader, settings))
    if pictures := [number for number in outcome.pictures if number not in late and not _has_ocr(reader, settings)]:
        yield assumed(
            f"{_of(pictures, page_count)} are pictures beside a few words, and were taken to hold no other text",
            ocr_remedy(reader, settings),
        )
    if late:
        yield omitted(
            f"OCR had no time left for {_of(sorted(late), page_count)}, which are pictures",
            "raise VECTORIZE_DOCUMENTS__TIMEOUT_SECONDS",
        )
    if damaged := [number for number in outcome.damaged if number not in late]:
        reason = outcome.damaged[damaged[0]]
        yield omitted(f"{_of(damaged, page_count)} have damage: page {damaged[0]} {reason}", "replace the file")
    if attached := _attachments(reader):
        yield omitted(f"{attached:,} file(s) attached to it are not embedded", "save them as files of their own")
    if reader.ask(lambda engine: engine.is_dynamic_form):
        yield omitted(
            "it is a dynamic form (XFA), whose pages are made by the program that shows it",
            "print it to a PDF with Adobe Reader, and embed that",
        )


def _of(numbers: Sequence[int], page_count: int) -> str:
    return f"{len(numbers):,} of {page_count:,} pages ({listed_numbers(numbers)})"


def _has_ocr(reader: PageReader, settings: DocumentSettings) -> bool:
    return settings.ocr and not reader.ocr_missing


def ocr_remedy(reader: PageReader, settings: DocumentSettings) -> str:
    """Return what helps against pages that are pictures."""
    if not settings.ocr:
        return f"turn on VECTORIZE_DOCUMENTS__OCR, or {_OCR_FIRST}"
    if reader.ocr_missing:
        return reader.ocr_missing
    return f"OCR read nothing on them; scan them again, or {_OCR_FIRST}"


def _nothing(
    reader: PageReader, page_count: int, settings: DocumentSettings
) -> CorruptDocumentError | EmptyDocumentError | NoTextLayerError:
    """Return the error for a document without a text."""
    outcome = reader.outcome
    if not page_count:
        return EmptyDocumentError("has no pages; save it again, or exclude it by VECTORIZE_CORPUS__EXCLUDE")
    if outcome.damaged and not outcome.without:
        number, reason = next(iter(outcome.damaged.items()))
        return CorruptDocumentError(f"has no page that can be read: page {number} {reason}")
    if reader.ask(lambda engine: engine.is_dynamic_form):
        return NoTextLayerError("is a dynamic form (XFA), which Adobe Reader shows; print it to a PDF with that")
    if not outcome.without and not outcome.unrecognised:
        return EmptyDocumentError(
            f"has {page_count} page(s), all of them blank; fill it, or exclude it by VECTORIZE_CORPUS__EXCLUDE"
        )
    return NoTextLayerError(
        f"has {page_count} page(s) but no text layer, as scans have; {ocr_remedy(reader, settings)}"
    )
