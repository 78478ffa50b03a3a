"""Workbooks: every sheet, every row; dates, numbers and merged cells as they are shown; what is left out is said."""

import struct
import zipfile
from io import BytesIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.documents import packages
from tests.documents.builders import CASES, SETTINGS, settings, xlsx
from tests.documents.test_tables import rows_of
from vectorize_pipelines.core.notices import NoticeKind
from vectorize_pipelines.documents import ParsedDocument, parse
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EmptyDocumentError,
    EncryptedDocumentError,
    TooManyRowsError,
    UnsupportedFormatError,
)
from vectorize_pipelines.errors import ItemError

TABLES = CASES / "tables"


def test_a_row_is_an_item_with_the_values_that_a_reader_sees() -> None:
    """The file is openpyxl's: a merged label, dates, a duration, a hidden sheet, formulas that nobody calculated."""
    document = parse((TABLES / "cargo.xlsx").read_bytes(), "cargo.xlsx", SETTINGS)
    first, second, far = rows_of(document)
    assert first == (
        2,
        "Harbour: North\nGoods: salt\nKg: 40\nArrived: 2024-03-01\nOk: TRUE\nShare: 0.3\nDur: 26:05:00\nT: 08:30:00",
        {
            **{"sheet": "Cargo", "Harbour": "North", "Goods": "salt", "Kg": 40, "Arrived": "2024-03-01"},
            **{"Ok": True, "Share": 0.3, "Dur": "26:05:00", "T": "08:30:00"},
        },
    )
    assert second[1].startswith("Harbour: North\nGoods: rope\nKg: 12.5\nArrived: 2024-03-01T10:30:00")
    assert far == (9, "far", {"sheet": "Cargo", "column_11": "far"})
    assert [(notice.kind, notice.what) for notice in document.notices] == [
        (NoticeKind.OMITTED, "left out its comments (1)"),
        (NoticeKind.OMITTED, "left out cells whose formulas have no value stored (2)"),
        (NoticeKind.OMITTED, "left out a hidden sheet ('Hidden')"),
    ]


@pytest.mark.parametrize("name", ["cargo.xls", "cargo.ods"])
def test_a_sheet_with_the_text_columns_is_a_table(name: str) -> None:
    document = parse((TABLES / name).read_bytes(), name, SETTINGS)
    (number, text, metadata), second = rows_of(document)
    assert (number, text, metadata["Harbour"], metadata["Kg"], metadata["sheet"]) == (2, "salt", "North", 40, "Cargo")
    assert second[1:] == ("rope", {"sheet": "Cargo", "Harbour": "North"} | _last_column(name))
    assert document.metadata["parser"] == name[-3:]


def _last_column(name: str) -> dict[str, Any]:
    return {"Kg": "2024-03-01"} if name.endswith(".ods") else {"Kg": 12.5}


def ods(rows: str, manifest: str = "") -> bytes:
    """An OpenDocument spreadsheet of one sheet."""
    kinds = " ".join(
        f'xmlns:{name}="urn:oasis:names:tc:opendocument:xmlns:{name}:1.0"' for name in ("office", "table", "text")
    )
    return packages.package(
        {
            "mimetype": "application/vnd.oasis.opendocument.spreadsheet",
            "META-INF/manifest.xml": (
                f'<m:manifest xmlns:m="urn:oasis:names:tc:opendocument:xmlns:manifest:1.0">{manifest}</m:manifest>'
            ),
            "content.xml": (
                f"<office:document-content {kinds}><office:body><office:spreadsheet>"
                f'<table:table table:name="S">{rows}</table:table>'
                "</office:spreadsheet></office:body></office:document-content>"
            ),
        }
    )


def test_a_spreadsheet_with_a_password_is_encrypted_and_not_damaged() -> None:
    with pytest.raises(EncryptedDocumentError, match="remove the password"):
        parse(ods("", '<m:file-entry m:full-path="content.xml"><m:encryption-data/></m:file-entry>'), "a.ods", SETTINGS)


def test_durations_of_a_spreadsheet_are_as_those_of_excel() -> None:
    values = {"PT255H10M10S": "255:10:10", "-PT1H2M3.4S": "-1:02:03", "P1DT2H": "26:00:00", "PT8H30M": "8:30:00"}
    cells = "".join(
        f'<table:table-cell office:value-type="time" office:time-value="{value}"><text:p>x</text:p></table:table-cell>'
        for value in values
    )
    text = '<table:table-cell office:value-type="string"><text:p>PT1H</text:p></table:table-cell>'
    document = parse(ods(f"<table:table-row>{cells}{text}</table:table-row>"), "a.ods", SETTINGS)
    assert document.text == " | ".join([*values.values(), "PT1H"])


