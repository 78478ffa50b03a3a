"""The manifest: what is known of every file that went into a collection, so that unchanged ones are left alone.

It is derived. When it is lost, `pipeline.files.folder` reads the files again, finds their rows in the store and
encodes nothing. One SQLite file a collection; written only by the run that holds the collection's lock.

Since it can be made again, it has no migrations, as the database of `state.database` has: the file names its format
(`pragma user_version`), one of the format before is brought up to date where that is a single step, and any other one,
also a newer one, is put aside and made again.
"""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from functools import wraps
from operator import attrgetter
from pathlib import Path
from typing import Concatenate, ParamSpec, Self, TypeVar

from vectorize_pipelines.errors import DamagedStateError, VectorizeError
from vectorize_pipelines.sources.files import SourceFile
from vectorize_pipelines.state.damage import OtherFormatError, discard_damaged, explain, is_damage, open_derived

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

#: What it costs to make a manifest again.
REMADE = "the next run reads all its files again, and encodes nothing again"
_SCHEMA_VERSION = 2
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
    attempts integer not null default 0
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
_TABLES = ("files", "unreported_days", "attempts")
#: The rows of an entry in doubt of which nobody has counted them.
UNKNOWN_ROWS = -1
#: Entries that are read at once.
ENTRIES_TOGETHER = 1000


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """A file as it was when it was last dealt with.

    fingerprint  of model, chunker and the way of reading that its rows in the store come from
    rows         how many rows of it the store holds
    error_class  why it could not be embedded; empty where it was. Its rows, if any, are of an earlier version
    retryable    whether it is tried again although nothing about it has changed
    attempts     how often in a row it was tried in vain, where that is limited

    An entry in doubt says only that the store may hold rows of the file: what a run that was killed was changing, and
    what the store has otherwise than the manifest said. Its `fingerprint` is empty, and its `rows` those that the store
    has, or `UNKNOWN_ROWS`.
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

    @property
    def is_in_doubt(self) -> bool:
        """Whether nothing is known of the file but that the store may hold rows of it."""
        return not self.fingerprint

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


_DOUBT = "insert or replace into files values (?, 0, 0, '', '', '', ?, '', '', 0, 0)"
#: `dataclasses.astuple` copies every value deeply, which took more time than writing the rows.
_AS_ROW = attrgetter(*(field.name for field in fields(ManifestEntry)))


def _reported(
    method: Callable[Concatenate["Manifest", Parameters], Result],
) -> Callable[Concatenate["Manifest", Parameters], Result]:
    """Let a method raise what `failure` says of an error of SQLite's."""

    @wraps(method)
    def call(self: "Manifest", /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        try:
            return method(self, *args, **kwargs)
        except sqlite3.DatabaseError as error:
            known = self.failure(error)
            if known is None:
                raise
            raise known from error

    return call


class Manifest:
    """The manifest of one collection. Not thread-safe: it is used by the thread that opened it."""

    def __init__(self, connection: sqlite3.Connection, file: Path):
        self._connection = connection
        self._file = file

    @classmethod
    def open(cls, file: Path) -> Self:
        """Open the manifest, empty where there is none; one that cannot be read is put aside, which only costs time.

        Raises `SettingsError` where it cannot be written, `StateError` where the disk is full.
        """
        return cls(open_derived(file, connect, REMADE), file)

    @_reported
    def entries(self) -> dict[str, ManifestEntry]:
        """Return every entry that is not in doubt, by source id."""
        with closing(self._connection.execute("select * from files where fingerprint != ''")) as cursor:
            return {row[0]: ManifestEntry(*row) for row in cursor}

    def below(self, root: str) -> Iterator[ManifestEntry]:
        """Yield the entries of a file or folder and of what lies below it, those in doubt included.

        In the order of the code points of their source ids, and `ENTRIES_TOGETHER` at a time, so that neither all are
        held nor the file is: what is written meanwhile behind the place that was come to is not seen.
        """
        first, end = _bounds(root)
        yield from self._rows("source_id = ?", (root,))
        while entries := self._rows("source_id > ? and source_id < ?", (first, end)):
            yield from entries
            first = entries[-1].source_id

    @_reported
    def rows_below(self, root: str) -> int:
        """Return how many rows the store has of a file or folder, by what is known."""
        query = (
            "select coalesce(sum(rows), 0) from files "
            "where rows > 0 and (source_id = ? or (source_id > ? and source_id < ?))"
        )
        with closing(self._connection.execute(query, (root, *_bounds(root)))) as cursor:
            return int(cursor.fetchone()[0])

    @_reported
    def number_of_files(self) -> int:
        """Return how many entries there are."""
        with closing(self._connection.execute("select count(*) from files")) as cursor:
            return int(cursor.fetchone()[0])

    @_reported
    def _rows(self, where: str, values: Sequence[str]) -> list[ManifestEntry]:
        query = f"select * from files where {where} order by source_id limit {ENTRIES_TOGETHER}"
        with closing(self._connection.execute(query, values)) as cursor:
            return [ManifestEntry(*row) for row in cursor]

    @_reported
    def attempted(self) -> list[tuple[str, str]]:
        """Return what runs that died had in hand, and how often alone: other than before where a death showed more."""
        with closing(
            self._connection.execute("select source_id, deaths from attempts where suspected or in_hand order by 1")
        ) as cursor:
            return list(cursor)

    @_reported
    def unreported_days(self) -> set[str]:
        """Return the days that runs touched, and did not come to report."""
        with closing(self._connection.execute("select day from unreported_days")) as cursor:
            return {row[0] for row in cursor}

    @_reported
    def days_reported(self, days: Iterable[str]) -> None:
        """Note that these days have been reported."""
        with self._connection:
            self._connection.executemany("delete from unreported_days where day = ?", ((day,) for day in days))

    @_reported
    def doubt(self, rows: Mapping[str, int]) -> None:
        """Forget what is known of these but that the store may hold rows of them: source id -> how many."""
        with self._connection:
            self._connection.executemany(_DOUBT, rows.items())

    @_reported
    def doubt_everything(self) -> None:
        """Forget what is known of every file but that the store may hold rows of it."""
        with self._connection:
            self._connection.execute(
                "update files set size = 0, modified_ns = 0, version = '', content_hash = '', fingerprint = '', "
                f"rows = {UNKNOWN_ROWS}, error_class = '', error_message = '', retryable = 0, attempts = 0"
            )

    @_reported
    def record(
        self, entries: Iterable[ManifestEntry], forgotten: Collection[str] = (), days: Iterable[str] = ()
    ) -> None:
        """Note what was dealt with, which is in hand no more, forget what is gone, and note the days that were
        touched: all or nothing.
        """
        entries = list(entries)
        done = [*(entry.source_id for entry in entries), *forgotten]
        with self._connection:
            self._connection.executemany("delete from attempts where source_id = ?", ((name,) for name in done))
            self._connection.executemany("insert or ignore into unreported_days values (?)", ((day,) for day in days))
            marks = ",".join("?" * len(fields(ManifestEntry)))
            self._connection.executemany(f"insert or replace into files values ({marks})", map(_AS_ROW, entries))
            self._connection.executemany("delete from files where source_id = ?", ((name,) for name in forgotten))

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def failure(self, error: sqlite3.DatabaseError) -> VectorizeError | None:
        """Return what to raise for an error of SQLite; a damaged file is put aside. None where the defect is ours."""
        return manifest_failure(self._connection, self._file, error)


def _bounds(root: str) -> tuple[str, str]:
    """Return two texts between which, in order, everything lies that begins with a folder's name and a slash."""
    folder = root.rstrip("/")
    return f"{folder}/", f"{folder}{chr(ord('/') + 1)}"


def manifest_failure(
    connection: sqlite3.Connection | None, file: Path, error: sqlite3.DatabaseError
) -> VectorizeError | None:
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
    """Bring a manifest of the first version up to date; several processes may open it at once."""
    if connection.execute("pragma user_version").fetchone()[0] != 1:
        return
    connection.execute("begin immediate")
    try:
        if connection.execute("pragma user_version").fetchone()[0] == 1:
            connection.execute("alter table files add column attempts integer not null default 0")
            connection.execute(f"pragma user_version = {_SCHEMA_VERSION}")
    except BaseException:
        connection.rollback()
        raise
    connection.commit()
