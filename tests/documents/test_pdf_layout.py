"""The order in which the lines of a PDF's pages are read."""

import random
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, StreamObject
from reportlab.pdfgen.canvas import Canvas

from tests.documents.builders import pdf
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.formats.pdf import parse_pdf
from vectorize_pipelines.documents.formats.pdf.layout import Line, reading_order
from vectorize_pipelines.settings import DocumentSettings

CASES = Path(__file__).parent / "cases" / "pdf"
WORDS = [
    *("the", "harbour", "office", "keeps", "a", "register", "of", "every", "boat", "that", "enters", "or", "leaves"),
    *("between", "sunrise", "and", "sunset", "with", "its", "length", "which", "was", "paid", "for", "mooring"),
]
BERTHS = [
    "Table of berths and fees",
    "North pier takes boats of ten metres",
    "South pier takes boats of twelve",
    "Fees are paid in advance at the office",
    "Late payment costs five crowns more",
    "The office opens at eight",
    "and closes at noon",
]


def paragraph(name: str, lines: int, width: int) -> list[str]:
    """Lines of about so many characters, each with a first word of its own."""
    random_words = random.Random(name)
    made = []
    for number in range(lines):
        line = f"{name}{number}"
        while len(line) < width - 4:
            line += f" {random_words.choice(WORDS)}"
        made.append(line)
    return made


def page(draw: Callable[[Canvas], None]) -> list[str]:
    """The lines that are read from a page."""
    buffer = BytesIO()
    canvas = Canvas(buffer)
    canvas.setFont("Helvetica", 10)
    draw(canvas)
    canvas.showPage()
    canvas.save()
    return read(buffer.getvalue())


def read(content: bytes) -> list[str]:
    return parse_pdf(content, ParseContext(DocumentSettings(), "a.pdf")).text.strip().split("\n")


Placed = list[tuple[float, float, str]]


def block(lines: list[str], x: float, y: float) -> Placed:
    return [(x, y - 13 * number, line) for number, line in enumerate(lines)]


def drawn(canvas: Canvas, placed: Placed) -> None:
    for x, y, line in placed:
        canvas.drawString(x, y, line)


@pytest.mark.parametrize("name", ["landscape-rotate90.pdf", "landscape-reportlab.pdf"])
def test_a_turned_page_keeps_its_lines(name: str) -> None:
    assert read((CASES / name).read_bytes()) == BERTHS


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("angle", [0, 90, 180, 270])
def test_lines_are_kept_however_text_and_page_are_turned(rotation: int, angle: int) -> None:
    def draw(canvas: Canvas) -> None:
        canvas.setPageRotation(rotation)
        canvas.translate(300, 400)
        canvas.rotate(angle)
        drawn(canvas, block(BERTHS, -100, 100))

    assert page(draw) == BERTHS


@pytest.mark.parametrize("order", ["by column", "by row", "at random"])
@pytest.mark.parametrize(("columns", "width", "step"), [(2, 44, 260), (3, 28, 180)])
def test_columns_are_read_one_after_the_other(columns: int, width: int, step: float, order: str) -> None:
    blocks = [paragraph("abc"[number], 8, width) for number in range(columns)]
    placed = [each for number, lines in enumerate(blocks) for each in block(lines, 50 + step * number, 740)]
    if order == "by row":
        placed.sort(key=lambda each: (-each[1], each[0]))
    elif order == "at random":
        random.Random(7).shuffle(placed)
    head, foot = (50.0, 800.0, "Yearly report on the harbours"), (290.0, 40.0, "- 7 -")
    came = page(lambda canvas: drawn(canvas, [foot, *placed, head]))
    assert came == [head[2], *(line for lines in blocks for line in lines), foot[2]]


def test_a_heading_across_divides_the_columns() -> None:
    above = [paragraph("a", 5, 44), paragraph("b", 5, 44)]
    below = [paragraph("c", 6, 44), paragraph("d", 6, 44)]
    heading = "What the fees are, which goes across both of the columns that stand above and below of it"
    placed = [
        *block(above[0], 50, 740),
        *block(above[1], 310, 740),
        (50.0, 660.0, heading),
        *block(below[0], 50, 640),
        *block(below[1], 310, 640),
    ]
    placed.sort(key=lambda each: (-each[1], each[0]))
    assert page(lambda canvas: drawn(canvas, placed)) == [*above[0], *above[1], heading, *below[0], *below[1]]


def test_the_rows_of_a_table_stay_rows() -> None:
    rows = [
        ("Berth 1", "North pier", "40 crowns", "paid"),
        *[(f"Berth {n}", "South pier", f"{n}", "") for n in range(9)],
    ]
    placed = [
        (50.0 + 120 * x, 700.0 - 14 * y, cell) for y, row in enumerate(rows) for x, cell in enumerate(row) if cell
    ]
    assert page(lambda canvas: drawn(canvas, placed)) == [" ".join(filter(None, row)) for row in rows]


