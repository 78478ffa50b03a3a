"""The newest message that wrote, emptied or deleted a source's rows, collection by collection.

A topic is a history: an older message never replaces what a newer one wrote, in whatever order the two are processed.
Deletions are remembered too, so that replaying an earlier day does not bring back what a later one deleted.
"""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self, TypeAlias
from urllib.parse import quote

import sqlalchemy as sa

from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.database import Database, Text, metadata, purge_rows
from vectorize_pipelines.state.held_locks import ExclusiveLock
from vectorize_pipelines.state.home import request_lock
from vectorize_pipelines.state.locks import exclusive

#: (timestamp_ms, topic, partition, offset) of a message; compared as such, the larger is the newer.
Version: TypeAlias = tuple[int, str, int, int]

#: In place of a collection: a deletion of the source's rows wherever they are.
EVERY_COLLECTION = "*"
IDS_TOGETHER = 5_000
_COLUMNS = 'select source_id, timestamp_ms, topic, partition, "offset", deleted from vectorize_versions'
_LOOK_UP_SQLITE = f"{_COLUMNS} where collection = ? and source_id in (select value from json_each(?))"
_LOOK_UP_POSTGRESQL = f"{_COLUMNS} where collection = %s and source_id = any(%s)"

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


@dataclass(frozen=True, slots=True)
class Known:
    """The newest message about a source in a collection, and whether it deleted the source's rows."""

    version: Version
    deleted: bool


class SourceVersions:
    """The table of versions. Safe for use by several threads. Every method may raise `LedgerError`."""

    def __init__(self, database: Database, settings: Settings):
        self._database = database
        self._settings = settings
        self._upsert = database.bulk_upsert(versions, _replaces)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the versions of an installation, empty at first. Raises `SettingsError` and `LedgerError`."""
        return cls(Database.open(settings), settings)

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def known(self, collection: str, source_ids: Collection[str]) -> dict[str, Known]:
        """Return the newest message about each of the sources in the collection; those without any are left out."""
        found: dict[str, Known] = {}
        for source_id, _, known in self._look_up(source_ids, (collection, EVERY_COLLECTION)):
            other = found.get(source_id)
            # Of one message, what it did in all collections is also what it did here.
            if other is None or (known.version, known.deleted) > (other.version, other.deleted):
                found[source_id] = known
        return found

    def record(self, collection: str, sources: Mapping[str, Version], deleted: bool = False) -> None:
        """Note that these messages wrote (or deleted) the rows of sources, unless a newer one did: all or nothing."""
        self._write([_values(collection, source_id, version, deleted) for source_id, version in sources.items()])

    def record_deletions(self, sources: Mapping[str, Version]) -> None:
        """Note that these messages deleted sources from every collection, also those not made yet: all or nothing."""
        rows = [_values(EVERY_COLLECTION, source_id, version, True) for source_id, version in sources.items()]
        for source_id, collections in self.collections_of(sources).items():
            rows += [_values(collection, source_id, sources[source_id], True) for collection in sorted(collections)]
        self._write(rows)

    def collections_of(self, source_ids: Collection[str]) -> dict[str, set[str]]:
        """Return the collections that each source was written to or deleted from; sources without any are left out."""
        found: dict[str, set[str]] = {}
        for source_id, collection, _ in self._look_up(source_ids, self.collections()):
            found.setdefault(source_id, set()).add(collection)
        return found

    def collections(self) -> list[str]:
        """Return every collection that anything is known of, in order."""
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
        """Return whether anything was ever noted about this collection."""
        query = sa.select(versions.c.source_id).where(versions.c.collection == collection).limit(1)
        with self._database.read() as connection:
            return connection.execute(query).first() is not None

    def exclusive(self, collection: str, timeout_seconds: float | None = None) -> AbstractContextManager[ExclusiveLock]:
        """Return the lock of a collection's rows that come from requests; see `vectorize_pipelines.state.locks`."""
        name = quote(collection, safe="")
        return exclusive(
            self._database,
            f"requests/{collection}",
            request_lock(self._settings, name),
            f"collection {collection}",
            timeout_seconds,
        )

    def purge_deletions(self, before: datetime) -> int:
        """Forget deletions and emptyings by messages older than that; return their number.

        Only where no topic holds an older message any more: replayed, it would bring back what was deleted.
        """
        old = sa.and_(versions.c.deleted, versions.c.timestamp_ms < int(before.timestamp() * 1000))
        return purge_rows(self._database, versions, old)

    def _write(self, rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            with self._database.write() as connection:
                self._upsert(connection, rows)

    def _look_up(self, source_ids: Collection[str], collections: Sequence[str]) -> Iterator[tuple[str, str, Known]]:
        ids = list(source_ids)
        # One parameter for all ids: SQLAlchemy would write another statement for every number of them.
        query = _LOOK_UP_SQLITE if self._database.is_sqlite else _LOOK_UP_POSTGRESQL
        with self._database.read() as connection:
            for start in range(0, len(ids), IDS_TOGETHER):
                some = ids[start : start + IDS_TOGETHER]
                for collection in collections:
                    parameters = (collection, json.dumps(some) if self._database.is_sqlite else some)
                    for row in connection.exec_driver_sql(query, parameters):
                        yield row[0], collection, Known((row[1], row[2], row[3], row[4]), bool(row[5]))


def _values(collection: str, source_id: str, version: Version, deleted: bool) -> tuple[Any, ...]:
    """Return the values in the order of the table's columns."""
    return (collection, source_id, *version, deleted)


def _replaces(new: Any, old: Any) -> sa.ColumnElement[bool]:
    pair = [sa.tuple_(row.timestamp_ms, row.topic, row.partition, row.offset) for row in (new, old)]
    return pair[0] >= pair[1]
