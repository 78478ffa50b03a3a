"""CSV and TSV as programs write them: delimiters, quotes, headers, bad rows, values as written, columns by type."""

import csv
import io
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.documents.builders import CASES, SETTINGS, parquet, settings
from tests.documents.test_tables import rows_of
from tests.documents.tokenizers_for_tests import minilm
from vectorize_pipelines.core.notices import NoticeKind
from vectorize_pipelines.documents import Chunker, ParsedDocument, parse
from vectorize_pipelines.errors import ItemError

TABLES = CASES / "tables"
ASSUMED, OMITTED = NoticeKind.ASSUMED, NoticeKind.OMITTED


def case(name: str) -> ParsedDocument:
    """A file of the cases, parsed."""
    return parse((TABLES / name).read_bytes(), name, SETTINGS)


def written(text: str, name: str = "a.csv") -> ParsedDocument:
    """A text, parsed."""
    return parse(text.encode(), name, SETTINGS)


def texts(document: ParsedDocument) -> list[str]:
    return [text for _, text, _ in rows_of(document)]


def said(document: ParsedDocument) -> list[tuple[NoticeKind, str]]:
    return [(notice.kind, notice.what) for notice in document.notices]


def test_codes_stay_as_written() -> None:
    assert rows_of(case("codes.csv")) == [
        (0, "red rope", {"sku": "00123", "zip": "02134", "phone": "+4791234567"}),
        (1, "blue anchor", {"sku": "00456", "zip": "00501", "phone": "+4797654321"}),
    ]
    assert said(case("codes.csv")) == []


@pytest.mark.parametrize("name", ["sep.csv", "sep-quoted.csv"])
def test_the_line_by_which_excel_states_the_delimiter_is_honoured(name: str) -> None:
    document = case(name)
    assert rows_of(document)[0] == (0, "The lamp burns whale oil.", {"id": "1"})
    assert said(document) == []


def test_a_stated_delimiter_may_be_any_character() -> None:
    assert rows_of(written("SEP=^\nid^text\n1^a,b;c")) == [(0, "a,b;c", {"id": "1"})]
    assert rows_of(written("sep=\t\nid\ttext\n1\ta,b;c")) == [(0, "a,b;c", {"id": "1"})]


def test_in_tsv_a_quote_is_a_character_unless_the_whole_field_is_quoted() -> None:
    assert texts(case("quote.tsv")) == ['"Lorem" is a quoted word at the start', "plain"]
    content = 'id\ttext\n1\t"Hello\n2\tplain\n3\tthe end"\n4\t"two\nlines"\n5\t"a ""b"""\n6\t"open\n7\tit\'s 6" wide\n'
    document = written(content, "a.tsv")
    assert texts(document) == ['"Hello', "plain", 'the end"', "two\nlines", 'a "b"', '"open', "it's 6\" wide"]
    assert said(document) == []


def test_a_bad_row_is_listed_by_number_and_the_others_are_read() -> None:
    document = case("one-bad-row.csv")
    assert len(document.rows) == 200
    [(kind, what)] = said(document)
    assert kind is OMITTED
    assert "rows that have not the 2 fields of the header (line 201)" in what


@pytest.mark.parametrize(
    ("content", "kept", "lines"),
    [
        ("text,n\na,1\nb\nc,3\n", ["a", "c"], "line 3"),
        ('text,n\n"open,1\nfine,2\n"x",3\n', ["fine", "x"], "line 2"),
        ('text,n\nfine,2\n"open,1\n', ["fine"], "line 3"),
        ('text,n\nfine,2\n"a\nb",1,2\n"c"d,4\n', ["fine", '"c"d'], "lines 3, 4"),
        ("text,n\nfine,2\n\na,1,2\nb,1,2\n", ["fine"], "lines 4, 5"),
    ],
)
def test_bad_rows_of_every_kind(content: str, kept: list[str], lines: str) -> None:
    document = written(content)
    assert texts(document) == kept
    [(kind, what)] = said(document)
    assert kind is OMITTED
    assert f"({lines})" in what


def test_empty_fields_at_the_end_may_be_too_many_or_missing() -> None:
    document = written("text,n,\na,1\nb,2,\nc,3,,,\n,,\n")
    assert rows_of(document) == [(0, "a", {"n": "1"}), (1, "b", {"n": "2"}), (2, "c", {"n": "3"})]
    assert said(document) == []


def test_texts_that_look_like_no_value_are_texts() -> None:
    assert texts(case("null-text.csv")) == ["null", "nan", "NULL", "real words"]
    assert said(case("null-text.csv")) == []


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_a_delimiter_is_found_by_the_whole_head_and_said(delimiter: str) -> None:
    rows = ["id", "text"], ["1", '"a, b; c | d\te"'], ["2", "one, two, three"], ["3", '"x, y"']
    document = written("\n".join(map(delimiter.join, rows)))
    assert texts(document) == ["a, b; c | d\te", "one, two, three", "x, y"]
    [(kind, what)] = said(document)
    assert kind is ASSUMED
    assert "3 of its first 3 rows" in what


def test_commas_in_a_table_of_one_column_are_characters() -> None:
    document = written("text\nHello, world\nb, c, d\n")
    assert (texts(document), said(document)) == (["Hello, world", "b, c, d"], [])


