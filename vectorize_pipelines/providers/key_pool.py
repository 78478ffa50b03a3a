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
import itertools
import logging
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vectorize_pipelines.errors import KeysError, NoKeyAvailableError
from vectorize_pipelines.providers.key_file import KeyConfig, KeySource
from vectorize_pipelines.providers.key_set import KeySet, Wanted, lease_of
from vectorize_pipelines.providers.keys import (
    APIKeyInfo,
    KeyFailure,
    KeyRefused,
    KeyState,
    ProviderFailed,
    RateLimited,
)
from vectorize_pipelines.providers.limits import (
    Grant,
    Lease,
    Outcome,
    Pause,
    Request,
    SaltChangedError,
    SharedUse,
    Wait,
    Windows,
    open_shared_use,
)
from vectorize_pipelines.providers.limits.base import BY_FILE
from vectorize_pipelines.settings import Settings, load_settings

__all__ = [
    "APIKeyInfo",
    "APIKeyPool",
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
_AGAIN_SECONDS = 0.25
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
        self._windows = windows or Windows()
        self._lease_seconds = lease_seconds
        self._owner = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._keys: KeySet | None = None
        self._opening = asyncio.Lock()
        self._turns: dict[tuple[str | None, str | None], asyncio.Lock] = {}
        self._next: dict[tuple[str | None, str | None], float | None] = {}
        self._released = asyncio.Event()
        self._background: set[asyncio.Task[Any]] = set()

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
    ) -> APIKeyInfo:
        """Return a key for one call; wait for it in the order of the callers, at most `deadline_seconds` (None: ever).

        `provider`: None is any; `model`: only keys that may be used for it; `tokens`: those that the call is expected
        to take. Raises `NoKeyAvailableError`, at once where no key could ever serve the call, and `KeysError` where
        the state of the keys is away for as long.
        """
        about = (provider, model)
        turn = self._turns.setdefault(about, asyncio.Lock())
        failed: list[KeysError] = []
        try:
            async with asyncio.timeout(deadline_seconds), turn:
                return await self._wait_for_key(provider, model, tokens, failed)
        except TimeoutError:
            if failed:
                raise failed[-1] from None
            raise self._too_late(about, deadline_seconds) from None

    async def release_key(
        self,
        key: APIKeyInfo,
        success: bool = True,
        *,
        tokens: int | None = None,
        failure: KeyFailure | None = None,
    ) -> None:
        """Give a key back. `tokens`: those that the call really took, where that is known."""
        lease = lease_of(key)
        outcome = self._outcome(key, success, tokens, failure)
        try:
            disabled = await self._end(lease, outcome)
        except KeysError as error:
            logger.warning("the API key %s was not given back, its loan ends by itself: %s", key.name, error)
            return
        finally:
            self._released.set()
            self._released = asyncio.Event()
        if disabled:
            logger.warning(
                "the API key %s is disabled, since its provider refused it (%s): correct it in %s, or enable it by "
                "`vectorize keys enable %s`",
                key.name,
                outcome.refused,
                self._source.place,
                key.name,
            )

    async def health_check(self) -> dict[str, dict[str, Any]]:
        """Return what every key does now, by name, in values that JSON has; the keys themselves are not in it.

        Raises `KeysError`.
        """
        while True:
            keys = await self._current()
            try:
                used = await self._use.use(keys.limits)
                failures = await self._use.providers(keys.providers)
            except SaltChangedError as changed:
                await self._salted(changed.salt)
            else:
                return keys.health(used, failures)

    async def disable(self, name: str, reason: str) -> None:
        """Disable a key for all processes, until it is enabled. Raises `KeysError`, also where no key has the name."""
        keys = await self._current()
        await self._use.disable([keys.id_of(name, self._source.place)], reason)

    async def enable(self, name: str) -> None:
        """Enable a key for all processes. Raises `KeysError`, also where none has the name, or the file disables it."""
        keys = await self._current()
        id_ = keys.id_of(name, self._source.place)
        if not keys.entry(id_).enabled:
            raise KeysError(f"the API key {name} is disabled in {self._source.place}: set `enabled: true` there")
        await self._use.enable([id_])

    async def close(self) -> None:
        """Leave the state of the keys; keys that are lent still come back when their leases end."""
        if self._background:
            await asyncio.wait(self._background)
        await self._use.close()

    async def _wait_for_key(
        self, provider: str | None, model: str | None, tokens: int, failed: list[KeysError]
    ) -> APIKeyInfo:
        """Ask until a key is lent. While the state is away, go on asking; `failed` has its latest failure."""
        ticket = f"{self._owner}:{provider or ''}:{model or ''}"
        waits = False
        try:
            while True:
                released = self._released
                try:
                    keys = await self._current()
                    wanted = keys.wanted(provider, model, tokens, self._source.place)
                    answer = await self._ask(keys, wanted, tokens, ticket)
                except KeysError as error:
                    if isinstance(error, NoKeyAvailableError):
                        raise
                    failed[:] = [error]
                    await asyncio.sleep(_AGAIN_SECONDS)
                    continue
                except SaltChangedError as changed:
                    await self._salted(changed.salt)
                    continue
                failed.clear()
                if isinstance(answer, APIKeyInfo):
                    waits = False
                    return answer
                if answer.next_available is None:
                    waits = False
                    raise NoKeyAvailableError(keys.all_disabled(wanted, self._source.place))
                waits = True
                self._next[(provider, model)] = answer.next_available
                await _pause(answer, released)
        finally:
            if waits:
                self._in_background(self._use.leave(ticket))

    async def _ask(self, keys: KeySet, wanted: Wanted, tokens: int, ticket: str) -> APIKeyInfo | Wait:
        """Ask once. A key that is lent after the caller has gone is given back."""
        lease = f"{self._owner}-{next(self._numbers)}"
        request = Request(wanted.limits, keys.strategy, tokens, lease, self._lease_seconds, ticket)
        asking = asyncio.ensure_future(self._use.acquire(request))
        try:
            answer = await asyncio.shield(asking)
        except asyncio.CancelledError:
            self._in_background(self._give_back(asking, lease, tokens))
            raise
        return keys.lent(answer.key_id, lease, tokens) if isinstance(answer, Grant) else answer

    async def _give_back(self, asking: "asyncio.Future[Grant | Wait]", lease: str, tokens: int) -> None:
        answer = await asking
        if isinstance(answer, Grant):
            await self._use.release(Lease(lease, answer.key_id, tokens), Outcome("", unused=True))

    async def _end(self, lease: Lease, outcome: Outcome) -> bool:
        deadline = asyncio.get_running_loop().time() + RELEASE_SECONDS
        while True:
            try:
                return await self._use.release(lease, outcome)
            except SaltChangedError as changed:
                await self._salted(changed.salt)
                return False
            except KeysError:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_AGAIN_SECONDS)

    def _outcome(self, key: APIKeyInfo, success: bool, tokens: int | None, failure: KeyFailure | None) -> Outcome:
        config = self._source.current()
        match failure:
            case RateLimited(retry_after_seconds=asked):
                pause = Pause(asked, config.default_cooldown, config.max_cooldown)
                return Outcome(key.provider, False, tokens, pause=pause)
            case KeyRefused(status=status, message=message):
                said = message.replace(key.api_key.get_secret_value(), "***")[:_REASON_CHARACTERS]
                return Outcome(key.provider, False, tokens, refused=f"refused: {status} {said}".rstrip())
            case ProviderFailed(reason=reason):
                said = reason.replace(key.api_key.get_secret_value(), "***")[:_REASON_CHARACTERS]
                return Outcome(key.provider, False, tokens, failed=said)
            case None:
                return Outcome(key.provider, success, tokens)

    async def _current(self) -> KeySet:
        """Return the keys as the file has them now, with the ids that the state knows them by."""
        config = self._source.current()
        if self._keys is not None and self._keys.config is config:
            return self._keys
        async with self._opening:
            if self._keys is None:
                self._keys = await self._enter(config, await self._use.open())
            elif self._keys.config is not config:
                self._keys = await self._enter(config, self._use.salt)
            return self._keys

    async def _salted(self, salt: bytes) -> None:
        """Go on with a state that was lost and begun again."""
        async with self._opening:
            self._use.salt = salt
            self._keys = await self._enter(self._source.current(), salt)

    async def _enter(self, config: KeyConfig, salt: bytes) -> KeySet:
        """Return the keys of a file that is new or has changed, once the state knows which ones the file disables."""
        keys = KeySet(config, salt, self._windows)
        on, off = keys.by_file(enabled=True), keys.by_file(enabled=False)
        if on:
            await self._use.enable(on, only=BY_FILE)
        if off:
            await self._use.disable(off, BY_FILE)
        return keys

    def _too_late(self, about: tuple[str | None, str | None], seconds: float | None) -> NoKeyAvailableError:
        next_available = self._next.get(about)
        when = "others wait for it too" if next_available is None else f"the next is free in {next_available:.1f} s"
        return NoKeyAvailableError(f"no API key was free within {seconds:g} s; {when}", next_available)

    def _in_background(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("a place or a loan of an API key was not given back, and ends by itself: %s", error)


async def _pause(wait: Wait, released: asyncio.Event) -> None:
    """Wait as long as the state says, or until this process has given back a key where that may help."""
    if not wait.for_release:
        await asyncio.sleep(wait.seconds)
        return
    try:
        async with asyncio.timeout(wait.seconds):
            await released.wait()
    except TimeoutError:
        return


def create_key_pool_from_config(
    config: Mapping[str, Any] | Path | None = None,
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
    source = KeySource(settings.providers.keys_file if config is None else config)
    lease_seconds = lease_seconds or settings.providers.call_seconds + LEASE_GRACE_SECONDS
    return APIKeyPool(source, open_shared_use(settings, windows), windows=windows, lease_seconds=lease_seconds)
