"""Consecutive messages that are acknowledged together, and which of their requests still count.

Made by `stream` and `suspects`, passed on by `stream`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import TypeAlias

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.messaging.messages import Origin, Tombstone, origin_of
from vectorize_pipelines.pipeline.requests.pending import InvalidMessage, PendingRequest
from vectorize_pipelines.pipeline.totals import Totals
from vectorize_pipelines.state.versions import Known

#: What a message is: a valid request, a deletion, or neither.
Entry: TypeAlias = PendingRequest | Tombstone | InvalidMessage


@dataclass(slots=True)
class MessageBatch:
    """Consecutive messages.

    entries    in the order in which they were read
    positions  where reading stands after them, for what is to be committed
    reached    the same where nothing is to be committed, too
    rehearsal  is encoded, and comes again with others
    probe      is written, to see whether that can be done, and comes again to be acknowledged
    encoding   what rehearsals of its requests took
    done       once it has been acknowledged or, of a rehearsal, encoded
    """

    entries: Sequence[Entry] = ()
    positions: Mapping[PartitionId, int] = field(default_factory=dict)
    reached: Mapping[PartitionId, int] = field(default_factory=dict)
    rehearsal: bool = False
    probe: bool = False
    encoding: Totals = field(default_factory=Totals)
    read_seconds: float = 0.0
    done: Event = field(default_factory=Event)
    requests: list[PendingRequest] = field(init=False)
    tombstones: list[Tombstone] = field(init=False)
    invalid: list[InvalidMessage] = field(init=False)

    def __post_init__(self) -> None:
        self.requests = [entry for entry in self.entries if isinstance(entry, PendingRequest)]
        self.tombstones = [entry for entry in self.entries if isinstance(entry, Tombstone)]
        self.invalid = [entry for entry in self.entries if isinstance(entry, InvalidMessage)]

    def release(self) -> int:
        """Drop what the requests hold, once all are acknowledged, and return how many bytes it was."""
        held = 0
        for pending in self.requests:
            if pending.held_bytes:
                held += pending.held_bytes
                pending.forget_items()
        return held


def positions_after(entries: Sequence[Entry], until: Mapping[PartitionId, int]) -> dict[PartitionId, int]:
    """Return where reading stands after the first of some messages; `until` is where it stands after all of them.

    Nothing for partitions that are not in `until`: their offsets are not committed.
    """
    found: dict[PartitionId, int] = {}
    for entry in entries:
        origin = entry_origin(entry)
        place = (origin.topic, origin.partition)
        if place in until:
            found[place] = origin.offset + 1
    return found


def entry_origin(entry: Entry) -> Origin:
    """The place of an entry's message."""
    if isinstance(entry, InvalidMessage):
        return origin_of(entry.message)
    return entry.request.origin if isinstance(entry, PendingRequest) else entry.origin


def _version(pending: PendingRequest) -> tuple[int, str, int, int]:
    return pending.request.origin.version


def is_superseded(pending: PendingRequest, known: Mapping[str, Known]) -> bool:
    """Return whether a newer message has been dealt with; ends the request then. Asked again when rows are written."""
    found = known.get(pending.request.task_id)
    if found is None or found.version <= pending.request.origin.version:
        return False
    pending.state = RequestState.COMPLETED
    return True


def newest(requests: Sequence[PendingRequest]) -> list[PendingRequest]:
    """Return the newest request of each task; end the others. The same request sent twice is answered twice.

    They are in one batch and for one collection, and none of them has failed: one that fails replaces nothing.
    """
    newest: dict[str, PendingRequest] = {}
    for pending in requests:
        other = newest.setdefault(pending.request.task_id, pending)
        if _version(pending) > _version(other):
            newest[pending.request.task_id] = pending
    if len(newest) == len(requests):
        return list(requests)
    for pending in requests:
        newer = newest[pending.request.task_id]
        if pending is not newer:
            pending.state = RequestState.COMPLETED
            if pending.request.items == newer.request.items:
                pending.vectors, pending.same_as = len(newer.items), newer
            else:
                pending.vectors = 0
    return [pending for pending in requests if newest[pending.request.task_id] is pending]
