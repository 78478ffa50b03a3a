"""Decides which messages are tried alone, and which fail after two runs died of them, so that none stops its topic.

A run notes what it takes in hand before it decodes it (`RunAttempts.note_read`), and takes its notes away when it ends
in order. Notes whose run is gone are deaths: `begin` finds them, and the messages in them are suspects, which
`pipeline.requests.stream` takes in hand one at a time (`note_alone`). A message that was alone in hand at two deaths is
set aside. One death with the message alone is not enough: a kill from outside always finds something in hand.

A run that ends with an error has died, too. Any message may have met that error (a device that is gone, a library that
is broken, a store that is full), unless the same run has stored another one before: only then is it proven.

What is acknowledged needs no note: a drain's suspects begin at the committed offsets.
"""

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import datetime
from threading import Lock
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import sqlalchemy as sa

from vectorize_pipelines.errors import (
    CollectionNotFoundError,
    ItemError,
    KilledRunsError,
    LedgerError,
    ModelMismatchError,
    StoreError,
    StoreUnavailableError,
    VectorizeError,
)
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home
from vectorize_pipelines.state.database import Database, Text, metadata
from vectorize_pipelines.state.locks import await_signs, exclusive, is_held

logger = logging.getLogger(__name__)

#: (topic, partition)
PartitionId: TypeAlias = tuple[str, int]
#: What a run was doing with what it had in hand.
Stage: TypeAlias = Literal["decoding", "reading", "encoding", "writing"]
Kind: TypeAlias = Literal["drain", "replay"]

#: Deaths with a message alone in hand after which it is set aside.
MOST_DEATHS = 2
#: Each death of messages that were written together makes the next portion smaller: an eighth of it.
SHRINKING_BITS = 3
ERROR_CHARACTERS = 500
_LOCK = "attempts"

