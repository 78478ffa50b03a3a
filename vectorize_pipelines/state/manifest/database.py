"""The manifests of all collections, and the notes of attempts beside them, in PostgreSQL: for several machines.

The tables are made by `state.migrations`, also in a SQLite database, where nothing is ever in them.
"""

import hashlib
import heapq
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import starmap
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from vectorize_pipelines.sources.files import SourceFile
from vectorize_pipelines.state.database import Database, Text, metadata
from vectorize_pipelines.state.manifest.base import (
    AloneInHand,
    FileStage,
    ManifestEntry,
    Suspect,
    bounds,
    everything,
)

#: Rows that the server hands over at once, and keys of one statement.
ROWS_TOGETHER = 10_000
#: Of a key in UTF-8: an index of PostgreSQL takes 2,704 bytes with everything else in it. No bucket has longer names.
KEY_BYTES = 2_000

files = sa.Table(
    "vectorize_manifest_files",
    metadata,
    sa.Column("collection", Text, primary_key=True),
    sa.Column("source_key", Text, primary_key=True),
    sa.Column("source_id", sa.LargeBinary),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("modified_ns", sa.BigInteger, nullable=False),
    sa.Column("version", Text, nullable=False),
    sa.Column("content_hash", Text, nullable=False),
    sa.Column("fingerprint", Text, nullable=False),
    sa.Column("rows", sa.BigInteger, nullable=False),
    sa.Column("error_class", Text, nullable=False),
    sa.Column("error_message", Text, nullable=False),
    sa.Column("retryable", sa.Boolean, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("notices", Text, nullable=False, server_default=sa.text("''")),
    sqlite_with_rowid=False,
)
unreported_days = sa.Table(
    "vectorize_manifest_days",
    metadata,
    sa.Column("collection", Text, primary_key=True),
    sa.Column("day", Text, primary_key=True),
    sqlite_with_rowid=False,
)
attempts = sa.Table(
    "vectorize_manifest_attempts",
    metadata,
    sa.Column("collection", Text, primary_key=True),
    sa.Column("source_key", Text, primary_key=True),
    sa.Column("source_id", sa.LargeBinary),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("modified_ns", sa.BigInteger, nullable=False),
    sa.Column("version", Text, nullable=False),
    sa.Column("in_hand", sa.Integer, nullable=False),
    sa.Column("stage", Text, nullable=False),
    sa.Column("run_id", Text, nullable=False),
    sa.Column("suspected", sa.Integer, nullable=False),
    sa.Column("deaths", Text, nullable=False),
    sqlite_with_rowid=False,
)

_TOGETHER, _ALONE = 1, 2
#: What the keys of sources begin with whose ids are no keys, and those of no others.
_WHOLE = "\1"
_VALUES = attrgetter("size", "modified_ns", "version", "content_hash", "fingerprint", "rows", "error_class")
_ENTRY = list(files.columns)[1:]


class DatabaseManifest:
    """A `Manifest` in a database, which it closes. Safe for several threads."""

    def __init__(self, database: Database, collection: str):
        self._database = database
        self._collection = collection
        self._write_files = database.bulk(files, database.upsert(files, lambda *_: sa.true()))
        self._write_doubts = database.bulk(files, _doubting())
        self._write_days = database.bulk(unreported_days, database.upsert(unreported_days))

    def entries(self) -> Iterator[ManifestEntry]:
        """Yield every entry."""
        key = ""
        while rows := self._rows(files.c.source_key > key):
            yield from starmap(_entry, rows)
            key = rows[-1].source_key

    def below(self, root: str) -> Iterator[ManifestEntry]:
        """Yield the entries of a file or folder and of what lies below it, in order."""
        further = self._whole_below(root)
        entries = self._keyed_below(root)
        return heapq.merge(entries, further, key=attrgetter("source_id")) if further else entries

    def rows_below(self, root: str) -> int:
        """Return the sum of the entries' rows of a file or folder."""
        return self._sum(sa.func.sum(files.c.rows), root) + sum(entry.rows for entry in self._whole_below(root))

    def count_below(self, root: str) -> int:
        """Return how many entries there are of a file or folder."""
        return self._sum(sa.func.count(), root) + len(self._whole_below(root))

    def attempted(self) -> list[tuple[str, str]]:
        """Return what runs that died had in hand, and how often alone: other than before where a death showed more."""
        query = sa.select(attempts.c.source_key, attempts.c.source_id, attempts.c.deaths).where(
            attempts.c.collection == self._collection, (attempts.c.suspected > 0) | (attempts.c.in_hand > 0)
        )
        with self._database.read() as connection:
            return sorted((_source_id(key, whole), deaths) for key, whole, deaths in connection.execute(query))

    def unreported_days(self) -> set[str]:
        """Return the days that runs touched, and did not come to report."""
        query = sa.select(unreported_days.c.day).where(unreported_days.c.collection == self._collection)
        with self._database.read() as connection:
            return set(connection.scalars(query))

    def days_reported(self, days: Iterable[str]) -> None:
        """Note that these days have been reported."""
        with self._database.write() as connection:
            _delete(connection, unreported_days.c.day, self._collection, days)

    def doubt(self, source_ids: Iterable[str]) -> None:
        """Put the entries of these into doubt, which they get where they have none."""
        names = dict.fromkeys(source_ids)  # a statement may write a row only once
        with self._database.write() as connection:
            self._write_doubts(connection, [self._row(ManifestEntry(name, 0, 0, "", "", "", 0)) for name in names])

    def doubt_everything(self) -> None:
        """Put every entry into doubt."""
        with self._database.write() as connection:
            own = files.c.collection == self._collection
            connection.execute(sa.update(files).where(own).values(fingerprint=""))

    def record(
        self, entries: Iterable[ManifestEntry], forgotten: Collection[str] = (), days: Iterable[str] = ()
    ) -> None:
        """Note what was dealt with, which is in hand no more, forget what is gone, and note the days that were
        touched: all or nothing.
        """
        latest = {entry.source_id: entry for entry in entries}  # a statement may write a row only once
        new_days = [(self._collection, day) for day in sorted(set(days))]
        with self._database.write() as connection:
            _delete(connection, attempts.c.source_key, self._collection, _keys([*latest, *forgotten]))
            self._write_days(connection, new_days)
            self._write_files(connection, [self._row(entry) for entry in latest.values()])
            _delete(connection, files.c.source_key, self._collection, _keys(forgotten))

    def open_attempts(self, owns: Callable[[str], bool] = everything) -> "DatabaseAttemptNotes":
        """Return the notes, on the connections of the manifest."""
        return DatabaseAttemptNotes(self._database, self._collection, owns)

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._database.close()

    def _keyed_below(self, root: str) -> Iterator[ManifestEntry]:
        """Yield the entries below a root whose ids are keys."""
        if not _is_key(root):
            return
        first, end = bounds(root)
        are_keys = files.c.source_id.is_(None)
        yield from starmap(_entry, self._rows(are_keys, files.c.source_key == root))
        while rows := self._rows(are_keys, files.c.source_key > first, files.c.source_key < end):
            yield from starmap(_entry, rows)
            first = rows[-1].source_key

    def _rows(self, *where: sa.ColumnElement[bool]) -> Sequence[sa.Row[Any]]:
        """Return the first rows, in the order of the keys."""
        own = files.c.collection == self._collection
        query = sa.select(*_ENTRY).where(own, *where).order_by(files.c.source_key).limit(ROWS_TOGETHER)
        with self._database.read() as connection:
            return connection.execute(query).all()

    def _whole_below(self, root: str) -> list[ManifestEntry]:
        """Return the entries below a root whose ids are no keys, in order: few, if any."""
        first, _ = bounds(root)
        keys = (files.c.source_key >= _WHOLE, files.c.source_key < chr(ord(_WHOLE) + 1))
        query = sa.select(*_ENTRY).where(files.c.collection == self._collection, *keys)
        with self._database.read() as connection:
            entries = list(starmap(_entry, connection.execute(query).all()))
        below = (entry for entry in entries if entry.source_id == root or entry.source_id.startswith(first))
        return sorted(below, key=attrgetter("source_id"))

    def _sum(self, what: sa.ColumnElement[Any], root: str) -> int:
        """Return a sum over the entries below a root whose ids are keys."""
        if not _is_key(root):
            return 0
        first, end = bounds(root)
        key = files.c.source_key
        query = sa.select(sa.func.coalesce(what, 0)).where(
            files.c.collection == self._collection,
            files.c.source_id.is_(None),
            (key == root) | ((key > first) & (key < end)),
        )
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def _row(self, entry: ManifestEntry) -> tuple[Any, ...]:
        return (
            self._collection,
            *_key(entry.source_id),
            *_VALUES(entry),
            # PostgreSQL has no text with NUL, which a library's message may quote.
            entry.error_message.replace("\0", "\N{REPLACEMENT CHARACTER}"),
            entry.retryable,
            entry.attempts,
            entry.notices,
        )


class DatabaseAttemptNotes:
    """The `AttemptNotes` in the database of a manifest."""

    def __init__(self, database: Database, collection: str, owns: Callable[[str], bool]):
        self._database = database
        self._collection = collection
        self._owns = owns
        self._write_notes = database.bulk(attempts, _noting())

    def suspects(self) -> list[Suspect]:
        """Return the files that were in hand at deaths."""
        columns = ("source_key", "source_id", "size", "modified_ns", "version", "deaths", "suspected")
        query = sa.select(*(attempts.c[name] for name in columns)).where(
            attempts.c.collection == self._collection, attempts.c.suspected > 0
        )
        with self._database.read() as connection:
            return [
                Suspect(_source_id(key, whole), size, modified_ns, version, json.loads(deaths), suspected - 1)
                for key, whole, size, modified_ns, version, deaths, suspected in connection.execute(query)
            ]

    def note_together(self, files: Sequence[SourceFile], run_id: str) -> None:
        """Note that these are in hand beside others."""
        self._write(files, _TOGETHER, "", run_id)

    def note_alone(self, file: SourceFile, stage: FileStage, run_id: str) -> None:
        """Note that this file is in hand and no other."""
        self._write([file], _ALONE, stage, run_id)

    def count_deaths(self, judge: Callable[[AloneInHand], Sequence[str] | None]) -> None:
        """Make suspects of all that is in hand."""
        own = attempts.c.collection == self._collection
        suspected = sa.func.greatest(attempts.c.suspected, 1)
        with self._database.write() as connection:
            in_hand = self._in_hand(connection)
            for key, source_id, how, stage, run_id, before in in_hand:
                if how != _ALONE:
                    continue
                deaths = judge(AloneInHand(source_id, stage, run_id, json.loads(before)))
                one = sa.update(attempts).where(own, attempts.c.source_key == key)
                connection.execute(
                    one.values(suspected=suspected + 1) if deaths is None else one.values(deaths=json.dumps([*deaths]))
                )
            these = attempts.c.source_key == sa.any_(_some([key for key, *_ in in_hand]))
            connection.execute(sa.update(attempts).where(own, these).values(suspected=suspected, in_hand=0))

    def forget_in_hand(self) -> None:
        """Forget what is in hand: of suspects, only that they are in hand."""
        own = attempts.c.collection == self._collection
        with self._database.write() as connection:
            these = attempts.c.source_key == sa.any_(_some([key for key, *_ in self._in_hand(connection)]))
            connection.execute(sa.delete(attempts).where(own, these, attempts.c.suspected == 0))
            connection.execute(sa.update(attempts).where(own, these).values(in_hand=0))

    def close(self) -> None:
        """Do nothing: the connections are the manifest's."""

    def _in_hand(self, connection: sa.Connection) -> list[tuple[str, str, int, str, str, str]]:
        """Return what of the part is in hand: key, source id, whether alone, stage, run, and deaths."""
        columns = ("source_key", "source_id", "in_hand", "stage", "run_id", "deaths")
        query = sa.select(*(attempts.c[name] for name in columns)).where(
            attempts.c.collection == self._collection, attempts.c.in_hand > 0
        )
        found = [(key, _source_id(key, whole), *rest) for key, whole, *rest in connection.execute(query)]
        return [row for row in found if self._owns(row[1])]

    def _write(self, files: Sequence[SourceFile], in_hand: int, stage: str, run_id: str) -> None:
        latest = {file.source_id: file for file in files}  # a statement may write a row only once
        rows = [
            (
                self._collection,
                *_key(file.source_id),
                *(file.size, file.modified_ns, file.version),
                *(in_hand, stage, run_id),
                *(0, "[]"),
            )
            for file in latest.values()
        ]
        with self._database.write() as connection:
            self._write_notes(connection, rows)


def _doubting() -> sa.Insert:
    """Return the insert of entries in doubt: of one that is there, only the fingerprint goes."""
    insert = postgresql.insert(files)
    return insert.on_conflict_do_update(
        index_elements=list(files.primary_key.columns), set_={"fingerprint": insert.excluded.fingerprint}
    )


def _noting() -> sa.Insert:
    """Return the insert of notes: what is held against a file stays where its content is as it was noted."""
    insert = postgresql.insert(attempts)
    new, old = insert.excluded, attempts.c
    same = sa.and_(old.size == new.size, old.modified_ns == new.modified_ns, old.version == new.version)
    given = ("size", "modified_ns", "version", "in_hand", "stage", "run_id")
    return insert.on_conflict_do_update(
        index_elements=list(attempts.primary_key.columns),
        set_={
            **{name: new[name] for name in given},
            "suspected": sa.case((same, old.suspected), else_=sa.literal_column("0")),
            "deaths": sa.case((same, old.deaths), else_=sa.literal_column("'[]'")),
        },
    )


def _delete(connection: sa.Connection, column: sa.Column[str], collection: str, values: Iterable[str]) -> None:
    """Delete the rows of a collection that have one of the values in a column."""
    values = list(values)
    for start in range(0, len(values), ROWS_TOGETHER):
        some = column == sa.any_(_some(values[start : start + ROWS_TOGETHER]))
        connection.execute(sa.delete(column.table).where(column.table.c.collection == collection, some))


def _some(values: Sequence[str]) -> sa.BindParameter[Any]:
    """Return values as one parameter, which costs a statement less than a parameter each."""
    return sa.bindparam(None, list(values), type_=postgresql.ARRAY(sa.Text))


def _keys(source_ids: Iterable[str]) -> list[str]:
    return [_key(source_id)[0] for source_id in source_ids]


def _is_key(source_id: str) -> bool:
    """Return whether an index and a text of PostgreSQL can hold an id, and no other source has it as its key."""
    short = len(source_id) <= KEY_BYTES // 4 or len(source_id.encode()) <= KEY_BYTES
    return short and "\0" not in source_id and not source_id.startswith(_WHOLE)


def _key(source_id: str) -> tuple[str, bytes | None]:
    """Return the key of a source, and its whole id where that is no key."""
    if _is_key(source_id):
        return source_id, None
    whole = source_id.encode()
    return f"{_WHOLE}{hashlib.blake2b(whole, digest_size=20).hexdigest()}", whole


def _source_id(key: str, whole: bytes | memoryview | None) -> str:
    return key if whole is None else bytes(whole).decode()


def _entry(key: str, whole: bytes | memoryview | None, *values: Any) -> ManifestEntry:
    return ManifestEntry(key if whole is None else _source_id(key, whole), *values)
