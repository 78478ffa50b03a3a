"""What is said of the pages of a PDF: which have no text, what they are called, which sections they are in."""

from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from pypdf import PdfReader, PdfWriter
from pypdf.constants import PageLabelStyle
from pypdf.generic import Fit, NameObject, NumberObject
from reportlab.lib.utils import ImageReader
from reportlab.pdfgen.canvas import Canvas

from tests.documents.builders import ENGLISH, SETTINGS, pdf
from tests.documents.tokenizers_for_tests import PatternTokenizer
from vectorize_pipelines.core.notices import NoticeKind
from vectorize_pipelines.documents.chunking import Chunker
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import EmptyDocumentError, NoTextLayerError
from vectorize_pipelines.documents.formats.pdf import parse_pdf
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.pool import ParserPool
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.settings import DocumentSettings

CASES = Path(__file__).parent / "cases" / "pdf"
PICTURE = ImageReader(Image.new("L", (200, 200), 128))


def read(content: bytes, **settings: Any) -> ParsedDocument:
    return parse_pdf(content, ParseContext(DocumentSettings(**settings), "a.pdf"))


def mixed(pages: str) -> bytes:
    """A PDF with a page for each letter: t of text, p of a picture, s of a picture with a stamp, b blank."""
    buffer = BytesIO()
    canvas = Canvas(buffer)
    for number, kind in enumerate(pages, start=1):
        if kind == "t":
            canvas.drawString(72, 700, f"The text of page {number}.")
        elif kind == "s":
            canvas.drawImage(PICTURE, 0, 0, 595, 842)
            canvas.drawString(72, 20, "Scanned by a telephone")
        elif kind == "p":
            canvas.drawImage(PICTURE, 0, 0, 595, 842)
        canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def changed(content: bytes, change: Any) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(BytesIO(content)))
    change(writer)
    buffer = BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("engine", ["auto", "pdfium", "pypdf"])
def test_pages_that_are_pictures_are_said_by_number(engine: str) -> None:
    document = read(mixed("tppbtp"), pdf_engine=engine)
    (notice,) = document.notices
    assert notice.kind is NoticeKind.OMITTED
    assert notice.what == "3 of 6 pages (2, 3, 6) have no text layer, as scans have"
    assert "VECTORIZE_DOCUMENTS__OCR" in notice.remedy
    assert document.metadata["pages_without_text"] == "2, 3, 6"
    assert document.text.split() == ["The", "text", "of", "page", "1.", "The", "text", "of", "page", "5."]


def test_a_picture_with_a_few_words_is_said_to_be_taken_for_no_scan() -> None:
    (notice,) = read(mixed("tst")).notices
    assert notice.kind is NoticeKind.ASSUMED
    assert notice.what.startswith(
        "1 of 3 pages (2) are pictures beside a few words, and were taken to hold no other text"
    )
    assert "VECTORIZE_DOCUMENTS__OCR" in notice.remedy


@pytest.mark.parametrize("engine", ["auto", "pdfium", "pypdf"])
def test_a_blank_page_is_no_loss(engine: str) -> None:
    document = read(mixed("tbt"), pdf_engine=engine)
    assert document.notices == ()
    assert "pages_without_text" not in document.metadata


def test_what_pdfium_does_not_read_is_read_by_pypdf() -> None:
    document = read((CASES / "tategaki-reportlab.pdf").read_bytes())
    assert document.text.strip() == "いつもおせわになっております"
    assert document.metadata["parser"] == "pypdf"


@pytest.mark.parametrize("engine", ["auto", "pdfium", "pypdf"])
def test_nothing_but_pictures_is_refused(engine: str) -> None:
    with pytest.raises(NoTextLayerError, match=r"3 page\(s\) but no text layer.*VECTORIZE_DOCUMENTS__OCR.*ocrmypdf"):
        read(mixed("ppp"), pdf_engine=engine)


@pytest.mark.parametrize("engine", ["auto", "pdfium", "pypdf"])
def test_a_picture_within_the_drawing_instructions_is_one(engine: str) -> None:
    buffer = BytesIO()
    canvas = Canvas(buffer, pageCompression=0)
    canvas.drawInlineImage(Image.new("L", (200, 200), 128), 0, 0, 595, 842)
    canvas.save()
    with pytest.raises(NoTextLayerError):
        read(buffer.getvalue(), pdf_engine=engine)


@pytest.mark.parametrize("engine", ["auto", "pdfium", "pypdf"])
def test_nothing_but_blank_pages_is_empty_and_no_scan(engine: str) -> None:
    with pytest.raises(EmptyDocumentError, match=r"2 page\(s\), all of them blank"):
        read(mixed("bb"), pdf_engine=engine)


def test_a_file_without_pages_is_empty_and_no_scan() -> None:
    buffer = BytesIO()
    PdfWriter().write(buffer)
    with pytest.raises(EmptyDocumentError, match="has no pages"):
        read(buffer.getvalue())


def cut(writer: PdfWriter) -> None:
    """Make the second page point at nothing that can be read."""
    writer.pages[1][NameObject("/Contents")] = NumberObject(7)
    writer.root_object["/Pages"]["/Kids"][1] = NumberObject(7)  # type: ignore[index]


@pytest.mark.parametrize("engine", ["auto", "pdfium"])
def test_a_damaged_page_is_said_by_number_and_the_others_are_read(engine: str) -> None:
    document = read(changed(mixed("ttt"), cut), pdf_engine=engine)
    assert "The text of page 1." in document.text
    assert "The text of page 3." in document.text
    assert [notice.kind for notice in document.notices] == [NoticeKind.OMITTED]
    assert document.notices[0].what.startswith("1 of 3 pages (2) have damage: page 2 cannot be read as PDF")


