"""The results of parsing, which chunking takes. Plain data: it crosses process boundaries."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.core.notices import Notice

#: Between the name of a file and that of a member: `archive.zip!/folder/a.pdf`.
MEMBER_SEPARATOR = "!/"
#: What metadata call the number of a row: the first of these that no column of its table is called.
ROW_NUMBER = ("row", "row_number", "table_row_number")


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
    """A row of a table; one item of its own, never merged with its neighbours.

    `number` is counted from 0, and in a sheet of a workbook from 1, as its program shows it.
    """

    number: int
    metadata: Mapping[str, JsonValue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """The extracted text of one file and what lies where in it.

    sections and pages cover the text in order without overlapping; both may be empty. A table has `rows` and
    neither of them. Lines of `text` end in a single newline character; it holds no NUL and no lone surrogate.
    `metadata` may hold `title`, `author`, `created`, `modified` (ISO 8601), `language`
    (ISO 639-1), `page_count`, `parser`; what a document does not say is absent. `notices` say what of the document
    is not in the text, and what was guessed, those of its members included. `members`: what an archive holds, or a
    message has attached; each is a document of its own, with its own notices, and none has members itself.
    """

    text: str
    metadata: Mapping[str, JsonValue]
    sections: tuple[Section, ...] = ()
    pages: tuple[Page, ...] = ()
    rows: tuple[TableRow, ...] = ()
    notices: tuple[Notice, ...] = ()
    members: "tuple[Member, ...]" = ()


@dataclass(frozen=True, slots=True)
class Member:
    """A document inside a file. `name` is its path in there, through all archives: `inner.zip!/folder/a.pdf`.

    Its notices are for its own rows; the outermost document has them, too.
    """

    name: str
    document: ParsedDocument


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a document that fits the encoder: `document.text[start:end] == text`.

    `tokens` are as the encoder's tokenizer counts them, special tokens included.

    `metadata` holds the row's own fields and the row's number, for a table, as `row`, or by another of
    `ROW_NUMBER` where the table has a column of that name; `section`, where the document has headings
    ("Outer > Inner"); what its page has of its own.
    """

    index: int
    text: str
    start: int
    end: int
    page: int | None
    tokens: int
    metadata: Mapping[str, JsonValue]
