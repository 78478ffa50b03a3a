"""Word documents as Word opens them, and what only pretends to be one."""

import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.documents import packages
from tests.documents.builders import SETTINGS
from tests.documents.builders import settings as document_settings
from tests.documents.packages import NAMESPACES, word
from vectorize_pipelines.documents import ParsedDocument, parse
from vectorize_pipelines.documents.errors import CorruptDocumentError, UnsupportedFormatError
from vectorize_pipelines.errors import ItemError

CASES = Path(__file__).parent / "cases" / "docx"


def read(content: bytes, name: str = "a.docx", **changes: object) -> ParsedDocument:
    return parse(content, name, document_settings(**changes) if changes else SETTINGS)


def paragraph(text: str, more: str = "", style: str = "") -> str:
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r>{more}</w:p>"


def box(text: str) -> str:
    """A text box, as Word writes it: once for each generation of programs."""
    content = f"<w:txbxContent>{paragraph(text)}</w:txbxContent>"
    return (
        '<w:r><mc:AlternateContent><mc:Choice Requires="wps"><w:drawing><wps:txbx>'
        f"{content}</wps:txbx></w:drawing></mc:Choice><mc:Fallback><w:pict><v:textbox>{content}</v:textbox></w:pict>"
        "</mc:Fallback></mc:AlternateContent></w:r>"
    )


STYLES = (
    f'<w:styles {NAMESPACES}><w:style w:styleId="H1"><w:name w:val="heading 1"/></w:style>'
    '<w:style w:styleId="Own"><w:name w:val="Own"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr></w:style></w:styles>'
)


@pytest.mark.parametrize("name", ["null", "strict", "macro", "template"])
def test_what_word_opens_is_read(name: str) -> None:
    assert read((CASES / f"{name}.docx").read_bytes()).text == "The winch was oiled on Monday."


def test_notes_follow_the_paragraph_that_refers_to_them() -> None:
    text = read((CASES / "footnote.docx").read_bytes()).text
    first, *notes = text.split("\n\n")
    assert first == "The lease ends in June unless renewed."
    assert notes[0] == "A penalty of ninety crowns applies for each late week."
    assert len(notes) == 2


def test_a_workbook_that_has_the_name_and_the_parts_of_a_document_is_named() -> None:
    with pytest.raises(CorruptDocumentError, match="calls itself an Excel workbook") as error:
        read((CASES / "sheet.docx").read_bytes())
    assert " at 0x" not in str(error.value)


def test_a_presentation_with_the_name_of_a_document_is_read_as_what_it_is() -> None:
    document = read(packages.pptx(("Fees", ["Forty crowns"], "")))
    assert (document.text, document.metadata["parser"]) == ("Fees\n\nForty crowns", "pptx")


def test_a_drawing_with_the_name_of_a_document_is_named() -> None:
    with pytest.raises(UnsupportedFormatError, match="a Visio drawing"):
        read(packages.package({"[Content_Types].xml": "<Types/>", "visio/document.xml": "<x/>"}))


def test_text_boxes_stand_apart_and_are_in_no_sections_name() -> None:
    body = paragraph("Berths", box("Closed on Mondays"), "H1") + paragraph("There are nine.", box("See the map"))
    document = read(word(body, ("styles", "styles.xml"), styles=STYLES))
    assert document.text == "Berths\n\nClosed on Mondays\n\nThere are nine.\n\nSee the map"
    assert [section.path for section in document.sections] == [("Berths",)]


def test_an_outline_level_makes_a_heading() -> None:
    body = paragraph("Fees", style="H1") + paragraph("Late", style="Own") + paragraph("Ninety crowns.")
    document = read(word(body, ("styles", "styles.xml"), styles=STYLES))
    assert document.sections[-1].path == ("Fees", "Late")


def test_comments_are_embedded_unless_the_settings_leave_them_out() -> None:
    comments = (
        f'<w:comments {NAMESPACES}><w:comment w:id="0" w:author="Ada">{paragraph("Ask the harbour master")}</w:comment>'
        "</w:comments>"
    )
    content = word(
        paragraph("The pier is closed.", '<w:r><w:commentReference w:id="0"/></w:r>'),
        ("comments", "comments.xml"),
        comments=comments,
    )
    assert read(content).text == "The pier is closed.\n\nComment by Ada: Ask the harbour master"
    assert read(content, office_comments=False).text == "The pier is closed."


