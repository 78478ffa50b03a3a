"""The fields at the top of Markdown files, and what of Markdown is not its text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.documents.builders import SETTINGS
from vectorize_pipelines.core.notices import NoticeKind
from vectorize_pipelines.documents.formats.markdown import without_comments
from vectorize_pipelines.documents.parsing import parse
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.errors import ItemError

CASES = Path(__file__).parent / "cases" / "markdown"


def markdown(text: str) -> ParsedDocument:
    return parse(text.encode(), "a.md", SETTINGS)


def test_a_field_that_does_not_parse_costs_none_of_the_others() -> None:
    document = parse((CASES / "colon.md").read_bytes(), "colon.md", SETTINGS)
    assert document.text == "# Entry\n\nThe barometer fell at ten.\n"
    assert {name: document.metadata[name] for name in ("title", "author", "subtitle")} == {
        "title": "Storm log: night two", "author": "Ada", "subtitle": "wind: west",
    }  # fmt: skip
    (notice,) = document.notices
    assert notice.kind is NoticeKind.ASSUMED
    assert "fields title, subtitle" in notice.what


def test_a_field_of_several_lines_that_does_not_parse_is_left_out_and_said() -> None:
    document = markdown("---\nauthor: Ada\nbad: a: b\n  and: c: d\ntags:\n- x\n- y\n---\nbody")
    assert document.text == "body"
    assert document.metadata == {"author": "Ada", "tags": ["x", "y"], "parser": "markdown"}
    assert [(notice.kind, "bad" in notice.what) for notice in document.notices] == [(NoticeKind.OMITTED, True)]


def test_scalars_are_as_written() -> None:
    fields = {"country": "NO", "zip": "02134", "time": "22:30", "version": "1.10", "on": "yes", "day": "2024-03-01",
              "hex": "0x1F", "quoted": "007", "year": "2024"}  # fmt: skip
    source = "\n".join(
        f'{name}: "{value}"' if name == "quoted" else f"{name}: {value}" for name, value in fields.items()
    )
    metadata = markdown(f"---\n{source}\n---\nbody").metadata
    assert {name: metadata[name] for name in fields} == fields


def test_toml_has_the_types_it_gives() -> None:
    document = markdown(
        '+++\ntitle = "Log: two"\nweight = 10\ndraft = true\ndate = 2024-03-01\n[extra]\na = "b"\n+++\n# X\n'
    )
    assert document.text == "# X\n"
    assert document.metadata == {
        "title": "Log: two", "weight": 10, "draft": True, "date": "2024-03-01", "created": "2024-03-01",
        "extra": {"a": "b"}, "parser": "markdown",
    }  # fmt: skip
    assert document.notices == ()


def test_toml_that_is_wrong_in_one_field_keeps_the_others() -> None:
    document = markdown('+++\ntitle = Log two\nauthor = "Ada"\n[extra]\na = 1\n[broken]\nb = \n+++\nbody')
    assert document.metadata == {"title": "Log two", "author": "Ada", "extra": {"a": 1}, "parser": "markdown"}
    assert [notice.kind for notice in document.notices] == [NoticeKind.ASSUMED, NoticeKind.OMITTED]


@pytest.mark.parametrize("top", ["---\n# Title\n\n---\n", "---\nOne: two: three\nwords\n---\n", "---\n- a\n- b\n---\n"])
def test_text_between_rulers_is_text(top: str) -> None:
    assert markdown(f"{top}body").text == f"{top}body"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("<!-- note -->\nbody", "body"),
        ("a <!-- x --> b<!---->c<!--> d", "a  bc d"),
        ("one\n<!--\n# Not a heading\n```\n-->\ntwo", "one\ntwo"),
        ("x <!-- one\ntwo --> y <!-- z --> w\nlast", "x  y  w\nlast"),
        ("`<!-- code -->` <!-- gone -->.", "`<!-- code -->` ."),
        ("```html\n<!-- code -->\n```\n", "```html\n<!-- code -->\n```\n"),
        ("text\n\n    <!-- code -->\n", "text\n\n    <!-- code -->\n"),
        ("a <!-- never closed\n# Heading\n", "a <!-- never closed\n# Heading\n"),
    ],
)
def test_comments_are_no_text(source: str, text: str) -> None:
    assert without_comments(source) == text


def test_comments_are_no_headings() -> None:
    assert markdown("<!--\n# Draft\n-->\n# Real\nbody").metadata["title"] == "Real"


@hypothesis_settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["<!--", "-->", "`", "``", "```", "\n", "    ", "a", "<!-->", "# h", ">"]), max_size=40)
)
def test_removing_comments_ends_and_only_removes(pieces: list[str]) -> None:
    text = "".join(pieces)
    kept = iter(text)
    assert all(character in kept for character in without_comments(text))


@hypothesis_settings(max_examples=60)
@given(
    st.sampled_from(["---", "+++"]),
    st.text(st.sampled_from("ab:=[]{}&*!|>'\"#-, \n\t%@`~0.<"), max_size=60),
)
def test_any_front_matter_is_read_or_is_text(ruler: str, fields: str) -> None:
    try:
        document = markdown(f"{ruler}\n{fields}\n{ruler}\nbody")
    except ItemError:
        return
    assert document.text.endswith("body")


def test_a_million_openings_take_no_time() -> None:
    text = "<!-- `\n" * 100_000
    assert without_comments(text) == text
