"""The manifest of a collection, and the notes of attempts beside it, in one SQLite file: for one machine.

Since it can be made again, it has no migrations, as the database of `state.database` has: the file names its format
(`pragma user_version`), one of an earlier format is brought up to date by the steps in `_STEPS`, and any other one,
also a newer one, is put aside and made again.
"""

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import fields
from functools import wraps
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import Concatenate, ParamSpec, Self, TypeVar

from vectorize_pipelines.errors import DamagedStateError, VectorizeError
from vectorize_pipelines.sources.files import SourceFile
from vectorize_pipelines.state.damage import OtherFormatError, discard_damaged, explain, is_damage, open_derived
from vectorize_pipelines.state.manifest.base import (
    AloneInHand,
    FileStage,
    ManifestEntry,
    Suspect,
    bounds,
    everything,
)

File = TypeVar("File", bound="_ManifestFile")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: What it costs to make a manifest again.
REMADE = "the next run reads all its files again, and encodes nothing again"
_SCHEMA_VERSION = 3
_SCHEMA = """
create table if not exists files (
    source_id text primary key,
    size integer not null,
    modified_ns integer not null,
    version text not null,
    content_hash text not null,
    fingerprint text not null,
    rows integer not null,
    error_class text not null,
    error_message text not null,
    retryable integer not null,
    attempts integer not null default 0,
    notices text not null default ''
) without rowid;
create table if not exists unreported_days (day text primary key) without rowid;
create table if not exists attempts (
    source_id text primary key,
    size integer not null,
    modified_ns integer not null,
    version text not null,
    in_hand integer not null,
    stage text not null,
    run_id text not null,
    suspected integer not null,
    deaths text not null
) without rowid;
"""
#: By the format that they begin with.
_STEPS = {
    1: "alter table files add column attempts integer not null default 0",
    2: "alter table files add column notices text not null default ''",
}
_TABLES = ("files", "unreported_days", "attempts")

#: Entries that are read at once where they are not all read.
ENTRIES_TOGETHER = 1000
_DOUBT = """
insert into files values (?, 0, 0, '', '', '', 0, '', '', 0, 0, '')
on conflict (source_id) do update set fingerprint = ''
"""

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


#: `dataclasses.astuple` copies every value deeply, which took more time than writing the rows.
_AS_ROW = attrgetter(*(field.name for field in fields(ManifestEntry)))


