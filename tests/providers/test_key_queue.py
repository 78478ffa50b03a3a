"""Waiting for keys: the order of callers and of processes, and giving up. In SQLite and in Redis alike."""

import asyncio

import pytest

from tests.providers.pools import LATE, LONG, SOON, borrow, keys, none_is_free, places, pool_of, until
from vectorize_pipelines.errors import NoKeyAvailableError
from vectorize_pipelines.providers.key_file import KeySource
from vectorize_pipelines.providers.key_pool import (
    APIKeyInfo,
    APIKeyPool,
)
from vectorize_pipelines.providers.limits import Grant, Request, Wait, open_shared_use
from vectorize_pipelines.settings import Settings


async def _are_waiting(settings: Settings, lines: int) -> bool:
    return places(settings) == lines


def test_calls_side_by_side_are_limited_and_callers_wait_in_order(shared: Settings) -> None:
    async def go() -> None:
        served: list[int] = []
        async with pool_of(shared, keys(1, max_concurrency=2)) as pool:
            held = await borrow(pool, 2)

            async def call(number: int) -> None:
                key = await pool.acquire_key(deadline_seconds=LATE)
                served.append(number)
                await pool.release_key(key)

            waiting = []
            for number in range(6):
                waiting.append(asyncio.create_task(call(number)))
                await asyncio.sleep(0)
            await none_is_free(pool)
            assert served == []
            for key in held:
                await pool.release_key(key)
            await asyncio.gather(*waiting)
        assert served == sorted(served)

    asyncio.run(go())


def test_who_waits_in_another_process_gets_a_key_before_whoever_comes_later(shared: Settings) -> None:
    async def go() -> None:
        config = keys(1, max_concurrency=1)
        async with pool_of(shared, config) as one, pool_of(shared, config) as other, pool_of(shared, config) as third:
            (held,) = await borrow(one, 1)
            first = asyncio.create_task(borrow(other, 1))
            await until(lambda: _are_waiting(shared, 1))
            latecomers = [asyncio.create_task(borrow(third, 1)) for _ in range(3)]
            await none_is_free(one)
            await one.release_key(held)
            (key,) = await first
            assert not any(each.done() for each in latecomers)
            await other.release_key(key)
            for each in latecomers:
                (key,) = await each
                await third.release_key(key)

    asyncio.run(go())


def test_a_line_keeps_its_place_when_its_first_caller_gives_up(shared: Settings) -> None:
    async def go() -> None:
        served: list[str] = []
        config = keys(1, max_concurrency=1)
        use = open_shared_use(shared, LONG)
        asked = 0
        acquire = use.acquire

        async def count(request: Request) -> Grant | Wait:
            nonlocal asked
            answer = await acquire(request)
            asked += 1
            return answer

        async def call(pool: APIKeyPool, name: str) -> None:
            key = await pool.acquire_key(deadline_seconds=LATE)
            served.append(name)
            await pool.release_key(key)

        use.acquire = count  # type: ignore[method-assign]
        one = APIKeyPool(KeySource(config), use, windows=LONG, lease_seconds=60.0)
        async with pool_of(shared, config) as other:
            (held,) = await borrow(one, 1)
            gives_up = asyncio.create_task(call(one, "first"))
            stays = asyncio.create_task(call(one, "second"))
            await until(lambda: _are_waiting(shared, 1))
            later = asyncio.create_task(call(other, "later"))
            await until(lambda: _are_waiting(shared, 2))
            gives_up.cancel()
            before = asked
            while asked < before + 4:
                await asyncio.sleep(0.01)
            await one.release_key(held)
            await asyncio.gather(stays, later)
            assert served == ["second", "later"]
        await one.close()

    asyncio.run(go())


def test_a_line_without_callers_has_no_place(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1, rpm_limit=1)) as pool:
            await borrow(pool, 1)
            waiting = [asyncio.create_task(pool.acquire_key()) for _ in range(3)]
            await until(lambda: _are_waiting(shared, 1))
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await until(lambda: _are_waiting(shared, 0))

    asyncio.run(go())


def test_who_needs_many_tokens_is_not_passed_by_those_who_need_few(shared: Settings) -> None:
    async def go() -> None:
        config = keys(1, tpm_limit=1000)
        async with pool_of(shared, config) as one, pool_of(shared, config) as other:
            await one.acquire_key(tokens=500)
            many = asyncio.create_task(one.acquire_key(tokens=800))
            while not (await _refused(other, tokens=10)):
                await asyncio.sleep(0.02)
            many.cancel()
            await other.acquire_key(tokens=10, deadline_seconds=LATE)

    async def _refused(pool: APIKeyPool, tokens: int) -> bool:
        try:
            await pool.release_key(await pool.acquire_key(tokens=tokens, deadline_seconds=SOON), tokens=0)
        except NoKeyAvailableError:
            return True
        return False

    asyncio.run(go())


@pytest.mark.slow
def test_who_needs_more_tokens_than_a_key_has_does_not_keep_others_from_it(shared: Settings) -> None:
    async def go() -> None:
        config = keys(2, tpm_limit=1000, max_concurrency=2)
        config["keys"][1] |= {"tpm_limit": 100_000}
        async with pool_of(shared, config) as one, pool_of(shared, config) as other:
            held = await one.acquire_key(tokens=90_000)
            many = asyncio.create_task(one.acquire_key(tokens=50_000))
            await until(lambda: _are_waiting(shared, 1))
            assert {key.name for key in await borrow(other, 2, tokens=10)} == {"a"}
            await none_is_free(other, tokens=10)
            await one.release_key(held, tokens=10_000)
            assert (await many).name == "b"

    asyncio.run(go())


def test_a_caller_that_gives_up_takes_nothing(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1, max_concurrency=1, rpm_limit=100)) as pool:
            (held,) = await borrow(pool, 1)
            waiting = [asyncio.create_task(pool.acquire_key()) for _ in range(3)]
            await none_is_free(pool)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            await pool.release_key(held)
            for moment in range(20):  # cancelled while it is being lent
                task = asyncio.create_task(pool.acquire_key())
                for _ in range(moment):
                    await asyncio.sleep(0)
                task.cancel()
                (key,) = await asyncio.gather(task, return_exceptions=True)
                if isinstance(key, APIKeyInfo):
                    await pool.release_key(key)
            (key,) = await borrow(pool, 1)
            assert (await pool.health_check())["a"]["in_use"] == 1

    asyncio.run(go())
