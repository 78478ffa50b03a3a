"""What becomes of a key after a call: failures, cooling, disabling, ends of loans. In SQLite and in Redis alike."""

import asyncio
import logging
import time
from typing import Any

import pytest

from tests.providers.pools import LATE, borrow, keys, none_is_free, pool_of
from vectorize_pipelines.errors import NoKeyAvailableError, UnknownKeyError
from vectorize_pipelines.providers.key_pool import (
    APIKeyPool,
    Cancelled,
    KeyRefused,
    ProviderFailed,
    RateLimited,
)
from vectorize_pipelines.settings import Settings


def test_a_key_cools_for_as_long_as_the_provider_says(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(2)) as pool:
            (key,) = await borrow(pool, 1)
            await pool.release_key(key, success=False, failure=RateLimited(300.0))
            shown = (await pool.health_check())[key.name]
            assert (shown["state"], shown["rate_limited"]) == ("cooling", 1)
            assert 290 < shown["next_available_seconds"] <= 300
            assert key.name not in {other.name for other in await borrow(pool, 4)}

    asyncio.run(go())


@pytest.mark.slow
def test_cooling_doubles_while_it_goes_on_and_is_bounded(shared: Settings) -> None:
    async def cool(pool: APIKeyPool, expected: float) -> None:
        (key,) = await borrow(pool, 1)
        before = time.monotonic()
        await pool.release_key(key, success=False, failure=RateLimited())
        left = (await pool.health_check())["a"]["cooling_seconds"]
        assert left <= expected <= left + time.monotonic() - before + 0.01  # another clock

    async def go() -> None:
        config = keys(1) | {"default_cooldown": 0.2, "max_cooldown": 0.6}
        async with pool_of(shared, config) as pool:
            for expected in (0.2, 0.4, 0.6, 0.6):
                await cool(pool, expected)
            await pool.release_key(await pool.acquire_key())
            await cool(pool, 0.2)

    asyncio.run(go())


def test_calls_that_are_refused_together_double_nothing(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1) | {"default_cooldown": 100.0}) as pool:
            for key in await borrow(pool, 5):
                await pool.release_key(key, success=False, failure=RateLimited())
            shown = (await pool.health_check())["a"]
            assert shown["rate_limited"] == 5
            assert shown["cooling_seconds"] <= 100

    asyncio.run(go())


def test_a_refused_key_is_disabled_and_said_once(shared: Settings, caplog: pytest.LogCaptureFixture) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(2)) as pool, pool_of(shared, keys(2)) as other:
            both = {key.name: key for key in await borrow(pool, 2)}
            (again,) = [key for key in await borrow(pool, 2) if key.name == "a"]
            said = f"the key {again.api_key.get_secret_value()} is not valid"
            with caplog.at_level(logging.WARNING):
                await pool.release_key(both["a"], success=False, failure=KeyRefused(401, said))
                await other.release_key(again, success=False, failure=KeyRefused(401, said))
            shown = (await other.health_check())["a"]
            assert (shown["state"], shown["next_available_seconds"]) == ("disabled", None)
            assert shown["disabled_reason"] == "refused it: 401 the key *** is not valid"
            assert {key.name for key in await borrow(other, 3)} == {"b"}
            await pool.enable("a")
            assert "a" in {key.name for key in await borrow(other, 2)}

    asyncio.run(go())
    (line,) = [record.message for record in caplog.records if "is disabled" in record.message]
    assert "the API key a is disabled" in line
    assert "secret" not in caplog.text


def test_when_all_keys_are_disabled_nobody_waits(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(2)) as pool:
            for name in ("a", "b"):
                await pool.disable(name, "not needed")
            with pytest.raises(NoKeyAvailableError, match=r"every API key is disabled \(a, b\)"):
                await pool.acquire_key()
            with pytest.raises(UnknownKeyError, match="no API key with the name c; it has: a, b"):
                await pool.enable("c")

    asyncio.run(go())


