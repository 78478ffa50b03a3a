"""Workbooks of spreadsheets: .xlsx and its kin, .xls, .ods. Each row of each sheet is an item.

A sheet that has a column of `documents.text_columns` is a table as a CSV file is. Of any other the whole row is
embedded, a line a cell, `Header: value`, where it has a header, else as cells divided by ` | `.
"""

import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from io import BytesIO
from math import isfinite
from typing import Any, TypeAlias

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.core.notices import Notice, assumed, omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EmptyDocumentError,
    EncryptedDocumentError,
    damage_reported,
)
from vectorize_pipelines.documents.formats.delimited import parse_tsv
from vectorize_pipelines.documents.formats.html import parse_html
from vectorize_pipelines.documents.formats.ole_sectors import check_chains
from vectorize_pipelines.documents.formats.package import open_archive
from vectorize_pipelines.documents.formats.table import (
    TableBuilder,
    check_rows,
    column_names,
    is_kept,
    listed,
)
from vectorize_pipelines.documents.formats.table_text import CELL_SEPARATOR
from vectorize_pipelines.documents.formats.values import clean_text, one_line
from vectorize_pipelines.documents.formats.workbook_numbers import column_number, padded_numbers
from vectorize_pipelines.documents.recognition import OLE_MARK, export_format
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.settings import DocumentSettings

#: In so many rows that have something in them the header is looked for.
HEADER_WITHIN = 20
#: What metadata call a row's sheet: the first of these that no column of it is called.
SHEET_NAME = ("sheet", "sheet_name", "table_sheet_name")

#: A sheet is held from its first cell to its last one, empty ones included.
MAX_CELLS = 1 << 26
XLS_ROWS, XLS_COLUMNS = 1 << 16, 1 << 8
#: The last column whose name has two letters.
MANY_COLUMNS = 702
#: Numbers in a header are names where they are years.
YEARS = range(1900, 2101)
#: What spreadsheet programs keep and show of a number.
SIGNIFICANT_DIGITS = 15

#: First and last row, first and last column, from 0.
Merged: TypeAlias = tuple[int, int, int, int]
Cells: TypeAlias = list[list[JsonValue]]

_TABLE = "urn:oasis:names:tc:opendocument:xmlns:table:1.0}"
_TIME_VALUE = "urn:oasis:names:tc:opendocument:xmlns:office:1.0}time-value"
_ISO_DURATION = re.compile(
    r"(-?)P(?:([0-9]{1,8})D)?(?:T(?:([0-9]{1,9})H)?(?:([0-9]{1,9})M)?(?:([0-9]{1,9}(?:[.,][0-9]{1,9})?)S)?)?"
)
_ODS_CONTENT = "content.xml"
_BLANKS_BETWEEN_CELLS = re.compile(rb">[ \t\r\n]+(?=</?table:)")
_MANIFEST = "META-INF/manifest.xml"
_ENCRYPTED_PART = re.compile(rb"<(?:\w+:)?encryption-data\b")
_ANNOTATION = "urn:oasis:names:tc:opendocument:xmlns:office:1.0}annotation"
#: A cell with a formula and no value. One whose value is the empty text has the type "str".
_UNCALCULATED = re.compile(
    rb"<c\b([^>]*)>\s*<f\b[^>]*(?:/>|>[^<]*</f>)\s*(?:<v\s*/>|<v[^>]*>\s*</v>)?\s*</c>",
)
_ROW = re.compile(rb'<(?:\w+:)?row\b[^>]*?\br="([0-9]{1,7})"')
_COLUMN = re.compile(rb'<(?:\w+:)?c\s+r="([A-Z]{1,3})')
_FAR_COLUMN = re.compile(rb'<(?:\w+:)?c\s+r="[A-Z]{3}')
#: The record of an .xls that says how far a sheet reaches; by its length, of Excel since 97 and before, its numbers.
_DIMENSIONS_RECORD = 0x0200
_DIMENSIONS = tuple(re.compile(rb"\x00\x02" + bytes((size, 0)) + rb"(.{%d})" % size, re.DOTALL) for size in (14, 10))
_PLACES = {14: "<IIHH", 10: "<HHHH"}
_SHEET_PART = re.compile(r"xl/worksheets/[^/]+\.xml", re.IGNORECASE)
_DRAWING_PART = re.compile(r"xl/drawings/[^/]+\.xml", re.IGNORECASE)
_COMMENTS_PART = re.compile(r"xl/(?:comments/)?comments?\d*\.xml|xl/threadedComments/[^/]+\.xml", re.IGNORECASE)


