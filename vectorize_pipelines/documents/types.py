"""The results of parsing, which chunking takes. Plain data: it crosses process boundaries."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.core.notices import Notice


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` (exclusive) of a document's extracted text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Section(Span):
    """A stretch under one heading, the heading included.

    `path` is the headings from the outermost down; the document's title is the first of them where it stands
    in the text as a heading. Text before the first heading has an empty path. A heading with nothing under it
    belongs to the section that follows.
    """

    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page(Span):
    """A page, numbered from 1; `metadata` is what its passages have beside the document's."""

    number: int
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TableRow(Span):
    """A row of a table, numbered from 0; one item of its own, never merged with its neighbours."""

    number: int
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """The extracted text of one file and what lies where in it.

    sections and pages cover the text in order without overlapping; both may be empty. A table has `rows` and
    neither of them. Lines of `text` end in a single newline character; it holds no NUL and no lone surrogate.
    `metadata` may hold `title`, `author`, `created`, `modified` (ISO 8601), `language`
    (ISO 639-1), `page_count`, `parser`; what a document does not say is absent. `notices` say what of the document
    is not in the text, and what was guessed.
    """

    text: str
    metadata: Mapping[str, JsonValue]
    sections: tuple[Section, ...] = ()
    pages: tuple[Page, ...] = ()
    rows: tuple[TableRow, ...] = ()
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document that fits the encoder: `document.text[start:end] == text`.

    `tokens` are as the encoder's tokenizer counts them, special tokens included.

    `metadata` holds the row's own fields and `row`, for a table; `section`, where the document has headings
    ("Outer > Inner"); what its page has of its own.
    """

    index: int
    text: str
    start: int
    end: int
    page: int | None
    tokens: int
    metadata: Mapping[str, JsonValue]
