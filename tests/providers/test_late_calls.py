"""A call that begins later than its key was lent counts from when it begins, and begins only where there is room."""

import asyncio
import time

import pytest

from tests.providers.pools import LONG, keys
from vectorize_pipelines.providers.key_file import KeySource
from vectorize_pipelines.providers.key_pool import APIKeyPool
from vectorize_pipelines.providers.key_queue import LATE_SECONDS
from vectorize_pipelines.providers.limits import (
    Grant,
    KeyLimits,
    Lease,
    Outcome,
    Request,
    SharedUse,
    Wait,
    Windows,
    open_shared_use,
)
from vectorize_pipelines.providers.limits.sqlite import SQLiteUse
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import key_use_file

ID = "0" * 32
#: The short window is over soon, and nothing else is.
SHORT = Windows(second=0.2, minute=1200.0, second_margin=0.0, second_margin_most=0.0)


async def lend(use: SharedUse, key: KeyLimits, lease: str) -> Grant:
    """Lend a key for 5 tokens, as soon as it has room."""
    while True:
        answer = await use.acquire(Request((key,), "round_robin", 5, lease, 60.0, "ticket"))
        if isinstance(answer, Grant):
            return answer
        await asyncio.sleep(answer.seconds)


def test_a_call_counts_from_when_it_is_said_to_begin(shared: Settings) -> None:
    async def go() -> float | None:
        use = open_shared_use(shared, LONG)
        await use.open()
        key = KeyLimits(ID, qps=1, second=LONG.second)
        await lend(use, key, "lease")
        assert await use.begin(Lease("lease", ID, 5), key, within=100.0) is not None
        found = await use.use([key])
        await use.close()
        return found[ID].next_available

    next_available = asyncio.run(go())
    assert next_available is not None
    assert LONG.second < next_available <= LONG.second + 100


def test_a_call_that_others_have_overtaken_begins_only_where_there_is_room(shared: Settings) -> None:
    async def go() -> None:
        use = open_shared_use(shared, SHORT)
        await use.open()
        key = KeyLimits(ID, qps=2, second=SHORT.second)
        for lease in ("stalled", "also stalled"):
            await lend(use, key, lease)
        for lease in ("third", "fourth"):  # once the first two have left the window
            await lend(use, key, lease)
        wide = KeyLimits(ID, qps=2, second=600.0)  # the same calls, as if no time had passed since the latest two
        await use.release(Lease("also stalled", ID, 5), Outcome("", unused=True))
        assert await use.begin(Lease("stalled", ID, 5), wide, within=0.02) is None
        found = (await use.use([key]))[ID]
        assert (found.in_use, found.calls, found.requests_minute, found.tokens_minute) == (2, 2, 2, 10)
        assert await use.begin(Lease("stalled", ID, 5), wide, within=0.02) is None  # its loan has ended
        await use.close()

    asyncio.run(go())


@pytest.mark.parametrize("limits", [{"rpm": 2}, {"tpm": 14}])
def test_the_long_window_counts_for_late_calls_too(shared: Settings, limits: dict[str, int]) -> None:
    async def go() -> None:
        use = open_shared_use(shared, LONG)
        await use.open()
        for lease in ("first", "second", "third"):
            await lend(use, KeyLimits(ID), lease)
        assert await use.begin(Lease("first", ID, 5), KeyLimits(ID, **limits), within=0.02) is None
        assert await use.begin(Lease("second", ID, 5), KeyLimits(ID, **limits), within=0.02) is not None
        await use.close()

    asyncio.run(go())


def test_calls_that_are_counted_anew_keep_their_order_and_their_loans(shared: Settings) -> None:
    async def go() -> None:
        use = open_shared_use(shared, LONG)
        await use.open()
        key = KeyLimits(ID, qps=4, second=LONG.second)
        for lease in ("a", "b", "c"):
            await lend(use, key, lease)
        assert await use.begin(Lease("a", ID, 5), key, within=100.0) is not None
        for lease, tokens in (("b", 1), ("c", 2), ("a", 4)):
            await use.release(Lease(lease, ID, 5), Outcome("", tokens=tokens))
        found = (await use.use([key]))[ID]
        assert (found.in_use, found.tokens_minute, found.requests_minute) == (0, 7, 3)
        found = (await use.use([KeyLimits(ID, qps=1, second=LONG.second)]))[ID]
        assert found.next_available is not None
        assert LONG.second < found.next_available
        await use.close()

    asyncio.run(go())


class SlowToHear(SQLiteUse):
    """A state whose first answer comes late, as where the machine lets the process wait. `granted`: all loans."""

    def __init__(self, settings: Settings, windows: Windows):
        super().__init__(key_use_file(settings), windows)
        self.granted: list[Grant] = []

    async def acquire(self, request: Request) -> Grant | Wait:
        answer = await super().acquire(request)
        if isinstance(answer, Grant):
            self.granted.append(answer)
            if len(self.granted) == 1:
                await self.stall(request.keys[0])
        return answer

    async def stall(self, key: KeyLimits) -> None:
        """Let time pass."""
        await asyncio.sleep(0.3)


class Overtaken(SlowToHear):
    """A state whose first answer comes so late that another process has had the key meanwhile."""

    async def stall(self, key: KeyLimits) -> None:
        await lend(self, key, "another process")


def pool_in(use: SlowToHear, windows: Windows) -> APIKeyPool:
    """A pool of one key."""
    return APIKeyPool(KeySource(keys(1, qps_limit=1)), use, windows=windows, lease_seconds=60.0)


def test_a_key_that_comes_late_counts_from_then(settings: Settings) -> None:
    async def go() -> None:
        pool = pool_in(SlowToHear(settings, LONG), LONG)
        await pool.acquire_key()
        began = time.monotonic()
        next_available = (await pool.health_check())["a"]["next_available_seconds"]
        assert time.monotonic() + next_available - LONG.second > began - 2 * LATE_SECONDS
        await pool.close()

    asyncio.run(go())


def test_a_key_that_comes_late_is_asked_for_again_where_another_has_it(settings: Settings) -> None:
    async def go() -> None:
        use = Overtaken(settings, SHORT)
        pool = pool_in(use, SHORT)
        await pool.acquire_key()
        _, other, again, *_ = use.granted
        assert again.starts >= other.starts + SHORT.second
        await pool.close()

    asyncio.run(go())
