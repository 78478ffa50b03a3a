"""The fields at the very top of a Markdown file: YAML between lines of `---`, or TOML between lines of `+++`.

Called by `markdown`. A field that does not parse costs none of the others.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from vectorize_pipelines.core.notices import Notice, assumed, omitted

MAX_CHARACTERS = 64 * 1024

_YAML = re.compile(r"---[ \t]*\n(?P<fields>.*?)^(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_TOML = re.compile(r"\+\+\+[ \t]*\n(?P<fields>.*?)^\+\+\+[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)
_YAML_FIELD = re.compile(r"(?P<name>[^\W\d][\w .-]{0,100}?)[ \t]*:(?:[ \t]+(?P<value>.*))?")
_TOML_FIELD = re.compile(r"[ \t]*(?P<name>[\w.-]{1,100}|\"[^\"\n]{1,100}\")[ \t]*=[ \t]*(?P<value>.*)")
_TOML_TABLE = re.compile(r"[ \t]*\[+(?P<name>[\w.\"' -]{1,100})\]")
_REMEDY = "correct the field, or put its value in quotes"


Fields = Mapping[Any, Any]


class FrontMatter(NamedTuple):
    """The fields, where the text after them begins, and what is wrong with some of them."""

    fields: Fields
    end: int
    notices: tuple[Notice, ...] = ()


Parser = Callable[[str], Fields | None]


def read_front_matter(text: str) -> FrontMatter:
    """Return the fields at the top of the text; none where it begins with something else, such as a ruler.

    YAML's values are texts as they are written (`NO`, `02134`, `22:30`, `1.10`); TOML's have the types it gives them.
    """
    for pattern, parse, split in ((_YAML, _yaml, _yaml_fields), (_TOML, _toml, _toml_fields)):
        match = pattern.match(text, 0, MAX_CHARACTERS)
        if match is None:
            continue
        if (fields := parse(match["fields"])) is not None:
            return FrontMatter(fields, match.end())
        if pieces := split(match["fields"]):
            return _field_by_field(pieces, parse, match.end())
    return FrontMatter({}, 0)


def _yaml(text: str) -> Fields | None:
    """Return what the YAML says, every scalar as its text; None where it is no mapping."""
    import yaml

    try:
        fields = yaml.load(text, Loader=yaml.BaseLoader)  # in C it recurses without a bound
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _toml(text: str) -> Fields | None:
    import tomllib

    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError):
        return None


class _Piece(NamedTuple):
    """A field by itself: its lines, its name, and its value where it is on the line of the name alone."""

    lines: str
    name: str
    value: str | None

    def and_line(self, line: str) -> "_Piece":
        """Return the field with one more line."""
        return _Piece(f"{self.lines}\n{line}", self.name, None)


def _yaml_fields(text: str) -> list[_Piece]:
    """Return the fields one by one; none where some line belongs to none, as in text between two rulers."""
    pieces: list[_Piece] = []
    for line in text.split("\n"):
        if match := _YAML_FIELD.fullmatch(line):
            pieces.append(_Piece(line, match["name"], (match["value"] or "").strip()))
        elif pieces and line.startswith((" ", "\t", "-")):
            pieces[-1] = pieces[-1].and_line(line)
        elif line.strip() and not line.startswith("#"):
            return []
    return pieces


def _toml_fields(text: str) -> list[_Piece]:
    """Return the fields before the first table, and each table, one by one."""
    pieces: list[_Piece] = []
    in_table = False
    for line in text.split("\n"):
        table, field = _TOML_TABLE.match(line), _TOML_FIELD.fullmatch(line)
        if table:
            pieces.append(_Piece(line, table["name"], None))
            in_table = True
        elif field and not in_table:
            pieces.append(_Piece(line, field["name"].strip('"'), field["value"].strip()))
        elif pieces and line.strip():
            pieces[-1] = pieces[-1].and_line(line)
    return pieces


def _field_by_field(pieces: list[_Piece], parse: Parser, end: int) -> FrontMatter:
    fields: dict[Any, Any] = {}
    as_written: list[str] = []
    lost: list[str] = []
    for piece in pieces:
        if (parsed := parse(piece.lines)) is not None:
            fields |= parsed
        elif piece.value:
            fields[piece.name] = piece.value
            as_written.append(piece.name)
        else:
            lost.append(piece.name)
    notices = []
    if as_written:
        notices.append(assumed(f"of its front matter {_named(as_written)} not valid, and taken as written", _REMEDY))
    if lost:
        notices.append(omitted(f"of its front matter {_named(lost)} not valid, and left out", _REMEDY))
    return FrontMatter(fields, end, tuple(notices))


def _named(names: list[str]) -> str:
    listed = ", ".join(names)
    return f"the field {listed} is" if len(names) == 1 else f"the fields {listed} are"
