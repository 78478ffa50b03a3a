"""CSV and TSV: which delimiter and quotes a file has, which of its rows is the header, and its rows as written.

Programs write these files in many ways, and none says in the file which. So what lies in the first 64 KiB is read in
each way that there is, and the way by which most rows have as many fields as the header is taken. Values are texts.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import TypeAlias

from vectorize_pipelines.core.notices import Notice, assumed, listed_numbers, omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import CorruptDocumentError, EmptyDocumentError
from vectorize_pipelines.documents.formats.table import TableBuilder, check_rows, column_names, columns_to_read
from vectorize_pipelines.documents.formats.text import Decoded, decode
from vectorize_pipelines.documents.types import ParsedDocument

DELIMITERS = ",;\t|"
HEAD_CHARACTERS = 64 * 1024
#: In so many rows the header is looked for: titles and remarks may stand above it.
HEADER_WITHIN = 20
#: Of its rows, so many have to fit the header for a delimiter to be one rather than a character of the texts.
LEAST_SHARE = 0.5

_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a vertical bar", " ": "a blank"}
#: The first line by which Excel is told, or tells, the delimiter.
_SEPARATOR_LINE = re.compile(r'"?sep=([^"\n])"?', re.IGNORECASE)


def parse_csv(content: bytes, context: ParseContext) -> ParsedDocument:
    """Parse comma-separated values, or those separated by `;`, tab or `|`. Raises `ItemError`s."""
    return _parse(decode(content, context), "csv", DELIMITERS, context)


def parse_tsv(content: bytes, context: ParseContext) -> ParsedDocument:
    """Parse tab-separated values. Raises `ItemError`s."""
    return _parse(decode(content, context), "tsv", "\t", context)


def _parse(decoded: Decoded, parser: str, delimiters: str, context: ParseContext) -> ParsedDocument:
    settings = context.settings
    lines = decoded.text.split("\n")
    stated = _SEPARATOR_LINE.fullmatch(lines[0])
    start = 1 if stated else 0
    layout = _layout(lines, start, stated[1] if stated else delimiters, settings.text_columns)
    if layout is None:
        raise EmptyDocumentError("is empty; fill it, or exclude it by VECTORIZE_CORPUS__EXCLUDE")
    position = {column: place for place, column in enumerate(layout.columns)}
    places = [(position[column], column) for column in columns_to_read(layout.columns, settings)]
    builder = TableBuilder(parser, "line", context)
    bad: list[int] = []
    rows = 0
    for row, (first, fields, taken) in enumerate(layout.rows(lines)):
        rows = row + 1
        check_rows(rows, settings)
        if fields is None:
            bad += range(first, first + taken)
        elif any(fields):
            builder.add(row, first, {column: fields[place] for place, column in places})
    guessed = stated is None and layout.dialect.delimiter != delimiters[0]
    if bad and builder.is_empty:
        raise CorruptDocumentError(
            f"cannot be read as a table: of its {rows:,} rows none with a text has the {len(layout.columns)} fields of "
            f"the header, which is line {layout.header_line}; correct the rows, or the header"
        )
    return builder.build([*decoded.notices, *_notices(layout, bad, guessed=guessed)])


def _notices(layout: "_Layout", bad: Sequence[int], *, guessed: bool) -> list[Notice]:
    notices = []
    delimiter, width = layout.dialect.delimiter, len(layout.columns)
    if guessed and width > 1:
        what = (
            f"its fields are taken to be divided by {_NAMES[delimiter]}: so {layout.fitting} of its first "
            f"{layout.seen} rows have as many as the header, which is {width}"
        )
        remedy = "the ending .tsv states it" if delimiter == "\t" else f"a first line `sep={delimiter}` states it"
        notices.append(assumed(what, remedy))
    if layout.dialect.quote != '"':
        what = f"its fields are taken to be quoted by ': so all of its first {layout.seen} rows fit the header"
        notices.append(assumed(what, 'quote them by " where that is wrong'))
    if layout.above:
        what = f"left out what stands above the header ({_numbers(layout.above)})"
        notices.append(omitted(what, "remove it, or put it into a column"))
    if bad:
        what = f"left out rows that have not the {width} fields of the header ({_numbers(bad)})"
        remedy = 'put what has a delimiter, a quote or a line end in it into quotes ("), and complete short rows'
        notices.append(omitted(what, remedy))
    return notices


def _numbers(lines: Sequence[int]) -> str:
    return f"{'line' if len(lines) == 1 else 'lines'} {listed_numbers(lines)}"


# ---- which way a file is written


#: Number of its first line, from 1; its fields; how many lines it takes.
_Row: TypeAlias = tuple[int, list[str] | None, int]


@dataclass(frozen=True)
class _Layout:
    """The way in which a file is written.

    columns      names of its columns, no two alike
    needed       how many of them, from the first, there are up to the last that the file itself names
    start        index of the first line after the header
    header_line  number of the header's line, from 1
    above        numbers of the lines above the header that have something in them
    seen         rows that were looked at
    fitting      how many of them have as many fields as the header
    """

    dialect: "_Dialect"
    columns: list[str]
    needed: int
    start: int
    header_line: int
    above: list[int]
    seen: int
    fitting: int

    @property
    def share(self) -> float:
        """Which share of the rows that were looked at fits."""
        return self.fitting / self.seen if self.seen else 0.0

    def rank(self, text_columns: Sequence[str]) -> tuple[int, bool, float, int]:
        """How likely the file is written so: it sorts above that of a less likely layout."""
        texts, width = len(set(text_columns) & set(self.columns)), len(self.columns)
        return texts, width > 1 and self.share >= LEAST_SHARE, self.share, width

    def rows(self, lines: Sequence[str]) -> Iterator[_Row]:
        """Yield the rows as `_Dialect.records` does; the fields of one that does not fit the header are None.

        Fields at the end of a row that have nothing in them may be too many, or missing where the header names none.
        """
        width = len(self.columns)
        for line, fields, taken in self.dialect.records(lines, self.start, width):
            if fields is None or len(fields) == width:
                yield line, fields, taken
            elif len(fields) > width:
                yield line, None if any(map(str.strip, fields[width:])) else fields[:width], taken
            else:
                yield line, None if len(fields) < self.needed else fields + [""] * (width - len(fields)), taken


def _layout(lines: Sequence[str], start: int, delimiters: str, text_columns: Sequence[str]) -> _Layout | None:
    """Return the layout by which most of the head comes out even; None where there is nothing but empty lines."""
    head = _head(lines, start)
    double = _best_layout(head, start, delimiters, '"', text_columns)
    if double is None or any('"' in line for line in head):
        return double
    single = _best_layout(head, start, delimiters, "'", text_columns)
    return single if single is not None and _is_certain(single, double, head) else double


def _best_layout(
    head: Sequence[str], start: int, delimiters: str, quote: str, text_columns: Sequence[str]
) -> _Layout | None:
    tried = (_tried(_Dialect(delimiter, quote), head, start, text_columns) for delimiter in delimiters)
    layouts = [layout for layout in tried if layout is not None]
    return max(layouts, key=lambda layout: layout.rank(text_columns), default=None)  # of equal ones the first


def _is_certain(single: _Layout, double: _Layout, head: Sequence[str]) -> bool:
    """Return whether single quotes are quotes for certain: every row fits by them alone, and several have them."""
    end = re.escape(single.dialect.delimiter)
    quoted = re.compile(rf"(?:^|{end}) *'[^']*' *(?:{end}|$)")
    return single.share == 1.0 > double.share and sum(quoted.search(line) is not None for line in head) > 1


def _head(lines: Sequence[str], start: int) -> list[str]:
    """Return the lines from `start` on that begin in the first 64 KiB."""
    head: list[str] = []
    size = 0
    for line in islice(lines, start, None):
        if size > HEAD_CHARACTERS:
            break
        head.append(line)
        size += len(line) + 1
    return head


def _tried(dialect: "_Dialect", head: Sequence[str], start: int, text_columns: Sequence[str]) -> _Layout | None:
    """Return the layout of the head if it is of this dialect; None where it has nothing but empty lines."""
    first = list(islice(dialect.records(head, 0, None), HEADER_WITHIN))
    if not first:
        return None
    place = _header_place([fields or [] for _, fields, _ in first], text_columns)
    line, header, taken = first[place]
    above = [number + start for number, _, _ in first[:place]]
    names = header or []
    needed = max((number for number, name in enumerate(names, start=1) if name.strip()), default=0)
    layout = _Layout(dialect, column_names(names), needed, line - 1 + taken, line + start, above, 0, 0)
    fit = [fields is not None for _, fields, _ in layout.rows(head)]
    return replace(layout, start=layout.start + start, seen=len(fit), fitting=sum(fit))


def _header_place(records: Sequence[Sequence[str]], text_columns: Sequence[str]) -> int:
    """Return which record is the header: the first, but for narrower ones above one with more text columns."""
    wanted = set(text_columns)
    header = most = widest = 0
    for place, fields in enumerate(records):
        found = len(wanted & {name.strip() for name in fields})
        if found > most and (place == 0 or len(fields) > widest):
            header, most = place, found
        widest = max(widest, sum(bool(each.strip()) for each in fields))
    return header


# ---- rows of one way of writing


@dataclass(frozen=True)
class _Dialect:
    """A way of dividing lines into fields.

    A field is quoted where it is so as a whole: `"a ""b"" c"`, blanks around it aside; a quote anywhere else is a
    character of the text. What is quoted may have delimiters and line ends in it. Where tabs divide, a field that is
    open at the end of its line is not quoted if its lines come out even without.
    """

    delimiter: str
    quote: str

    def records(self, lines: Sequence[str], start: int, width: int | None) -> Iterator[_Row]:
        """Yield the records of the lines from the index `start` on, empty lines aside.

        `width` is how many fields the header has, where that is known. The fields are None where a quote is opened and
        not closed.
        """
        index, count, quote, delimiter = start, len(lines), self.quote, self.delimiter
        spaced = None if delimiter == "\t" else f"{delimiter} "
        while index < count:
            line = lines[index]
            if quote in line:
                fields, taken = self._record(lines, index, width)
                yield index + 1, fields, taken
                index += taken
                continue
            index += 1
            if line and not line.isspace():
                fields = line.split(delimiter)
                if spaced and (spaced in line or line[0] == " "):
                    fields = [each.lstrip(" ") for each in fields]
                yield index, fields, 1

    def _record(self, lines: Sequence[str], index: int, width: int | None) -> tuple[list[str] | None, int]:
        """Return the fields of the record that begins with a line, and how many lines it takes."""
        fields, last = self._fields(lines, index)
        by_tabs = self.delimiter == "\t"
        if last is None:
            return (self._literal(lines[index]) if by_tabs else None), 1
        span = range(index, last + 1)
        if by_tabs and width is not None and len(span) > 1:
            alone = [self._literal(lines[place]) for place in span]
            if len(fields) != width or all(len(each) == width for each in alone):
                return alone[0], 1
        return fields, len(span)

    def _fields(self, lines: Sequence[str], index: int) -> tuple[list[str], int | None]:
        """Return the fields of the record that begins with a line, and its last line; None where a quote stays open."""
        fields: list[str] = []
        line, place = lines[index], 0
        while True:
            match = self._field.match(line, place)
            if match is None:  # opened, and not closed on this line
                opened = self._opened.match(line, place)
                assert opened is not None, "a field that is not open is one that the other pattern has"
                parts = [opened[1]]
                index += 1
                while index < len(lines) and self._inner.fullmatch(lines[index]):
                    parts.append(lines[index])
                    index += 1
                line = lines[index] if index < len(lines) else ""
                match = self._closing.match(line)
                if match is None:  # closed in the middle of a field, or not at all
                    return fields, None
                parts.append(match["quoted"])
                fields.append(self._unquoted("\n".join(parts)))
            else:
                quoted = match["quoted"]
                fields.append(match["plain"] if quoted is None else self._unquoted(quoted))
            if not match["end"]:
                return fields, index
            place = match.end()

    def _literal(self, line: str) -> list[str]:
        """Return the fields of a line alone, in which a quote that stays open is a character."""
        fields: list[str] = []
        place = 0
        while True:
            match = self._field.match(line, place) or self._plain.match(line, place)
            assert match is not None, "the other pattern has any field"
            found = match.groupdict()
            quoted = found.get("quoted")
            fields.append(found["plain"] if quoted is None else self._unquoted(quoted))
            if not found["end"]:
                return fields
            place = match.end()

    def _unquoted(self, text: str) -> str:
        return text.replace(self.quote * 2, self.quote)

    # Of the patterns: what is possessive (`*+`) is given back to no other alternative, so that none takes long.

    @cached_property
    def _parts(self) -> tuple[str, str, str, str]:
        """Patterns of a quote, of blanks, of what may stand within quotes, and of the end of a field."""
        quote, delimiter = re.escape(self.quote), re.escape(self.delimiter)
        blank = "" if self.delimiter in "\t " else " *+"
        return quote, blank, f"[^{quote}]*+(?:{quote}{quote}[^{quote}]*+)*+", rf"(?P<end>{delimiter}|\Z)"

    @cached_property
    def _field(self) -> re.Pattern[str]:
        """A field that is quoted, or one that is not and does not begin with a quote that stays open."""
        quote, blank, inner, end = self._parts
        plain = rf"(?!{quote}{inner}\Z)(?P<plain>[^{re.escape(self.delimiter)}]*+)"
        return re.compile(
            rf"{blank}(?:{quote}(?P<quoted>{inner}){quote}{blank}(?={re.escape(self.delimiter)}|\Z)|{plain}){end}"
        )

    @cached_property
    def _plain(self) -> re.Pattern[str]:
        _, blank, _, end = self._parts
        return re.compile(rf"{blank}(?P<plain>[^{re.escape(self.delimiter)}]*+){end}")

    @cached_property
    def _opened(self) -> re.Pattern[str]:
        quote, blank, inner, _ = self._parts
        return re.compile(rf"{blank}{quote}({inner})\Z")

    @cached_property
    def _inner(self) -> re.Pattern[str]:
        return re.compile(self._parts[2])

    @cached_property
    def _closing(self) -> re.Pattern[str]:
        """The rest of a quoted field that began on a line before."""
        quote, blank, inner, end = self._parts
        return re.compile(rf"(?P<quoted>{inner}){quote}{blank}{end}")
