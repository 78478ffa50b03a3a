"""Recognised text of scanned pages: ten of them, in two languages, of which the text is known."""

from io import BytesIO
from itertools import accumulate
from statistics import mean

import pytest
from PIL import Image
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from tests.documents.builders import pdf
from tests.documents.scans import PAGES, PIXELS_PER_INCH, SCANS, page_text
from vectorize_pipelines.core import extras
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import NoTextLayerError
from vectorize_pipelines.documents.formats.pdf import parse_pdf
from vectorize_pipelines.documents.pool import ParserPool
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings import DocumentSettings

#: The share of wrong characters by page, and of all; docs/documents.md has what was measured.
MOST_WRONG, MOST_WRONG_OF_ALL = 0.05, 0.02


def scan(*names: str) -> bytes:
    """A PDF of scanned pages."""
    buffer = BytesIO()
    canvas = Canvas(buffer)
    for name in names:
        with Image.open(SCANS / f"{name}.jpg") as picture:
            width, height = (side * 72 / PIXELS_PER_INCH for side in picture.size)
        canvas.setPageSize((width, height))
        canvas.drawImage(ImageReader(str(SCANS / f"{name}.jpg")), 0, 0, width, height)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def error_rate(came: str, right: str) -> float:
    """The edits from one text to the other, by the length of the right one; an end of a line is a space.

    In Chinese it is nothing.
    """
    glue = " " if right.isascii() else ""
    came, right = glue.join(came.split()), glue.join(right.split())
    row = list(range(len(right) + 1))
    for number, character in enumerate(came, start=1):
        costs = zip(row, row[1:], right, strict=False)
        row = list(
            accumulate(
                (min(above + (character != other), up + 1) for above, up, other in costs),
                lambda left, best: min(left + 1, best),
                initial=number,
            )
        )
    return row[-1] / len(right)


@pytest.fixture(scope="module")
def read() -> ParsedDocument:
    """All ten pages, read where parsers run: without a network, in bounded memory."""
    assert extras.is_installed("ocr"), extras.needs("this test", "ocr")
    with ParserPool(DocumentSettings(ocr=True, parser_processes=1, timeout_seconds=600)) as pool:
        document = pool.submit("scan.pdf", content=scan(*PAGES)).result().document
    assert document is not None
    return document


def test_few_characters_are_wrong(read: ParsedDocument) -> None:
    texts = [read.text[page.start : page.end] for page in read.pages]
    rates = {name: error_rate(text, page_text(name)) for name, text in zip(PAGES, texts, strict=True)}
    assert max(rates.values()) <= MOST_WRONG, rates
    assert mean(rates.values()) <= MOST_WRONG_OF_ALL, rates


def test_how_sure_it_is_stands_in_the_metadata(read: ParsedDocument) -> None:
    assert read.metadata["parser"] == "ocr"
    sure = [page.metadata["ocr_confidence"] for page in read.pages]
    assert all(isinstance(each, float) and 0.8 < each <= 1 for each in sure)
    assert read.notices == ()


def test_only_pages_without_text_are_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    from vectorize_pipelines.documents.formats.pdf import ocr

    found = ocr.Recognised("What the scan says", 0.9, 15.3, lies=False)
    monkeypatch.setattr(ocr, "recognise", lambda picture: found)
    monkeypatch.setattr("vectorize_pipelines.documents.formats.pdf.reader.missing", lambda *_: None)
    both = combined(pdf(["A page of text."]), scan("en-1"))
    document = parse_pdf(both, ParseContext(DocumentSettings(ocr=True), "a.pdf"))
    assert document.text.split("\n\n") == ["A page of text.", "What the scan says", ""]
    assert [page.metadata for page in document.pages] == [{}, {"ocr_confidence": 0.9}]
    assert document.metadata["parser"] == "pdfium+ocr"


def combined(*contents: bytes) -> bytes:
    from pypdf import PdfWriter

    writer = PdfWriter()
    for content in contents:
        writer.append(BytesIO(content))
    buffer = BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_pages_that_there_is_no_time_for_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vectorize_pipelines.documents.formats.pdf.reader.OCR_SHARE", -1.0)
    monkeypatch.setattr("vectorize_pipelines.documents.formats.pdf.reader.missing", lambda *_: None)
    both = combined(pdf(["A page of text."]), scan("en-1", "en-2"))
    (notice,) = parse_pdf(both, ParseContext(DocumentSettings(ocr=True), "a.pdf")).notices
    assert str(notice) == (
        "OCR had no time left for 2 of 3 pages (2, 3), which are pictures; raise VECTORIZE_DOCUMENTS__TIMEOUT_SECONDS"
    )


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "is_installed", lambda extra: False)
    with pytest.raises(NoTextLayerError, match=r"documents\.ocr needs rapidocr.*\[ocr\]"):
        parse_pdf(scan("en-1"), ParseContext(DocumentSettings(ocr=True), "a.pdf"))
    with pytest.raises(SettingsError, match=r"documents\.ocr needs rapidocr"):
        ParserPool(DocumentSettings(ocr=True))
