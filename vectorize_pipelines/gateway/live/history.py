"""The changes of late in the order in which they came, and positions in it from which a client can go on.

Called by `changes.hub`. A source has partitions, as a topic has; within one, offsets grow.
"""

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from vectorize_pipelines.messaging.events import ResultEvent

#: Changes that are kept for clients that come back.
KEPT = 10_000
_POSITION = re.compile(r"(?P<epoch>[A-Za-z0-9._-]{1,249})/(?P<offsets>(?:[0-9]{1,9}:[0-9]{1,18}(?:,|$))*)")


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state, where it stands in its source, and the JSON that clients get."""

    partition: int
    offset: int
    event: ResultEvent
    data: bytes

    @classmethod
    def of(cls, partition: int, offset: int, event: ResultEvent) -> Self:
        """The change that an event says."""
        return cls(partition, offset, event, event.to_json())


@dataclass(frozen=True, slots=True)
class Position:
    """A place between two changes.

    epoch    the reading without a gap that it is of: only there offsets mean anything
    offsets  partition -> the offset of its next change
    """

    epoch: str
    offsets: Mapping[int, int]

    def __str__(self) -> str:
        return f"{self.epoch}/" + ",".join(f"{number}:{offset}" for number, offset in sorted(self.offsets.items()))

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """The position that was written so; None where it is none."""
        found = _POSITION.fullmatch(text)
        if found is None:
            return None
        pairs = (pair.split(":") for pair in found["offsets"].split(",") if pair)
        return cls(found["epoch"], {int(number): int(offset) for number, offset in pairs})


@dataclass(frozen=True, slots=True)
class Entry:
    """A change, and the position after it, in words."""

    change: Change
    position: str


class History:
    """The latest changes, at most `kept`, from a source that has `begin` called before its first one."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._epoch = ""
        self._entries: deque[Entry] = deque()
        #: Partition -> the first offset from which on every change is here, and the offset of the next one.
        self._first: dict[int, int] = {}
        self._next: dict[int, int] = {}

    def begin(self, epoch: str, offsets: Mapping[int, int]) -> None:
        """Forget everything: from now on changes come from these offsets on, without a gap."""
        self._epoch = epoch
        self._entries.clear()
        self._first, self._next = dict(offsets), dict(offsets)

    @property
    def position(self) -> Position:
        """The place after the newest change."""
        return Position(self._epoch, self._next)

    def append(self, change: Change) -> Entry:
        """Take up a change. A partition that is new begins at 0."""
        if len(self._entries) >= self._kept:
            gone = self._entries.popleft().change
            self._first[gone.partition] = gone.offset + 1
        self._first.setdefault(change.partition, 0)
        self._next[change.partition] = change.offset + 1
        entry = Entry(change, str(self.position))
        self._entries.append(entry)
        return entry

    def after(self, position: Position) -> list[Entry] | None:
        """Return what came after a position; None where not all of it is here, or it is none of this history."""
        if position.epoch != self._epoch or not position.offsets.keys() <= self._next.keys():
            return None
        # A partition that is not named has been made since: all that is in it came after.
        known = {number: position.offsets.get(number, 0) for number in self._next}
        if any(not self._first[number] <= offset <= self._next[number] for number, offset in known.items()):
            return None
        return [entry for entry in self._entries if entry.change.offset >= known[entry.change.partition]]
