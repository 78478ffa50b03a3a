"""Filters as users write them, in one line of text or as JSON -> `expressions`.

Called by `vectorize search --filter` and by the HTTP server. A text is an expression:

    language = en and (year >= 1970 or not title exists)
    author in ("Le Guin", Lem) and page < 10 and source_id prefix /books/

    expression  conjunction { or conjunction }
    conjunction term { and term }
    term        not term | ( expression ) | comparison
    comparison  FIELD = VALUE       and !=, <, <=, >, >=
                FIELD in ( VALUE, … )       also not in
                FIELD prefix VALUE  a text that starts so
                FIELD exists

A field is one of the record's own (`page`, `partition`, `source_id`, …) or one of its metadata (`year`, or
`metadata.year`). A value is a word, or stands in quotes, single or double, in which a backslash escapes as in JSON. In
metadata the word `2024` means the number and the text; in a range it is the number, to which texts that are numbers are
compared, too; `"2024"` in quotes is the text. `true` means the boolean and the texts `true`, `True` and `TRUE`. Words
of the grammar are known whatever their case.

A text that is no expression, but begins with FIELD=, is one comparison whose value is all of the rest, as in
`title=war and peace`. Where another comparison seems to follow an `and` or `or`, it is an error instead.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from vectorize_pipelines.stores.filters.comparisons import (
    ORDERINGS,
    Budget,
    Field,
    InvalidFilterError,
    beginning,
    compared,
    field_named,
    one_of,
    or_written,
    shown,
)
from vectorize_pipelines.stores.filters.expressions import And, Exists, Filter, In, Not, Or, Scalar

MAX_CHARACTERS = 65_536

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<operator>!=|<=|>=|=|<|>)
      | (?P<mark>[(),])
      | (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<unclosed>["'])
      | (?P<word>(?:(?!!=)[^\s(),=<>])+)
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)
#: What JSON has to see in a text that stood in single quotes.
_REQUOTED = re.compile(r"""\\(.)|(")""", re.DOTALL)
#: In what stands before the first `=`: signs of an expression, whatever is wrong with it.
_IN_NAME = re.compile(r"[<>]|\sin\s*\(|\sprefix\s|^not\s", re.IGNORECASE)
_CONNECTIVE = re.compile(r"\s(?:and|or)\s", re.IGNORECASE)
_COMPARED = re.compile(r"[=<>]|\sin\s*\(|\sprefix\s|\sexists(?![^\s)])", re.IGNORECASE)

_OPERATORS = "=, !=, <, <=, >, >=, in, prefix or exists"

_Read = TypeVar("_Read")


