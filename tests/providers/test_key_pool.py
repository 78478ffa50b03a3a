"""Borrowing keys: limits, strategies, and which keys serve a call. In SQLite and in Redis alike."""

import asyncio
import json

import pytest

from tests.providers.pools import LONG, borrow, keys, none_is_free, pool_of
from vectorize_pipelines.errors import NoKeyAvailableError
from vectorize_pipelines.providers.key_pool import (
    Windows,
)
from vectorize_pipelines.settings import Settings


def test_a_key_is_lent_and_given_back(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1, qps_limit=10, rpm_limit=100, tpm_limit=10_000, models=["m"])) as pool:
            key = await pool.acquire_key(model="m", tokens=50)
            assert (key.name, key.api_key.get_secret_value(), key.models) == ("a", "sk-secret-a", ("m",))
            during = (await pool.health_check())["a"]
            await pool.release_key(key, tokens=70)
            after = (await pool.health_check())["a"]
        assert (during["state"], during["in_use"], during["tokens_last_minute"]) == ("in_use", 1, 50)
        assert (after["state"], after["in_use"], after["tokens_last_minute"]) == ("available", 0, 70)
        assert (after["requests_last_second"], after["requests_last_minute"], after["calls"]) == (1, 1, 1)
        assert after["next_available_seconds"] == 0
        assert "secret" not in json.dumps(after) + repr(key) + str(key)

    asyncio.run(go())


@pytest.mark.parametrize("limit", [{"qps_limit": 3}, {"rpm_limit": 3}, {"tpm_limit": 399}])
def test_a_limit_holds_for_all_processes_together(shared: Settings, limit: dict[str, int]) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1, **limit)) as one, pool_of(shared, keys(1, **limit)) as other:
            for pool in (one, other, one):
                await pool.release_key(await pool.acquire_key(tokens=100))
            said = await none_is_free(other, tokens=100)
            assert said.next_available_seconds is not None
            assert LONG.second / 2 < said.next_available_seconds < 2 * LONG.minute
            assert "the next is free in" in str(said)

    asyncio.run(go())


@pytest.mark.slow
def test_a_call_is_forgotten_when_it_has_left_the_window(shared: Settings) -> None:
    async def go() -> None:
        windows = Windows(second=0.2, minute=0.4, second_margin=0.01, minute_margin=0.01)
        async with pool_of(shared, keys(1, qps_limit=2, rpm_limit=3, tpm_limit=300), windows) as pool:
            for _ in range(10):
                await pool.release_key(await pool.acquire_key(tokens=100))
            assert (await pool.health_check())["a"]["calls"] == 10

    asyncio.run(go())


def test_tokens_that_were_not_used_are_free_again(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1, tpm_limit=1000)) as pool:
            (key,) = await borrow(pool, 1, tokens=1000)
            await none_is_free(pool, tokens=1)
            await pool.release_key(key, tokens=400)
            await borrow(pool, 1, tokens=600)
            await none_is_free(pool, tokens=1)

    asyncio.run(go())


def test_a_call_that_no_key_could_ever_serve_is_refused_at_once(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1, tpm_limit=1000, models=["m"], provider="p")) as pool:
            for wanted, said in (
                ({"model": "other"}, "no API key for the model other"),
                ({"provider": "q"}, "no API key of the provider q"),
                ({"tokens": 1001}, "1001 tokens is more than any API key"),
            ):
                with pytest.raises(NoKeyAvailableError, match=said):
                    await pool.acquire_key(**wanted)
        async with pool_of(shared, {}) as pool:
            with pytest.raises(NoKeyAvailableError, match="has no API key"):
                await pool.acquire_key()

    asyncio.run(go())


def test_round_robin_takes_the_key_that_has_rested_longest(shared: Settings) -> None:
    async def go() -> list[str]:
        async with pool_of(shared, {"strategy": "round_robin", **keys(3)}) as pool:
            return [key.name for key in await borrow(pool, 6)]

    names = asyncio.run(go())
    assert sorted(names[:3]) == ["a", "b", "c"]
    assert names[3:] == names[:3]


def test_least_loaded_takes_the_key_with_the_fewest_calls(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, {"strategy": "least_loaded", **keys(2)}) as pool:
            held = {key.name: key for key in await borrow(pool, 2)}
            await pool.release_key(held["a"])
            for key in await borrow(pool, 1):
                assert key.name == "a"

    asyncio.run(go())


def test_priority_takes_the_highest_that_is_free(shared: Settings) -> None:
    async def go() -> None:
        config = keys(3, max_concurrency=1) | {"strategy": "priority"}
        for entry, priority in zip(config["keys"], (1, 3, 2), strict=True):
            entry["priority"] = priority
        async with pool_of(shared, config) as pool:
            assert [key.name for key in await borrow(pool, 3)] == ["b", "c", "a"]

    asyncio.run(go())


def test_only_keys_of_the_provider_and_the_model_are_lent(shared: Settings) -> None:
    async def go() -> None:
        config = keys(3)
        config["keys"][0] |= {"provider": "p"}
        config["keys"][1] |= {"models": ["m"]}
        async with pool_of(shared, config) as pool:
            assert {key.name for key in await borrow(pool, 4, provider="p")} == {"a"}
            assert {key.name for key in await borrow(pool, 6, provider="default", model="n")} == {"c"}
            assert {key.name for key in await borrow(pool, 6, model="m")} == {"a", "b", "c"}

    asyncio.run(go())


def test_keys_that_a_caller_does_not_want_are_left_out(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(3)) as pool:
            assert {key.name for key in await borrow(pool, 4, exclude=["a"])} == {"b", "c"}
            assert {key.name for key in await borrow(pool, 2, exclude={"a", "c"})} == {"b"}
            with pytest.raises(NoKeyAvailableError, match="has no API key but a, b, c"):
                await pool.acquire_key(exclude=("a", "b", "c"))

    asyncio.run(go())
