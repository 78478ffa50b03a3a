"""RTF: paragraphs, headings and tables, in whatever code pages its fonts have.

A reader of its own: those at hand know neither hidden text and notes nor which style is a heading's.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from vectorize_pipelines.core.notices import omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import CorruptDocumentError, damage_reported
from vectorize_pipelines.documents.formats.outline import OutlineBuilder
from vectorize_pipelines.documents.formats.symbols import symbol
from vectorize_pipelines.documents.formats.table_text import MAX_COLUMNS, row_line
from vectorize_pipelines.documents.formats.values import json_fields, one_line
from vectorize_pipelines.documents.types import ParsedDocument

MAX_GROUPS = 10_000
BODY_TEXT_LEVEL = 9

_TOKEN = re.compile(
    rb"\\(?P<word>[a-zA-Z]{1,32})(?P<number>-?\d{1,10})? ?"
    rb"|\\'(?P<byte>[0-9a-fA-F]{2})"
    rb"|\\(?P<symbol>[^a-zA-Z])"
    rb"|(?P<brace>[{}])"
    rb"|[\r\n]+"
    rb"|(?P<text>[^\\{}\r\n]+)"
)
_HEADING_STYLE = re.compile(r"heading (\d)", re.IGNORECASE)

#: Code pages of Windows' character sets, by the number that a font has.
_CHARSETS = {
    77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gbk", 136: "cp950", 161: "cp1253", 162: "cp1254",
    163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250",
    254: "cp437", 255: "cp850",
}  # fmt: skip
_SYMBOL_CHARSET = 2
_CODE_PAGES = {"mac": "mac_roman", "pc": "cp437", "pca": "cp850", "ansi": "cp1252"}
_CHARACTERS = {
    "tab": "\t", "line": "\n", "emdash": "—", "endash": "–", "lquote": "‘", "rquote": "’", "ldblquote": "“",
    "rdblquote": "”", "bullet": "•", "emspace": " ", "enspace": " ", "qmspace": " ", "zwj": "\u200d", "zwnj": "\u200c",
}  # fmt: skip
_SYMBOLS = {b"~": "\u00a0", b"_": "\u2011", b"{": "{", b"}": "}", b"\\": "\\"}
#: Groups that hold nothing that is shown in the text, or, as `shprslt`, the same once more for older programs.
_SKIPPED = frozenset((
    "colortbl", "pict", "object", "header", "headerl", "headerr", "headerf", "footer", "footerl", "footerr", "footerf",
    "fldinst", "sp", "shprslt", "nonesttables", "listtable", "listoverridetable", "revtbl", "rsidtbl", "themedata",
    "datastore", "xe", "tc", "tcn", "pntxta", "pntxtb", "pntext", "listtext", "atnid", "atnref", "atnicn", "atnparent",
    "bkmkstart", "bkmkend", "ftnsep", "ftnsepc", "aftnsep", "aftnsepc", "template", "filetbl", "do", "ud",
))  # fmt: skip
#: Groups that are read although programs may pass over them.
_READ = frozenset(("shpinst", "shptxt", "annotation", "atnauthor", "footnote", "field", "fldrslt", "objdata"))
_INFORMATION = {"title": "title", "author": "author", "creatim": "created", "revtim": "modified"}


def parse_rtf(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return text, sections and the document information; footnotes, comments and text boxes follow their paragraph.

    Raises `CorruptDocumentError`.
    """
    reader = _Reader(with_comments=context.settings.office_comments)
    with damage_reported("RTF"):
        is_whole = reader.read(content)
    text, sections = reader.builder.build()
    metadata = {**reader.information, "parser": "rtf"}
    metadata["title"] = metadata.get("title") or reader.builder.first_heading or ""
    notices = [] if is_whole else [omitted("it ends in the middle, and the rest is missing", "replace it")]
    if reader.objects:
        what = f"{reader.objects} embedded object(s), as workbooks in a document are, are not in its text"
        notices.append(omitted(what, "save them as files of their own"))
    return ParsedDocument(text, json_fields(metadata), sections, notices=tuple(notices))


@dataclass(slots=True)
class _State:
    """What holds in one group, and for those inside of it until they say otherwise.

    target  where text goes: "text", "skip", a table such as "fonttbl", a field of the information
    """

    target: str = "text"
    is_hidden: bool = False
    is_deleted: bool = False
    font: int | None = None
    fallback: int = 1
    is_optional: bool = False