def test_the_cells_of_a_table_stay_together() -> None:
    cells = [paragraph(name, 2, 44) for name in "abcdef"]
    placed = [
        each
        for number, cell in enumerate(cells)
        for each in block(cell, 50 + 260 * (number % 2), 700 - 40 * (number // 2))
    ]
    assert page(lambda canvas: drawn(canvas, placed)) == [line for cell in cells for line in cell]


def test_the_rows_of_a_ruled_table_stay_rows() -> None:
    rows = list(zip(paragraph("a", 8, 44), paragraph("b", 8, 44), strict=True))

    def draw(canvas: Canvas) -> None:
        for number, row in enumerate(rows):
            canvas.line(45, 712 - 16 * number, 550, 712 - 16 * number)
            drawn(canvas, [(50, 700 - 16 * number, row[0]), (310, 700 - 16 * number, row[1])])

    assert page(draw) == [" ".join(row) for row in rows]


def test_a_ruled_table_that_is_written_column_by_column_is_read_row_by_row() -> None:
    columns = [["Berth", "North", "South"], ["Fee", "40 crowns", "30 crowns"], ["Length", "10 m", "8 m"]]

    def draw(canvas: Canvas) -> None:
        for number in range(4):
            canvas.line(45, 714 - 20 * number, 500, 714 - 20 * number)
        for number, cells in enumerate(columns):
            drawn(canvas, [(50 + 150 * number, 700 - 20 * row, cell) for row, cell in enumerate(cells)])
        drawn(canvas, block(paragraph("text", 4, 90), 50, 600))

    came = page(draw)
    assert came[:9] == [cell for row in zip(*columns, strict=True) for cell in row]


def test_blocks_beside_each_other_stay_blocks() -> None:
    sender, receiver = ["Harbour office", "1 Pier road", "Kragero"], ["Sigrid Vestergaard", "2 Hill street", "Oslo"]
    letter = paragraph("letter", 6, 90)
    placed = [*block(sender, 50, 760), *block(receiver, 350, 760), *block(letter, 50, 680)]
    assert page(lambda canvas: drawn(canvas, placed)) == [*sender, *receiver, *letter]


def test_an_index_in_columns_stays_in_columns() -> None:
    left = ["A", "Anchor, 3", "Axe, 4", "F", "Fog, 4", "H", "Harbour, 1"]
    right = ["M", "Mast, 12", "P", "Pier, 1", "S", "Sail, 2"]
    gaps = {"F": 40, "H": 80, "P": 40, "S": 80}
    lower, placed = 0, []
    for x, entries in ((50, left), (320, right)):
        lower = 0
        for number, entry in enumerate(entries):
            lower = gaps.get(entry, lower)
            placed.append((float(x), 700.0 - 13 * number - lower, entry))
    head = (50.0, 760.0, "Index of all things that are named in this book, by their first letter")
    assert page(lambda canvas: drawn(canvas, [*placed, head])) == [head[2], *left, *right]


def test_a_page_that_was_written_out_of_order_is_read_from_the_top() -> None:
    lines = paragraph("a", 12, 90)
    placed = block(lines, 50, 760)
    random.Random(3).shuffle(placed)
    assert page(lambda canvas: drawn(canvas, placed)) == lines


def test_notes_at_the_margin_do_not_break_the_text() -> None:
    lines, note = paragraph("a", 12, 64), ["See also the", "rules of 1998", "about fees"]

    def draw(canvas: Canvas) -> None:
        canvas.saveState()
        canvas.rotate(90)
        canvas.drawString(300, -20, "submitted in March")
        canvas.restoreState()
        drawn(canvas, block(lines, 180, 760))
        drawn(canvas, block(note, 50, 700))

    assert page(draw) == [*lines, *note, "submitted in March"]


def test_letters_beyond_the_first_plane_are_kept() -> None:
    writer = PdfWriter(clone_from=PdfReader(BytesIO(pdf(["A + B of the first\nand C of the second line"]))))
    meanings = StreamObject()
    meanings.set_data(
        b"/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <00> <ff> endcodespacerange\n"
        b"2 beginbfrange <20> <40> <0020> <44> <7f> <0044> endbfrange\n"
        b"3 beginbfchar <41> <d835dc34> <42> <d835dc35> <43> <d835dc36> endbfchar endcmap end"
    )
    fonts = writer.pages[0]["/Resources"]["/Font"]  # type: ignore[index]
    for font in fonts.values():
        font.get_object()[NameObject("/ToUnicode")] = writer._add_object(meanings)
    buffer = BytesIO()
    writer.write(buffer)
    assert read(buffer.getvalue()) == ["𝐴 + 𝐵 of the first", "and 𝐶 of the second line"]


def test_lines_from_top_to_bottom_are_read_from_the_right() -> None:
    places = [(20.0, 10.0, "third"), (80.0, 10.0, "first"), (50.0, 10.0, "second"), (80.0, 220.0, "below")]
    vertical = [Line(text, x, y, x + 10, y + 200) for x, y, text in places]
    came = reading_order(vertical, undivided)
    assert [line.text for line in came] == ["first", "second", "third", "below"]


def undivided(line: Line, x: float) -> tuple[Line, Line]:
    raise AssertionError("lines of one piece are not divided")


lines = st.lists(
    st.builds(
        lambda x, y, width, height, direction, number: Line(
            f"{number} text", x, y, x + width, y + height, direction, ((x, x + width),)
        ),
        *[st.floats(-1e4, 1e4, width=32)] * 2,
        *[st.floats(0, 1e3, width=32)] * 2,
        st.sampled_from([0, 0, 0, 90, 180, 270, 45]),
        st.integers(0, 9),
    ),
    max_size=60,
)


@given(lines)
@hypothesis_settings(max_examples=50, deadline=None)
def test_every_line_is_read_once(lines: list[Line]) -> None:
    assert sorted(map(id, reading_order(lines, undivided))) == sorted(map(id, lines))
