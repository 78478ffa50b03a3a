"""Pools for tests of keys: many pools of one state stand for as many processes."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from typing import Any, TypeVar

from vectorize_pipelines.providers.key_pool import APIKeyPool, Windows, create_key_pool_from_config
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import key_use_file
from vectorize_pipelines.state.redis_connection import open_redis

T = TypeVar("T")

#: So long that no test sees their end.
LONG = Windows(second=600.0, minute=1200.0)
#: For callers that are to get no key.
SOON = 0.2
#: For what must come, however busy the machine is.
LATE = 60.0


def keys(count: int = 1, **fields: Any) -> dict[str, Any]:
    """The file of `count` keys with the same fields, named a, b, …"""
    names = [chr(ord("a") + n) for n in range(count)]
    return {"keys": [{"api_key": f"sk-secret-{name}", "name": name, **fields} for name in names]}


@asynccontextmanager
async def pool_of(
    settings: Settings,
    config: Mapping[str, Any] | None,
    windows: Windows = LONG,
    lease_seconds: float | None = None,
) -> AsyncIterator[APIKeyPool]:
    """A pool of the keys; None: of those in the file of the settings."""
    pool = create_key_pool_from_config(config, settings=settings, windows=windows, lease_seconds=lease_seconds)
    try:
        yield pool
    finally:
        await pool.close()


def places(settings: Settings) -> int:
    """How many places in the queue of all processes are taken."""
    if settings.redis.url is None:
        with closing(sqlite3.connect(key_use_file(settings))) as connection:
            (number,) = connection.execute("select count(*) from queue").fetchone()
            return int(number)
    with closing(open_redis(settings)) as client:
        return int(client.hlen("{vectorize:keys}:queue"))  # type: ignore[arg-type]


async def until(look: Callable[[], Awaitable[T | None]]) -> T:
    """Look again and again until there is something to see."""
    async with asyncio.timeout(LATE):
        while True:
            found = await look()
            if found:
                return found
            await asyncio.sleep(0.02)