@dataclass(slots=True)
class _Font:
    charset: int = 0
    code_page: str | None = None
    name: str = ""


@dataclass(slots=True)
class _Flow:
    """A run of paragraphs: the document's own, or that of a note or text box."""

    parts: list[str] = field(default_factory=list)
    cells: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    depth: int = 0
    kind: str = ""


class _Reader:
    """A walk through the tokens, which hands the builder one block after the other."""

    def __init__(self, *, with_comments: bool):
        self.builder = OutlineBuilder()
        self.information: dict[str, str] = {}
        self.objects = 0
        self._with_comments = with_comments
        self._code_page = "cp1252"
        self._fonts: dict[int, _Font] = {}
        self._default_font: int | None = None
        self._levels: dict[int, int] = {}
        self._style_number = 0
        self._style_name = ""
        self._state = _State()
        self._stack: list[_State] = []
        self._flows = [_Flow()]
        self._bytes = bytearray()
        self._left_to_skip = 0
        self._author = ""
        self._time: dict[str, int] = {}
        self._in_table = False
        self._outline: int | None = None
        self._style: int | None = None
        self._row_separator = "\n\n"

    def read(self, content: bytes) -> bool:
        """Read all; return whether every group is closed. Raises `CorruptDocumentError`."""
        position = 0
        while match := _TOKEN.match(content, position):
            position = match.end()
            if match["word"]:
                number = int(match["number"]) if match["number"] else None
                word = match["word"].decode("ascii")
                if word == "bin":
                    position += max(number or 0, 0)
                self._word(word, number)
            elif match["brace"] == b"{":
                self._open()
            elif match["brace"]:
                if not self._stack:
                    break  # what follows the outermost group is no part of the document
                self._close()
            elif match["byte"]:
                self._data(bytes([int(match["byte"], 16)]))
            elif match["symbol"]:
                self._symbol(match["symbol"])
            elif match["text"]:
                self._data(match["text"])
        is_whole = not self._stack
        self._end()
        return is_whole

    def _end(self) -> None:
        """Hand over what is in hand, which in a file that is cut short may be inside of groups."""
        self._decode()
        self._state = _State()
        while len(self._flows) > 1:
            self._end_flow()
        if self._flows[0].cells:
            self._cell(None)
            self._row(None)
        self._in_table = False
        self._paragraph()

    def _open(self) -> None:
        self._decode()
        if len(self._stack) >= MAX_GROUPS:
            raise CorruptDocumentError("has groups within groups without end; open it in Word and save it again")
        self._stack.append(self._state)
        self._state = replace(self._state, is_optional=False)
        self._left_to_skip = 0

    def _close(self) -> None:
        self._decode()
        if self._state.target == "stylesheet":
            self._end_style()
        if self._state.target in ("created", "modified") and self._time:
            self._end_time(self._state.target)
        self._state = self._stack.pop()
        self._left_to_skip = 0
        while len(self._flows) > 1 and self._flows[-1].depth > len(self._stack):
            self._end_flow()

    def _end_flow(self) -> None:
        """Hand what a note or a text box says to the flow that it is in."""
        flow = self._flows[-1]
        self._paragraph()
        self._flows.pop()
        text = "\n".join((*flow.lines, *flow.beside))
        if not text or (flow.kind == "annotation" and not self._with_comments):
            return
        if flow.kind == "annotation" and self._author:
            text = f"Comment by {one_line(self._author)}: {text}"
        self._author = "" if flow.kind == "annotation" else self._author
        self._flows[-1].beside.append(text)

    def _word(self, word: str, number: int | None) -> None:
        self._decode()
        state = self._state
        if word == "u" and number is not None:
            self._add(chr(number & 0xFFFF))
            self._left_to_skip = state.fallback
            return
        self._left_to_skip = 0
        if self._is_destination(word):
            return
        act = _WORDS.get(word)
        if act is not None:
            act(self, number)
        elif word in _CHARACTERS:
            self._add(_CHARACTERS[word])
        elif word in _CODE_PAGES:
            self._code_page = _CODE_PAGES[word]

    def _is_destination(self, word: str) -> bool:
        """Begin a group that does not go into the text, or not where it stands; False for any other word."""
        state = self._state
        was_optional, state.is_optional = state.is_optional, False
        if state.target == "skip":
            return True
        if word in ("fonttbl", "stylesheet", "info"):
            state.target = word
        elif state.target == "info" and word in _INFORMATION:
            state.target = _INFORMATION[word]
            self._time = {}
        elif word in ("footnote", "annotation", "shptxt"):
            self._flows.append(_Flow(depth=len(self._stack), kind=word))
            state.target = "text"
        elif word == "atnauthor":
            state.target = "atnauthor"
            self._author = ""
        elif word in _SKIPPED or (was_optional and word not in _READ) or (state.target == "info" and word != "info"):
            self.objects += word == "object"
            state.target = "skip"
        else:
            return False
        return True

    def _symbol(self, symbol_: bytes) -> None:
        self._decode()
        if self._left_to_skip:
            self._left_to_skip -= 1
        elif symbol_ == b"*":
            self._state.is_optional = True
        elif symbol_ in _SYMBOLS:
            self._add(_SYMBOLS[symbol_])
        elif symbol_ in b"\r\n":
            self._paragraph()

    def _data(self, data: bytes) -> None:
        if self._left_to_skip:
            skipped = min(self._left_to_skip, len(data))
            self._left_to_skip -= skipped
            data = data[skipped:]
        if self._state.target != "skip":
            self._bytes += data

    def _decode(self) -> None:
        """Take the bytes that have come together as text of the font in force."""
        if not self._bytes:
            return
        data, self._bytes = bytes(self._bytes), bytearray()
        number = self._default_font if self._state.font is None else self._state.font
        font = self._fonts.get(-1 if number is None else number)
        if font is not None and font.charset == _SYMBOL_CHARSET and self._state.target == "text":
            name = font.name.split(";")[0].strip()
            self._add("".join(symbol(name, f"{each:x}") if each > 0x20 else chr(each) for each in data))
            return
        self._add(data.decode(self._codec(font), "replace"))

    def _codec(self, font: _Font | None) -> str:
        if font is None or font.charset == 1:
            return self._code_page
        if font.code_page:
            return font.code_page
        # Simple programs write 0 for every font, whatever the document's code page; Word means the Western one.
        own = any(each.charset in _CHARSETS for each in self._fonts.values())
        return _CHARSETS.get(font.charset, "cp1252" if own else self._code_page)

    def _add(self, text: str) -> None:
        target = self._state.target
        if target == "text":
            if not self._state.is_hidden and not self._state.is_deleted:
                self._flows[-1].parts.append(text)
        elif target == "fonttbl" and self._state.font is not None:
            self._fonts.setdefault(self._state.font, _Font()).name += text
        elif target == "stylesheet":
            self._style_name += text
        elif target == "atnauthor":
            self._author += text
        elif target in ("title", "author"):
            self.information[target] = one_line(self.information.get(target, "") + text)

    def _end_style(self) -> None:
        name = self._style_name.strip().rstrip(";").strip()
        heading = _HEADING_STYLE.fullmatch(name)
        if heading or name.lower() == "title":
            self._levels[self._style_number] = int(heading[1]) if heading else 0
        self._style_name, self._style_number = "", 0

    def _end_time(self, name: str) -> None:
        parts = [
            self._time.get(unit, least) for unit, least in (("yr", 0), ("mo", 1), ("dy", 1), ("hr", 0), ("min", 0))
        ]
        self._time = {}
        try:
            self.information[name] = datetime(*parts).isoformat()  # type: ignore[arg-type]
        except (ValueError, OverflowError):
            return

    def _paragraph(self, _: int | None = None) -> None:
        """End a paragraph: in a table it goes on in its cell."""
        flow = self._flows[-1]
        if self._state.target == "skip":
            return
        if self._in_table and len(self._flows) == 1:
            flow.parts.append("\n")
            return
        text = "".join(flow.parts)
        flow.parts.clear()
        if len(self._flows) > 1:
            flow.lines += [text.strip()] if text.strip() else []
            return
        level = self._levels.get(self._style) if self._style is not None else None
        if self._outline is not None:
            level = None if self._outline >= BODY_TEXT_LEVEL else self._outline + 1
        if level is not None:
            self.builder.heading(text, level)
        else:
            self.builder.block(text)
        self._row_separator = "\n\n"
        self._flush()

    def _flush(self) -> None:
        """Hand over what the paragraph or row refers to."""
        for text in self._flows[0].beside:
            self.builder.block(text)
        self._flows[0].beside.clear()

    def _cell(self, _: int | None) -> None:
        flow = self._flows[-1]
        if self._state.target == "text" and len(flow.cells) < MAX_COLUMNS:
            flow.cells.append(one_line("".join(flow.parts)))
            flow.parts.clear()

    def _row(self, _: int | None) -> None:
        flow = self._flows[-1]
        line = row_line(flow.cells)
        flow.cells.clear()
        if len(self._flows) > 1:
            flow.lines += [line] if line else []
            return
        if line:
            self.builder.block(line, self._row_separator)
            self._row_separator = "\n"
        self._flush()

    def _nested_row(self, _: int | None) -> None:
        """End a row of a table inside a cell: it is read as part of that cell."""

    def _nested_cell(self, _: int | None) -> None:
        self._flows[-1].parts.append(" ")

    def _plain_paragraph(self, _: int | None) -> None:
        if self._state.target == "text" and len(self._flows) == 1:
            self._in_table, self._outline, self._style = False, None, None

    def _begin_table_paragraph(self, _: int | None) -> None:
        if len(self._flows) == 1:
            self._in_table = True

    def _set_style(self, number: int | None) -> None:
        if self._state.target == "stylesheet":
            self._style_number = number or 0
        elif self._state.target == "text" and len(self._flows) == 1:
            self._style = number

    def _set_outline(self, number: int | None) -> None:
        if self._state.target == "text" and len(self._flows) == 1:
            self._outline = number

    def _set_font(self, number: int | None) -> None:
        self._state.font = number or 0
        if self._state.target == "fonttbl":
            self._fonts.setdefault(number or 0, _Font())

    def _set_charset(self, number: int | None) -> None:
        if self._state.target == "fonttbl" and self._state.font is not None:
            self._fonts.setdefault(self._state.font, _Font()).charset = number or 0

    def _set_font_page(self, number: int | None) -> None:
        if self._state.target == "fonttbl" and self._state.font is not None:
            self._fonts.setdefault(self._state.font, _Font()).code_page = _code_page(number)

    def _set_code_page(self, number: int | None) -> None:
        self._code_page = _code_page(number) or self._code_page

    def _set_hidden(self, number: int | None) -> None:
        self._state.is_hidden = number != 0

    def _set_deleted(self, number: int | None) -> None:
        self._state.is_deleted = number != 0

    def _plain(self, _: int | None) -> None:
        self._state.is_hidden = self._state.is_deleted = False
        self._state.font = None

    def _set_default_font(self, number: int | None) -> None:
        self._default_font = number or 0

    def _set_fallback(self, number: int | None) -> None:
        self._state.fallback = min(max(1 if number is None else number, 0), 16)


