"""The embedding cache in one file, for all processes of a machine.

All of it can be lost without losing data, so it has no migrations as the database of `state.database` has: a file of
another format, also of a newer one, is put aside and made again, as a damaged one is.
"""

import math
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.state.damage import OtherFormatError, discard_damaged, explain, is_damage, open_derived
from vectorize_pipelines.state.embedding_cache.base import (
    EmbeddingCacheError,
    Vector,
    cache_key,
    packed_vector,
    unpacked_vector,
)

#: Of vectors that were used within it, the last use is not written again.
USE_RESOLUTION_SECONDS = 3600
#: What is left once the oldest have gone, so that they do not go one by one.
KEPT_SHARE = 0.9
#: Ten vectors of 384 dimensions to a page; in SQLite's usual 4,096 bytes a quarter would lie empty.
PAGE_BYTES = 16_384
#: Beside a vector: keys, checksum, both indexes.
ROW_OVERHEAD_BYTES = 160
#: Of a page of long vectors, so much may lie empty.
PAGE_SLACK = 1.4
#: SQLite's limit of parameters was 999 for long.
KEYS_TOGETHER = 500
BUSY_SECONDS = 2.0
#: What it costs to make the cache again.
REMADE = "what it held is encoded once more where it is needed"
#: SQLite's `user_version` of the files; to be raised with every change of what follows.
_FORMAT = 0
_SCHEMA = """
create table if not exists vectors (
    id integer primary key,
    key blob not null unique,
    vector blob not null,
    used integer not null
);
create index if not exists vectors_by_use on vectors (used);
"""


class SQLiteEmbeddingCache:
    """An `EmbeddingCache` in one file, which any number of processes may use at once.

    The file stays within `max_bytes`; the vectors whose last use is longest ago go first. Beside it lies SQLite's
    write-ahead log, of some megabytes while a run lasts. Every vector carries a checksum over its key and itself: one
    that was damaged is not there. A file that SQLite refuses as damaged is put aside and made again.
    """

    def __init__(self, file: Path, max_bytes: int, now: Callable[[], float] = time.time):
        """Open the file, or make it. `now` returns seconds since 1970. Raises `EmbeddingCacheError`."""
        self._file = file
        self._max_bytes = max_bytes
        self._now = now
        try:
            self._connection = open_derived(file, _connect, REMADE, BUSY_SECONDS)
        except VectorizeError as error:
            raise EmbeddingCacheError(str(error)) from None

    def get(self, fingerprint: str, hashes: Sequence[bytes]) -> dict[bytes, Vector]:
        """Return vectors as `EmbeddingCache.get` does."""
        wanted = {cache_key(fingerprint, each): each for each in hashes}
        keys = list(wanted)
        found: dict[bytes, Vector] = {}
        outdated: list[tuple[int]] = []
        now = int(self._now())
        try:
            for start in range(0, len(keys), KEYS_TOGETHER):
                some = keys[start : start + KEYS_TOGETHER]
                query = f"select id, key, vector, used from vectors where key in ({','.join('?' * len(some))})"
                for id_, key, stored, used in self._connection.execute(query, some):
                    vector = unpacked_vector(key, stored)
                    if vector is not None:
                        found[wanted[key]] = vector
                        if now - used >= USE_RESOLUTION_SECONDS:
                            outdated.append((id_,))
            if outdated:
                with self._connection:
                    self._connection.executemany(f"update vectors set used = {now} where id = ?", outdated)
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None
        return found

    def put(self, fingerprint: str, vectors: Mapping[bytes, Vector]) -> None:
        """Keep vectors as `EmbeddingCache.put` does, but for what is larger than the whole cache may be."""
        now = int(self._now())
        rows = [
            (key := cache_key(fingerprint, each), packed_vector(key, vector), now) for each, vector in vectors.items()
        ]
        incoming = math.ceil(sum(len(row[1]) + ROW_OVERHEAD_BYTES for row in rows) * PAGE_SLACK)
        if not rows or incoming > self._max_bytes * KEPT_SHARE:
            return
        try:
            with self._connection:
                self._connection.execute("begin immediate")
                self._make_room(incoming)
                self._connection.executemany(
                    "insert or replace into vectors (key, vector, used) values (?, ?, ?)", rows
                )
            if self._pragma("page_count") * PAGE_BYTES > self._max_bytes:  # the limit was higher once
                # Every step of this vacuum frees a page, and `execute` takes one step only.
                self._connection.executescript("pragma incremental_vacuum; pragma wal_checkpoint;")
        except sqlite3.DatabaseError as error:
            raise self._failure(error) from None

    def close(self) -> None:
        """Close as `EmbeddingCache.close` does."""
        self._connection.close()

    def _make_room(self, incoming: int) -> None:
        while (surplus := self._in_use() + incoming - self._max_bytes) > 0:
            (rows,) = self._connection.execute("select count(*) from vectors").fetchone()
            if not rows:
                return
            surplus += int(self._max_bytes * (1 - KEPT_SHARE))
            going = min(rows, math.ceil(rows * surplus / self._in_use()))
            self._connection.execute(
                "delete from vectors where id in (select id from vectors order by used, id limit ?)", (going,)
            )

    def _in_use(self) -> int:
        """Return the bytes of pages that hold something; the others are used again before the file grows."""
        return (self._pragma("page_count") - self._pragma("freelist_count")) * PAGE_BYTES

    def _pragma(self, name: str) -> int:
        return int(self._connection.execute(f"pragma {name}").fetchone()[0])

    def _failure(self, error: sqlite3.DatabaseError) -> EmbeddingCacheError:
        """Return what to raise for an error of SQLite; a file that is damaged is put aside."""
        self._connection.close()
        if not is_damage(error):  # locked, full, read-only
            return EmbeddingCacheError(str(explain(error, self._file) or f"{self._file}: {error}"))
        try:
            discard_damaged(self._file, error, REMADE)
        except VectorizeError as obstacle:
            return EmbeddingCacheError(f"{self._file} is damaged ({error}); delete it ({obstacle})")
        return EmbeddingCacheError(f"{self._file} was damaged ({error}) and is put aside; the next run makes it again")


def _connect(file: Path) -> sqlite3.Connection:
    """Return a connection. Raises `sqlite3.DatabaseError`, with the connection closed."""
    connection = sqlite3.connect(file, timeout=BUSY_SECONDS)
    try:
        (version,) = connection.execute("pragma user_version").fetchone()
        if version != _FORMAT:
            raise OtherFormatError(f"its format is {version}, this version of the project reads {_FORMAT}")
        connection.execute(f"pragma page_size = {PAGE_BYTES}")  # before anything is written; without effect later
        connection.execute("pragma auto_vacuum = incremental")
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = normal")
        connection.execute("pragma wal_autocheckpoint = 256")
        connection.executescript(_SCHEMA)
    except sqlite3.DatabaseError:
        connection.close()
        raise
    return connection
