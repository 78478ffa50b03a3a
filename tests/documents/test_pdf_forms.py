"""Fields, text boxes and comments of PDFs."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader, PdfWriter
from pypdf.annotations import FreeText, Text
from pypdf.generic import BooleanObject, DictionaryObject, NameObject, StreamObject, TextStringObject
from reportlab.pdfgen.canvas import Canvas

from tests.documents.builders import ENGLISH, pdf
from vectorize_pipelines.core.notices import NoticeKind
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.formats.pdf import parse_pdf
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.settings import DocumentSettings

CASES = Path(__file__).parent / "cases" / "pdf"


def read(content: bytes, **settings: Any) -> ParsedDocument:
    return parse_pdf(content, ParseContext(DocumentSettings(**settings), "a.pdf"))


def lines(content: bytes, **settings: Any) -> list[str]:
    return read(content, **settings).text.strip().split("\n")


def form(draw: Callable[[Canvas], None]) -> bytes:
    buffer = BytesIO()
    canvas = Canvas(buffer)
    draw(canvas)
    canvas.showPage()
    canvas.save()
    return buffer.getvalue()


def rewritten(content: bytes, change: Callable[[PdfWriter], None]) -> bytes:
    writer = PdfWriter(clone_from=PdfReader(BytesIO(content)))
    change(writer)
    buffer = BytesIO()
    writer.write(buffer)
    return buffer.getvalue()


def test_values_stand_beside_their_labels() -> None:
    assert lines((CASES / "form.pdf").read_bytes()) == [
        "Application for a mooring place",
        "Name of the owner: Sigrid Vestergaard",
        "Type of vessel: wooden ketch",
        "Insured: [x]",
        "Kragero",
    ]


def test_a_page_may_have_no_text_but_a_field() -> None:
    assert lines((CASES / "only-field.pdf").read_bytes()) == ["The only text of this page is in a field"]


def test_pypdf_names_the_fields() -> None:
    came = lines((CASES / "form.pdf").read_bytes(), pdf_engine="pypdf")
    assert came[-4:] == ["owner: Sigrid Vestergaard", "vessel: wooden ketch", "insured: [x]", "harbour: Kragero"]


def test_kinds_of_fields() -> None:
    def draw(canvas: Canvas) -> None:
        fields = canvas.acroForm
        for number, label in enumerate(["Paid", "By card", "Notes", "Harbours", "Secret", "Hidden"]):
            canvas.drawString(120, 700 - 60 * number, label)
        fields.checkbox(name="paid", x=90, y=695, size=20, checked=False)
        fields.radio(name="how", value="card", x=90, y=635, size=20, selected=True)
        fields.radio(name="how", value="cash", x=300, y=635, size=20, selected=False)
        canvas.drawString(330, 640, "In cash")
        fields.textfield(name="notes", value="two\nlines", x=200, y=560, height=40, width=200, fieldFlags="multiline")
        fields.listbox(
            name="where", value=["k"], options=[("Kragero", "k"), ("Oslo", "o")], x=200, y=500, height=40, width=200
        )
        fields.textfield(name="secret", value="sesame", x=200, y=455, width=200, fieldFlags="password")
        fields.textfield(name="hidden", value="invisible", x=200, y=395, width=200, annotationFlags="hidden")

    assert lines(form(draw)) == [
        "[ ] Paid",
        "[x] By card",
        "[ ] In cash",
        "Notes two",
        "lines",
        "Harbours Kragero",
        "Secret",
        "Hidden",
    ]


def test_a_value_that_its_label_has_too_is_kept_and_one_that_is_drawn_as_well_is_no_second_one() -> None:
    def draw(canvas: Canvas) -> None:
        canvas.drawString(72, 700, "Line 1")
        canvas.acroForm.textfield(name="a", value="1", x=150, y=695, width=50, height=18)
        canvas.drawString(72, 600, "Town")
        canvas.drawString(152, 600, "Oslo")
        canvas.acroForm.textfield(name="b", value="Oslo", x=150, y=595, width=50, height=18)

    assert lines(form(draw)) == ["Line 1 1", "Town Oslo"]


def test_values_stand_in_the_gaps_of_a_line() -> None:
    def draw(canvas: Canvas) -> None:
        canvas.drawString(72, 700, "Born on")
        canvas.drawString(300, 700, "in the town of")
        canvas.drawString(72, 600, "Signed by the owner.")
        canvas.acroForm.textfield(name="day", value="5 May", x=130, y=695, width=100, height=18)
        canvas.acroForm.textfield(name="town", value="Oslo", x=400, y=695, width=100, height=18)

    assert lines(form(draw)) == ["Born on 5 May in the town of Oslo", "Signed by the owner."]


def annotated(writer: PdfWriter) -> None:
    writer.add_annotation(0, FreeText(text="typed onto the page", rect=(72, 500, 300, 520)))
    note = Text(text="is this right?", rect=(10, 10, 30, 30))
    note[NameObject("/T")] = TextStringObject("Ada")
    writer.add_annotation(0, note)


@pytest.mark.parametrize("engine", ["pdfium", "pypdf"])
def test_text_boxes_are_text_and_comments_where_the_settings_ask(engine: str) -> None:
    content = rewritten(pdf([ENGLISH]), annotated)
    assert lines(content, pdf_engine=engine) == [ENGLISH, "typed onto the page"]
    came = lines(content, pdf_engine=engine, pdf_annotations=True)
    assert came == [ENGLISH, "typed onto the page", "Ada: is this right?"]


def dynamic(writer: PdfWriter) -> None:
    stream = StreamObject()
    stream.set_data(b"<xdp:xdp xmlns:xdp='http://ns.adobe.com/xdp/'/>")
    acro_form = DictionaryObject({NameObject("/XFA"): writer._add_object(stream)})
    writer.root_object[NameObject("/AcroForm")] = acro_form
    writer.root_object[NameObject("/NeedsRendering")] = BooleanObject(True)


def test_a_dynamic_form_is_said_to_be_left_out() -> None:
    document = read(rewritten(pdf(["Please wait..."]), dynamic))
    assert [notice.kind for notice in document.notices] == [NoticeKind.OMITTED]
    assert "dynamic form (XFA)" in document.notices[0].what
