"""The SQLite file of the use of keys: what lies in it, and the salt of the ids in there."""

import secrets
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from vectorize_pipelines.errors import KeysError
from vectorize_pipelines.providers.limits.base import SaltChangedError
from vectorize_pipelines.state.loop_file import LoopFile

T = TypeVar("T")

#: What it costs to make the file again.
REMADE = "what was used of the keys' limits is counted from now on, and keys disabled by command are enabled"
_FORMAT = 1
_SCHEMA = """
create table if not exists salt (one integer primary key check (one = 1), salt blob not null);
create table if not exists keys (
    id text primary key, disabled text, turn integer not null default 0, number integer not null default 0,
    latest real not null default 0, tokens integer not null default 0, cooling real not null default 0, cooled real,
    streak integer not null default 0, calls integer not null default 0, failures integer not null default 0,
    limited integer not null default 0
) without rowid;
create table if not exists uses (
    key text not null, number integer not null, at real not null, tokens integer not null, primary key (key, number)
) without rowid;
create table if not exists leases (
    lease text primary key, key text not null, number integer not null, until real not null
) without rowid;
create index if not exists leases_by_end on leases (until);
create table if not exists queue (
    ticket text primary key, number integer not null, until real not null, tokens integer not null, ids text not null
) without rowid;
create table if not exists counter (one integer primary key check (one = 1), value integer not null);
insert or ignore into counter values (1, 0);
create table if not exists providers (
    name text primary key, failures integer not null default 0, in_a_row integer not null default 0,
    latest text not null default ''
) without rowid;
"""


class KeyUseFile:
    """Transactions on the file, one after another; it belongs to one event loop. `salt`: what callers make ids with."""

    def __init__(self, file: Path):
        self.salt = b""
        self._salt_there = b""
        self._file = LoopFile(file, _FORMAT, _SCHEMA, REMADE, error=_keys_error, opened=self._read_salt)

    async def open(self) -> bytes:
        """Open the file, or make it. Return its salt. Raises `KeysError`."""
        await self._file.open()
        self.salt = self._salt_there
        return self.salt

    async def do(self, body: Callable[[sqlite3.Connection], T]) -> T:
        """Return what `body` returns in a transaction. Raises `KeysError`, and `SaltChangedError`."""

        def work(connection: sqlite3.Connection) -> T:
            if self._salt_there != self.salt:
                raise SaltChangedError(self._salt_there)
            return body(connection)

        return await self._file.do(work)

    async def close(self) -> None:
        """Close the file once what has been asked for is done."""
        await self._file.close()

    def _read_salt(self, connection: sqlite3.Connection) -> None:
        connection.execute("insert or ignore into salt values (1, ?)", (secrets.token_bytes(16),))
        (salt,) = connection.execute("select salt from salt").fetchone()
        self._salt_there = bytes(salt)


def _keys_error(reason: str) -> KeysError:
    return KeysError(f"the state of the API keys cannot be used: {reason}")