def test_a_ruby_is_read_without_its_reading() -> None:
    ruby = (
        "<w:r><w:ruby><w:rubyPr/><w:rt><w:r><w:t>とうきょう</w:t></w:r></w:rt>"
        "<w:rubyBase><w:r><w:t>東京</w:t></w:r></w:rubyBase></w:ruby></w:r>"
    )
    assert read(word(paragraph("駅は", ruby))).text == "駅は東京"


def test_equations_are_text() -> None:
    run = "<m:r><m:t>{}</m:t></m:r>".format
    equation = (
        f"<m:oMathPara><m:oMath>{run('x=')}<m:f><m:num>{run('-b±')}<m:rad><m:deg/><m:e>"
        f"<m:sSup><m:e>{run('b')}</m:e><m:sup>{run('2')}</m:sup></m:sSup>{run('-4ac')}</m:e></m:rad></m:num>"
        f"<m:den>{run('2a')}</m:den></m:f></m:oMath></m:oMathPara>"
    )
    assert read(word(paragraph("Solved: ", equation))).text == "Solved: x=(-b±√(b^2-4ac))/2a"


def test_empty_cells_keep_their_place_and_spanning_ones_theirs() -> None:
    def row(*cells: str) -> str:
        return f"<w:tr>{''.join(f'<w:tc>{cell}</w:tc>' for cell in cells)}</w:tr>"

    span = '<w:tcPr><w:gridSpan w:val="2"/></w:tcPr>'
    table = (
        row(paragraph("Berth"), span + paragraph("Fee"))
        + row("<w:p/>", paragraph("summer"), paragraph("winter"))
        + row(paragraph("North"), "<w:p/>", paragraph("40"))
        + row("<w:p/>", "<w:p/>", "<w:p/>")
        + f"<w:tr><w:trPr><w:del/></w:trPr><w:tc>{paragraph('gone')}</w:tc></w:tr>"
    )
    lines = read(word(f"<w:tbl>{table}</w:tbl>")).text.split("\n")
    assert lines == ["Berth | Fee |", "| summer | winter", "North | | 40"]


def test_hidden_and_deleted_text_is_left_out_and_symbols_are_read() -> None:
    runs = (
        "<w:r><w:rPr><w:vanish/></w:rPr><w:t> secret</w:t></w:r>"
        '<w:r><w:rPr><w:vanish w:val="0"/></w:rPr><w:t> shown </w:t></w:r>'
        '<w:r><w:sym w:font="Wingdings" w:char="F0FC"/><w:sym w:font="Symbol" w:char="F061"/></w:r>'
    )
    assert read(word(paragraph("Text", runs))).text == "Text shown ✓α"


def test_a_chart_and_a_diagram_are_read() -> None:
    chart = (
        f"<c:chartSpace {NAMESPACES}><c:title><a:t>Fees</a:t></c:title><c:ser><c:tx><c:v>North</c:v></c:tx><c:cat>"
        "<c:v>2023</c:v><c:v>2024</c:v></c:cat><c:val><c:v>40</c:v><c:v>45</c:v></c:val></c:ser></c:chartSpace>"
    )
    diagram = f"<dgm:dataModel {NAMESPACES}><dgm:t><a:p><a:r><a:t>Moor</a:t></a:r></a:p></dgm:t></dgm:dataModel>"
    drawings = '<w:r><w:drawing><c:chart r:id="rId1"/><dgm:relIds r:dm="rId2"/></w:drawing></w:r>'
    content = word(
        paragraph("Below:", drawings), ("chart", "chart.xml"), ("diagramData", "data.xml"), chart=chart, data=diagram
    )
    assert read(content).text == "Below:\n\nFees\nNorth: 2023 40, 2024 45\n\nMoor"