def test_a_spreadsheet_that_is_written_in_lines_is_read() -> None:
    """As KSpread writes it."""
    cell = '<table:table-cell office:value-type="string">\n <text:p>a  b</text:p>\n</table:table-cell>'
    rows = f"\n<table:table-column/>\n <table:table-row>\n  {cell}\n  {cell}\n </table:table-row>\n"
    assert parse(ods(rows), "a.ods", SETTINGS).text == "a b | a b"


@pytest.mark.parametrize(
    ("content", "parser", "text"),
    [
        (
            b"<style>td {}</style><TABLE><tr><th>Port<th>Fee<tr><td>North<td>40</table>",
            "html",
            "Port | Fee\nNorth | 40",
        ),
        (b"text\tfee\nNorth\t40\n", "tsv", "North"),
        ("text\tfee\nMalmö\t40\n".encode("utf-16"), "tsv", "Malmö"),
    ],
)
def test_what_web_pages_export_as_xls_is_read_as_what_it_is(content: bytes, parser: str, text: str) -> None:
    document = parse(content, "export.xls", SETTINGS)
    assert (document.text, document.metadata["parser"]) == (text, parser)
    assert document.notices[0].kind is NoticeKind.ASSUMED
    assert "although it is named as a workbook" in document.notices[0].what


@pytest.mark.parametrize(
    "content",
    [b"<html><p>Not found", b"no table", b"\t\0\4\0\2\0", b"<?xml version='1.0'?><Workbook><Worksheet><Table/>"],
)
def test_what_is_no_table_is_no_xls(content: bytes) -> None:
    with pytest.raises(CorruptDocumentError, match="is no XLS file"):
        parse(content, "export.xls", SETTINGS)


def test_every_sheet_is_read_and_each_has_a_header_of_its_own() -> None:
    content = xlsx(
        {
            "Ports": [["Cargo list 2024"], [], ["n", "text"], [1, "salt"], [2, None], [3, "rope"]],
            "Fees": [["Port", "Fee", 2024], ["North", 40.0, 0.1 + 0.2], ["South", 1e-7, True]],
            "Form": [["Name", "Sigrid"], ["Vessel", "ketch"]],
            "Empty": [],
            "Secret": [["text"], ["hidden"]],
        },
        hidden=["Secret"],
    )
    document = parse(content, "a.xlsx", SETTINGS)
    assert [(number, text) for number, text, _ in rows_of(document)] == [
        (1, "Cargo list 2024"),
        (4, "salt"),
        (6, "rope"),
        (2, "Port: North\nFee: 40\n2024: 0.3"),
        (3, "Port: South\nFee: 1e-07\n2024: TRUE"),
        (1, "Name | Sigrid"),
        (2, "Vessel | ketch"),
    ]
    assert [row.metadata for row in document.rows][1:4] == [
        {"sheet": "Ports", "n": 1},
        {"sheet": "Ports", "n": 3},
        {"sheet": "Fees", "Port": "North", "Fee": 40, "2024": 0.3},
    ]
    hidden, empty = document.notices
    assert "hidden sheet ('Secret')" in hidden.what
    assert "1 row (sheet 'Ports', row 5) without a text" in empty.what


def test_a_name_above_several_columns_stands_in_each_of_their_names() -> None:
    rows: list[list[Any]] = [
        ["Fees of 2024", None, None],
        ["Port", "Fee", None],
        [None, "low", "high"],
        ["North", 1, 2],
        ["South", 3, 4],
    ]
    document = parse(xlsx({"Fees": rows}, merged=["A1:C1", "A2:A3", "B2:C2"]), "a.xlsx", SETTINGS)
    assert [text for _, text, _ in rows_of(document)] == [
        "Fees of 2024",
        "Port: North\nFee low: 1\nFee high: 2",
        "Port: South\nFee low: 3\nFee high: 4",
    ]


def test_numbers_that_are_shown_with_zeros_keep_them() -> None:
    """The file is openpyxl's: column `zip` has the format 00000."""
    [(_, text, metadata)] = rows_of(parse((TABLES / "zip.xlsx").read_bytes(), "zip.xlsx", SETTINGS))
    assert (text, metadata) == ("salt", {"sheet": "Ports", "zip": "02134", "kg": 7})


def test_a_column_of_the_users_keeps_its_name() -> None:
    document = parse(xlsx({"one": [["sheet", "row", "text"], ["A4", 7, "x"]]}), "a.xlsx", SETTINGS)
    assert rows_of(document) == [(2, "x", {"sheet": "A4", "row": 7, "sheet_name": "one"})]


