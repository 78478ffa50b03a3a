"""Outcomes of parsing as messages between processes: the text as it is, everything else as JSON.

What comes out of a parser process is checked piece by piece: it has read hostile bytes, and may say anything.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, repeat
from operator import le
from typing import Any

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.core.notices import (
    MAX_NOTICE_CHARACTERS,
    MAX_NOTICES,
    Notice,
    NoticeKind,
    limited,
    notice_of,
)
from vectorize_pipelines.documents.errors import DecompressionLimitError
from vectorize_pipelines.documents.types import Member, Page, ParsedDocument, Section, Span, TableRow
from vectorize_pipelines.sandbox import AnswerLimits, InvalidAnswerError, Message
from vectorize_pipelines.sandbox.frames import encoded, most_weight, weight
from vectorize_pipelines.settings import DocumentSettings

#: Metadata may be nested so deeply; parsers keep what a document has, and YAML's front matter has more than once.
MAX_DEPTH = 100
#: Beside the text and what a table's rows say: a document's own metadata.
SMALLEST_HEADER = 16 * 2**20
#: More than what a service's answer is wrapped in takes, in bytes and as objects.
ENVELOPE = 1_000

_HASH = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class ParseOutcome:
    """The outcome of a file: its `items.content_hash`, and the document unless that hash was known already."""

    content_hash: str
    document: ParsedDocument | None


def answer_limits(settings: DocumentSettings) -> AnswerLimits:
    """Return how large an outcome may be: the text no larger than what a file may unpack to, and the rest hardly.

    Nor larger than a file can be whose every byte becomes a character of four.
    """
    size = max(settings.max_decompressed_bytes, 4 * settings.max_file_bytes)
    return AnswerLimits(SMALLEST_HEADER + size, size)


def to_message(outcome: ParseOutcome, limits: AnswerLimits) -> Message:
    """Return the outcome as a message. Raises `DecompressionLimitError` for more than is taken."""
    document = outcome.document
    if document is None:
        return Message({"hash": outcome.content_hash})
    texts = [each.text.encode() for each in _with_members(document)]
    values = sum(4 + len(row.metadata) for each in _with_members(document) for row in each.rows)
    header = {
        "hash": outcome.content_hash,
        **_described(document, len(texts[0])),
        "members": [
            [member.name, _described(member.document, len(text))]
            for member, text in zip(document.members, texts[1:], strict=True)
        ],
    }
    size = sum(map(len, texts))
    if size > limits.body or not _fits(header, limits):
        raise DecompressionLimitError(
            f"has {size:,} bytes of text and {values:,} values in rows, more than there is room for; "
            "split it, or raise VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"
        )
    return Message(header, b"".join(texts))


def _with_members(document: ParsedDocument) -> list[ParsedDocument]:
    return [document, *(member.document for member in document.members)]


def _described(document: ParsedDocument, size: int) -> dict[str, object]:
    """Return all of a document but its text, which has so many bytes."""
    return {
        "bytes": size,
        "metadata": dict(document.metadata),
        "sections": [*_bounds(document.sections), [list(each.path) for each in document.sections]],
        "pages": [*_bounds(document.pages), [each.number for each in document.pages], _page_fields(document.pages)],
        "rows": [*_bounds(document.rows), [each.number for each in document.rows], *_fields(document.rows)],
        "notices": [[each.kind.value, each.what, each.remedy] for each in limited(document.notices)],
    }


def _fits(header: object, limits: AnswerLimits) -> bool:
    """Return whether the other side would take it: counted as there, on the same bytes."""
    content = encoded(header)
    return len(content) + ENVELOPE <= limits.header and weight(content) + ENVELOPE <= most_weight(limits.header)


def from_message(message: Message) -> ParseOutcome:
    """Return the outcome in a message. Raises `InvalidAnswerError` for what `to_message` would not have made."""
    header = message.header
    if not isinstance(header, dict) or not isinstance(header.get("hash"), str) or not _HASH.fullmatch(header["hash"]):
        raise InvalidAnswerError("an outcome without a hash")
    if "metadata" not in header:
        return ParseOutcome(header["hash"], None)
    body = memoryview(message.body)
    members: list[Member] = []
    document, end = _document(header, body, 0)
    for each in _list(header.get("members", [])):
        if not isinstance(each, list) or len(each) != 2 or not isinstance(each[1], dict):
            raise InvalidAnswerError("a member that is none")
        inner, end = _document(each[1], body, end)
        members.append(Member(_texts(each[:1])[0], inner))
    if end != len(body):
        raise InvalidAnswerError("a text of no document")
    return ParseOutcome(header["hash"], replace(document, members=tuple(members)))


def _document(header: Mapping[str, Any], body: memoryview, start: int) -> tuple[ParsedDocument, int]:
    """Return a document whose text begins at a byte of the body, and where it ends."""
    length = header.get("bytes", len(body) - start)
    if type(length) is not int or not 0 <= length <= len(body) - start:
        raise InvalidAnswerError("a text that is not there")
    end = start + length
    try:
        text = str(body[start:end], "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidAnswerError("a text that is not UTF-8") from error
    if "\0" in text:
        raise InvalidAnswerError("a text with NUL")
    size = len(text)
    document = ParsedDocument(
        text,
        _metadata(header.get("metadata")),
        sections=_sections(_lists(header.get("sections"), 3), size),
        pages=_pages(_lists(header.get("pages"), 4), size),
        rows=_rows(_lists(header.get("rows"), 6), size),
        notices=_notices(header.get("notices")),
    )
    return document, end


def _bounds(spans: Sequence[Span]) -> tuple[list[int], list[int]]:
    return [each.start for each in spans], [each.end for each in spans]


def _page_fields(pages: Sequence[Page]) -> list[dict[str, JsonValue]]:
    """Return each page's metadata; nothing where no page has any."""
    return [dict(page.metadata) for page in pages] if any(page.metadata for page in pages) else []


