"""Tables: CSV, TSV, JSON lines and Parquet. Each row has a text of its own; its other columns are its metadata."""

import json
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from io import BytesIO, StringIO
from typing import Any

from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EmptyDocumentError,
    MissingColumnError,
    TooManyRowsError,
    damage_reported,
)
from vectorize_pipelines.documents.formats.text import decode
from vectorize_pipelines.documents.formats.values import check_metadata, json_fields, json_value
from vectorize_pipelines.documents.types import ParsedDocument, TableRow
from vectorize_pipelines.settings import DocumentSettings

Record = Mapping[str, Any]

PARQUET_BATCH_ROWS = 1024
CSV_DELIMITERS = ",;\t|"

_COLUMNS_REMEDY = "keep only the columns that are wanted, by VECTORIZE_DOCUMENTS__METADATA_COLUMNS, or "

#: What a cell holds where it has no value. Not "NA" and "None", which are also a country's code and a word.
NO_VALUE = ("", "nan", "NaN", "null", "NULL")


def parse_csv(content: bytes, context: ParseContext) -> ParsedDocument:
    """Parse comma-separated values, or those separated by whichever of `;`, tab and `|` the first line has most of."""
    text, notices = decode(content, context)
    header = text.partition("\n")[0]
    document = _delimited(text, max(CSV_DELIMITERS, key=header.count), "csv", context.settings)
    return replace(document, notices=notices)


def parse_tsv(content: bytes, context: ParseContext) -> ParsedDocument:
    """Parse tab-separated values."""
    text, notices = decode(content, context)
    return replace(_delimited(text, "\t", "tsv", context.settings), notices=notices)


def _delimited(text: str, delimiter: str, parser: str, settings: DocumentSettings) -> ParsedDocument:
    import pandas

    if not text.strip():
        raise EmptyDocumentError("is empty; fill it, or exclude it by VECTORIZE_CORPUS__EXCLUDE")
    with damage_reported("a table"), warnings.catch_warnings():
        # A row longer than the header is only warned of, and then cut off.
        warnings.simplefilter("error", pandas.errors.ParserWarning)
        frame = pandas.read_csv(
            StringIO(text),
            sep=delimiter,
            dtype=dict.fromkeys(settings.text_columns, "str"),
            dtype_backend="numpy_nullable",
            keep_default_na=False,
            na_values=list(NO_VALUE),
            index_col=False,
            skipinitialspace=True,
            nrows=settings.max_rows + 1,
        )
    _check_rows(len(frame), settings)
    frame.columns = frame.columns.map(str)
    kept = _columns_to_read(list(frame.columns), settings)
    columns = [frame[column].tolist() for column in kept]
    records = (dict(zip(kept, values, strict=True)) for values in zip(*columns, strict=True))
    return _document(records, parser, settings)


def parse_json_lines(content: bytes, context: ParseContext) -> ParsedDocument:
    """Parse an object a line. Through the json module: pandas turns the text "007" into a number."""
    settings = context.settings
    text, notices = decode(content, context)
    records = list(_json_objects(text, settings))
    found = list(dict.fromkeys(name for record in records for name in record))
    kept = frozenset(_columns_to_read(found, settings))
    # Of each row its own fields: every row may have others.
    texts = dict.fromkeys(settings.text_columns)
    rows = ({**texts, **{name: record[name] for name in record if name in kept}} for record in records)
    return replace(_document(rows, "json-lines", settings), notices=notices)


def _json_objects(text: str, settings: DocumentSettings) -> Iterator[Record]:
    rows = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        rows += 1
        _check_rows(rows, settings)
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise CorruptDocumentError(f"line {number} is not JSON ({error}); correct or remove the line") from error
        if not isinstance(record, dict):
            raise CorruptDocumentError(f"line {number} is not a JSON object; each line must be one, a field a column")
        yield record


def parse_parquet(content: bytes, context: ParseContext) -> ParsedDocument:
    """Read batch by batch; dictionary and run-length encoding can hold billions of values in a few bytes."""
    import pyarrow.parquet

    settings = context.settings
    with damage_reported("Parquet"):
        file = pyarrow.parquet.ParquetFile(BytesIO(content))
    declared = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
    if declared > settings.max_decompressed_bytes:
        raise _too_large(settings)
    _check_rows(file.metadata.num_rows, settings)
    kept = _columns_to_read(file.schema_arrow.names, settings)
    return _document(_parquet_records(file, kept, settings), "parquet", settings)


def _check_rows(rows: int, settings: DocumentSettings) -> None:
    if rows > settings.max_rows:
        raise TooManyRowsError(
            f"has more than {settings.max_rows:,} rows; split it, or raise VECTORIZE_DOCUMENTS__MAX_ROWS"
        )


def _parquet_records(file: Any, columns: Sequence[str], settings: DocumentSettings) -> Iterator[Record]:
    size = rows = 0
    with damage_reported("Parquet"):
        for batch in file.iter_batches(batch_size=PARQUET_BATCH_ROWS, columns=list(columns), use_threads=False):
            size += batch.nbytes
            rows += batch.num_rows  # the file may hold more than it declares
            _check_rows(rows, settings)
            if size > settings.max_decompressed_bytes:
                raise _too_large(settings)
            yield from batch.to_pylist()


def _too_large(settings: DocumentSettings) -> DecompressionLimitError:
    return DecompressionLimitError(
        f"unpacks to more than {settings.max_decompressed_bytes:,} bytes; "
        "split it, or raise VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"
    )


def _columns_to_read(found: Sequence[str], settings: DocumentSettings) -> list[str]:
    """Return text and metadata columns, of those found. Raises `MissingColumnError` without all of the text columns."""
    missing = [column for column in settings.text_columns if column not in found]
    if missing:
        raise MissingColumnError(
            f"has no column {_listed(missing)} to embed; its columns are {_listed(found)}; "
            f"name the column to embed in VECTORIZE_DOCUMENTS__TEXT_COLUMNS, for example {json.dumps(found[:1])}"
        )
    if settings.metadata_columns is None:
        return list(found)
    return [column for column in found if column in settings.text_columns or column in settings.metadata_columns]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _document(records: Iterable[Record], parser: str, settings: DocumentSettings) -> ParsedDocument:
    """Return the texts of rows, joined by a line. A row without text is left out; the others keep their number."""
    texts: list[str] = []
    rows: list[TableRow] = []
    position = size = 0
    for number, record in enumerate(records):
        values = (_cell_text(record[column]) for column in settings.text_columns)
        text = "\n".join(value for value in values if value)
        if not text.strip():
            continue
        metadata = json_fields({name: value for name, value in record.items() if name not in settings.text_columns})
        size += check_metadata(metadata, settings, f"the metadata of row {number}", _COLUMNS_REMEDY) + len(text)
        if size > settings.max_decompressed_bytes:
            raise _too_large(settings)
        rows.append(TableRow(position, position + len(text), number, metadata))
        texts.append(text)
        position += len(text) + 1
    if not rows:
        raise EmptyDocumentError(f"has no text in {_listed(settings.text_columns)}")
    return ParsedDocument("\n".join(texts), {"parser": parser}, rows=tuple(rows))


def _cell_text(value: Any) -> str:
    cell = json_value(value)
    if isinstance(cell, str):
        return cell
    return "" if cell is None else json.dumps(cell, ensure_ascii=False)
