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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vectorize_pipelines.providers.keys import (
    APIKeyInfo,
    KeyFailure,
    KeyRefused,
    KeyState,
    ProviderFailed,
    RateLimited,
)
from vectorize_pipelines.settings import Settings

__all__ = [
    "APIKeyInfo",
    "APIKeyPool",
    "KeyFailure",
    "KeyRefused",
    "KeyState",
    "ProviderFailed",
    "RateLimited",
    "create_key_pool_from_config",
]


class APIKeyPool:
    """Lends keys within their limits, to the callers in all processes together. It belongs to one event loop."""

    @property
    def max_retry_per_key(self) -> int:
        """How often one call may be tried with the same key, as the file of keys says."""
        raise NotImplementedError

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
        to take. Raises `NoKeyAvailableError`, at once where no key could ever serve the call.
        """
        raise NotImplementedError

    async def release_key(
        self,
        key: APIKeyInfo,
        success: bool = True,
        *,
        tokens: int | None = None,
        failure: KeyFailure | None = None,
    ) -> None:
        """Give a key back. `tokens`: those that the call really took, where that is known."""
        raise NotImplementedError

    async def health_check(self) -> dict[str, dict[str, Any]]:
        """Return what every key does now, by name, in values that JSON has; the keys themselves are not in it."""
        raise NotImplementedError

    async def close(self) -> None:
        """Leave the state of the keys; keys that are lent still come back when their leases end."""
        raise NotImplementedError


def create_key_pool_from_config(
    config: Mapping[str, Any] | Path | None = None, *, settings: Settings | None = None
) -> APIKeyPool:
    """Return the pool of the keys in a file, or in what would stand there; None is the file that the settings name.

    Raises `SettingsError` for a file that cannot be used.
    """
    raise NotImplementedError
