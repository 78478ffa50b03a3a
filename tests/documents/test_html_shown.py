"""HTML as a browser shows it: what is hidden, tables row by row, formulas."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.documents.builders import SETTINGS
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.types import ParsedDocument

CASES = Path(__file__).parent / "cases" / "html"
STYLE_PIECES = ["{", "}", ";", ":", ".x", "p", ">", "/*", "*/", "'", "@media ", "display:none", " "]


def html(text: str) -> ParsedDocument:
    return parse(text.encode(), "a.html", SETTINGS)


def case(name: str) -> ParsedDocument:
    return parse((CASES / name).read_bytes(), name, SETTINGS)


def test_what_is_hidden_is_left_out() -> None:
    assert case("hidden.html").text == "The ferry leaves at nine."


def test_formulas_are_kept() -> None:
    assert case("math.html").text == "The energy is E=mc2 by definition."


def test_the_rows_of_tables_are_lines() -> None:
    assert case("table-p.html").text == (
        "Prices of the harbour office.\n\nBerth | Fee\nNorth pier | 40 crowns\nSouth pier | 65 crowns\n\n"
        "Paid in advance."
    )


@pytest.mark.parametrize(
    "style", ["display:none", "visibility:hidden", "color:red;DISPLAY : none ! important", "display:block;display:none"]
)
def test_inline_styles_hide(style: str) -> None:
    assert html(f"<p>a</p><div style='{style}'>b<p>c</div><p>d").text == "a\n\nd"


def test_what_is_visible_within_the_invisible_is_shown() -> None:
    assert html("<div style='visibility:hidden'>a <b style='visibility:visible'>b</b> c</div>d").text == "b\n\nd"


@pytest.mark.parametrize(
    ("sheet", "shown"),
    [
        (".x{display:none}", False),
        ("#i { color: red; visibility: hidden }", False),
        ("div p.x, nothing{display:none !important} .x{display:block}", False),
        ("p{display:none} .x{display:block}", True),
        (".x{display:none} p{display:block}", False),
        ("/* .x{display:none} */", True),
        ("@media print{.x{display:none}}", True),
        ("@media screen{.x{display:none}}", False),
        (".x{display:none} @media (min-width:600px){.x{display:block}}", True),
        ("@supports (display:grid){.x{display:none}}", True),
        (".x:hover{display:none}", True),
        (".x{display:none} .x:hover{display:block}", False),
        ("body{visibility:hidden}", True),
        (".x::after{display:none}", True),
        (".x{content:'}';display:none}", False),
        ("}}{{.x{display:none", True),
    ],
)
def test_style_sheets_of_the_page_hide(sheet: str, shown: bool) -> None:
    document = html(f"<style>{sheet}</style><div><p class='x y' id=i>maybe</p></div><div>sure</div>")
    assert document.text == ("maybe\n\nsure" if shown else "sure")


def test_sheets_for_other_media_and_browsers_without_scripts_do_not_count() -> None:
    sheet = ".x{display:none}"
    source = f"<style media=print>{sheet}</style><noscript><style>{sheet}</style></noscript><p class=x>a"
    assert html(source).text == "a"


def test_what_forms_hold_is_shown() -> None:
    document = html(
        "Name: <input value='Sigrid Vestergaard'> <input type=hidden value=token><input type=password value=secret>"
        "<select><option>sloop<option selected>ketch</select> <textarea>wooden</textarea>"
        "<datalist><option selected>x</datalist>"
    )
    assert document.text == "Name: Sigrid Vestergaard ketch wooden"


@hypothesis_settings(max_examples=80)
@given(
    st.lists(st.sampled_from(STYLE_PIECES), max_size=30),
    st.text(st.sampled_from("{};:!displayn one'/*"), max_size=40),
)
def test_any_style_is_applied_or_passed_over(sheet: list[str], style: str) -> None:
    source = f'<style>{"".join(sheet)}</style><p class=x style="{style}">maybe</p><div>sure</div>'
    assert html(source).text.endswith("sure")


def test_what_a_reader_can_open_or_only_screen_readers_skip_is_kept() -> None:
    document = html(
        "<details><summary>More</summary>inside</details><p aria-hidden=true>seen</p><p hidden=until-found>found</p>"
        "<dialog>closed</dialog><dialog open>asked</dialog><noframes>n</noframes>"
    )
    assert document.text == "More\n\ninside\n\nseen\n\nfound\n\nasked"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "<math><semantics><mfrac><mi>a</mi> <mi>b</mi></mfrac>"
            "<annotation>\\frac{a}{b}</annotation></semantics></math>",
            "a/b",
        ),
        ("<span><span><math><mi>x</mi></math></span><span aria-hidden=true>x</span></span>", "x"),
        ("<span style='display:none'><math><mi>y</mi></math></span><img alt=y>", "y"),
        ("<script type='math/tex'>z^2</script>", "z^2"),
        ("<span class=MathJax>z2</span><script type='math/tex'>z^2</script>", "z2"),
        ("x <svg><title>t</title><defs><text>d</text></defs><text>drawn</text></svg>", "x\ndrawn"),
        ("Schiff\u00adfahrt <ruby>港<rp>(</rp><rt>みなと</rt><rp>)</rp></ruby>", "Schifffahrt 港"),
    ],
)
def test_formulas_and_drawings_are_read_once(source: str, text: str) -> None:
    assert html(f"<body>{source}").text == text


@pytest.mark.parametrize(
    "cell", ["<p>{}</p>", "<div><div>{}</div></div>", "<ul><li>{}</ul>", "<br>{}<br>", "<dl><dt>{}</dl>", "{}"]
)
def test_cells_keep_their_row_whatever_is_in_them(cell: str) -> None:
    rows = [("Berth", "Fee"), ("North pier", "40 crowns")]
    table = "".join(f"<tr>{''.join(f'<td>{cell.format(text)}</td>' for text in row)}</tr>" for row in rows)
    assert html(f"<table>{table}</table>").text == "Berth | Fee\nNorth pier | 40 crowns"


def test_blocks_in_a_cell_stand_beside_each_other() -> None:
    assert html("<table><tr><td><p>North</p><p>pier</p><td>40<br>crowns</table>").text == "North pier | 40 crowns"


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ("<tr><td>a<td><td>c", "a | | c"),
        ("<tr><td><td>b", "| b"),
        ("<tr><td>a<td>", "a |"),
        ("<tr><td><td><tr><td>a<td>b", "a | b"),
        ("<tr><td colspan=2>a<td>c<tr><td>d<td>e<td>f", "a | | c\nd | e | f"),
        ("<tr><td rowspan=2>a<td>b<tr><td>c<tr><td>d<td>e", "a | b\na | c\nd | e"),
        ("<tr><td>a<td rowspan=3>b<tr><td>c<tr><td>d", "a | b\nc | b\nd | b"),
        ("<tr><td>only<tr><td>one", "only\none"),
        ("<tr><td colspan=99999999999>a<td>b", "a | b"),
    ],
)
def test_empty_and_spanning_cells_keep_the_others_in_place(rows: str, text: str) -> None:
    assert html(f"<table>{rows}</table>").text == text


def test_spans_make_no_text_without_end() -> None:
    rows = "<tr>" + f"<td rowspan=9999>{'x' * 900}" * 50 + "<tr><td colspan=999>b<td>c" * 500
    assert len(html(f"<table>{rows}</table>").text) < 4 * len(rows)


def test_tables_within_tables_and_for_layout_are_read_block_by_block() -> None:
    inner = "<table><tr><td>A<td>B<tr><td>C<td>D</table>"
    assert html(f"<table><tr><td>Crew<td>{inner}</table>").text == "Crew\n\nA | B\nC | D"
    article = f"<h1>Title</h1><p>{'word ' * 9}</p><p>more</p>"
    assert html(f"<table><tr><td>menu<td>{article}</table>").sections[-1].path == ("Title",)
    long = f"<p>{'word ' * 300}</p><p>more</p>"
    assert html(f"<table><tr><td>menu<td>{long}</table>").text == f"menu\n\n{'word ' * 299}word\n\nmore"


def test_controls_stand_apart_from_each_other() -> None:
    page = (
        "<button>Save</button><button>Cancel</button><select><option>a<option selected>b</select><textarea>c</textarea>"
    )
    assert html(page).text == "Save Cancel b c"