@pytest.mark.parametrize("name", ["a.csv", "a.docx", "a.xls", "a.txt"])
def test_a_workbook_is_read_whatever_its_name(name: str) -> None:
    document = parse(xlsx({"one": [["text"], ["x"]]}), name, SETTINGS)
    assert (document.text, document.metadata["parser"]) == ("x", "xlsx")


def test_a_workbook_has_limits() -> None:
    content = xlsx({"one": [["text"], *([["x"]] * 20)], "two": [["text"], *([["y"]] * 20)]})
    with pytest.raises(TooManyRowsError, match="MAX_ROWS"):
        parse(content, "a.xlsx", settings(max_rows=30))
    with pytest.raises(DecompressionLimitError, match="MAX_DECOMPRESSED_BYTES"):
        parse(xlsx({"one": [["text"], ["x" * 100_000]]}), "a.xlsx", settings(max_decompressed_bytes=50_000))
    with pytest.raises(EmptyDocumentError, match="no sheet with text in it that is not hidden"):
        parse(xlsx({"one": [["text"]]}, hidden=["one"]), "a.xlsx", SETTINGS)


def test_a_cell_far_outside_of_the_table_is_named() -> None:
    content = xlsx({"one": [["text"], ["x"]]})
    with zipfile.ZipFile(BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    far = b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
    parts["xl/worksheets/sheet1.xml"] = parts["xl/worksheets/sheet1.xml"].replace(b"</sheetData>", far)
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    with pytest.raises(DecompressionLimitError, match="row 1,048,576 and column 16,384"):
        parse(buffer.getvalue(), "a.xlsx", SETTINGS)


def test_merged_cells_that_a_file_makes_up_cost_nothing() -> None:
    content = xlsx({"one": [["text"], ["x"]]}, merged=["A1:XFD1048576"] * 1000)
    assert parse(content, "a.xlsx", SETTINGS).text == "text"


@pytest.mark.parametrize("name", ["cargo.xlsx", "cargo.xls", "cargo.ods"])
def test_a_damaged_workbook_is_refused(name: str) -> None:
    content = (TABLES / name).read_bytes()
    with pytest.raises((CorruptDocumentError, UnsupportedFormatError)) as caught:
        parse(content[: len(content) // 2], name, SETTINGS)
    assert " at 0x" not in str(caught.value)


def test_sectors_that_go_round_in_a_circle_are_refused() -> None:
    """The library that reads .xls follows them until there is no memory left."""
    content = bytearray((TABLES / "cargo.xls").read_bytes())
    (table,), (directory,) = struct.unpack_from("<I", content, 76), struct.unpack_from("<I", content, 48)
    struct.pack_into("<I", content, (table + 1) * 512 + 4 * directory, directory)
    with pytest.raises(CorruptDocumentError, match="circle"):
        parse(bytes(content), "a.xls", SETTINGS)


@hypothesis_settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(("cargo.xlsx", "cargo.xls", "cargo.ods")),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=4)), max_size=4),
)
def test_a_changed_workbook_is_read_or_refused_by_name(name: str, places: list[tuple[float, bytes]]) -> None:
    content = bytearray((TABLES / name).read_bytes())
    for share, bytes_ in places:
        start = int(share * len(content))
        content[start : start + len(bytes_)] = bytes_
    outcome: ParsedDocument | ItemError
    try:
        outcome = parse(bytes(content), name, SETTINGS)
    except ItemError as error:
        outcome = error
    if isinstance(outcome, ItemError):
        assert " at 0x" not in str(outcome)
    else:
        assert "\n".join(outcome.text[row.start : row.end] for row in outcome.rows) == outcome.text


@pytest.mark.parametrize("rows", [(0, 0x7FFFFFFF), (5, 2), (0, 70_000)])
def test_an_xls_with_a_sheet_larger_than_any_is_damaged(rows: tuple[int, int]) -> None:
    content = bytearray((TABLES / "cargo.xls").read_bytes())
    place = content.find(b"\x00\x02\x0e\x00")
    struct.pack_into("<II", content, place + 4, *rows)
    with pytest.raises(CorruptDocumentError, match="more rows or columns than there can be"):
        parse(bytes(content), "cargo.xls", SETTINGS)


def test_bytes_that_look_like_a_record_of_a_large_sheet_are_none() -> None:
    content = (TABLES / "cargo.xls").read_bytes() + b"\x00\x02\x0e\x00" + b"\x7f" * 14 + bytes(494)
    assert len(rows_of(parse(content, "cargo.xls", SETTINGS))) == 2
