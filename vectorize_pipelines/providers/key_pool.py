"""The pool of API keys that all processes of an installation share.

pool = create_key_pool_from_config()
key = await pool.acquire_key(model="qwen-vl-max", tokens=900)
try:
    ...  # one call with key.api_key.get_secret_value()
except RateLimitError:
    await pool.release_key(key, success=False, failure=RateLimited(retry_after_seconds=3.0))
else:
    await pool.release_key(key, tokens=873)
"""

import asyncio
import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vectorize_pipelines.core.urls import without_secrets
from vectorize_pipelines.errors import KeysError, SettingsError
from vectorize_pipelines.providers.key_file import KeySource
from vectorize_pipelines.providers.key_queue import AGAIN_SECONDS, KeyQueue
from vectorize_pipelines.providers.key_set import KeySet, lease_of
from vectorize_pipelines.providers.keys import (
    APIKeyInfo,
    Cancelled,
    KeyFailure,
    KeyRefused,
    KeyState,
    ProviderFailed,
    RateLimited,
)
from vectorize_pipelines.providers.limits import (
    Lease,
    Outcome,
    Pause,
    SaltChangedError,
    SharedUse,
    Windows,
    open_shared_use,
)
from vectorize_pipelines.providers.shared_keys import SharedKeys
from vectorize_pipelines.settings import Settings, load_settings

__all__ = [
    "APIKeyInfo",
    "APIKeyPool",
    "Cancelled",
    "KeyFailure",
    "KeyRefused",
    "KeyState",
    "ProviderFailed",
    "RateLimited",
    "Windows",
    "create_key_pool_from_config",
]

logger = logging.getLogger(__name__)

#: A loan outlives the longest attempt of a call by this; that of a process that died ends then.
LEASE_GRACE_SECONDS = 10.0
#: So long the release of a key is tried while the state is away; then the loan ends by itself.
RELEASE_SECONDS = 5.0
_REASON_CHARACTERS = 300