def labelled(writer: PdfWriter) -> None:
    writer.set_page_label(0, 1, PageLabelStyle.LOWERCASE_ROMAN)
    writer.set_page_label(2, 3, PageLabelStyle.DECIMAL, prefix="A-")


@pytest.mark.parametrize("engine", ["auto", "pypdf"])
def test_pages_have_the_names_that_are_printed_on_them(engine: str) -> None:
    document = read(changed(mixed("tttt"), labelled), pdf_engine=engine)
    assert [page.metadata.get("page_label") for page in document.pages] == ["i", "ii", "A-1", "A-2"]
    assert [page.number for page in document.pages] == [1, 2, 3, 4]
    assert all(page.metadata == {} for page in read(mixed("tt"), pdf_engine=engine).pages)


def test_passages_have_the_label_of_their_page_and_processes_hand_it_on() -> None:
    with ParserPool(DocumentSettings(parser_processes=1)) as pool:
        content = changed(mixed("tttt"), labelled)
        document = pool.submit("a.pdf", content=content).result().document
    assert document is not None
    chunks = Chunker(PatternTokenizer(), 10, 0).chunks(document)
    assert dict.fromkeys((chunk.page, chunk.metadata["page_label"]) for chunk in chunks) == dict.fromkeys(
        [(1, "i"), (2, "ii"), (3, "A-1"), (4, "A-2")]
    )


OUTLINE = [
    "Contents\nThe harbour\nThe fees",
    "1 The harbour\nIt has three piers.\nThe north pier\nIt is old.",
    "It is long.\n2 The fees\nThey are paid in advance.",
]


def outlined(writer: PdfWriter) -> None:
    harbour = writer.add_outline_item(title="The harbour", page_number=1)
    writer.add_outline_item(title="The north  pier", page_number=1, parent=harbour)
    writer.add_outline_item(title="THE FEES", page_number=2)


@pytest.mark.parametrize("engine", ["auto", "pypdf"])
def test_the_outline_makes_sections(engine: str) -> None:
    document = read(changed(pdf(OUTLINE), outlined), pdf_engine=engine)
    sections = [
        (section.path, document.text[section.start : section.end].split("\n")[0]) for section in document.sections
    ]
    assert sections == [
        ((), "Contents"),
        (("The harbour",), "1 The harbour"),
        (("The harbour", "The north pier"), "The north pier"),
        (("THE FEES",), "2 The fees"),
    ]


def pointed(writer: PdfWriter) -> None:
    writer.add_outline_item(title="Start", page_number=0)
    writer.add_outline_item(title="What it costs", page_number=1, fit=Fit.xyz(left=72, top=742, zoom=1))


def test_a_bookmark_whose_title_is_not_on_the_page_begins_where_it_points_at() -> None:
    document = read(changed(pdf(["A page.", "It is long.\nFees are paid in advance.\nTo the office."]), pointed))
    texts = [(each.path, document.text[each.start : each.end].split()) for each in document.sections]
    assert texts == [
        (("Start",), ["A", "page.", "It", "is", "long."]),
        (("What it costs",), ["Fees", "are", "paid", "in", "advance.", "To", "the", "office."]),
    ]


def garbled(writer: PdfWriter) -> None:
    from pypdf.generic import StreamObject

    meanings = StreamObject()
    meanings.set_data(
        b"/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <ff> endcodespacerange\n"
        b"1 beginbfrange <21> <7f> <e000> endbfrange endcmap end"
    )
    for font in writer.pages[0]["/Resources"]["/Font"].values():  # type: ignore[index]
        font.get_object()[NameObject("/ToUnicode")] = writer._add_object(meanings)


def test_text_without_a_meaning_is_said() -> None:
    (notice,) = read(changed(pdf([ENGLISH]), garbled)).notices
    assert notice.what == "1 of 1 pages (1) have text whose fonts do not say which letters they show"


FORM = changed(
    changed(mixed("tptt"), labelled), lambda writer: writer.add_outline_item(title="The text", page_number=2)
)


@given(
    st.lists(st.tuples(st.integers(0, len(FORM) - 1), st.binary(max_size=6)), min_size=1, max_size=12), st.booleans()
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_damaged_bytes_are_read_or_refused(changes: list[tuple[int, bytes]], shortened: bool) -> None:
    content = bytearray(FORM)
    for place, new in changes:
        content[place : place + len(new)] = new
    if shortened:
        del content[changes[0][0] :]
    try:
        document = parse(b"%PDF-1.4\n" + bytes(content), "a.pdf", SETTINGS)
    except ItemError as error:
        reason = str(error)
    else:
        reason = ""
        assert document.text.strip()
        assert document.pages[-1].end == len(document.text)
    assert "0x" not in reason


@pytest.mark.parametrize("engine", ["pdfium", "pypdf"])
def test_attached_files_are_said_not_to_be_embedded(engine: str) -> None:
    writer = PdfWriter(clone_from=BytesIO(mixed("t")))
    writer.add_attachment("fees.csv", b"text\nForty\n")
    content = BytesIO()
    writer.write(content)
    document = read(content.getvalue(), pdf_engine=engine)
    assert [(notice.kind, notice.what) for notice in document.notices] == [
        ("omitted", "1 file(s) attached to it are not embedded")
    ]