def parse_filter(text: str) -> Filter:
    """Return what a filter in one line of text means; see the module. Raises `InvalidFilterError`."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidFilterError("", f"has {len(text):,} characters; {MAX_CHARACTERS:,} are allowed")
    try:
        return _Parser(_tokens(text)).whole()
    except InvalidFilterError:
        plain = _plain(text)
        if plain is None:
            raise
    return _Parser([plain[0], _Token("operator", "=", 0), plain[1], _Token("end", "", len(text))]).whole()


@dataclass(frozen=True, slots=True)
class _Token:
    """A part of the text; of one in quotes, `text` is what they hold.

    kind  operator, mark, quoted, word or end
    """

    kind: str
    text: str
    start: int

    @property
    def place(self) -> str:
        return f"character {self.start + 1}"

    def is_word(self, word: str) -> bool:
        return self.kind == "word" and self.text.lower() == word

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else shown(self.text)


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    place = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(text, place)
        assert found is not None, "every character begins one of them"
        kind = found.lastgroup or "end"
        start, place = found.start(kind), found.end()
        if kind == "unclosed":
            raise InvalidFilterError(f"character {start + 1}", "the quote is not closed")
        content = _unquoted(found[kind], start) if kind == "quoted" else found[kind]
        tokens.append(_Token(kind, content, start))
    return tokens


def _unquoted(quoted: str, start: int) -> str:
    inner = quoted[1:-1]
    if quoted[0] == "'":
        inner = _REQUOTED.sub(lambda match: "'" if match[1] == "'" else f"\\{match[1] or match[2]}", inner)
    try:
        text: str = json.loads(f'"{inner}"', strict=False)
    except ValueError as error:
        problem = 'in quotes a backslash escapes as in JSON: \\" \\\\ \\n \\t \\u00e9'
        raise InvalidFilterError(f"character {start + 1}", problem) from error
    return text


def _plain(text: str) -> tuple[_Token, _Token] | None:
    """Return the field and the value of a text that is no expression but one comparison; None for any other."""
    name, equals, value = text.partition("=")
    field, rest = name.strip(), value.strip()
    if not equals or not field or field[0] in "(\"'" or field[-1] == "!" or _IN_NAME.search(field):
        return None
    connective = _CONNECTIVE.search(rest)
    if rest[:1] in ('"', "'") or (connective and _COMPARED.search(rest, connective.end() - 1)):
        return None
    start = len(name) + 1 + len(value) - len(value.lstrip())
    return _Token("quoted", field, text.index(field)), _Token("word", rest, start)


def _placed(value: _Token, read: Callable[[], _Read]) -> _Read:
    """Return what a value means; raise an error that says where it stands where it means nothing."""
    try:
        return read()
    except ValueError as error:
        raise InvalidFilterError(value.place, str(error)) from None


class _Parser:
    """The reader of the tokens of one text, used once."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens = tokens
        self._place = 0
        self._budget = Budget()

    def whole(self) -> Filter:
        """Return what all of them mean. Raises `InvalidFilterError`."""
        found = self._disjunction(0)
        if self._token.kind != "end":
            raise self._expected("and, or or the end", "; a value with blanks stands in quotes")
        return found

    def _disjunction(self, level: int) -> Filter:
        parts = [self._conjunction(level + 1)]
        while self._takes("or"):
            parts.append(self._conjunction(level + 1))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _conjunction(self, level: int) -> Filter:
        parts = [self._term(level + 1)]
        while self._takes("and"):
            parts.append(self._term(level + 1))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _term(self, level: int) -> Filter:
        self._budget.check_level(level, self._token.place)
        if self._token.is_word("not") and self._tokens[self._place + 1].kind != "operator":
            self._place += 1
            return Not(self._term(level + 1))
        if self._token.kind == "mark" and self._token.text == "(":
            self._place += 1
            inner = self._disjunction(level)
            self._take_mark(")", "and, or or )")
            return inner
        return self._comparison()

    def _comparison(self) -> Filter:
        name = self._token
        if name.kind not in ("word", "quoted") or not name.text:
            raise self._expected("the name of a field")
        self._budget.take_comparison(name.place)
        field = field_named(name.text)
        self._place += 1
        if self._token.kind == "operator":
            return self._compared(field, self._next().text)
        if self._takes("exists"):
            return Exists(field.name)
        if self._takes("prefix"):
            value = self._value()
            return _placed(value, lambda: beginning(field, value.text))
        negated = self._takes("not")
        if self._takes("in"):
            values = self._list(field)
            listed = or_written(In(field.name, values), field, values)
            return Not(listed) if negated else listed
        raise self._expected("in" if negated else _OPERATORS, "; a filter is FIELD=VALUE, such as language=en")

    def _compared(self, field: Field, operator: str) -> Filter:
        values = self._readings(field, self._value())
        if operator in ORDERINGS:
            return compared(field, operator, values[-1])
        equal = or_written(one_of(field, values), field, values)
        return equal if operator == "=" else Not(equal)

    def _list(self, field: Field) -> tuple[Scalar, ...]:
        self._take_mark("(", "( and a list of values")
        values: list[Scalar] = []
        if self._token.kind == "mark" and self._token.text == ")":
            self._place += 1
            return ()
        while True:
            value = self._value()
            self._budget.take_value(value.place)
            values += self._readings(field, value)
            if not (self._token.kind == "mark" and self._token.text == ","):
                break
            self._place += 1
        self._take_mark(")", "a comma or )")
        return tuple(values)

    def _readings(self, field: Field, value: _Token) -> tuple[Scalar, ...]:
        return _placed(value, lambda: field.readings(value.text, quoted=value.kind == "quoted"))

    def _value(self) -> _Token:
        if self._token.kind not in ("word", "quoted"):
            raise self._expected("a value")
        return self._next()

    # ---- tokens

    @property
    def _token(self) -> _Token:
        return self._tokens[self._place]

    def _next(self) -> _Token:
        self._place += 1
        return self._tokens[self._place - 1]

    def _takes(self, word: str) -> bool:
        """Pass a word of the grammar, where it comes next."""
        found = self._token.is_word(word)
        self._place += found
        return found

    def _take_mark(self, mark: str, expected: str) -> None:
        if self._token.kind != "mark" or self._token.text != mark:
            raise self._expected(expected)
        self._place += 1

    def _expected(self, what: str, hint: str = "") -> InvalidFilterError:
        return InvalidFilterError(self._token.place, f"expected {what}, found {self._token}{hint}")
