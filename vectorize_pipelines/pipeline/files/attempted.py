"""Which files runs had in hand when they died, so that no file stops its folder for ever.

Beside the manifest of a collection, in the same SQLite file, and written by the run that holds the lock of the
collection or of a shard of it: a note that this run finds of a file that it owns is of a run that is gone.
`pipeline.files.folder` takes suspects one at a time, after all other files; one that was alone in hand at two deaths is
set aside. A file that has changed since is another one. The manifest takes away the notes of what it records.

A run that ends with an error has died, too; the error counts where the run has stored another file before, which would
else have met it as well, or where the file met an error of the same class before that counts.
"""

import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from threading import Lock
from typing import Concatenate, Literal, ParamSpec, Self, TypeAlias, TypeVar

from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.sources.files import SourceFile
from vectorize_pipelines.state.attempts import ERROR_CHARACTERS, MOST_DEATHS
from vectorize_pipelines.state.manifest import connect, manifest_failure

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)

#: What a run was doing with a file that it had alone in hand.
FileStage: TypeAlias = Literal["reading", "embedding"]

_ALONE = 2
# `suspected`: 0, or one more than how many errors ended runs with the file alone in hand and do not count.
_NOTE = """
insert into attempts values (?, ?, ?, ?, ?, ?, ?, 0, '[]')
on conflict (source_id) do update set
    in_hand = excluded.in_hand, stage = excluded.stage, run_id = excluded.run_id,
    suspected = case when size = excluded.size and modified_ns = excluded.modified_ns and version = excluded.version
        then suspected else 0 end,
    deaths = case when size = excluded.size and modified_ns = excluded.modified_ns and version = excluded.version
        then deaths else '[]' end,
    size = excluded.size, modified_ns = excluded.modified_ns, version = excluded.version
"""


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


def _reported(
    method: Callable[Concatenate["FileAttempts", Parameters], Result],
) -> Callable[Concatenate["FileAttempts", Parameters], Result]:
    """Has a method raise what `manifest_failure` says of an error of SQLite's."""

    @wraps(method)
    def call(self: "FileAttempts", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.DatabaseError as error:
            known = manifest_failure(self._connection, self._file, error)
            if known is None:
                raise
            raise known from error

    return call


class FileAttempts:
    """The notes of one run over a folder. Safe for use by several threads.

    Every note is in the file before its method returns, where a process that dies leaves it.
    """

    def __init__(self, connection: sqlite3.Connection, file: Path, run_id: str, shard: Shard):
        self._connection = connection
        self._file = file
        self._run_id = run_id
        self._shard = shard
        self._using = Lock()
        self._error: BaseException | None = None
        self._proven = True

    @classmethod
    def open(cls, file: Path, run_id: str, shard: Shard = WHOLE) -> Self:
        """The notes beside a manifest that has been opened. What of the shard is in hand by them is of runs that died.

        Raises `SettingsError` and `StateError`.
        """
        try:
            opened = cls(connect(file), file, run_id, shard)
        except sqlite3.DatabaseError as error:
            # Nothing is made again here: the manifest is open, and would go on writing into the one that is put aside.
            known = manifest_failure(None, file, error)
            if known is None:
                raise
            raise known from error
        try:
            opened._collect_deaths(None, proven=True)
        except BaseException:
            opened._connection.close()
            raise
        return opened

    @_reported
    def suspects(self, files: Iterable[SourceFile]) -> dict[str, Suspicion]:
        """Source id -> what is held against it, of those that were in hand at a death and have not changed since."""
        with (
            self._using,
            closing(
                self._connection.execute(
                    "select source_id, size, modified_ns, version, suspected - 1, deaths from attempts where suspected"
                )
            ) as cursor,
        ):
            noted = {row[:4]: Suspicion(json.loads(row[5]), row[4]) for row in cursor}
        return {file.source_id: noted[_content(file)] for file in files if _content(file) in noted} if noted else {}

    @_reported
    def note_together(self, files: Sequence[SourceFile]) -> None:
        """These are in hand, beside others."""
        with self._using, self._connection:
            self._connection.executemany(_NOTE, (self._row(file, 1, "") for file in files))

    @_reported
    def note_alone(self, file: SourceFile, stage: FileStage) -> None:
        """This one is in hand, and no other."""
        with self._using, self._connection:
            self._connection.execute(_NOTE, self._row(file, _ALONE, stage))

    def ending(self, error: BaseException | None, *, proven: bool) -> None:
        """The run ends: in order, or, where `error` is given, because of what it has in hand.

        `proven`: the run has stored another file before, so that others would not have met the error.
        """
        self._error, self._proven = error, proven

    def close(self) -> None:
        """Takes the notes of this run away, or makes them a death; closes the file."""
        try:
            if self._error is not None:
                error = f"{type(self._error).__name__}: {self._error}"[:ERROR_CHARACTERS]
                self._collect_deaths(error, proven=self._proven)
            else:
                self._forget_notes()
        except (sqlite3.Error, VectorizeError) as failure:
            logger.warning("what this run had in hand may be taken for the reason of a death: %s", failure)
        finally:
            self._connection.close()

    @_reported
    def _forget_notes(self) -> None:
        with self._using, self._connection:
            own = [(source_id,) for source_id, *_ in self._in_hand()]
            self._connection.executemany("delete from attempts where source_id = ? and not suspected", own)
            self._connection.executemany("update attempts set in_hand = 0 where source_id = ?", own)

    @_reported
    def _collect_deaths(self, error: str | None, *, proven: bool) -> None:
        """Makes a death of what is in hand."""
        with self._using, self._connection:
            own = self._in_hand()
            for source_id, stage, run_id, before, in_hand in own:
                if in_hand != _ALONE:
                    continue
                deaths = json.loads(before)
                if proven or any(_error_class(death) == _error_class(f": {error}") for death in deaths):
                    deaths.append(f"run {run_id[:8]}, {stage}: {error or 'its process died'}")
                    self._connection.execute(
                        "update attempts set deaths = ? where source_id = ?", (json.dumps(deaths), source_id)
                    )
                else:
                    self._connection.execute(
                        "update attempts set suspected = max(suspected, 1) + 1 where source_id = ?", (source_id,)
                    )
            self._connection.executemany(
                "update attempts set suspected = max(suspected, 1), in_hand = 0 where source_id = ?",
                [(source_id,) for source_id, *_ in own],
            )

    def _in_hand(self) -> list[tuple[str, str, str, str, int]]:
        """Return what of the shard is noted as in hand: source id, stage, run, deaths, and whether alone."""
        query = "select source_id, stage, run_id, deaths, in_hand from attempts where in_hand > 0"
        with closing(self._connection.execute(query)) as cursor:
            return [row for row in cursor if self._shard.owns_source(row[0])]

    def _row(self, file: SourceFile, in_hand: int, stage: str) -> tuple[object, ...]:
        return (*_content(file), in_hand, stage, self._run_id)


def _content(file: SourceFile) -> tuple[str, int, int, str]:
    """What the file is, and which content it has. Not where links may lead, which is a setting's."""
    return (file.source_id, file.size, file.modified_ns, file.version)


def _error_class(death: str) -> str:
    """The class of the error in the text of a death, which is behind the run and its stage."""
    return death.partition(": ")[2].partition(":")[0]
