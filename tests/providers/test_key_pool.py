"""Borrowing keys: limits, strategies, waiting in order, and what failures do. In SQLite and in Redis alike."""

import asyncio
import json
import logging
import time
from typing import Any

import pytest

from tests.providers.pools import LATE, LONG, SOON, keys, places, pool_of, until
from vectorize_pipelines.errors import NoKeyAvailableError, UnknownKeyError
from vectorize_pipelines.providers.key_file import KeySource
from vectorize_pipelines.providers.key_pool import (
    APIKeyInfo,
    APIKeyPool,
    Cancelled,
    KeyRefused,
    ProviderFailed,
    RateLimited,
    Windows,
)
from vectorize_pipelines.providers.limits import Grant, Request, Wait, open_shared_use
from vectorize_pipelines.settings import Settings


async def borrow(pool: APIKeyPool, count: int, **wanted: object) -> list[APIKeyInfo]:
    """Borrow so many keys, all of which are free."""
    return [await pool.acquire_key(deadline_seconds=LATE, **wanted) for _ in range(count)]  # type: ignore[arg-type]


async def _are_waiting(settings: Settings, lines: int) -> bool:
    return places(settings) == lines


async def none_is_free(pool: APIKeyPool, **wanted: object) -> NoKeyAvailableError:
    """Look that no key is had within a moment; return what is said."""
    with pytest.raises(NoKeyAvailableError) as refused:
        await pool.acquire_key(deadline_seconds=SOON, **wanted)  # type: ignore[arg-type]
    return refused.value


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


def test_keys_that_a_caller_does_not_want_are_left_out(shared: Settings) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(3)) as pool:
            assert {key.name for key in await borrow(pool, 4, exclude=["a"])} == {"b", "c"}
            assert {key.name for key in await borrow(pool, 2, exclude={"a", "c"})} == {"b"}
            with pytest.raises(NoKeyAvailableError, match="has no API key but a, b, c"):
                await pool.acquire_key(exclude=("a", "b", "c"))

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
