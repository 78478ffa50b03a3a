"""A call that begins later than its key was lent counts from when it begins."""

import asyncio

from tests.providers.pools import LONG, keys
from vectorize_pipelines.providers.key_file import KeySource
from vectorize_pipelines.providers.key_pool import APIKeyPool
from vectorize_pipelines.providers.limits import Grant, KeyLimits, Lease, Request, Wait, open_shared_use
from vectorize_pipelines.providers.limits.sqlite import SQLiteUse
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import key_use_file

DELAY = 2.0


def test_a_call_counts_from_when_it_is_said_to_begin(shared: Settings) -> None:
    async def go() -> float | None:
        use = open_shared_use(shared, LONG)
        await use.open()
        key = KeyLimits("0" * 32, qps=1, second=LONG.second)
        assert isinstance(await use.acquire(Request((key,), "round_robin", 5, "lease", 60.0, "ticket")), Grant)
        await use.begin(Lease("lease", key.id, 5), within=100.0)
        found = await use.use([key])
        await use.close()
        return found[key.id].next_available

    next_available = asyncio.run(go())
    assert next_available is not None
    assert LONG.second < next_available <= LONG.second + 100


class SlowToHear(SQLiteUse):
    """A state whose answers come late, as they do where the machine lets the process wait."""

    async def acquire(self, request: Request) -> Grant | Wait:
        answer = await super().acquire(request)
        await asyncio.sleep(DELAY)
        return answer


def test_a_key_that_comes_late_counts_from_then(settings: Settings) -> None:
    async def go() -> float:
        use = SlowToHear(key_use_file(settings), LONG)
        pool = APIKeyPool(KeySource(keys(1, qps_limit=1)), use, windows=LONG, lease_seconds=60.0)
        await pool.acquire_key()
        next_available = (await pool.health_check())["a"]["next_available_seconds"]
        await pool.close()
        return float(next_available)

    assert asyncio.run(go()) > LONG.second - DELAY * 0.75