def parse_xlsx(content: bytes, context: ParseContext) -> ParsedDocument:
    """Read a workbook of Excel since 2007, its templates and the binary kind included. Raises `ItemError`s."""
    with open_archive(content, context.settings.max_decompressed_bytes, "an Excel workbook") as archive:
        notices = _left_out_of_xlsx(archive)
        padded = padded_numbers(archive)
    return _parse(content, "xlsx", _Known(padded=padded), notices, context)


def parse_xls(content: bytes, context: ParseContext) -> ParsedDocument:
    """Read a workbook of Excel before 2007, or what web pages export under its name. Raises `ItemError`s."""
    exported = None if content.startswith(OLE_MARK) else export_format(content)
    if exported:
        return _parse_export(content, exported, context)
    check_chains(content)
    _check_dimensions(content)
    return _parse(content, "xls", _Known(), [], context)


def _parse_export(content: bytes, kind: str, context: ParseContext) -> ParsedDocument:
    document = parse_html(content, context) if kind == "html" else parse_tsv(content, context)
    shown = "the HTML page" if kind == "html" else "the table of text, divided by tabs,"
    notice = assumed(f"it was read as {shown} that it is, although it is named as a workbook", "save it as .xlsx")
    return replace(document, notices=(notice, *document.notices))


def parse_ods(content: bytes, context: ParseContext) -> ParsedDocument:
    """Read an OpenDocument spreadsheet. Raises `ItemError`s."""
    with open_archive(content, context.settings.max_decompressed_bytes, "an OpenDocument spreadsheet") as archive:
        if _ENCRYPTED_PART.search(archive.read(_MANIFEST) if _MANIFEST in archive.namelist() else b""):
            raise EncryptedDocumentError("is encrypted; remove the password in LibreOffice, or exclude the file")
        contents = _ods_contents(archive)
        content = _without_blanks(archive, content)
    known = _Known(merged=contents.merged, durations=contents.durations)
    return _parse(content, "ods", known, _left_out("comments", contents.comments), context)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a workbook's sheets, by name, beside what the library says.

    merged     the merged ranges, where it does not say them
    padded     (row, column) -> a number as it is shown, with zeros before it
    durations  those of all sheets, which it says as the texts that they are in the file -> as they are shown
    """

    merged: Mapping[str, Sequence[Merged]] = field(default_factory=dict)
    padded: Mapping[str, Mapping[tuple[int, int], str]] = field(default_factory=dict)
    durations: Mapping[str, str] = field(default_factory=dict)


def _parse(content: bytes, parser: str, known: _Known, notices: list[Notice], context: ParseContext) -> ParsedDocument:
    import python_calamine

    builder = TableBuilder(parser, "row", context)
    hidden: list[str] = []
    rows = 0
    with damage_reported("a workbook"), _panic_reported():
        try:
            workbook = python_calamine.CalamineWorkbook.from_filelike(BytesIO(content))
        except python_calamine.PasswordError as error:
            raise EncryptedDocumentError("is encrypted; remove the password, or exclude the file") from error
        for sheet in workbook.sheets_metadata:
            if sheet.typ != python_calamine.SheetTypeEnum.WorkSheet:
                continue
            if sheet.visible != python_calamine.SheetVisibleEnum.Visible:
                hidden.append(sheet.name)
                continue
            found = _sheet(workbook.get_sheet_by_name(sheet.name), known)
            rows += found.filled_rows
            check_rows(rows, context.settings)
            builder.part = f"sheet {sheet.name!r}"
            found.add_to(builder)
    if hidden:
        what = f"left out {'a hidden sheet' if len(hidden) == 1 else f'{len(hidden)} hidden sheets'} ({listed(hidden)})"
        notices.append(omitted(what, "show them in the program that made the workbook to have them embedded"))
    if builder.is_empty:
        what = "has no sheet with text in it" + (" that is not hidden" if hidden else "")
        raise EmptyDocumentError(f"{what}; fill it, or exclude it by VECTORIZE_CORPUS__EXCLUDE")
    return builder.build(notices)


def _sheet(found: Any, known: _Known) -> "_Sheet":
    """Return a sheet of the library's with what else is known of it."""
    ranges = [(first[0], last[0], first[1], last[1]) for first, last in found.merged_cell_ranges or ()]
    # Empty rows, of which there may be a million between two others, have no cells.
    rows = found.to_python(skip_empty_area=False)
    cells = [[_cell(value) for value in row] if row.count("") < len(row) else [] for row in rows]
    for (row, column), shown in known.padded.get(found.name, {}).items():
        if row < len(cells) and column < len(cells[row]) and type(cells[row][column]) is int:
            cells[row][column] = shown
    if known.durations:
        cells = [[known.durations.get(cell, cell) if isinstance(cell, str) else cell for cell in row] for row in cells]
    return _Sheet(clean_text(found.name), cells, ranges or known.merged.get(found.name, ()))