def test_a_page_that_word_takes_in_is_read_and_another_document_said_to_be_missing() -> None:
    base = word('<w:altChunk r:id="rId1"/><w:altChunk r:id="rId2"/>', ("aFChunk", "page.html"), ("aFChunk", "b.docx"))
    with zipfile.ZipFile(BytesIO(base)) as archive:
        parts: dict[str, str | bytes] = {name: archive.read(name) for name in archive.namelist()}
    document = read(packages.package(parts | {"word/page.html": "<p>Taken in</p>", "word/b.docx": "x"}))
    assert document.text == "Taken in"
    assert "word/b.docx" in document.notices[0].what


def test_embedded_objects_and_old_equations_are_said_to_be_missing() -> None:
    objects = '<w:r><w:object><o:OLEObject ProgID="{}"/></w:object></w:r>'.format
    document = read(word(paragraph("Here", objects("Excel.Sheet.12") + objects("Equation.3"))))
    assert [notice.kind for notice in document.notices] == ["omitted", "omitted"]
    assert "1 embedded object" in document.notices[0].what
    assert "1 equation" in document.notices[1].what


def test_an_entity_that_grows_is_refused() -> None:
    grows = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "ha" * 10}">' for n in range(10))
    content = packages.package(
        {"word/document.xml": f"<!DOCTYPE w [{grows}]><w:document {NAMESPACES}><w:p>&e9;</w:p></w:document>"}
    )
    with pytest.raises(CorruptDocumentError, match="cannot be read as DOCX"):
        read(content)


SAMPLES = {
    "a.docx": (CASES / "footnote.docx").read_bytes(),
    "a.pptx": packages.pptx(("One", ["two"], "three")),
    "a.odt": packages.odt("<text:h text:outline-level='1'>One</text:h><text:p>two</text:p>"),
    "a.odp": packages.odp(("One", "two", "three")),
    "a.epub": packages.epub("<h1>One</h1><p>two</p>"),
    "a.rtf": rb"{\rtf1\ansi{\fonttbl{\f0\fcharset204 A;}}{\*\x y}\f0 \'e0 one{\footnote two}\cell\row\u233 ?}",
    "a.eml": b"From: a\nSubject: b\nContent-Type: multipart/mixed; boundary=x\n\n--x\n\none\n--x--\n",
    "a.ipynb": packages.notebook(("markdown", "# One"), ("code", "two")),
    "a.json": b'{"a": [1, {"b": null}], "c": "d"}',
    "a.xml": b'<a b="c"><d>e</d>f</a>',
    "a.srt": b"1\n00:00:01,000 --> 00:00:02,000\none\n",
    "a.py": b"class A:\n    def b(self):\n        pass\n",
    "a.zip": packages.package({"a.txt": "one", "b.zip": packages.package({"c.md": "# two"})}),
}


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_happens_to_a_file_it_is_read_or_refused_with_a_reason(name: str, data: st.DataObject) -> None:
    content = bytearray(SAMPLES[name])
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(content) - 1))
        length = data.draw(st.integers(0, 8))
        content[place : place + length] = data.draw(st.binary(max_size=8))
    try:
        parse(bytes(content), name, SETTINGS)
    except ItemError as error:
        assert " at 0x" not in str(error)  # noqa: PT017 (most of them are read)


@pytest.mark.parametrize("name", [name for name in SAMPLES if name.endswith(("x", "t", "p", "b"))])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_the_parts_of_a_package_say_it_is_read_or_refused(name: str, data: st.DataObject) -> None:
    if not SAMPLES[name].startswith(b"PK"):
        return
    with zipfile.ZipFile(BytesIO(SAMPLES[name])) as archive:
        parts = {each: bytearray(archive.read(each)) for each in archive.namelist()}
    changed = data.draw(st.sampled_from(sorted(each for each, content in parts.items() if content)))
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(parts[changed])))
        parts[changed][place : place + data.draw(st.integers(0, 30))] = data.draw(
            st.sampled_from([b"", b"<w:p>", b"</w:p>", b'"', b"9999999999", b"../", b"<", b"&x;", b"\xff"])
        )
    try:
        parse(packages.package({each: bytes(content) for each, content in parts.items()}), name, SETTINGS)
    except ItemError as error:
        assert " at 0x" not in str(error)  # noqa: PT017 (most of them are read)
