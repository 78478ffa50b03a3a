"""The resource of API keys: lends a run the pool that all processes share, and shows what its keys do."""

import asyncio
from collections.abc import Mapping
from typing import Any

import dagster as dg

from vectorize_pipelines.providers.key_pool import APIKeyPool, create_key_pool_from_config
from vectorize_pipelines.settings import load_settings

#: Of what `health_check` says of a key, the columns that the UI shows.
_COLUMNS = (
    "state",
    "provider",
    "in_use",
    "requests_last_second",
    "requests_last_minute",
    "tokens_last_minute",
    "next_available_seconds",
    "calls",
    "failures",
    "rate_limited",
)


class KeyPoolResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens the pool of API keys. An empty `keys_file` takes what the settings say."""

    keys_file: str = ""

    def open(self) -> APIKeyPool:
        """Return the pool, for the one event loop that uses it and closes it. Raises `SettingsError`."""
        given = {"keys_file": self.keys_file} if self.keys_file else {}
        return create_key_pool_from_config(settings=load_settings(providers=given))

    def metadata(self) -> dict[str, Any]:
        """Return what the keys do now, as metadata of an asset, from outside of any event loop. Raises `KeysError`."""

        async def health() -> dict[str, dict[str, Any]]:
            pool = self.open()
            try:
                return await pool.health_check()
            finally:
                await pool.close()

        return key_metadata(asyncio.run(health()))


def key_metadata(health: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return what `APIKeyPool.health_check` says as metadata of an asset: a table of the keys by name."""
    if not health:
        return {}
    rows = [
        dg.TableRecord({"key": name} | {column: _cell(shown[column]) for column in _COLUMNS})
        for name, shown in health.items()
    ]
    return {"keys": dg.MetadataValue.table(rows)}


def _cell(value: Any) -> str | int | float | bool:
    """A cell of a table has no null: a key that is disabled is never available."""
    return "never" if value is None else round(value, 3) if isinstance(value, float) else value
