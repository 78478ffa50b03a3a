"""An installation whose provider is the server of the tests, and what asks it."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.servers.provider import KeyLimits, ProviderServer
from vectorize_pipelines.providers.calls import CallLog, ProviderClient
from vectorize_pipelines.providers.key_pool import create_key_pool_from_config
from vectorize_pipelines.settings import Settings, load_settings

#: Names of keys; `SECRETS[name]` is the key itself.
SECRETS = {"first": "sk-first-0123456789", "second": "sk-second-0123456789"}


def serve_keys(provider: ProviderServer, **plan: Any) -> None:
    """Let the server know the keys, without limits, and begin anew."""
    provider.reset(keys={secret: KeyLimits() for secret in SECRETS.values()}, **plan)


def installed(
    home: Path, provider: ProviderServer, names: tuple[str, ...] = tuple(SECRETS), **options: Any
) -> Settings:
    """Return settings of an installation with these keys, of which the first has the highest priority.

    `options` are further settings of providers, `keys` further fields of the file of keys.
    """
    fields: Mapping[str, Any] = options.pop("keys", {"default_cooldown": 0.2})
    file = home / "api_keys.yaml"  # JSON is YAML
    keys = [
        {"api_key": SECRETS[name], "name": name, "priority": len(names) - number} for number, name in enumerate(names)
    ]
    file.write_text(json.dumps({**fields, "keys": keys}))
    given = {"base_url": provider.url, "keys_file": str(file), "call_seconds": 5.0, "deadline_seconds": 20.0, **options}
    return load_settings(home=str(home), providers=given, encoder={"cache_directory": str(home / "models")})


@asynccontextmanager
async def calling(settings: Settings, *, logged: bool = False) -> AsyncIterator[ProviderClient]:
    """A client with a pool of keys of its own; with `logged` its calls go to the database."""
    pool = create_key_pool_from_config(settings=settings)
    log = CallLog.open(settings) if logged else None
    client = ProviderClient(settings, pool, log)
    try:
        yield client
    finally:
        await client.close()
        await pool.close()
        if log is not None:
            log.close()