class APIKeyPool:
    """Lends keys within their limits, to the callers in all processes together. It belongs to one event loop.

    Callers of one process wait in the order in which they came, by provider and model; the first of each process waits
    in the order of the processes.
    """

    def __init__(self, source: KeySource, use: SharedUse, *, windows: Windows | None = None, lease_seconds: float):
        """Make a pool of the keys in `source`.

        use            what all processes have used of them
        windows        the lengths of the windows of the limits; the same as those of `use`
        lease_seconds  a loan ends by itself after so long
        """
        self._source = source
        self._use = use
        self._keys = SharedKeys(source, use, windows or Windows())
        self._queue = KeyQueue(self._keys, lease_seconds)

    @property
    def max_retry_per_key(self) -> int:
        """How often one call may be tried with the same key, as the file of keys says."""
        return self._source.current().max_retry_per_key

    async def acquire_key(
        self,
        *,
        provider: str | None = None,
        model: str | None = None,
        tokens: int = 0,
        deadline_seconds: float | None = None,
        exclude: Collection[str] = (),
    ) -> APIKeyInfo:
        """Return a key for one call; wait for it in the order of the callers, at most `deadline_seconds` (None: ever).

        `provider`: None is any; `model`: only keys that may be used for it; `tokens`: those that the call is expected
        to take; `exclude`: names of keys that this caller does not want. Raises `NoKeyAvailableError`, at once where no
        key (but those) could ever serve the call, and `KeysError` where the state of the keys is away for as long.
        """
        return await self._queue.get(provider, model, tokens, deadline_seconds, frozenset(exclude))

    async def release_key(
        self,
        key: APIKeyInfo,
        success: bool = True,
        *,
        tokens: int | None = None,
        failure: KeyFailure | None = None,
        unused: bool = False,
    ) -> None:
        """Give a key back. `tokens`: those that the call really took, where that is known.

        `unused`: no call was made with it; it counts for nothing then, and nothing is noted.

        Where the state is away for long, that is logged, and the loan ends by itself.
        """
        outcome = Outcome(key.provider, unused=True) if unused else self._outcome(key, success, tokens, failure)
        try:
            disabled = await self._end(lease_of(key), outcome)
        except KeysError as error:
            logger.warning("the API key %s was not given back, its loan ends by itself: %s", key.name, error)
            return
        finally:
            self._queue.wake()
        if disabled:
            logger.warning(
                "the API key %s is disabled, since its provider %s: correct it in %s, or enable it by "
                "`vectorize keys enable %s`",
                *(key.name, outcome.refused, self._source.place, key.name),
            )

    async def health_check(self) -> dict[str, dict[str, Any]]:
        """Return what every key does now, by name, in values that JSON has; the keys themselves are not in it.

        Raises `KeysError`.
        """

        async def look(keys: KeySet) -> dict[str, dict[str, Any]]:
            used = await self._use.use(keys.limits)
            return keys.health(used, await self._use.providers(keys.providers))

        return await self._keys.do(look)

    async def disable(self, name: str, reason: str) -> None:
        """Disable a key for all processes, until it is enabled. Raises `KeysError`, and `UnknownKeyError`."""

        async def disable(keys: KeySet) -> None:
            await self._use.disable([keys.id_of(name, self._source.place)], reason)

        await self._keys.do(disable)

    async def enable(self, name: str) -> None:
        """Enable a key for all processes.

        Raises `KeysError`, `UnknownKeyError`, and `SettingsError` where the file disables it.
        """

        async def enable(keys: KeySet) -> None:
            id_ = keys.id_of(name, self._source.place)
            if not keys.entry(id_).enabled:
                raise SettingsError(
                    f"the API key {name} is disabled in {self._source.place}: set `enabled: true` there"
                )
            await self._use.enable([id_])

        await self._keys.do(enable)

    async def close(self) -> None:
        """Leave the state of the keys; keys that are lent still come back when their leases end."""
        await self._queue.close()
        await self._use.close()

    async def _end(self, lease: Lease, outcome: Outcome) -> bool:
        """End a loan; return whether that disabled the key. Raises `KeysError` where the state is away for long."""
        deadline = asyncio.get_running_loop().time() + RELEASE_SECONDS
        while True:
            try:
                return await self._use.release(lease, outcome)
            except SaltChangedError as changed:  # the state was begun again, and knows of no loan
                self._keys.begin_again(changed.salt)
                return False
            except KeysError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(AGAIN_SECONDS)

    def _outcome(self, key: APIKeyInfo, success: bool, tokens: int | None, failure: KeyFailure | None) -> Outcome:
        config = self._source.current()
        match failure:
            case RateLimited(retry_after_seconds=asked):
                pause = Pause(asked, config.default_cooldown, config.max_cooldown)
                return Outcome(key.provider, False, tokens, pause=pause)
            case KeyRefused(status=status, message=message):
                reason = f"refused it: {status} {_without_key(message, key)}".rstrip()
                return Outcome(key.provider, False, tokens, refused=reason)
            case ProviderFailed(reason=reason):
                return Outcome(key.provider, False, tokens, failed=_without_key(reason, key))
            case Cancelled():
                return Outcome(key.provider, False, tokens, cancelled=True)
            case None:
                return Outcome(key.provider, success, tokens)


def _without_key(text: str, key: APIKeyInfo) -> str:
    """Return what a provider said as it may be shown: without the key, and not too long."""
    return without_secrets(" ".join(text.split()), key.api_key.get_secret_value())[:_REASON_CHARACTERS]


def create_key_pool_from_config(
    config: Mapping[str, Any] | Path | str | None = None,
    *,
    settings: Settings | None = None,
    windows: Windows | None = None,
    lease_seconds: float | None = None,
) -> APIKeyPool:
    """Return the pool of the keys in a file, or in what would stand there; None is the file that the settings name.

    windows        other lengths than a second and a minute; every process must have the same
    lease_seconds  a loan ends by itself after so long; None: somewhat longer than an attempt of a call may take

    Raises `SettingsError` for a file that cannot be used, and `MissingExtraError`.
    """
    settings = settings or load_settings()
    windows = windows or Windows()
    config = settings.providers.keys_file if config is None else config
    source = KeySource(Path(config) if isinstance(config, str) else config)
    lease_seconds = lease_seconds or settings.providers.call_seconds + LEASE_GRACE_SECONDS
    return APIKeyPool(source, open_shared_use(settings, windows), windows=windows, lease_seconds=lease_seconds)
