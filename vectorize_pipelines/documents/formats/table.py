"""Tables: each row has a text of its own; its other columns are its metadata. JSON lines and Parquet are read here.

`delimited` (CSV, TSV) and `workbook` (Excel, ODS) read their rows and hand them to a `TableBuilder`, too.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from typing import Any
from urllib.parse import unquote, urlsplit

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.core.notices import Notice, assumed, listed_numbers, omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EmptyDocumentError,
    MissingColumnError,
    TooManyRowsError,
    damage_reported,
)
from vectorize_pipelines.documents.formats.cell_types import as_type
from vectorize_pipelines.documents.formats.text import decode
from vectorize_pipelines.documents.formats.values import check_metadata, json_fields, one_line
from vectorize_pipelines.documents.types import ParsedDocument, TableRow
from vectorize_pipelines.settings import DocumentSettings

#: Column -> value of one row.
Record = Mapping[str, JsonValue]

PARQUET_BATCH_ROWS = 1024
#: What Hive and its kin call the folder of rows that have no value in a partition's column.
HIVE_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"

_COLUMNS_REMEDY = "keep only the columns that are wanted, by VECTORIZE_DOCUMENTS__METADATA_COLUMNS, or "


def parse_json_lines(content: bytes, context: ParseContext) -> ParsedDocument:
    """Parse an object a line. Through the json module: pandas turns the text "007" into a number."""
    settings = context.settings
    bad: dict[int, str] = {}
    text, notices = decode(content, context)
    records = list(_json_objects(text, settings, bad))
    found = list(dict.fromkeys(name for _, _, record in records for name in record))
    kept = frozenset(columns_to_read(found, settings)) if records else frozenset[str]()
    builder = TableBuilder("json-lines", "line", context)
    # Of each row its own fields: every row may have others.
    for row, line, record in records:
        try:
            cells = json_fields({name: value for name, value in record.items() if name in kept})
        except CorruptDocumentError as error:
            bad[line] = f"cannot be kept ({error})"
        else:
            builder.add(row, line, cells)
    if not bad:
        return builder.build(notices)
    line, reason = min(bad.items())
    if builder.is_empty:
        raise CorruptDocumentError(f"line {line} {reason}, and no other has a text; each line must be a JSON object")
    lines = f"{len(bad):,} lines ({listed_numbers(sorted(bad))}): line {line}"
    what = f"left out {lines if len(bad) > 1 else f'line {line}, since it'} {reason}"
    return builder.build([*notices, omitted(what, "correct them; each line must be a JSON object, a field a column")])


def _json_objects(
    text: str, settings: DocumentSettings, bad: dict[int, str]
) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Yield (row, line, object), and put into `bad` why other lines are none."""
    row = -1
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row += 1
        check_rows(row + 1, settings)
        try:
            record = json.loads(line)
        except RecursionError:
            bad[number] = "is nested too deeply"
        except ValueError as error:
            where = f"{error.msg}, character {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            bad[number] = f"is not JSON ({where})"
        else:
            if isinstance(record, dict):
                yield row, number, record
            else:
                bad[number] = "is not a JSON object"


def parse_parquet(content: bytes, context: ParseContext) -> ParsedDocument:
    """Read batch by batch; dictionary and run-length encoding can hold billions of values in a few bytes."""
    import pyarrow.parquet

    settings = context.settings
    with damage_reported("Parquet"):
        file = pyarrow.parquet.ParquetFile(BytesIO(content))
    declared = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
    if declared > settings.max_decompressed_bytes:
        raise unpacks_too_large(settings)
    check_rows(file.metadata.num_rows, settings)
    kept = columns_to_read(file.schema_arrow.names, settings)
    of_bytes = _ByteColumns(file.schema_arrow, kept)
    builder = TableBuilder("parquet", "row", context)
    for row, record in enumerate(_parquet_records(file, kept, settings)):
        builder.add(row, row, json_fields(of_bytes.as_text(record)))
    if builder.is_empty and of_bytes.notices():
        raise EmptyDocumentError(f"has no text that can be read: it {of_bytes.notices()[0]}")
    return builder.build(of_bytes.notices())