def test_a_key_that_the_file_disables_is_not_lent(shared: Settings) -> None:
    async def go() -> None:
        config = keys(2)
        config["keys"][0]["enabled"] = False
        async with pool_of(shared, config) as pool:
            assert {key.name for key in await borrow(pool, 3)} == {"b"}
            with pytest.raises(NoKeyAvailableError, match=r"every API key is disabled \(a\)"):
                await pool.acquire_key(exclude=["b"])

    asyncio.run(go())


def test_a_caller_that_waits_sees_that_its_key_was_disabled_or_enabled(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1, max_concurrency=1)) as pool, pool_of(shared, keys(1)) as by_hand:
            await borrow(pool, 1)
            waiting = asyncio.create_task(pool.acquire_key(deadline_seconds=LATE))
            await none_is_free(pool)
            await by_hand.disable("a", "by hand")
            with pytest.raises(NoKeyAvailableError, match="disabled"):
                await waiting

    asyncio.run(go())


def test_failures_of_the_provider_are_not_the_keys(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1)) as pool:
            for reason in ("500", "no answer within 60 s"):
                (key,) = await borrow(pool, 1)
                await pool.release_key(key, success=False, failure=ProviderFailed(reason))
            shown = (await pool.health_check())["a"]
            assert (shown["state"], shown["failures"]) == ("available", 0)
            assert (shown["provider_failures"], shown["provider_failures_in_a_row"]) == (2, 2)
            assert shown["provider_latest_failure"] == "no answer within 60 s"
            await pool.release_key(await pool.acquire_key())
            shown = (await pool.health_check())["a"]
            assert (shown["provider_failures"], shown["provider_failures_in_a_row"]) == (2, 0)

    asyncio.run(go())


def test_a_key_that_is_given_back_unused_counts_for_nothing(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1, rpm_limit=1, tpm_limit=100) | {"default_cooldown": 0.01}) as pool:
            for _ in range(3):
                (key,) = await borrow(pool, 1, tokens=100)
                await pool.release_key(key, unused=True)
            shown = (await pool.health_check())["a"]
            assert (shown["in_use"], shown["calls"], shown["tokens_last_minute"]) == (0, 0, 0)
            assert shown["state"] == "available"

    asyncio.run(go())


@pytest.mark.parametrize("how", [{"unused": True}, {"success": False, "failure": Cancelled()}])
def test_no_streak_ends_by_what_says_nothing(shared: Settings, how: dict[str, Any]) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1) | {"default_cooldown": 0.01, "max_cooldown": 600.0}) as pool:
            (key,) = await borrow(pool, 1)
            await pool.release_key(key, success=False, failure=ProviderFailed("500"))
            cooling: list[float] = []
            while max(cooling, default=0.0) < 0.1:
                assert len(cooling) < 8, f"the streak does not go on: {cooling}"
                (key,) = await borrow(pool, 1)
                await pool.release_key(key, success=False, failure=RateLimited())
                cooling.append((await pool.health_check())["a"]["cooling_seconds"])
                (key,) = await borrow(pool, 1)
                await pool.release_key(key, success=False, failure=ProviderFailed("500"))
                (key,) = await borrow(pool, 1)
                await pool.release_key(key, **how)
                shown = (await pool.health_check())["a"]
                assert shown["provider_failures_in_a_row"] == 1

    asyncio.run(go())


def test_a_call_that_was_cancelled_counts_and_says_nothing(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1, rpm_limit=1, max_concurrency=1)) as pool:
            (key,) = await borrow(pool, 1, tokens=7)
            await pool.release_key(key, success=False, failure=Cancelled())
            shown = (await pool.health_check())["a"]
            assert (shown["in_use"], shown["calls"], shown["failures"], shown["tokens_last_minute"]) == (0, 1, 0, 7)
            assert shown["provider_failures"] == 0
            await none_is_free(pool)

    asyncio.run(go())


def test_a_loan_that_is_never_given_back_ends_by_itself(shared: Settings) -> None:
    async def go() -> None:
        config = keys(1, max_concurrency=1)
        async with pool_of(shared, config, lease_seconds=0.3) as pool:
            (lost,) = await borrow(pool, 1)
            (key,) = await borrow(pool, 1)
            await pool.release_key(lost)  # too late: it is another's now
            assert (await pool.health_check())["a"]["in_use"] == 1
            await pool.release_key(key)

    asyncio.run(go())
