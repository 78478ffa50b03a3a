"""The manifest: what is known of every file that went into a collection, so that unchanged ones are left alone.

It is derived. When it is lost, `pipeline.folder` reads the files again, finds their rows in the store and
encodes nothing. One SQLite file a collection; written only by the run that holds the collection's lock.
"""

import logging
import sqlite3
from collections.abc import Collection, Iterable
from contextlib import closing
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Self

from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.sources.files import SourceFile

logger = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
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
    retryable integer not null
) without rowid;
create table if not exists unreported_days (day text primary key) without rowid;
"""


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """A file as it was when it was last dealt with.

    fingerprint  of model, chunker and the way of reading that its rows in the store come from
    rows         how many rows of it the store holds
    error_class  why it could not be embedded; empty where it was. Its rows, if any, are of an earlier version
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

    def is_of(self, file: SourceFile, fingerprint: str) -> bool:
        """Whether the file can be left alone: nothing about it, or about how it is embedded, has changed."""
        return (
            self.modified_ns == file.modified_ns
            and self.size == file.size
            and self.version == file.version
            and self.fingerprint == fingerprint
            and not self.retryable
        )


#: `dataclasses.astuple` copies every value deeply, which took more time than writing the rows.
_AS_ROW = attrgetter(*(field.name for field in fields(ManifestEntry)))


class Manifest:
    """The manifest of one collection. Not thread-safe: it is used by the thread that opened it."""

    def __init__(self, connection: sqlite3.Connection):
        self._connection = connection

    @classmethod
    def open(cls, file: Path) -> Self:
        """Opens the manifest, empty where there is none; a damaged one is put aside, which only costs time."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"VECTORIZE_HOME: {file.parent} cannot be written: {error.strerror}") from None
        try:
            return cls(_connect(file))
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise SettingsError(f"the manifest {file} cannot be opened: {error}") from None
            aside = file.with_suffix(".damaged")
            logger.warning("the manifest %s is damaged (%s); put aside as %s and made anew", file, error, aside.name)
            file.replace(aside)
            for suffix in ("-wal", "-shm"):
                file.with_name(file.name + suffix).unlink(missing_ok=True)
            return cls(_connect(file))

    def entries(self) -> dict[str, ManifestEntry]:
        """Every entry, by source id."""
        with closing(self._connection.execute("select * from files")) as cursor:
            return {row[0]: ManifestEntry(*row) for row in cursor}

    def rows_by_source(self) -> dict[str, int]:
        """How many rows the store should hold, for each source that has any."""
        with closing(self._connection.execute("select source_id, rows from files where rows > 0")) as cursor:
            return dict(cursor)

    def unreported_days(self) -> set[str]:
        """Days that runs touched, and did not come to report."""
        with closing(self._connection.execute("select day from unreported_days")) as cursor:
            return {row[0] for row in cursor}

    def days_reported(self) -> None:
        """Every day has been reported."""
        with self._connection:
            self._connection.execute("delete from unreported_days")

    def forget(self, source_ids: Iterable[str]) -> None:
        """Nothing is known of these any more."""
        with self._connection:
            self._connection.executemany("delete from files where source_id = ?", ((name,) for name in source_ids))

    def record(
        self, entries: Iterable[ManifestEntry], forgotten: Collection[str] = (), days: Iterable[str] = ()
    ) -> None:
        """Notes what was dealt with, forgets what is gone, and notes the days that were touched: all or nothing."""
        with self._connection:
            self._connection.executemany("insert or ignore into unreported_days values (?)", ((day,) for day in days))
            marks = ",".join("?" * 10)
            self._connection.executemany(f"insert or replace into files values ({marks})", map(_AS_ROW, entries))
            self._connection.executemany("delete from files where source_id = ?", ((name,) for name in forgotten))

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()


def _connect(file: Path) -> sqlite3.Connection:
    # The manifest may be read in one thread after another has written it, never by two at once.
    connection = sqlite3.connect(file, timeout=30, check_same_thread=False)
    try:
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        _check_version(connection)
        connection.executescript(_SCHEMA)
        connection.execute(f"pragma user_version = {_SCHEMA_VERSION}")
        connection.execute("select count(*) from files").fetchone()
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection) -> None:
    if connection.execute("pragma user_version").fetchone()[0] not in (0, _SCHEMA_VERSION):
        raise sqlite3.DatabaseError("made by another version of this project")