#: The offsets that a run has in hand in a partition or, with `died`, had when it died. `alone`: one message and nothing
#: else, whose time is noted, since a topic that is deleted and made again has other messages at the same offsets.
#: `proven`: no error, or one that other messages would not have met.
attempts = sa.Table(
    "vectorize_message_attempts",
    metadata,
    sa.Column("owner", Text, primary_key=True),
    sa.Column("topic", Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("kind", Text, nullable=False),
    sa.Column("first_offset", sa.BigInteger, nullable=False),
    sa.Column("end_offset", sa.BigInteger, nullable=False),
    sa.Column("alone", sa.Boolean, nullable=False),
    sa.Column("timestamp_ms", sa.BigInteger, nullable=False),
    sa.Column("stage", Text, nullable=False),
    sa.Column("run_id", Text, nullable=False),
    sa.Column("noted_us", sa.BigInteger, nullable=False),
    sa.Column("died", sa.Boolean, nullable=False),
    sa.Column("proven", sa.Boolean, nullable=False),
    sa.Column("error", Text),
)


class Spot(NamedTuple):
    """A message: its partition, its offset in it, and its time."""

    place: PartitionId
    offset: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Death:
    """The part of one partition that a run had in hand when it died. `error` is None where its process did.

    proven  whether other messages would not have met the error
    """

    owner: str
    kind: str
    place: PartitionId
    first: int
    end: int
    alone: bool
    timestamp_ms: int
    stage: str
    run_id: str
    proven: bool
    error: str | None

    @property
    def spot(self) -> Spot:
        """The message that was alone in hand."""
        return Spot(self.place, self.first, self.timestamp_ms)

    @property
    def error_class(self) -> str | None:
        """The name of the error's class."""
        return None if self.error is None else self.error.partition(":")[0]

    def __str__(self) -> str:
        how = "its process died" if self.error is None else self.error
        return f"run {self.run_id[:8]}, {self.stage}: {how}"


@dataclass(frozen=True, slots=True)
class _Note:
    first: int
    end: int
    alone: bool = False
    timestamp_ms: int = 0
    stage: Stage = "reading"


_EMPTY_NOTE = _Note(0, 0)


class Attempts:
    """Attempts without notes: for requests that were no messages, whose runs are theirs alone.

    knows_deaths  whether any message was alone in hand at a death
    """

    knows_deaths = False

    def begin(self, positions: Mapping[PartitionId, int], ends: Mapping[PartitionId, int]) -> None:
        """Find what earlier runs died of; called once, with where reading begins and where it ends in each partition.

        What lies behind the end of a partition was in a topic that is no more.
        """

    def is_near(self) -> bool:
        """Return whether the next messages are suspects."""
        return False

    def has_suspects(self, offsets: Mapping[PartitionId, tuple[int, int]]) -> bool:
        """Return whether there are suspects in these ranges: first offset and the one after the last."""
        return False

    def offsets_until(self, reached: Mapping[PartitionId, int]) -> Mapping[PartitionId, tuple[int, int]]:
        """Return the ranges between where reading stands and these offsets."""
        return {}

    def note_read(self, reached: Mapping[PartitionId, int], *, noted: bool) -> None:
        """Note that messages up to these offsets have been read, before anything is done with them."""

    def note_alone(self, spot: Spot, stage: Stage) -> None:
        """Note that one message is in hand, and nothing else."""

    def note_writing(self, ranges: Mapping[PartitionId, tuple[int, int]]) -> None:
        """Note that only these are in hand, and are about to be written."""

    def note_nothing(self) -> None:
        """Note that nothing is in hand: whatever happens now, no message is the reason."""

    def acknowledged(self, reached: Mapping[PartitionId, int]) -> None:
        """Note that everything before these offsets is done with. Called by any thread."""

    def forget_acknowledged(self) -> None:
        """Forget the deaths of what has been acknowledged."""

    def portion(self, place: PartitionId, offset: int, most: int) -> int:
        """Return how many suspects are written together from this one on: fewer after each death of such a portion."""
        return most

    def deaths_alone(self, spot: Spot) -> Sequence[Death]:
        """Return the deaths with this message alone in hand that count.

        An error that is not proven counts where the message met one of the same class before that is: by then there
        may be no other message left to prove it with.
        """
        return ()

    def needs_proof(self, spot: Spot) -> bool:
        """Return whether another message is to be stored first: an error ended a run that had this one alone."""
        return False

    def times_in_hand(self, spot: Spot) -> int:
        """Return at how many deaths the message was in hand."""
        return 0

    def set_aside(self, spot: Spot) -> Sequence[Death]:
        """Return the deaths for which this message is to be set aside; empty where it is not."""
        deaths = self.deaths_alone(spot)
        return deaths if len(deaths) >= MOST_DEATHS else ()

    def ending(self, error: BaseException | None, *, proven: bool) -> None:
        """Note that the run ends: in order, or, where `error` is given, because of what it has in hand.

        `proven`: the run has stored another message before, so that others would not have met the error.
        """

    def close(self) -> None:
        """Take the notes away, or make them a death; a second call does nothing."""


class RunAttempts(Attempts):
    """The notes of one run. Used by its reading thread, but for `acknowledged`, `ending` and `close`."""

    def __init__(self, database: Database, settings: Settings, kind: Kind, run_id: str):
        """Raise `LedgerError`."""
        self._database = database
        self._settings = settings
        self._kind = kind
        self._run_id = run_id
        self._owner = uuid.uuid4().hex
        self._write = database.bulk_upsert(attempts, lambda new, old: sa.true())
        self._noted: dict[PartitionId, _Note] = {}
        self._read: dict[PartitionId, int] = {}
        self._done: dict[PartitionId, int] = {}
        self._changing = Lock()
        self._suspects: list[Death] = []
        self._alone: dict[Spot, list[Death]] = {}
        self._error: BaseException | None = None
        self._proven = True
        self._resources = ExitStack()
        self._resources.callback(database.close)
        try:
            self._resources.enter_context(self._hold_lock(self._owner))
        except LedgerError:
            self._resources.close()
            raise

    @classmethod
    def open(cls, settings: Settings, kind: Kind, run_id: str) -> Self:
        """Return the notes of a run. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings), settings, kind, run_id)

    def begin(self, positions: Mapping[PartitionId, int], ends: Mapping[PartitionId, int]) -> None:
        self._read.update(positions)
        self._done.update(positions)
        topics = sorted({topic for topic, _ in positions})
        # Whoever had a part of this run's in hand has ended, or was killed just now.
        owners = [owner for owner, *place in self._open_notes(topics) if tuple(place) in positions]
        await_signs(self._database, [_lock_name(owner) for owner in owners if owner != self._owner])
        # One run at a time: another one that just looks whether an owner lives would make it seem so.
        with exclusive(self._database, _LOCK, home.attempt_lock(self._settings, _LOCK), "the notes of attempts"):
            self._collect_deaths(topics)
        found = [death for death in self._deaths(topics) if death.place in positions]
        self._forget([death for death in found if death.end > ends.get(death.place, death.end)])
        found = [death for death in found if death.end <= ends.get(death.place, death.end)]
        for death in found:
            if death.alone:
                self._alone.setdefault(death.spot, []).append(death)
        self.knows_deaths = bool(self._alone)
        self._suspects = [death for death in found if death.kind == self._kind and not self._is_set_aside(death)]
        if self._kind == "drain":
            self.forget_acknowledged()
        if self._suspects:
            ranges = (f"{'/'.join(map(str, each.place))}/{each.first}-{each.end - 1}" for each in self._suspects)
            logger.warning(
                "an earlier run died with messages in hand; they are taken one at a time: %s", ", ".join(ranges)
            )

    def is_near(self) -> bool:
        return any(death.first <= self._read.get(death.place, -1) < death.end for death in self._suspects)

    def has_suspects(self, offsets: Mapping[PartitionId, tuple[int, int]]) -> bool:
        return any(
            death.first < offsets[death.place][1] and offsets[death.place][0] < death.end
            for death in self._suspects
            if death.place in offsets
        )

    def offsets_until(self, reached: Mapping[PartitionId, int]) -> Mapping[PartitionId, tuple[int, int]]:
        return {place: (self._read.get(place, 0), end) for place, end in reached.items()}

    def note_read(self, reached: Mapping[PartitionId, int], *, noted: bool) -> None:
        self._read.update(reached)
        if noted:
            with self._changing:
                self._note({place: _Note(self._done.get(place, 0), end) for place, end in reached.items()})

    def note_alone(self, spot: Spot, stage: Stage) -> None:
        self._note_exclusive({spot.place: _Note(spot.offset, spot.offset + 1, True, spot.timestamp_ms, stage)})

    def note_writing(self, ranges: Mapping[PartitionId, tuple[int, int]]) -> None:
        self._note_exclusive({place: _Note(*offsets, stage="writing") for place, offsets in ranges.items()})

    def note_nothing(self) -> None:
        self._note_exclusive({})

    def acknowledged(self, reached: Mapping[PartitionId, int]) -> None:
        with self._changing:
            self._done.update(reached)

    def forget_acknowledged(self) -> None:
        passed = [death for death in self._suspects if death.end <= self._done.get(death.place, 0)]
        if passed:
            self._suspects = [death for death in self._suspects if death not in passed]
            self._forget(passed)

    def portion(self, place: PartitionId, offset: int, most: int) -> int:
        deaths = sum(
            death.place == place and death.first <= offset < death.end and not death.alone for death in self._suspects
        )
        return max(1, most >> (SHRINKING_BITS * max(0, deaths - 1)))

    def deaths_alone(self, spot: Spot) -> Sequence[Death]:
        counted: list[Death] = []
        for death in self._alone.get(spot, ()):
            if death.proven or any(death.error_class == earlier.error_class for earlier in counted):
                counted.append(death)
        return counted

    def needs_proof(self, spot: Spot) -> bool:
        return any(death.error is not None for death in self._alone.get(spot, ()))

    def times_in_hand(self, spot: Spot) -> int:
        return sum(death.place == spot.place and death.first <= spot.offset < death.end for death in self._suspects)

    def ending(self, error: BaseException | None, *, proven: bool) -> None:
        self._error, self._proven = error, proven

    def close(self) -> None:
        try:
            with self._resources:
                self._finish_notes()
        except LedgerError as error:
            logger.warning("what this run had in hand may be taken for the reason of a death: %s", error)
        self._noted = {}

    def _is_set_aside(self, death: Death) -> bool:
        return death.alone and bool(self.set_aside(death.spot))

    def _forget(self, deaths: Sequence[Death]) -> None:
        if deaths:
            with self._database.write() as connection:
                for death in deaths:
                    connection.execute(sa.delete(attempts).where(_is(death.owner, death.place)))

    def _collect_deaths(self, topics: Sequence[str]) -> None:
        """Make deaths of the notes of runs that are gone."""
        for owner in sorted({owner for owner, *_ in self._open_notes(topics)}):
            file = home.attempt_lock(self._settings, owner)
            if owner == self._owner or is_held(self._database, _lock_name(owner), file):
                continue
            with self._database.write() as connection:
                empty = attempts.c.first_offset >= attempts.c.end_offset
                connection.execute(sa.delete(attempts).where(attempts.c.owner == owner, empty))
                connection.execute(sa.update(attempts).where(attempts.c.owner == owner).values(died=True))
            file.unlink(missing_ok=True)

    def _open_notes(self, topics: Sequence[str]) -> list[tuple[str, str, int]]:
        """Return owner, topic and partition of what is noted as in hand."""
        query = sa.select(attempts.c.owner, attempts.c.topic, attempts.c.partition).where(
            attempts.c.kind == self._kind, attempts.c.topic.in_(topics), ~attempts.c.died
        )
        with self._database.read() as connection:
            return [(owner, topic, partition) for owner, topic, partition in connection.execute(query)]

    def _deaths(self, topics: Sequence[str]) -> list[Death]:
        query = sa.select(attempts).where(attempts.c.died, attempts.c.topic.in_(topics)).order_by(attempts.c.noted_us)
        with self._database.read() as connection:
            return [
                Death(
                    row.owner,
                    row.kind,
                    (row.topic, row.partition),
                    row.first_offset,
                    row.end_offset,
                    row.alone,
                    row.timestamp_ms,
                    row.stage,
                    row.run_id,
                    row.proven,
                    row.error,
                )
                for row in connection.execute(query)
            ]

    def _note_exclusive(self, notes: Mapping[PartitionId, _Note]) -> None:
        """Note that these are in hand, and nothing in any other partition."""
        with self._changing:
            others = {place: _EMPTY_NOTE for place, note in self._noted.items() if note != _EMPTY_NOTE}
            self._note({**others, **notes})

    def _note(self, notes: Mapping[PartitionId, _Note]) -> None:
        changed = {place: note for place, note in notes.items() if self._noted.get(place) != note}
        if changed:
            now = time.time_ns() // 1000
            rows = [self._row(place, note, now) for place, note in changed.items()]
            with self._database.write() as connection:
                self._write(connection, rows)
            self._noted.update(changed)

    def _row(self, place: PartitionId, note: _Note, now: int) -> tuple[Any, ...]:
        """Return the values of a row in the order of the table's columns."""
        where = (self._owner, *place, self._kind)
        what = (note.first, note.end, note.alone, note.timestamp_ms, note.stage)
        return (*where, *what, self._run_id, now, False, True, None)

    def _finish_notes(self) -> None:
        """Take away the notes of what has been acknowledged: it was not the reason, whatever the error."""
        if not self._noted:
            return
        own = attempts.c.owner == self._owner
        with self._database.write() as connection:
            if self._error is None:
                connection.execute(sa.delete(attempts).where(own))
                return
            done = [place for place, note in self._noted.items() if note.end <= self._done.get(place, 0)]
            for place in done:
                connection.execute(sa.delete(attempts).where(_is(self._owner, place)))
            text = f"{type(self._error).__name__}: {self._error}"[:ERROR_CHARACTERS]
            connection.execute(sa.delete(attempts).where(own, attempts.c.first_offset >= attempts.c.end_offset))
            died = {"died": True, "proven": self._proven, "error": text}
            connection.execute(sa.update(attempts).where(own).values(**died))

    def _hold_lock(self, owner: str) -> Any:
        """Return the lock that is held for as long as the run lives; its file goes with it."""
        file = home.attempt_lock(self._settings, owner)
        self._resources.callback(file.unlink, missing_ok=True)
        return exclusive(self._database, _lock_name(owner), file, "a run's notes")


def may_be_of_an_item(error: BaseException) -> bool:
    """Return whether an error that ended a run may have its reason in what the run had in hand."""
    if isinstance(error, StoreUnavailableError | ModelMismatchError | CollectionNotFoundError | CancelledError):
        return False
    if isinstance(error, VectorizeError):
        return isinstance(error, ItemError | StoreError)
    return isinstance(error, Exception)


def purge_deaths(settings: Settings, before: datetime) -> int:
    """Forget the deaths before then, and with them what was set aside; return their number. Raises `LedgerError`."""
    with closing(Database.open(settings)) as database, database.write() as connection:
        old = sa.and_(attempts.c.died, attempts.c.noted_us < int(before.timestamp() * 1_000_000))
        return connection.execute(sa.delete(attempts).where(old)).rowcount


def killed_runs(what: str, deaths: Sequence[object], remedy: str) -> KilledRunsError:
    """Return the error of what is set aside; `what` is it, `remedy` says how it is tried again."""
    return KilledRunsError(
        f"{len(deaths)} runs died while they had this {what} alone in hand ({'; '.join(map(str, deaths))}): out of "
        f"memory, a crash in a native library, a defect, or a kill from outside each time; the logs of these runs and "
        f"the kernel's may say which. {remedy}",
        len(deaths),
    )


def _lock_name(owner: str) -> str:
    return f"attempt/{owner}"


def _is(owner: str, place: PartitionId) -> sa.ColumnElement[bool]:
    return sa.and_(attempts.c.owner == owner, attempts.c.topic == place[0], attempts.c.partition == place[1])