def _unit(name: str) -> Callable[[_Reader, int | None], None]:
    def note(reader: _Reader, number: int | None) -> None:
        reader._time[name] = number or 0

    return note


def _code_page(number: int | None) -> str | None:
    """Return Python's codec for a code page of Windows; None for one that it does not have."""
    name = {65001: "utf-8", 10000: "mac_roman", 936: "gbk"}.get(number or 0, f"cp{number}")
    try:
        b"".decode(name)
    except LookupError:
        return None
    return name


_WORDS: dict[str, Callable[[_Reader, int | None], None]] = {
    "par": _Reader._paragraph, "sect": _Reader._paragraph, "page": _Reader._paragraph, "column": _Reader._paragraph,
    "cell": _Reader._cell, "row": _Reader._row, "nestcell": _Reader._nested_cell, "nestrow": _Reader._nested_row,
    "pard": _Reader._plain_paragraph, "intbl": _Reader._begin_table_paragraph, "s": _Reader._set_style,
    "outlinelevel": _Reader._set_outline, "f": _Reader._set_font, "fcharset": _Reader._set_charset,
    "cpg": _Reader._set_font_page, "ansicpg": _Reader._set_code_page, "v": _Reader._set_hidden,
    "deleted": _Reader._set_deleted, "plain": _Reader._plain, "deff": _Reader._set_default_font,
    "uc": _Reader._set_fallback,
    **{name: _unit(name) for name in ("yr", "mo", "dy", "hr", "min")},
}  # fmt: skip
