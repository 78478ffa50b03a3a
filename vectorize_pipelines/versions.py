"""What the newest message is that wrote, emptied or deleted a source's rows, collection by collection.

A topic is a history: an older message never replaces what a newer one wrote, in whatever order the two are processed.
Deletions are remembered too, so that replaying an earlier day does not bring back what a later one deleted.
"""

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias
from urllib.parse import quote

import sqlalchemy as sa
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from vectorize_pipelines.database import Database, Text
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.home import request_lock
from vectorize_pipelines.settings import Settings

#: (timestamp_ms, topic, partition, offset) of a message; compared as such, the larger is the newer.
Version: TypeAlias = tuple[int, str, int, int]

#: In place of a collection: a deletion of the source's rows wherever they are.
EVERY_COLLECTION = "*"
#: SQLite's limit of parameters was 999 for long.
IDS_TOGETHER = 500

metadata = sa.MetaData()
versions = sa.Table(
    "vectorize_versions",
    metadata,
    sa.Column("collection", Text, primary_key=True),
    sa.Column("source_id", Text, primary_key=True),
    sa.Column("timestamp_ms", sa.BigInteger, nullable=False),
    sa.Column("topic", Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("deleted", sa.Boolean, nullable=False),
    sqlite_with_rowid=False,
)
_VERSION = (versions.c.timestamp_ms, versions.c.topic, versions.c.partition, versions.c.offset)


@dataclass(frozen=True, slots=True)
class Known:
    """The newest message about a source in a collection, and whether it deleted the source's rows."""

    version: Version
    deleted: bool


class ExclusiveLock:
    """What `SourceVersions.exclusive` gives for as long as it is held."""

    def check(self) -> None:
        """To be called just before what must not be done by two at once. Raises `LedgerError` if the lock is lost."""


class _SessionLock(ExclusiveLock):
    """Lives as long as a connection to PostgreSQL does."""

    def __init__(self, database: Database, connection: sa.Connection, collection: str, key: int):
        self._database = database
        self._connection = connection
        self._collection = collection
        self._key = key

    def check(self) -> None:
        try:
            self._connection.execute(sa.select(1))
        except SQLAlchemyError as error:
            raise self._lost(error) from None

    def release(self) -> None:
        try:
            held = self._connection.execute(sa.select(sa.func.pg_advisory_unlock(self._key))).scalar()
        except SQLAlchemyError as error:
            raise self._lost(error) from None
        if not held:
            raise self._lost(RuntimeError("the server no longer knows of the lock"))

    def _lost(self, error: Exception) -> LedgerError:
        reason = self._database.failure(error)
        return LedgerError(f"the lock of collection {self._collection} was lost while it was needed: {reason}")


class SourceVersions:
    """The table of versions. Safe for use by several threads. Every method may raise `LedgerError`."""

    def __init__(self, database: Database, settings: Settings):
        self._database = database
        self._settings = settings
        self._upsert = database.bulk_upsert(versions, _replaces)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The versions of an installation, empty where there are none. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings, metadata), settings)

    def close(self) -> None:
        """Closes the connections; a second call does nothing."""
        self._database.close()

    def known(self, collection: str, source_ids: Collection[str]) -> dict[str, Known]:
        """The newest message about each of the sources in the collection; those without any are left out."""
        found: dict[str, Known] = {}
        for source_id, _, known in self._look_up(source_ids, (collection, EVERY_COLLECTION)):
            other = found.get(source_id)
            # Of one message, what it did in all collections is also what it did here.
            if other is None or (known.version, known.deleted) > (other.version, other.deleted):
                found[source_id] = known
        return found

    def record(self, collection: str, sources: Mapping[str, Version], deleted: bool = False) -> None:
        """Notes that these messages wrote (or deleted) the rows of sources, unless a newer one did: all or nothing."""
        self._write([_values(collection, source_id, version, deleted) for source_id, version in sources.items()])

    def record_deletions(self, sources: Mapping[str, Version]) -> None:
        """Notes that these messages deleted sources from every collection, also those not made yet: all or nothing."""
        rows = [_values(EVERY_COLLECTION, source_id, version, True) for source_id, version in sources.items()]
        for source_id, collections in self.collections_of(sources).items():
            rows += [_values(collection, source_id, sources[source_id], True) for collection in sorted(collections)]
        self._write(rows)

    def collections_of(self, source_ids: Collection[str]) -> dict[str, set[str]]:
        """The collections that each of the sources was written to or deleted from; sources without any are left out."""
        found: dict[str, set[str]] = {}
        for source_id, collection, _ in self._look_up(source_ids, self.collections()):
            found.setdefault(source_id, set()).add(collection)
        return found

    def collections(self) -> list[str]:
        """Every collection that anything is known of, in order."""
        found: list[str] = []
        with self._database.read() as connection:
            while True:  # from one to the next in the index: `distinct` would read every row
                query = sa.select(sa.func.min(versions.c.collection))
                following = connection.execute(query.where(versions.c.collection > found[-1]) if found else query)
                name = following.scalar()
                if name is None:
                    return [name for name in found if name != EVERY_COLLECTION]
                found.append(name)

    def has_any(self, collection: str) -> bool:
        """Whether anything was ever noted about this collection."""
        query = sa.select(versions.c.source_id).where(versions.c.collection == collection).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    @contextmanager
    def exclusive(self, collection: str, timeout_seconds: float | None = None) -> Iterator[ExclusiveLock]:
        """Held by one thread of one process at a time; let go of when that process or its machine dies.

        Waits for the holder, at most `timeout_seconds`. Raises `LedgerError` when it cannot be had in time, and after
        the body when it was lost meanwhile.
        """
        if self._database.is_sqlite:
            with _file_lock(request_lock(self._settings, quote(collection, safe="")), collection, timeout_seconds):
                yield ExclusiveLock()
        else:
            with self._session_lock(collection, timeout_seconds) as lock:
                yield lock

    @contextmanager
    def _session_lock(self, collection: str, timeout_seconds: float | None) -> Iterator[ExclusiveLock]:
        """An advisory lock of PostgreSQL, on a connection of its own: none of the pool, which it would use up."""
        digest = hashlib.blake2b(f"vectorize/requests/{collection}".encode(errors="replace"), digest_size=8).digest()
        key = int.from_bytes(digest, "big", signed=True)
        with self._database.session() as connection:
            try:
                # A machine that vanished is noticed within a minute, not within the two hours of TCP's default.
                connection.exec_driver_sql(
                    "set tcp_keepalives_idle = 30; set tcp_keepalives_interval = 10; set tcp_keepalives_count = 3"
                )
                if timeout_seconds is not None:
                    connection.exec_driver_sql(f"set lock_timeout = {max(1, round(timeout_seconds * 1000))}")
                connection.execute(sa.select(sa.func.pg_advisory_lock(key)))
            except SQLAlchemyError as error:
                if getattr(getattr(error, "orig", None), "pgcode", None) == "55P03":
                    raise _not_free(collection, timeout_seconds) from None
                raise
            lock = _SessionLock(self._database, connection, collection, key)
            yield lock  # after an error of the body, the lock goes with the connection
            lock.release()

    def _write(self, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            with self._database.write() as connection:
                self._upsert(connection, rows)

    def _look_up(self, source_ids: Collection[str], collections: Sequence[str]) -> Iterator[tuple[str, str, Known]]:
        ids = list(source_ids)
        query = sa.select(versions.c.source_id, versions.c.collection, *_VERSION, versions.c.deleted)
        with self._database.read() as connection:
            for start in range(0, len(ids), IDS_TOGETHER):
                some = versions.c.source_id.in_(ids[start : start + IDS_TOGETHER])
                for row in connection.execute(query.where(versions.c.collection.in_(collections), some)):
                    source_id, collection, *version, deleted = row
                    yield source_id, collection, Known((version[0], version[1], version[2], version[3]), deleted)


@contextmanager
def _file_lock(file: Path, collection: str, timeout_seconds: float | None) -> Iterator[None]:
    lock = FileLock(file, timeout=-1 if timeout_seconds is None else timeout_seconds)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise _not_free(collection, timeout_seconds) from None
    except OSError as error:
        raise LedgerError(f"{file} cannot be locked: {error.strerror or error}") from None
    try:
        yield
    finally:
        lock.release()


def _not_free(collection: str, timeout_seconds: float | None) -> LedgerError:
    return LedgerError(f"another run has held the lock of collection {collection} for {timeout_seconds} s")


def _values(collection: str, source_id: str, version: Version, deleted: bool) -> tuple[Any, ...]:
    """In the order of the table's columns."""
    return (collection, source_id, *version, deleted)


def _replaces(new: Any, old: Any) -> sa.ColumnElement[bool]:
    pair = [sa.tuple_(row.timestamp_ms, row.topic, row.partition, row.offset) for row in (new, old)]
    return pair[0] >= pair[1]
