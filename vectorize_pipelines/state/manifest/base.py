"""What a manifest promises, wherever it lies, and the values that pass to and from it."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from vectorize_pipelines.core.notices import NoticeKind, from_json, has_kind
from vectorize_pipelines.sources.files import SourceFile

#: What a run was doing with a file that it had alone in hand.
FileStage: TypeAlias = Literal["reading", "embedding"]


def everything(source_id: str) -> bool:
    """Return that a source belongs to the part, which is the whole."""
    return True


def bounds(root: str) -> tuple[str, str]:
    """Return two texts between which, in order, everything lies that begins with a folder's name and a slash."""
    folder = root.rstrip("/")
    return f"{folder}/", f"{folder}{chr(ord('/') + 1)}"


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """A file as it was when it was last dealt with.

    fingerprint  of model, chunker and the way of reading that its rows in the store come from
    rows         how many rows of it the store holds
    error_class  why it could not be embedded; empty where it was. Its rows, if any, are of an earlier version
    retryable    whether it is tried again although nothing about it has changed
    attempts     how often in a row it was tried in vain, where that is limited
    notices      what of it is not in its rows, and what was guessed, as `core.notices.to_json` writes it

    An entry in doubt has an empty `fingerprint`, which no file has, so that its file is read again and compared with
    the store; the rest is as it was before. Where nothing was known of the file, all of it is empty.
    """

    source_id: str
    size: int
    modified_ns: int
    version: str
    content_hash: str
    fingerprint: str
    rows: int
    error_class: str = ""
    error_message: str = ""
    retryable: bool = False
    attempts: int = 0
    notices: str = ""

    @property
    def is_in_doubt(self) -> bool:
        """Whether the store may hold other rows of the file than the entry says."""
        return not self.fingerprint

    @property
    def is_incomplete(self) -> bool:
        """Whether something that a person would read in the file is not in its rows."""
        return not self.error_class and has_kind(from_json(self.notices), NoticeKind.OMITTED)

    def is_of(self, file: SourceFile, fingerprint: str) -> bool:
        """Return whether the file can be left alone: nothing about it, or about how it is embedded, has changed."""
        return self.same_attempt(file, fingerprint) and not self.retryable

    def same_attempt(self, file: SourceFile, fingerprint: str) -> bool:
        """Return whether another attempt at the file would be the same: the same content, under the same settings."""
        return (
            self.modified_ns == file.modified_ns
            and self.size == file.size
            and self.version == file.version
            and self.fingerprint == fingerprint
        )


@dataclass(frozen=True, slots=True)
class Suspect:
    """A file, in the content that it had, which runs had in hand when they died.

    deaths    those with it alone in hand that count, in words
    unproven  how many errors ended runs with it alone in hand that any file may have met
    """

    source_id: str
    size: int
    modified_ns: int
    version: str
    deaths: Sequence[str]
    unproven: int


@dataclass(frozen=True, slots=True)
class AloneInHand:
    """The note of a run that is gone: the file that it had alone in hand; `deaths` are those that counted before."""

    source_id: str
    stage: str
    run_id: str
    deaths: Sequence[str]


class AttemptNotes(Protocol):
    """The notes of which files runs had in hand, beside the manifest of one collection. Safe for several threads.

    Each note is durable when its method returns, so that a process that dies leaves it. Written only by the run that
    holds the lock of the collection, or of the part of it whose notes these are. Every method but `close` raises
    `SettingsError` or `StateError` for a SQLite file that fails and `LedgerError` for a database that does; nothing of
    what it was to write is noted then.
    """

    def suspects(self) -> list[Suspect]:
        """Return the files that were in hand at deaths. Called at the start of a run, once the deaths are counted."""

    def note_together(self, files: Sequence[SourceFile], run_id: str) -> None:
        """Note that these are in hand beside others: all or nothing. Called before they are read.

        What is held against a file stays, unless its content is another one than was noted.
        """

    def note_alone(self, file: SourceFile, stage: FileStage, run_id: str) -> None:
        """Note that this file is in hand and no other; otherwise as `note_together`."""

    def count_deaths(self, judge: Callable[[AloneInHand], Sequence[str] | None]) -> None:
        """Make suspects of all of this part that is in hand, which nothing is any more then: all or nothing.

        `judge` returns the deaths that count from now on against a file that was alone in hand; None: no more than
        before, and the death is unproven. Called at the start of a run, and at the end of one that an error ends.
        """

    def forget_in_hand(self) -> None:
        """Forget what of this part is in hand, all or nothing: of suspects, only that they are in hand.

        Called at the end of a run that ends in order.
        """

    def close(self) -> None:
        """Close what `open_attempts` opened; a second call does nothing."""


class Manifest(Protocol):
    """What is known of every file that went into one collection, so that unchanged ones are left alone.

    It is derived: `pipeline.files.folder` makes it again by reading the files and comparing their rows in the store;
    nothing is encoded again. Several runs may write, each entries of other files than the others: that is what their
    locks are for. What a method has written is durable when it returns. Used by one thread at a time.

    Every method but `close` raises `SettingsError` or `StateError` for a SQLite file that fails, which is put aside
    where it is damaged, and `LedgerError` for a database that does; nothing of what it was to write is noted then.
    """

    def entries(self) -> Iterator[ManifestEntry]:
        """Yield every entry, some at a time as `below`, in any order. Called by checks."""

    def below(self, root: str) -> Iterator[ManifestEntry]:
        """Yield the entries of a file or folder and of what lies below it.

        In the order of the code points of their source ids, and some at a time, so that neither all of them are in
        memory nor others are kept from writing: what is written meanwhile behind the place that was come to is not
        seen. Called for a listing that comes in the same order.
        """

    def rows_below(self, root: str) -> int:
        """Return the sum of the entries' rows of a file or folder. Called to hold it against the store."""

    def count_below(self, root: str) -> int:
        """Return how many entries there are of a file or folder."""

    def attempted(self) -> list[tuple[str, str]]:
        """Return what runs that died had in hand, and how often alone: other than before where a death showed more.

        Called by sensors, to which other contents mean other work.
        """

    def unreported_days(self) -> set[str]:
        """Return the days that runs touched, and did not come to report. Called at the start of a run."""

    def days_reported(self, days: Iterable[str]) -> None:
        """Note that these days have been reported: all or nothing. Called once the run has told its days."""

    def doubt(self, source_ids: Iterable[str]) -> None:
        """Put the entries of these into doubt, which they get where they have none: all or nothing.

        Called before rows of these change in the store, and for those of which it has other rows than is known.
        """

    def doubt_everything(self) -> None:
        """Put every entry into doubt. Called where the store has lost rows."""

    def record(
        self, entries: Iterable[ManifestEntry], forgotten: Collection[str] = (), days: Iterable[str] = ()
    ) -> None:
        """Note what was dealt with, which is in hand no more, forget what is gone, and note the days that were
        touched: all or nothing. Called once the store has confirmed the rows of a batch.
        """

    def open_attempts(self, owns: Callable[[str], bool] = everything) -> AttemptNotes:
        """Return the notes beside this manifest of a part of the files, to be closed before it.

        `owns` says which source ids are of the part.
        """

    def close(self) -> None:
        """Close the file or the connections; a second call does nothing."""
