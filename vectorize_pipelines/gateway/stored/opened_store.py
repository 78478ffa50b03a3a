"""The vector store of the server, opened by whoever first needs it: the server starts though the store is away."""

from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import TypeVar

import anyio.to_thread
from anyio import CapacityLimiter

from vectorize_pipelines.errors import CollectionNotFoundError, StoreError, StoreUnavailableError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.table_locks import TableLocks
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import Collection, VectorStore

#: Calls of the store under way at a time, each in a thread; further ones wait. Most of a call is the store's own work.
CALLS = 8

_Result = TypeVar("_Result")


class OpenedStore:
    """The store of an installation. Made in the event loop; safe for use by several threads. A store reconnects itself.

    Only `call` does not block.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store: VectorStore | None = None
        self._opening = Lock()
        self._failures = 0
        self._failure: StoreUnavailableError | None = None
        self._limiter = CapacityLimiter(CALLS)
        self._last_seen: dict[str, Collection] = {}

    async def call(self, function: Callable[[VectorStore], _Result]) -> _Result:
        """Return what the function returns for the store; it runs in a thread. Raises `StoreError` and its like.

        Cancelled while it waits for its turn, it does nothing; one that runs is waited for.
        """
        return await anyio.to_thread.run_sync(partial(self._run, function), limiter=self._limiter)

    async def collection(self, name: str) -> Collection:
        """Return a collection as it is now. Raises `CollectionNotFoundError`, and as `call` does."""
        try:
            found = await self.call(lambda store: store.collection(name))
        except CollectionNotFoundError:
            self._last_seen.pop(name, None)
            raise
        self._last_seen[name] = found
        return found

    def last_seen(self, name: str) -> Collection | None:
        """Return a collection as `collection` last saw it; it may be another one by now."""
        return self._last_seen.get(name)

    def get(self) -> VectorStore:
        """Return the store. Raises `SettingsError`, or `StoreUnavailableError` where it cannot be opened now.

        The next call tries again. Those who wait while an attempt fails share its failure: another of their own would
        take as long.
        """
        failures = self._failures
        with self._opening:
            if self._store is None:
                if self._failure is not None and self._failures != failures:
                    raise self._failure
                self._store = self._open()
            return self._store

    def close(self) -> None:
        """Close the store, if it was opened; a second call does nothing."""
        with self._opening:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _run(self, function: Callable[[VectorStore], _Result]) -> _Result:
        return function(self.get())

    def _open(self) -> VectorStore:
        try:
            return open_store(self._settings.store, self._settings.home, TableLocks(self._settings))
        except StoreError as error:
            self._failures += 1
            self._failure = StoreUnavailableError(str(error))
            raise self._failure from error