class _ByteColumns:
    """The columns of a Parquet file that hold bytes: older programs write texts so, in UTF-8."""

    def __init__(self, schema: Any, kept: Sequence[str]):
        from pyarrow import types

        kinds = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
        self._names = [each.name for each in schema if each.name in kept and any(kind(each.type) for kind in kinds)]
        self._lost: Counter[str] = Counter()

    def as_text(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the record with its bytes as text; what is no UTF-8 is counted and left out."""
        if not self._names:
            return record
        return {**record, **{name: self._decoded(name, record[name]) for name in self._names}}

    def _decoded(self, name: str, value: bytes | None) -> str | None:
        try:
            return None if value is None else value.decode("utf-8")
        except UnicodeDecodeError:
            self._lost[name] += 1
            return None

    def notices(self) -> list[Notice]:
        """Return what was left out."""
        return [
            omitted(
                f"left out {counted(number, 'value', f'column {name!r}')} that are bytes and no text in UTF-8",
                "write the column as text, or leave it out by VECTORIZE_DOCUMENTS__METADATA_COLUMNS",
            )
            for name, number in self._lost.items()
        ]


def check_rows(rows: int, settings: DocumentSettings) -> None:
    """Raise `TooManyRowsError` beyond the limit."""
    if rows > settings.max_rows:
        raise TooManyRowsError(
            f"has more than {settings.max_rows:,} rows; split it, or raise VECTORIZE_DOCUMENTS__MAX_ROWS"
        )


def _parquet_records(file: Any, columns: Sequence[str], settings: DocumentSettings) -> Iterator[Mapping[str, Any]]:
    size = rows = 0
    with damage_reported("Parquet"):
        for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=list(columns), use_threads=False):
            size += batch.nbytes
            rows += batch.num_rows  # the file may hold more than it declares
            check_rows(rows, settings)
            if size > settings.max_decompressed_bytes:
                raise unpacks_too_large(settings)
            yield from batch.to_pylist()


def unpacks_too_large(settings: DocumentSettings) -> DecompressionLimitError:
    """Return the error for a table beyond `max_decompressed_bytes`."""
    return DecompressionLimitError(
        f"unpacks to more than {settings.max_decompressed_bytes:,} bytes; "
        "split it, or raise VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"
    )


def columns_to_read(found: Sequence[str], settings: DocumentSettings) -> list[str]:
    """Return text and metadata columns, of those found. Raises `MissingColumnError` where no text column is."""
    if not set(settings.text_columns) & set(found):
        raise MissingColumnError(
            f"has no column {' or '.join(map(repr, settings.text_columns))} to embed; its columns are {listed(found)}; "
            f"name the column to embed in VECTORIZE_DOCUMENTS__TEXT_COLUMNS, for example {json.dumps(found[:1])}"
        )
    return [column for column in found if column in settings.text_columns or is_kept(column, settings)]


def is_kept(column: str, settings: DocumentSettings) -> bool:
    """Return whether a column that is not embedded is kept as metadata."""
    return settings.metadata_columns is None or column in settings.metadata_columns


def listed(names: Iterable[str]) -> str:
    """Return names as errors list them."""
    return ", ".join(map(repr, names))


def column_names(header: Sequence[str]) -> list[str]:
    """Return a header's names, no two alike: a column without one is `column_3`, a second `fee` is `fee.1`."""
    names: list[str] = []
    taken: set[str] = set()
    repeated: Counter[str] = Counter()
    for place, given in enumerate(header, start=1):
        base = name = one_line(given) or f"column_{place}"
        while name in taken:
            repeated[base] += 1
            name = f"{base}.{repeated[base]}"
        taken.add(name)
        names.append(name)
    return names


def path_columns(name: str, settings: DocumentSettings) -> dict[str, JsonValue]:
    """Return the columns that stand in the path of a table: of the folders NAME=VALUE right above the file.

    So Hive, Spark and others partition a table: `year=2024/country=NO/part-0.parquet`. Values are texts, unless the
    user states another type. By the path alone, not by the folder that was listed, so that a file has the same rows
    whichever folder above it was given.
    """
    folders = urlsplit(name).path.split("/")[:-1] if "://" in name else name.split("/")[:-1]
    columns: dict[str, JsonValue] = {}
    for folder in reversed(folders):
        column, equals, value = folder.partition("=")
        if not equals or not column:
            break
        column, value = unquote(column), unquote(value)
        if value != HIVE_NO_VALUE and is_kept(column, settings):
            typed = as_type(value, settings.column_types[column]) if column in settings.column_types else None
            columns[column] = value if typed is None else typed
    return json_fields(dict(reversed(columns.items())))


class TableBuilder:
    """The rows of a table on their way into a `ParsedDocument`; those without a text are left out, and counted.

    part  of several parts the one that rows are added of, as notices name it: "sheet 'Cargo'"
    """

    def __init__(self, parser: str, unit: str, context: ParseContext):
        """Take what the document's metadata call the format, and what notices number rows by: "line" or "row"."""
        self.context = context
        self.part = ""
        self._parser, self._unit = parser, unit
        self._settings = context.settings
        self._columns = context.settings.text_columns
        self._texts: list[str] = []
        self._rows: list[TableRow] = []
        self._position = self._size = 0
        self._without_text: dict[str, list[int]] = {}
        self._untyped: dict[tuple[str, str], list[int]] = {}

    @property
    def is_empty(self) -> bool:
        """Whether no row has a text so far."""
        return not self._rows

    def add(self, row: int, place: int, record: Record) -> None:
        """Add a row: its text columns are embedded, joined by a line, its others are metadata, where they have a value.

        `row` is its number in metadata, `place` where notices say that it is. Raises `ItemError`s beyond the limits.
        """
        columns = self._columns
        values = [cell_text(record.get(column)) for column in columns]
        text = "\n".join([value for value in values if value])
        if not text or text.isspace():
            self._without_text.setdefault(self.part, []).append(place)
            return
        others = {
            name: value for name, value in record.items() if name not in columns and value is not None and value != ""
        }
        self.add_text(row, place, text, others)

    def add_text(self, row: int, place: int, text: str, metadata: Record) -> None:
        """Add a row that is embedded as `text`, with metadata that each have a value. Raises as `add`."""
        if self._settings.column_types:
            metadata = self._typed(place, metadata)
        size = check_metadata(metadata, self._settings, f"the metadata of row {row}", _COLUMNS_REMEDY)
        self._size += size + len(text)
        if self._size > self._settings.max_decompressed_bytes:
            raise unpacks_too_large(self._settings)
        end = self._position + len(text)
        self._rows.append(TableRow(self._position, end, row, metadata))
        self._texts.append(text)
        self._position = end + 1

    def build(self, notices: Sequence[Notice] = ()) -> ParsedDocument:
        """Return the document. Raises `EmptyDocumentError` where no row has a text."""
        if self.is_empty:
            raise EmptyDocumentError(
                f"has no text in {listed(self._columns)}; fill it, or exclude it by VECTORIZE_CORPUS__EXCLUDE"
            )
        metadata = {"parser": self._parser, **path_columns(self.context.name, self._settings)}
        own = (*notices, *self._notices())
        return ParsedDocument("\n".join(self._texts), metadata, rows=tuple(self._rows), notices=own)

    def _typed(self, place: int, metadata: Record) -> Record:
        typed = dict(metadata)
        for column, kind in self._settings.column_types.items():
            if column not in typed:
                continue
            value = as_type(typed[column], kind)
            if value is None:
                self._untyped.setdefault((self.part, column), []).append(place)
            else:
                typed[column] = value
        return typed

    def _notices(self) -> Iterator[Notice]:
        for part, places in self._without_text.items():
            yield assumed(
                f"left out {self._counted(part, places)} without a text in {listed(self._columns)}, as empty",
                "name the columns to embed in VECTORIZE_DOCUMENTS__TEXT_COLUMNS where these rows have others",
            )
        for (part, column), places in self._untyped.items():
            kind = self._settings.column_types[column]
            yield assumed(
                f"kept {self._counted(part, places)} as written that have something else than a {kind} in {column!r}",
                "correct them, or the type in VECTORIZE_DOCUMENTS__COLUMN_TYPES",
            )

    def _counted(self, part: str, places: Sequence[int]) -> str:
        where = f"{self._unit}{'s' * (len(places) > 1)} {listed_numbers(places)}"
        return counted(len(places), "row", f"{part}, {where}" if part else where)


def counted(number: int, what: str, where: str) -> str:
    """Return "3 rows (lines 4, 5, 9)"."""
    return f"{number:,} {what}{'s' * (number != 1)} ({where})"


def cell_text(cell: JsonValue) -> str:
    """Return the text that a value is embedded as."""
    if isinstance(cell, str):
        return cell
    return "" if cell is None else json.dumps(cell, ensure_ascii=False)