def test_single_quotes_are_quotes_only_where_everything_fits_by_them() -> None:
    document = written("id,text\n1,'a, b'\n2,'c, d'\n3,e\n")
    assert texts(document) == ["a, b", "c, d", "e"]
    assert said(document)[0][0] is ASSUMED
    assert texts(written("id,text\n1,it's\n2,'tis\n3,'e'\n")) == ["it's", "'tis", "'e'"]


def test_what_stands_above_the_header_is_said_to_be_left_out() -> None:
    document = written("Cargo list\n\nMarch,2024\nid,n,text\n1,2,salt\n")
    assert rows_of(document) == [(0, "salt", {"id": "1", "n": "2"})]
    [(kind, what)] = said(document)
    assert (kind, "above the header (lines 1, 3)" in what) == (OMITTED, True)


def test_columns_without_a_name_and_with_the_same_get_one() -> None:
    assert rows_of(written("text,,fee,fee\na,1,2,3\n")) == [(0, "a", {"column_2": "1", "fee": "2", "fee.1": "3"})]


def test_columns_are_typed_where_the_user_says_so() -> None:
    types = settings(column_types={"price": "number", "ok": "boolean", "day": "date", "zip": "text"})
    content = b"text,price,ok,day,zip\na,+007.50,Yes,2024-03-01,02134\nb,12 kr,0,20240301T1030,1\nc,,,,\n"
    document = parse(content, "a.csv", types)
    assert rows_of(document) == [
        (0, "a", {"price": 7.5, "ok": True, "day": "2024-03-01", "zip": "02134"}),
        (1, "b", {"price": "12 kr", "ok": False, "day": "2024-03-01T10:30:00", "zip": "1"}),
        (2, "c", {}),
    ]
    [(kind, what)] = said(document)
    assert (kind, "kept 1 row (line 3) as written that have something else than a number in 'price'" in what) == (
        ASSUMED,
        True,
    )
    assert rows_of(parse(b'{"text": "a", "zip": 2134}', "a.jsonl", types)) == [(0, "a", {"zip": "2134"})]


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("/data/year=2024/country=NO/part-0.parquet", {"year": "2024", "country": "NO"}),
        ("s3://bucket/t/year=2024/city=S%C3%B8r%20Fron/part-0.parquet", {"year": "2024", "city": "Sør Fron"}),
        ("/data/year=2024/__HIVE/part-0.parquet", {}),
        ("/data/year=2024/country=__HIVE_DEFAULT_PARTITION__/part-0.parquet", {"year": "2024"}),
        ("part-0.parquet", {}),
    ],
)
def test_columns_that_stand_in_the_path_are_metadata(name: str, columns: dict[str, str]) -> None:
    document = parse(parquet({"text": ["Herring landed in the north."], "n": [1]}), name, SETTINGS)
    assert {name: value for name, value in document.metadata.items() if name not in ("parser", "language")} == columns
    typed = parse(
        parquet({"text": ["x"]}), name, settings(column_types={"year": "number", "country": "number"})
    ).metadata
    assert typed.get("year") == (int(columns["year"]) if "year" in columns else None)
    assert typed.get("country") == columns.get("country")
    as_csv = parse(b"text\nx\n", name.replace(".parquet", ".csv"), settings(metadata_columns=("year",)))
    assert as_csv.metadata == {"parser": "csv"} | {key: value for key, value in columns.items() if key == "year"}


@pytest.mark.parametrize(
    ("name", "number", "columns"),
    [("own-row.csv", "row_number", {"row": "12", "seat": "A"}), ("bool.csv", "row", {"id": "1", "checked": "True"})],
)
def test_a_columns_name_is_the_users_and_the_number_of_the_row_has_another(
    name: str, number: str, columns: dict[str, str]
) -> None:
    first = next(Chunker(minilm(), 40, 8).chunks(case(name))).metadata
    assert first[number] == 0
    assert columns.items() <= first.items()


values = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\u2028\u2029\x85"), max_size=8
)
rows = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(values, min_size=width, max_size=width), min_size=1, max_size=8)
)


@hypothesis_settings(max_examples=60, deadline=None)
@given(table=rows, delimiter=st.sampled_from(",;\t|"), every=st.booleans())
def test_what_a_program_writes_is_read_as_it_was(
    table: Sequence[Sequence[str]], delimiter: str, *, every: bool
) -> None:
    width = len(table[0])
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL if every else csv.QUOTE_MINIMAL)
    writer.writerow([*(f"c{number}" for number in range(width)), "text"])
    writer.writerows([*row, "x"] for row in table)
    document = written(f"sep={delimiter}\n{buffer.getvalue()}")
    found = [[metadata.get(f"c{number}", "") for number in range(width)] for _, _, metadata in rows_of(document)]
    # Blanks at the beginning of a field are no part of it.
    assert [[str(cell).lstrip(" ") for cell in row] for row in found] == [
        [each.lstrip(" ") for each in row] for row in table
    ]


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    content=st.lists(
        st.sampled_from(('"', "'", ",", ";", "\t", "\n", "text", "a", " ", '""', "|", "sep=;")), max_size=40
    ),
    suffix=st.sampled_from((".csv", ".tsv", ".jsonl")),
)
def test_any_text_is_a_table_or_refused_by_name(content: list[str], suffix: str) -> None:
    try:
        document = written("text,n\n" + "".join(content), f"a{suffix}")
    except ItemError:
        return
    assert "\n".join(document.text[row.start : row.end] for row in document.rows) == document.text
