"""What was not embedded as a person would read it, and what was guessed in reading it.

Made by the parsers of documents and by the readers of requests; shown in the run's report, the metadata of rows, the
result events of requests and by the commands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

#: More of them about one document are said by their number alone.
MAX_NOTICES = 20
MAX_NOTICE_CHARACTERS = 500
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


def omitted(what: str, remedy: str) -> Notice:
    """Return the notice of something that is missing in the text."""
    return Notice(NoticeKind.OMITTED, _shortened(what), _shortened(remedy))


def assumed(what: str, remedy: str) -> Notice:
    """Return the notice of something that was guessed."""
    return Notice(NoticeKind.ASSUMED, _shortened(what), _shortened(remedy))


def listed_numbers(numbers: Sequence[int]) -> str:
    """Return ascending numbers as a person writes them: "3, 5, 7 to 9", and how many more there are than are shown."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] + 1 == number:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number, number])
    shown = [str(first) if first == last else f"{first} to {last}" for first, last in runs[:_LISTED_PARTS]]
    rest = sum(last - first + 1 for first, last in runs[_LISTED_PARTS:])
    return ", ".join(shown) + (f" and {rest:,} more" if rest else "")


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_NOTICE_CHARACTERS else f"{text[: MAX_NOTICE_CHARACTERS - 1]}…"
