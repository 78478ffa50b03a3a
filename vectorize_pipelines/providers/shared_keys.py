"""The keys of the file and the state that all processes share of them, kept in step."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from vectorize_pipelines.providers.key_file import KeyConfig, KeySource
from vectorize_pipelines.providers.key_set import KeySet
from vectorize_pipelines.providers.limits import SaltChangedError, SharedUse, Windows
from vectorize_pipelines.providers.limits.base import BY_FILE

T = TypeVar("T")


class SharedKeys:
    """The keys as the file has them now, under the ids that the state has now. It belongs to one event loop."""

    def __init__(self, source: KeySource, use: SharedUse, windows: Windows):
        self.source = source
        self.use = use
        self._windows = windows
        self._is_open = False
        self._keys: KeySet | None = None
        self._entering = asyncio.Lock()

    async def do(self, work: Callable[[KeySet], Awaitable[T]]) -> T:
        """Return what `work` does with the keys; it is done again where the state was lost and begun again meanwhile.

        The keys are the same object until the file or the state changes. Raises `KeysError`.
        """
        while True:
            keys = await self._current()
            try:
                return await work(keys)
            except SaltChangedError as changed:
                self.begin_again(changed.salt)

    def begin_again(self, salt: bytes) -> None:
        """Go on with a state that was lost and begun again."""
        self.use.salt = salt
        self._keys = None

    async def _current(self) -> KeySet:
        if self._keys is not None and self._keys.config is self.source.current():
            return self._keys
        async with self._entering:
            while self._keys is None or self._keys.config is not self.source.current():
                try:
                    if not self._is_open:
                        await self.use.open()
                        self._is_open = True
                    self._keys = await self._enter(self.source.current())
                except SaltChangedError as changed:
                    self.begin_again(changed.salt)
            return self._keys

    async def _enter(self, config: KeyConfig) -> KeySet:
        """Return the keys of a file that is new or has changed, once the state knows which ones the file disables."""
        keys = KeySet(config, self.use.salt, self._windows)
        on, off = keys.by_file(enabled=True), keys.by_file(enabled=False)
        if on:
            await self.use.enable(on, only=BY_FILE)
        if off:
            await self.use.disable(off, BY_FILE)
        return keys