def _reported(
    method: Callable[Concatenate[File, Parameters], Result],
) -> Callable[Concatenate[File, Parameters], Result]:
    """Let a method raise what `_failure` says of an error of SQLite's."""

    @wraps(method)
    def call(self: File, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.DatabaseError as error:
            known = _failure(self.connection, self.file, error)
            if known is None:
                raise
            raise known from error

    return call


class _ManifestFile:
    """A connection to the file of a manifest."""

    def __init__(self, connection: sqlite3.Connection, file: Path):
        self.connection = connection
        self.file = file

    def close(self) -> None:
        """Close the connection; a second call does nothing."""
        self.connection.close()


class SQLiteManifest(_ManifestFile):
    """A `Manifest` in a file."""

    @classmethod
    def open(cls, file: Path) -> Self:
        """Open the manifest, empty where there is none; one that cannot be read is put aside, which only costs time.

        Raises `SettingsError` where it cannot be written, `StateError` where the disk is full.
        """
        return cls(open_derived(file, connect, REMADE), file)

    def entries(self) -> Iterator[ManifestEntry]:
        """Yield every entry."""
        return self._behind("", "source_id > ?")

    def below(self, root: str) -> Iterator[ManifestEntry]:
        """Yield the entries of a file or folder and of what lies below it, in order."""
        first, end = bounds(root)
        yield from self._rows("source_id = ?", (root,))
        yield from self._behind(first, "source_id > ? and source_id < ?", end)

    def rows_below(self, root: str) -> int:
        """Return the sum of the entries' rows of a file or folder."""
        return self._sum("sum(rows)", root)

    def count_below(self, root: str) -> int:
        """Return how many entries there are of a file or folder."""
        return self._sum("count(*)", root)

    @_reported
    def attempted(self) -> list[tuple[str, str]]:
        """Return what runs that died had in hand, and how often alone: other than before where a death showed more."""
        with closing(
            self.connection.execute("select source_id, deaths from attempts where suspected or in_hand order by 1")
        ) as cursor:
            return list(cursor)

    @_reported
    def unreported_days(self) -> set[str]:
        """Return the days that runs touched, and did not come to report."""
        with closing(self.connection.execute("select day from unreported_days")) as cursor:
            return {row[0] for row in cursor}

    @_reported
    def days_reported(self, days: Iterable[str]) -> None:
        """Note that these days have been reported."""
        with self.connection:
            self.connection.executemany("delete from unreported_days where day = ?", ((day,) for day in days))

    @_reported
    def doubt(self, source_ids: Iterable[str]) -> None:
        """Put the entries of these into doubt, which they get where they have none."""
        with self.connection:
            self.connection.executemany(_DOUBT, ((name,) for name in source_ids))

    @_reported
    def doubt_everything(self) -> None:
        """Put every entry into doubt."""
        with self.connection:
            self.connection.execute("update files set fingerprint = ''")

    @_reported
    def record(
        self, entries: Iterable[ManifestEntry], forgotten: Collection[str] = (), days: Iterable[str] = ()
    ) -> None:
        """Note what was dealt with, which is in hand no more, forget what is gone, and note the days that were
        touched: all or nothing.
        """
        entries = list(entries)
        done = [*(entry.source_id for entry in entries), *forgotten]
        with self.connection:
            self.connection.executemany("delete from attempts where source_id = ?", ((name,) for name in done))
            self.connection.executemany("insert or ignore into unreported_days values (?)", ((day,) for day in days))
            marks = ",".join("?" * len(fields(ManifestEntry)))
            self.connection.executemany(f"insert or replace into files values ({marks})", map(_AS_ROW, entries))
            self.connection.executemany("delete from files where source_id = ?", ((name,) for name in forgotten))

    def open_attempts(self, owns: Callable[[str], bool] = everything) -> "SQLiteAttemptNotes":
        """Return the notes, on a connection of their own."""
        try:
            return SQLiteAttemptNotes(connect(self.file), self.file, owns)
        except sqlite3.DatabaseError as error:
            # Nothing is made again here: the manifest is open, and would go on writing into the one that is put aside.
            known = _failure(None, self.file, error)
            if known is None:
                raise
            raise known from error

    def _behind(self, first: str, where: str, *further: str) -> Iterator[ManifestEntry]:
        """Yield entries in order, some at a time; the first value of `where` is what they come behind."""
        while entries := self._rows(where, (first, *further)):
            yield from entries
            first = entries[-1].source_id

    @_reported
    def _rows(self, where: str, values: Sequence[str]) -> list[ManifestEntry]:
        query = f"select * from files where {where} order by source_id limit {ENTRIES_TOGETHER}"
        with closing(self.connection.execute(query, values)) as cursor:
            return [ManifestEntry(*row) for row in cursor]

    @_reported
    def _sum(self, what: str, root: str) -> int:
        query = f"select coalesce({what}, 0) from files where source_id = ? or (source_id > ? and source_id < ?)"
        with closing(self.connection.execute(query, (root, *bounds(root)))) as cursor:
            return int(cursor.fetchone()[0])


class SQLiteAttemptNotes(_ManifestFile):
    """The `AttemptNotes` in the file of a manifest."""

    def __init__(self, connection: sqlite3.Connection, file: Path, owns: Callable[[str], bool]):
        super().__init__(connection, file)
        self._owns = owns
        self._using = Lock()

    @_reported
    def suspects(self) -> list[Suspect]:
        """Return the files that were in hand at deaths."""
        query = "select source_id, size, modified_ns, version, deaths, suspected - 1 from attempts where suspected"
        with self._using, closing(self.connection.execute(query)) as cursor:
            return [
                Suspect(source_id, size, modified_ns, version, json.loads(deaths), unproven)
                for source_id, size, modified_ns, version, deaths, unproven in cursor
            ]

    @_reported
    def note_together(self, files: Sequence[SourceFile], run_id: str) -> None:
        """Note that these are in hand beside others."""
        with self._using, self.connection:
            self.connection.executemany(_NOTE, (_note(file, 1, "", run_id) for file in files))

    @_reported
    def note_alone(self, file: SourceFile, stage: FileStage, run_id: str) -> None:
        """Note that this file is in hand and no other."""
        with self._using, self.connection:
            self.connection.execute(_NOTE, _note(file, _ALONE, stage, run_id))

    @_reported
    def count_deaths(self, judge: Callable[[AloneInHand], Sequence[str] | None]) -> None:
        """Make suspects of all that is in hand."""
        with self._using, self.connection:
            own = self._in_hand()
            for source_id, in_hand, stage, run_id, before in own:
                if in_hand != _ALONE:
                    continue
                deaths = judge(AloneInHand(source_id, stage, run_id, json.loads(before)))
                if deaths is not None:
                    self.connection.execute(
                        "update attempts set deaths = ? where source_id = ?", (json.dumps([*deaths]), source_id)
                    )
                else:
                    self.connection.execute(
                        "update attempts set suspected = max(suspected, 1) + 1 where source_id = ?", (source_id,)
                    )
            self.connection.executemany(
                "update attempts set suspected = max(suspected, 1), in_hand = 0 where source_id = ?",
                ((source_id,) for source_id, *_ in own),
            )

    @_reported
    def forget_in_hand(self) -> None:
        """Forget what is in hand: of suspects, only that they are in hand."""
        with self._using, self.connection:
            own = [(source_id,) for source_id, *_ in self._in_hand()]
            self.connection.executemany("delete from attempts where source_id = ? and not suspected", own)
            self.connection.executemany("update attempts set in_hand = 0 where source_id = ?", own)

    def _in_hand(self) -> list[tuple[str, int, str, str, str]]:
        """Return what of the part is in hand: source id, whether alone, stage, run, and deaths."""
        query = "select source_id, in_hand, stage, run_id, deaths from attempts where in_hand > 0"
        with closing(self.connection.execute(query)) as cursor:
            return [row for row in cursor if self._owns(row[0])]


def _note(file: SourceFile, in_hand: int, stage: str, run_id: str) -> tuple[object, ...]:
    return (file.source_id, file.size, file.modified_ns, file.version, in_hand, stage, run_id)


def _failure(connection: sqlite3.Connection | None, file: Path, error: sqlite3.DatabaseError) -> VectorizeError | None:
    """Return what to raise for an error of SQLite; a file that is damaged is put aside, and the connection closed.

    None where it is a defect of ours.
    """
    if not is_damage(error):
        return explain(error, file)
    if connection is not None:
        connection.close()
    discard_damaged(file, error, REMADE)
    return DamagedStateError(f"the manifest {file} was damaged ({error}) and is put aside: run this again")


def connect(file: Path) -> sqlite3.Connection:
    """Return a connection to the file of a manifest, whose tables are made where they are missing."""
    # The manifest may be read in one thread after another has written it, never by two at once.
    connection = sqlite3.connect(file, timeout=30, check_same_thread=False)
    try:
        connection.execute("pragma journal_mode = wal")
        # What is forgotten must be so on the disk before rows change: what is done may be found out again.
        connection.execute("pragma synchronous = full")
        _check_version(connection)
        _upgrade(connection)
        connection.executescript(_SCHEMA)
        _check_columns(connection)
        connection.execute(f"pragma user_version = {_SCHEMA_VERSION}")
        for table in _TABLES:
            connection.execute(f"select count(*) from {table}").fetchone()
            connection.execute(f"select * from {table} limit 1").fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection) -> None:
    (version,) = connection.execute("pragma user_version").fetchone()
    if version not in range(_SCHEMA_VERSION + 1):
        raise OtherFormatError(f"its format is {version}, this version of the project reads {_SCHEMA_VERSION}")


def _check_columns(connection: sqlite3.Connection) -> None:
    found = [row[0] for row in connection.execute("select name from pragma_table_info('files')")]
    if found != [field.name for field in fields(ManifestEntry)]:
        raise OtherFormatError(f"its columns are {', '.join(found)}")


def _upgrade(connection: sqlite3.Connection) -> None:
    """Bring a manifest of an earlier version up to date; several processes may open it at once."""
    if connection.execute("pragma user_version").fetchone()[0] not in _STEPS:
        return
    connection.execute("begin immediate")
    try:
        (version,) = connection.execute("pragma user_version").fetchone()
        for step in range(version, _SCHEMA_VERSION) if version in _STEPS else ():
            connection.execute(_STEPS[step])
        connection.execute(f"pragma user_version = {_SCHEMA_VERSION}")
    except BaseException:
        connection.rollback()
        raise
    connection.commit()
