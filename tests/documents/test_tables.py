"""Tables: a row is an item, its other columns typed metadata."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.documents.builders import ENGLISH, SETTINGS, parquet, settings, xlsx
from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.core.notices import NoticeKind
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EmptyDocumentError,
    MissingColumnError,
)
from vectorize_pipelines.documents.formats.values import iso_date
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.types import ParsedDocument


def rows_of(document: ParsedDocument) -> list[tuple[int, str, dict[str, JsonValue]]]:
    return [(row.number, document.text[row.start : row.end], dict(row.metadata)) for row in document.rows]


def test_csv_values_are_texts_as_written() -> None:
    content = b'text,count,price,code,ok\nalpha,1,1.50,NA,true\n"two, ""quoted""\nlines",,,x,FALSE\n,3,2,y,true\n'
    document = parse(content, "a.csv", SETTINGS)
    assert rows_of(document) == [
        (0, "alpha", {"count": "1", "price": "1.50", "code": "NA", "ok": "true"}),
        (1, 'two, "quoted"\nlines', {"code": "x", "ok": "FALSE"}),
    ]
    assert [notice.kind for notice in document.notices] == [NoticeKind.ASSUMED]
    assert "1 row (line 5) without a text in 'text'" in document.notices[0].what


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.tsv", "\t")])
def test_delimiters(name: str, delimiter: str) -> None:
    content = f"id{delimiter}text\n7{delimiter}a, b; c".replace("; c", " c").encode("utf-8-sig")
    assert rows_of(parse(content, name, SETTINGS)) == [(0, "a, b c", {"id": "7"})]


def test_numbers_in_the_text_column_stay_as_written() -> None:
    assert parse(b"text,n\n007,1\nNA,2\n", "a.csv", SETTINGS).text == "007\nNA"


def test_text_and_metadata_columns_are_chosen_by_settings() -> None:
    chosen = settings(text_columns=("title", "body"), metadata_columns=("kind", "absent"))
    document = parse(b"title,body,kind,other\nT,B,k,o\nU,,k,o\n", "a.csv", chosen)
    assert rows_of(document) == [(0, "T\nB", {"kind": "k"}), (1, "U", {"kind": "k"})]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"title,body\nx,y\n"),
        ("a.jsonl", b'{"title": "x", "body": "y"}\n'),
        ("a.parquet", parquet({"title": ["x"], "body": ["y"]})),
    ],
)
def test_a_missing_text_column_is_named_with_those_found_and_the_setting(name: str, content: bytes) -> None:
    with pytest.raises(MissingColumnError, match=r"'text'.*'title', 'body'.*VECTORIZE_DOCUMENTS__TEXT_COLUMNS"):
        parse(content, name, SETTINGS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", b"name,n\nx,1\n"),
        ("a.csv", b"Ports of 2024\n;\nname;n\nx;1\n"),
        ("a.jsonl", b'{"name": "x", "n": "1"}\n'),
        ("a.parquet", parquet({"name": ["x"], "n": ["1"]})),
        ("a.xlsx", xlsx({"S": [["Ports of 2024"], ["name", "n"], ["x", "1"]]})),
    ],
)
def test_a_table_needs_one_of_the_text_columns(name: str, content: bytes) -> None:
    chosen = settings(text_columns=("text", "name"))
    _, text, metadata = rows_of(parse(content, name, chosen))[-1]  # above it in a sheet stands its title
    assert (text, metadata["n"]) == ("x", "1")
    with pytest.raises(MissingColumnError, match=r"no column 'text' or 'label' to embed"):
        parse(b"name,n\nx,1\n", "a.csv", settings(text_columns=("text", "label")))


@pytest.mark.parametrize("content", [b"text,n\na,1,2,3\n", b'text,n\n"open,1\n'])
def test_a_malformed_csv_is_corrupt(content: bytes) -> None:
    with pytest.raises(CorruptDocumentError, match="cannot be read as a table"):
        parse(content, "a.csv", SETTINGS)


@pytest.mark.parametrize("content", [b"text,n\n", b"text,n\n,1\n , 2\n"])
def test_a_table_without_text_is_empty(content: bytes) -> None:
    with pytest.raises(EmptyDocumentError, match="no text in 'text'"):
        parse(content, "a.csv", SETTINGS)


def test_json_lines_keep_their_types() -> None:
    lines = [
        {"text": "alpha", "id": "007", "day": "2024-01-01", "n": 1, "deep": {"a": [1, None]}},
        {"text": "beta", "x": None, "inf": float("inf")},
    ]
    content = "\n\n".join(map(json.dumps, lines)).encode()
    assert rows_of(parse(content, "a.ndjson", SETTINGS)) == [
        (0, "alpha", {"id": "007", "day": "2024-01-01", "n": 1, "deep": {"a": [1, None]}}),
        (1, "beta", {}),
    ]


def test_integers_beyond_64_bits_become_text_or_nothing() -> None:
    content = f'{{"text": "x", "id": {2**80}, "max": {2**63 - 1}, "huge": {"9" * 2000}}}'.encode()
    [(_, _, metadata)] = rows_of(parse(content, "a.jsonl", SETTINGS))
    assert metadata == {"id": str(2**80), "max": 2**63 - 1}


def test_lone_surrogates_in_json_are_replaced() -> None:
    assert parse(b'{"text": "a\\ud800b\\u0000"}', "a.jsonl", SETTINGS).text == "a\ufffdb"


@pytest.mark.parametrize(("line", "reason"), [("{", "line 2 is not JSON"), ("[1]", "line 2 is not a JSON object")])
def test_a_bad_line_is_named_and_the_others_are_read(line: str, reason: str) -> None:
    document = parse(f'{{"text": "x"}}\n{line}\n{{"text": null}}\n{{"text": "y"}}\n'.encode(), "a.jsonl", SETTINGS)
    assert rows_of(document) == [(0, "x", {}), (3, "y", {})]
    bad, empty = document.notices
    assert bad.kind is NoticeKind.OMITTED
    assert bad.what.startswith(f"left out {reason.replace(' is', ', since it is')}")
    assert (empty.kind, "1 row (line 3) without a text" in empty.what) == (NoticeKind.ASSUMED, True)
    with pytest.raises(CorruptDocumentError, match=reason.replace("2", "1")):
        parse(f"{line}\n{line}".encode(), "a.jsonl", SETTINGS)


@pytest.mark.parametrize("nested", ["[" * 100_000, '{"text": "x", "a": ' + "[" * 900 + "]" * 900 + "}"])
def test_deeply_nested_json_is_refused(nested: str) -> None:
    with pytest.raises(CorruptDocumentError):
        parse(nested.encode(), "a.jsonl", SETTINGS)


def test_parquet_values_become_clean_json() -> None:
    content = parquet(
        {
            "text": ["alpha", None],
            "at": [datetime(2024, 3, 1, 10, tzinfo=UTC), None],
            "day": [date(2024, 3, 1), None],
            "price": [Decimal("1.50"), None],
            "nan": [float("nan"), 1.0],
            "raw": [b"\xff", None],
            "tags": [["a", "b"], []],
        }
    )
    assert rows_of(parse(content, "a.parquet", SETTINGS)) == [
        (
            0,
            "alpha",
            {"at": "2024-03-01T10:00:00+00:00", "day": "2024-03-01", "price": 1.5, "tags": ["a", "b"]},
        )
    ]


def test_parquet_that_expands_is_refused() -> None:
    content = parquet({"text": ["x" * 1000] * 20_000})
    assert len(content) < 20_000
    with pytest.raises(DecompressionLimitError, match="MAX_DECOMPRESSED_BYTES"):
        parse(content, "a.parquet", settings(max_decompressed_bytes=1_000_000))


def test_bytes_in_parquet_are_text_where_they_are_utf8() -> None:
    content = parquet({"text": ["Größe".encode(), b"two"], "raw": [b"\xff\xfe\x00", None], "name": [b"N", b"S"]})
    document = parse(content, "a.parquet", SETTINGS)
    assert [(text, metadata) for _, text, metadata in rows_of(document)] == [
        ("Größe", {"name": "N"}),
        ("two", {"name": "S"}),
    ]
    assert [notice.what for notice in document.notices] == [
        "left out 1 value (column 'raw') that are bytes and no text in UTF-8"
    ]
    with pytest.raises(EmptyDocumentError, match=r"column 'text'.*write the column as text"):
        parse(parquet({"text": [b"\xff\xfe\x00"]}), "a.parquet", SETTINGS)


def test_damaged_parquet_is_corrupt() -> None:
    with pytest.raises(CorruptDocumentError, match="Parquet"):
        parse(parquet({"text": [ENGLISH]})[:-40], "a.parquet", SETTINGS)


@given(st.lists(st.fixed_dictionaries({"text": st.text(max_size=20)}, optional={"n": st.integers()}), min_size=1))
def test_rows_divide_the_text_exactly(records: list[dict[str, str | int]]) -> None:
    content = "\n".join(map(json.dumps, records)).encode()
    try:
        document = parse(content, "a.jsonl", SETTINGS)
    except EmptyDocumentError:
        return
    assert "\n".join(document.text[row.start : row.end] for row in document.rows) == document.text
    assert all(json.dumps(row.metadata, allow_nan=False) for row in document.rows)


@pytest.mark.parametrize(
    ("value", "iso"),
    [
        ("D:20240301103000+01'00'", "2024-03-01T10:30:00+01:00"),
        ("D:20240301103000Z", "2024-03-01T10:30:00+00:00"),
        ("D:20240301103000Z00'00'", "2024-03-01T10:30:00+00:00"),
        ("D:2024", "2024-01-01T00:00:00"),
        ("D:20249901", None),
        ("2024-03-01", "2024-03-01"),
        ("2024-03-01T10:00:00Z", "2024-03-01T10:00:00+00:00"),
        ("yesterday", None),
        ("", None),
        (None, None),
    ],
)
def test_dates(value: str | None, iso: str | None) -> None:
    assert iso_date(value) == iso
