"""Units: consecutive messages that are acknowledged together, and which of their requests still count.

Made and passed on by `pipeline.request_stream`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from vectorize_pipelines.messaging.messages import Origin, Tombstone, origin_of
from vectorize_pipelines.pipeline.request_report import Poison
from vectorize_pipelines.pipeline.requests import Work
from vectorize_pipelines.request_state import RequestState
from vectorize_pipelines.sources.kafka import Place
from vectorize_pipelines.versions import Known

#: What a message is: a valid request, a deletion, or neither.
Entry: TypeAlias = Work | Tombstone | Poison


@dataclass(slots=True)
class Unit:
    """Consecutive messages.

    entries    in the order in which they were read
    positions  where reading stands after them, for what is to be committed
    """

    entries: Sequence[Entry] = ()
    positions: Mapping[Place, int] = field(default_factory=dict)
    read_seconds: float = 0.0
    works: list[Work] = field(init=False)
    tombstones: list[Tombstone] = field(init=False)
    poison: list[Poison] = field(init=False)

    def __post_init__(self) -> None:
        self.works = [entry for entry in self.entries if isinstance(entry, Work)]
        self.tombstones = [entry for entry in self.entries if isinstance(entry, Tombstone)]
        self.poison = [entry for entry in self.entries if isinstance(entry, Poison)]

    def let_go(self) -> int:
        """Called once the unit has been acknowledged: drops what its requests hold, and gives how many bytes it was."""
        held = 0
        for work in self.works:
            if work.held_bytes:
                held += work.held_bytes
                work.forget_items()
        return held


def positions_after(entries: Sequence[Entry], until: Mapping[Place, int]) -> dict[Place, int]:
    """Where reading stands after the first of some messages; `until` is where it stands after all of them.

    Nothing for partitions that are not in `until`: their offsets are not committed.
    """
    found: dict[Place, int] = {}
    for entry in entries:
        origin = _origin(entry)
        place = (origin.topic, origin.partition)
        if place in until:
            found[place] = origin.offset + 1
    return found


def _origin(entry: Entry) -> Origin:
    if isinstance(entry, Poison):
        return origin_of(entry.message)
    return entry.request.origin if isinstance(entry, Work) else entry.origin


@dataclass(slots=True)
class RunCounts:
    """What a run has dealt with, acknowledged or not acted upon; for its metadata."""

    messages: int = 0
    dead_letters: int = 0
    superseded: int = 0
    cancelled: int = 0
    tombstones: int = 0
    newest_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """When a run of messages ends, beside when its source is exhausted.

    idle_seconds  without a message; 0: at the end of what is there
    max_seconds   since it began
    day_ends      a run that follows its topic is one day's, and ends with it, in UTC; for others: never
    should_stop   asked every second; a reason why it is to end now, or None
    """

    idle_seconds: float
    max_seconds: float
    day_ends: datetime
    should_stop: Callable[[], str | None] = lambda: None


def _version(work: Work) -> tuple[int, str, int, int]:
    return work.request.origin.version


def is_superseded(work: Work, known: Mapping[str, Known]) -> bool:
    """Whether a newer message has been dealt with; ends the request then. Looked at once more when rows are written."""
    found = known.get(work.request.task_id)
    if found is None or found.version <= work.request.origin.version:
        return False
    work.state = RequestState.COMPLETED
    return True


def newest(works: Sequence[Work]) -> list[Work]:
    """Of each task the newest of its requests; ends the others. The same request sent twice is answered twice.

    They are in one unit and for one collection, and none of them has failed: one that fails replaces nothing.
    """
    newest: dict[str, Work] = {}
    for work in works:
        other = newest.setdefault(work.request.task_id, work)
        if _version(work) > _version(other):
            newest[work.request.task_id] = work
    if len(newest) == len(works):
        return list(works)
    for work in works:
        newer = newest[work.request.task_id]
        if work is not newer:
            work.state = RequestState.COMPLETED
            work.vectors = len(newer.items) if work.request.items == newer.request.items else 0
    return [work for work in works if newest[work.request.task_id] is work]
