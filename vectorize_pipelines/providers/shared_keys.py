"""The keys of the file and the state that all processes share of them, kept in step."""

import asyncio

from vectorize_pipelines.providers.key_file import KeyConfig, KeySource
from vectorize_pipelines.providers.key_set import KeySet
from vectorize_pipelines.providers.limits import SharedUse, Windows
from vectorize_pipelines.providers.limits.base import BY_FILE


class SharedKeys:
    """The keys as the file has them now, under the ids that the state has now. It belongs to one event loop."""

    def __init__(self, source: KeySource, use: SharedUse, windows: Windows):
        self.source = source
        self.use = use
        self._windows = windows
        self._keys: KeySet | None = None
        self._entering = asyncio.Lock()

    async def current(self) -> KeySet:
        """Return the keys: the same object until the file or the state changes. Raises `KeysError`."""
        config = self.source.current()
        if self._keys is not None and self._keys.config is config:
            return self._keys
        async with self._entering:
            if self._keys is None:
                self._keys = await self._enter(config, await self.use.open())
            elif self._keys.config is not config:
                self._keys = await self._enter(config, self.use.salt)
            return self._keys

    async def begin_again(self, salt: bytes) -> None:
        """Go on with a state that was lost and begun again. Raises `KeysError`."""
        async with self._entering:
            self.use.salt = salt
            self._keys = await self._enter(self.source.current(), salt)

    async def _enter(self, config: KeyConfig, salt: bytes) -> KeySet:
        """Return the keys of a file that is new or has changed, once the state knows which ones the file disables."""
        keys = KeySet(config, salt, self._windows)
        on, off = keys.by_file(enabled=True), keys.by_file(enabled=False)
        if on:
            await self.use.enable(on, only=BY_FILE)
        if off:
            await self.use.disable(off, BY_FILE)
        return keys
