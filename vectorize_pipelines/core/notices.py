"""What was not embedded as a person would read it, and what was guessed in reading it.

Made by the parsers of documents and by the readers of requests; shown in the run's report, the metadata of rows, the
result events of requests and by the commands.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from vectorize_pipelines.core.items import JsonValue, MetadataLimits

#: More of them about one document are said by their number alone.
MAX_NOTICES = 20
MAX_NOTICE_CHARACTERS = 500
#: What each row says of its document's: of each kind so many, cut to so many characters.
MAX_ROW_NOTICES = 5
MAX_ROW_NOTICE_CHARACTERS = 200
_LISTED_PARTS = 20


class NoticeKind(StrEnum):
    """Whether something is missing or something may be wrong."""

    #: What a person would read is not in the text: a run that met one ends with another code.
    OMITTED = "omitted"
    #: An encoding, a delimiter, a language was guessed.
    ASSUMED = "assumed"


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence about a document or request, to be put after its name.

    what    what is missing or was assumed, where, and for an assumption what from: "2 of 7 pages have no text (3, 5)"
    remedy  what to do about it, with the setting's name: "set VECTORIZE_DOCUMENTS__OCR, …"
    """

    kind: NoticeKind
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"

    def as_dict(self) -> dict[str, str]:
        """Return the notice as reports, result events and HTTP answers have it."""
        return {"kind": self.kind.value, "what": self.what, "remedy": self.remedy}


def omitted(what: str, remedy: str) -> Notice:
    """Return the notice of something that is missing in the text."""
    return notice_of(NoticeKind.OMITTED, what, remedy)


def assumed(what: str, remedy: str) -> Notice:
    """Return the notice of something that was guessed."""
    return notice_of(NoticeKind.ASSUMED, what, remedy)


def notice_of(kind: NoticeKind, what: str, remedy: str) -> Notice:
    """Return a notice in words that every database and terminal takes: printable, on one line, not too long."""
    return Notice(kind, _shortened(what), _shortened(remedy))


def has_kind(notices: Iterable[Notice], kind: NoticeKind) -> bool:
    """Return whether any of them is of a kind."""
    return any(each.kind is kind for each in notices)


def within(place: str, notices: Sequence[Notice]) -> list[Notice]:
    """Return notices that say which part of a request or file they are about: `data[3]`, a member of an archive."""
    return [notice_of(each.kind, f"{place}: {each.what}", each.remedy) for each in notices]


def limited(notices: Sequence[Notice]) -> tuple[Notice, ...]:
    """Return at most `MAX_NOTICES` of them, what is missing first; where there are more, the last says how many."""
    if len(notices) <= MAX_NOTICES:
        return tuple(notices)
    by_kind = sorted(notices, key=lambda each: each.kind is not NoticeKind.OMITTED)
    kept, others = by_kind[: MAX_NOTICES - 1], by_kind[MAX_NOTICES - 1 :]
    missing = sum(each.kind is NoticeKind.OMITTED for each in others)
    parts = [(missing, "parts are missing"), (len(others) - missing, "things were assumed")]
    said = " and ".join(f"{number:,} further {words}" for number, words in parts if number)
    rest = notice_of(others[0].kind, said, "mend what is listed first, and embed it again")
    return (*kept, rest)


def row_fields(
    notices: Sequence[Notice], metadata: Mapping[str, JsonValue], limits: MetadataLimits
) -> Mapping[str, JsonValue]:
    """Return a row's metadata with the fields `omitted` and `assumed`, lists of what the notices of its document say.

    The user's own fields of these names win. Metadata that would exceed the limits with them stay as they are.
    """
    if not notices:
        return metadata
    fields: dict[str, JsonValue] = {
        kind.value: [_cut(each.what, MAX_ROW_NOTICE_CHARACTERS) for each in of_kind[:MAX_ROW_NOTICES]]
        for kind in NoticeKind
        if (of_kind := [each for each in notices if each.kind is kind])
    }
    said = {**fields, **metadata}
    return said if limits.excess(said) is None else metadata


def to_json(notices: Sequence[Notice]) -> str:
    """Return notices as databases keep them: ASCII; empty for none."""
    return json.dumps([[each.kind, each.what, each.remedy] for each in notices]) if notices else ""


def from_json(text: str) -> tuple[Notice, ...]:
    """Return what `to_json` wrote."""
    return tuple(Notice(NoticeKind(kind), what, remedy) for kind, what, remedy in json.loads(text)) if text else ()


def listed_numbers(numbers: Sequence[int]) -> str:
    """Return ascending numbers as a person writes them: "3, 5, 6, 8 to 10", and how many more there are."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] + 1 == number:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    shown = [
        ", ".join(map(str, range(first, last + 1))) if last - first < 2 else f"{first} to {last}"
        for first, last in runs[:_LISTED_PARTS]
    ]
    rest = sum(last - first + 1 for first, last in runs[_LISTED_PARTS:])
    return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def _shortened(text: str) -> str:
    words = " ".join(text.split())
    printable = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in words)
    return _cut(printable, MAX_NOTICE_CHARACTERS)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else f"{text[: characters - 1]}…"
