"""Which files runs had in hand when they died, so that no file stops its folder for ever.

The notes lie beside the manifest of a collection and are written by the run that holds the lock of the collection or of
a shard of it: a note that this run finds of a file that it owns is of a run that is gone. `pipeline.files.folder` takes
suspects one at a time, after all other files; one that was alone in hand at two deaths is set aside. A file that has
changed since is another one. The manifest takes away the notes of what it records.

A run that ends with an error has died, too; the error counts where the run has stored another file before, which would
else have met it as well, or where the file met an error of the same class before that counts.
"""

import logging
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.sources.files import SourceFile
from vectorize_pipelines.state.attempts import ERROR_CHARACTERS, MOST_DEATHS
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.state.manifest import AloneInHand, AttemptNotes, FileStage, Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """What is held against a file that was in hand at a death, and has not changed since.

    deaths    those with it alone in hand that count
    unproven  how many errors ended runs with it alone in hand that any file may have met
    """

    deaths: Sequence[str]
    unproven: int

    @property
    def is_set_aside(self) -> bool:
        """Whether the file is to be left alone from now on."""
        return len(self.deaths) >= MOST_DEATHS


class FileAttempts:
    """The notes of one run over a folder. Safe for use by several threads.

    Every note is durable before its method returns, where a process that dies leaves it. Methods raise what those of
    `AttemptNotes` do.
    """

    def __init__(self, notes: AttemptNotes, run_id: str, lock: ExclusiveLock):
        self._notes = notes
        self._lock = lock
        self._run_id = run_id
        self._error: BaseException | None = None
        self._proven = True

    @classmethod
    def open(cls, manifest: Manifest, run_id: str, lock: ExclusiveLock, shard: Shard = WHOLE) -> Self:
        """Open the notes beside a manifest. What of the shard is in hand by them is of runs that died.

        `lock`: of the shard, without which no note is taken away, or made a death.
        """
        opened = cls(manifest.open_attempts(shard.owns_source), run_id, lock)
        try:
            opened._count_deaths(None, proven=True)
        except BaseException:
            opened._notes.close()
            raise
        return opened

    def suspects(self, files: Iterable[SourceFile]) -> dict[str, Suspicion]:
        """Return what is held against those that were in hand at a death and have not changed since, by source id."""
        noted = {
            (note.source_id, note.size, note.modified_ns, note.version): Suspicion(note.deaths, note.unproven)
            for note in self._notes.suspects()
        }
        return {file.source_id: noted[_content(file)] for file in files if _content(file) in noted} if noted else {}

    def note_together(self, files: Sequence[SourceFile]) -> None:
        """Note that these are in hand, beside others."""
        self._notes.note_together(files, self._run_id)

    def note_alone(self, file: SourceFile, stage: FileStage) -> None:
        """Note that this one is in hand, and no other."""
        self._notes.note_alone(file, stage, self._run_id)

    def ending(self, error: BaseException | None, *, proven: bool) -> None:
        """Take it that the run ends: in order, or, where `error` is given, because of what it has in hand.

        `proven`: the run has stored another file before, so that others would not have met the error.
        """
        self._error, self._proven = error, proven

    def close(self) -> None:
        """Take the notes of this run away, or make them a death; close the notes."""
        try:
            if self._error is not None:
                error = f"{type(self._error).__name__}: {self._error}"[:ERROR_CHARACTERS]
                self._count_deaths(error, proven=self._proven)
            else:
                self._lock.check()
                self._notes.forget_in_hand()
        except (sqlite3.Error, VectorizeError) as failure:
            logger.warning("what this run had in hand may be taken for the reason of a death: %s", failure)
        finally:
            self._notes.close()

    def _count_deaths(self, error: str | None, *, proven: bool) -> None:
        """Make a death of what is in hand."""

        def judge(note: AloneInHand) -> Sequence[str] | None:
            if proven or any(_error_class(death) == _error_class(f": {error}") for death in note.deaths):
                return [*note.deaths, f"run {note.run_id[:8]}, {note.stage}: {error or 'its process died'}"]
            return None

        self._lock.check()
        self._notes.count_deaths(judge)


def _content(file: SourceFile) -> tuple[str, int, int, str]:
    """What the file is, and which content it has. Not where links may lead, which is a setting's."""
    return (file.source_id, file.size, file.modified_ns, file.version)


def _error_class(death: str) -> str:
    """The class of the error in the text of a death, which is behind the run and its stage."""
    return death.partition(": ")[2].partition(":")[0]
