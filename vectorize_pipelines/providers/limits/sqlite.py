"""The use of keys in a SQLite file, for the processes of one machine, by its monotonic clock, which they all have.

What is done and what is promised is the same as in the scripts for Redis (acquire.lua, release.lua, …).
"""

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from vectorize_pipelines.providers.limits import sqlite_acquire, sqlite_begin, sqlite_release, sqlite_use
from vectorize_pipelines.providers.limits.base import (
    Grant,
    KeyLimits,
    KeyUse,
    Lease,
    Outcome,
    ProviderUse,
    Request,
    Wait,
    Windows,
)
from vectorize_pipelines.providers.limits.sqlite_file import KeyUseFile


class SQLiteUse:
    """`SharedUse` in a file. What is lost with the file begins again."""

    def __init__(self, file: Path, windows: Windows):
        self._windows = windows
        self._file = KeyUseFile(file)

    @property
    def salt(self) -> bytes:
        """As in `SharedUse`."""
        return self._file.salt

    @salt.setter
    def salt(self, salt: bytes) -> None:
        self._file.salt = salt

    async def open(self) -> bytes:
        """As in `SharedUse`."""
        return await self._file.open()

    async def acquire(self, request: Request) -> Grant | Wait:
        """As in `SharedUse`."""
        return await self._file.do(lambda connection: sqlite_acquire.acquire(connection, request, self._windows))

    async def begin(self, lease: Lease, limits: KeyLimits, within: float) -> float | None:
        """As in `SharedUse`."""
        windows = self._windows
        return await self._file.do(lambda connection: sqlite_begin.begin(connection, lease, limits, within, windows))

    async def leave(self, ticket: str) -> None:
        """As in `SharedUse`."""
        await self._file.do(lambda connection: sqlite_acquire.leave(connection, ticket))

    async def release(self, lease: Lease, outcome: Outcome) -> bool:
        """As in `SharedUse`."""
        return await self._file.do(lambda connection: sqlite_release.release(connection, lease, outcome))

    async def use(self, keys: Sequence[KeyLimits]) -> Mapping[str, KeyUse]:
        """As in `SharedUse`."""

        def read(connection: sqlite3.Connection) -> dict[str, KeyUse]:
            return {key.id: sqlite_use.use(connection, key, self._windows) for key in keys}

        return await self._file.do(read)

    async def providers(self, names: Sequence[str]) -> Mapping[str, ProviderUse]:
        """As in `SharedUse`."""

        def read(connection: sqlite3.Connection) -> dict[str, ProviderUse]:
            return {name: sqlite_release.provider(connection, name) for name in names}

        return await self._file.do(read)

    async def disable(self, ids: Sequence[str], reason: str) -> None:
        """As in `SharedUse`."""
        await self._file.do(lambda connection: sqlite_release.disable(connection, ids, reason))

    async def enable(self, ids: Sequence[str], only: str | None = None) -> None:
        """As in `SharedUse`."""
        await self._file.do(lambda connection: sqlite_release.enable(connection, ids, only))

    async def close(self) -> None:
        """As in `SharedUse`."""
        await self._file.close()