@contextmanager
def _panic_reported() -> Iterator[None]:
    """Turn a panic of the library, which is written in Rust, into an exception: as it comes it ends the process."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"the library that reads it gave up: {error}") from error


# ---- a sheet


class _Sheet:
    """The cells of a sheet, where merged ones all have the value that is shown in their place."""

    def __init__(self, name: str, cells: Cells, merged: Sequence[Merged]):
        self._name = name
        self._cells = cells
        #: (row, column) -> where the range begins that a cell is merged into.
        self._begins: dict[tuple[int, int], tuple[int, int]] = {}
        width = max(map(len, cells), default=0)
        room = len(cells) * width  # ranges do not overlap, whatever a file says
        for first_row, last_row, first_column, last_column in merged:
            for row in range(first_row, min(last_row + 1, len(cells))):
                for column in range(first_column, min(last_column + 1, len(cells[row]))):
                    room -= 1
                    if room < 0:
                        return
                    self._begins[row, column] = first_row, first_column
                    cells[row][column] = cells[first_row][first_column]

    @property
    def filled_rows(self) -> int:
        """How many rows have something in them."""
        return sum(any(map(_is_filled, row)) for row in self._cells)

    def add_to(self, builder: TableBuilder) -> None:
        """Add each row that has something in it."""
        settings = builder.context.settings
        used = [row for row, cells in enumerate(self._cells) if any(_is_filled(cell) for cell in cells)]
        header = self._text_header(used, settings)
        whole_rows = header is None
        header = self._header(used) if header is None else header
        names = [] if header is None else header.names
        sheet = next((name for name in SHEET_NAME if name not in names), None)
        of_sheet: dict[str, JsonValue] = {sheet: self._name} if sheet else {}
        for row in used:
            if header is not None and row in header.rows:
                continue
            below = header is not None and row > header.rows.start
            cells = self._cells[row]
            record = {name: cell for name, cell in zip(names, cells, strict=False) if _is_filled(cell)} if below else {}
            kept = of_sheet | {name: cell for name, cell in record.items() if is_kept(name, settings)}
            if below and not whole_rows:
                texts = {name: cell for name, cell in record.items() if name in settings.text_columns}
                builder.add(row + 1, row + 1, kept | {name: _shown(cell) for name, cell in texts.items()})
            elif below and header is not None:
                lines = [f"{label}{_shown(record[name])}" for name, label in header.labels.items() if name in record]
                builder.add_text(row + 1, row + 1, "\n".join(lines), kept)
            else:
                builder.add_text(row + 1, row + 1, CELL_SEPARATOR.join(self._cells_shown(row)), kept)

    def _cells_shown(self, row: int) -> list[str]:
        """Return what a reader sees in a row, of merged cells once."""
        shown: list[str] = []
        last = None
        for column, cell in enumerate(self._cells[row]):
            begins = self._begins.get((row, column))
            if _is_filled(cell) and (begins is None or begins != last):
                shown.append(one_line(_shown(cell)))
            last = begins
        return shown

    def _text_header(self, used: Sequence[int], settings: DocumentSettings) -> "_Header | None":
        """Return the header that has most of the columns to embed, the first of equal ones; None where none has any."""
        wanted = set(settings.text_columns)
        named = [(row, column_names([_shown(cell) for cell in self._cells[row]])) for row in used[:HEADER_WITHIN]]
        row, names = max(named, key=lambda each: len(wanted & set(each[1])), default=(0, []))
        return _Header(range(row, row + 1), names, {}) if wanted & set(names) else None

    def _header(self, used: Sequence[int]) -> "_Header | None":
        """Return the header of a sheet that has other columns; None where it seems to have none, as a form."""
        row = next((row for row in used[:HEADER_WITHIN] if len(self._cells_shown(row)) > 1), None)
        if row is None or not self._is_header(row, [each for each in used if each > row]):
            return None
        given = [one_line(_shown(cell)) for cell in self._cells[row]]
        last = row
        if self._has_second_row(row):
            last = row + 1
            second = [one_line(_shown(cell)) for cell in self._cells[last]]
            given = [
                f"{above} {below}" if below and below != above else above
                for above, below in zip(given, second, strict=True)
            ]
        names = column_names(given)
        labels = {name: f"{label.rstrip(' :')}: " if label else "" for name, label in zip(names, given, strict=True)}
        return _Header(range(row, last + 1), names, labels)

    def _is_header(self, row: int, below: Sequence[int]) -> bool:
        """Return whether a row names the columns below it: by texts, over as much as the rows have, or over figures."""
        columns = [column for column, cell in enumerate(self._cells[row]) if _is_filled(cell)]
        names = [self._cells[row][column] for column in columns]
        if not below or not all(isinstance(name, str) or (type(name) is int and name in YEARS) for name in names):
            return False
        if not isinstance(names[0], str):
            return False
        under = [[cell for each in below if _is_filled(cell := self._cells[each][column])] for column in columns]
        if any(cells and not any(isinstance(cell, str) for cell in cells) for cells in under):
            return True
        used = {column for each in below for column, cell in enumerate(self._cells[each]) if _is_filled(cell)}
        return len(names) > 2 and 2 * len(names) >= len(used)

    def _has_second_row(self, row: int) -> bool:
        """Return whether a name stands above several columns that have names of their own in the next row."""
        spans = any(
            begins == (row, column - 1) or begins[1] < column
            for column in range(len(self._cells[row]))
            if (begins := self._begins.get((row, column))) is not None
        )
        following = self._cells[row + 1] if row + 1 < len(self._cells) else []
        filled = [cell for cell in following if _is_filled(cell)]
        return spans and len(filled) > 1 and all(isinstance(cell, str) for cell in filled)


@dataclass(frozen=True, slots=True)
class _Header:
    """The names of a sheet's columns.

    rows    where they stand
    names   one a column, no two alike
    labels  name -> what stands before a value in the text
    """

    rows: range
    names: list[str]
    labels: Mapping[str, str]


def _is_filled(cell: JsonValue) -> bool:
    return cell is not None and cell != ""


def _cell(value: Any) -> JsonValue:
    """Return the value of a cell as JSON: dates in ISO 8601, numbers as they are shown, None where there is nothing."""
    if isinstance(value, str):
        return clean_text(value) if value.strip() else None
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _duration(value)
    return clean_text(str(value))


def _number(value: float) -> JsonValue:
    if not isfinite(value):
        return None
    shown = float(f"{value:.{SIGNIFICANT_DIGITS}g}")
    return int(shown) if shown.is_integer() and abs(shown) < 10**SIGNIFICANT_DIGITS else shown


def _duration(value: timedelta) -> str:
    """Return hours, minutes and seconds: 26:05:00."""
    seconds = round(abs(value).total_seconds())
    sign = "-" if value < timedelta() else ""
    return f"{sign}{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def _iso_duration(text: str) -> str:
    """Return a duration of ISO 8601, `PT26H05M00S`, as `_duration` does; another text as it is."""
    match = _ISO_DURATION.fullmatch(text)
    if match is None:
        return text
    days, hours, minutes, seconds = (float((each or "0").replace(",", ".")) for each in match.groups()[1:])
    value = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    return _duration(-value if match[1] else value)


def _shown(cell: JsonValue) -> str:
    if isinstance(cell, bool):
        return str(cell).upper()
    return "" if cell is None else str(cell)


# ---- what else is in the file


def _left_out_of_xlsx(archive: zipfile.ZipFile) -> list[Notice]:
    """Return notices of what a reader sees in a workbook and is not in its cells."""
    uncalculated = comments = drawings = 0
    for name in archive.namelist():
        if _SHEET_PART.fullmatch(name):
            sheet = archive.read(name)
            _check_extent(sheet)
            uncalculated += sum(b't="str"' not in match[1] for match in _UNCALCULATED.finditer(sheet))
        elif _COMMENTS_PART.fullmatch(name):
            comments += len(re.findall(rb"<(?:\w+:)?(?:comment|threadedComment)\b", archive.read(name)))
        elif _DRAWING_PART.fullmatch(name):
            drawings += len(re.findall(rb"<xdr:txBody\b", archive.read(name)))
    notices = _left_out("comments", comments) + _left_out("text boxes", drawings)
    if uncalculated:
        what = f"left out cells whose formulas have no value stored ({uncalculated:,})"
        notices.append(omitted(what, "open it in a spreadsheet program, which calculates them, and save it again"))
    return notices


def _check_extent(sheet: bytes) -> None:
    """Raise `DecompressionLimitError` for a sheet whose last cell is so far out that all before it take all memory."""
    rows = max(map(int, _ROW.findall(sheet)), default=0)
    if rows * MANY_COLUMNS <= MAX_CELLS and not _FAR_COLUMN.search(sheet):
        return
    columns = max(map(column_number, set(_COLUMN.findall(sheet))), default=0)
    if rows * columns > MAX_CELLS:
        raise DecompressionLimitError(
            f"has a sheet with cells as far as row {rows:,} and column {columns:,}, {rows * columns:,} cells in all; "
            "delete what stands outside of the table"
        )


def _check_dimensions(content: bytes) -> None:
    """Raise `CorruptDocumentError` for an .xls that says of a sheet that it is larger than any: room is made for it."""
    # Other records may look like these; so records are walked through where one of them would be too large.
    if not any(_is_too_large(match[1]) for pattern in _DIMENSIONS for match in pattern.finditer(content)):
        return
    with damage_reported("a workbook"):
        too_large = any(map(_is_too_large, _dimension_records(content)))
    if too_large:
        raise CorruptDocumentError(
            "cannot be read as a workbook (a sheet has more rows or columns than there can be); the file is damaged, "
            "replace it"
        )


def _is_too_large(dimensions: bytes) -> bool:
    places = _PLACES.get(len(dimensions))
    if places is None:
        return False
    first_row, last_row, first_column, last_column = struct.unpack(places, dimensions[: struct.calcsize(places)])
    return not (first_row <= last_row <= XLS_ROWS and first_column <= last_column <= XLS_COLUMNS)


def _dimension_records(content: bytes) -> Iterator[bytes]:
    import olefile

    with olefile.OleFileIO(BytesIO(content)) as file:
        stream = file.openstream("Workbook" if file.exists("Workbook") else "Book").read()
    place = 0
    while place + 4 <= len(stream):
        kind, size = struct.unpack_from("<HH", stream, place)
        place += 4 + size
        if kind == _DIMENSIONS_RECORD:
            yield stream[place - size : place]


def _left_out(what: str, number: int) -> list[Notice]:
    if not number:
        return []
    return [omitted(f"left out its {what} ({number:,})", "copy what is wanted of them into cells")]


class _OdsContents:
    """What an OpenDocument spreadsheet says of its cells and the library does not tell. Made by `_ods_contents`.

    merged     name of a sheet -> its merged ranges
    durations  as the file has them -> as they are shown
    comments   how many there are
    """

    def __init__(self) -> None:
        self.merged: dict[str, list[Merged]] = {}
        self.durations: dict[str, str] = {}
        self.comments = 0
        self._ranges: list[Merged] = []
        self._row = self._column = self._next_row = 0

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """Take the start of an element, as expat calls it."""
        if tag == f"{_TABLE}table":
            self._ranges = self.merged.setdefault(attributes.get(f"{_TABLE}name", ""), [])
            self._next_row = 0
        elif tag == f"{_TABLE}table-row":
            self._row, self._column = self._next_row, 0
            self._next_row += _count(attributes.get(f"{_TABLE}number-rows-repeated"))
        elif tag in (f"{_TABLE}table-cell", f"{_TABLE}covered-table-cell"):
            if duration := attributes.get(_TIME_VALUE):
                self.durations[duration] = _iso_duration(duration)
            rows = _count(attributes.get(f"{_TABLE}number-rows-spanned"))
            columns = _count(attributes.get(f"{_TABLE}number-columns-spanned"))
            if rows > 1 or columns > 1:
                self._ranges.append((self._row, self._row + rows - 1, self._column, self._column + columns - 1))
            self._column += _count(attributes.get(f"{_TABLE}number-columns-repeated"))
        elif tag == _ANNOTATION:
            self.comments += 1


def _ods_contents(archive: zipfile.ZipFile) -> _OdsContents:
    from xml.parsers.expat import ParserCreate

    contents = _OdsContents()
    parser = ParserCreate(namespace_separator="}")
    parser.StartElementHandler = contents.start
    with archive.open(_ODS_CONTENT) as stream:
        parser.ParseFile(stream)
    return contents


def _without_blanks(archive: zipfile.ZipFile, content: bytes) -> bytes:
    """Return a spreadsheet without line ends and blanks between its rows and cells, on which the library gives up."""
    written = archive.read(_ODS_CONTENT)
    if not _BLANKS_BETWEEN_CELLS.search(written):
        return content
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as other:
        for name in ("mimetype", _MANIFEST):
            if name in archive.namelist():
                other.writestr(name, archive.read(name))
        other.writestr(_ODS_CONTENT, _BLANKS_BETWEEN_CELLS.sub(b">", written))
    return packed.getvalue()


def _count(value: str | None) -> int:
    return min(int(value), 1 << 20) if value and len(value) < 10 and value.isascii() and value.isdecimal() else 1