def _fields(rows: Sequence[TableRow]) -> tuple[list[int], list[list[str]], list[list[list[JsonValue]]]]:
    """Return each row's kind; each kind's names of fields, and by field the values of its rows, in order.

    By column, and not row by row: a list a row would double the time that the parent takes for a large table.
    """
    kinds: dict[tuple[str, ...], int] = {}
    of_rows = [kinds.setdefault(tuple(row.metadata), len(kinds)) for row in rows]
    values: list[list[list[JsonValue]]] = [[[] for _ in names] for names in kinds]
    for row, kind in zip(rows, of_rows, strict=True):
        for column, value in zip(values[kind], row.metadata.values(), strict=True):
            column.append(value)
    return of_rows, [list(names) for names in kinds], values


def _sections(lists: Sequence[list[Any]], size: int) -> tuple[Section, ...]:
    starts, ends, paths = lists
    _check_spans(starts, ends, paths, size)
    return tuple(Section(start, end, tuple(_texts(path))) for start, end, path in zip(starts, ends, paths, strict=True))


def _pages(lists: Sequence[list[Any]], size: int) -> tuple[Page, ...]:
    starts, ends, numbers, fields = lists
    _check_spans(starts, ends, numbers, size)
    _check_integers(numbers)
    if fields and len(fields) != len(numbers):
        raise InvalidAnswerError("metadata of other pages than there are")
    metadata = map(_metadata, fields) if fields else repeat({}, len(numbers))
    return tuple(map(Page, starts, ends, numbers, metadata))


def _rows(lists: Sequence[list[Any]], size: int) -> tuple[TableRow, ...]:
    starts, ends, numbers, kinds, names, values = lists
    _check_spans(starts, ends, numbers, size)
    _check_integers(numbers)
    _check_integers(kinds)
    if len(kinds) != len(starts) or len(names) != len(values) or max(kinds, default=-1) >= len(names):
        raise InvalidAnswerError("rows of unknown fields")
    counts = Counter(kinds)
    metadata = [_records(_texts(each), values[kind], counts[kind]) for kind, each in enumerate(names)]
    return tuple(map(TableRow, starts, ends, numbers, (next(metadata[kind]) for kind in kinds)))


def _notices(value: object) -> tuple[Notice, ...]:
    if not isinstance(value, list) or len(value) > MAX_NOTICES:
        raise InvalidAnswerError("more notices than there can be")
    found: list[Notice] = []
    for each in value:
        kind, what, remedy = _texts(each) if isinstance(each, list) and len(each) == 3 else ("", "", "")
        if kind not in list(NoticeKind) or max(len(what), len(remedy)) > MAX_NOTICE_CHARACTERS:
            raise InvalidAnswerError("a notice that is none")
        found.append(notice_of(NoticeKind(kind), what, remedy))
    return tuple(found)


def _records(names: Sequence[str], columns: object, count: int) -> Iterator[dict[str, JsonValue]]:
    """Return the fields of `count` rows that have the same ones."""
    columns = _lists(columns, len(names))
    for column in columns:
        if len(column) != count:
            raise InvalidAnswerError("a column that is shorter or longer than its table")
        if {list, dict} & set(map(type, column)):
            _check_depth(column, MAX_DEPTH + 1)
    rows = zip(*columns, strict=True) if columns else repeat((), count)
    return (dict(zip(names, row, strict=True)) for row in rows)


def _check_spans(starts: list[Any], ends: list[Any], others: list[Any], size: int) -> None:
    """Raise `InvalidAnswerError` unless these are places in a text of `size` characters, in order, without overlap."""
    if not len(starts) == len(ends) == len(others):
        raise InvalidAnswerError("spans that begin and do not end")
    _check_integers(starts)
    _check_integers(ends)
    in_order = all(map(le, starts, ends)) and all(map(le, ends, islice(starts, 1, None)))
    if not in_order or max(ends, default=0) > size:
        raise InvalidAnswerError("a span outside of its text")


def _check_integers(values: list[Any]) -> None:
    if not set(map(type, values)) <= {int} or min(values, default=0) < 0 or max(values, default=0) >= 2**63:
        raise InvalidAnswerError("no numbers where they must be")


def _metadata(value: object) -> Mapping[str, JsonValue]:
    if not isinstance(value, dict):
        raise InvalidAnswerError("metadata that are none")
    _check_depth(value, MAX_DEPTH)
    return value


def _check_depth(value: JsonValue, depth: int) -> None:
    if depth == 0:
        raise InvalidAnswerError("metadata that are nested too deeply")
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for member in members:
        if type(member) is list or type(member) is dict:
            _check_depth(member, depth - 1)


def _lists(value: object, count: int) -> list[list[Any]]:
    if not isinstance(value, list) or len(value) != count or not all(type(each) is list for each in value):
        raise InvalidAnswerError("no lists where they must be")
    return value


def _list(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise InvalidAnswerError("no list where there must be one")
    return value


def _texts(value: object) -> list[str]:
    if not isinstance(value, list) or not all(type(each) is str for each in value):
        raise InvalidAnswerError("no texts where they must be")
    return value
