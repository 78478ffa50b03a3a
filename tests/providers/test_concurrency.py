"""The limit of calls side by side: never exceeded, in order, less after failures, and back again."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.providers.concurrency import MOST_TOLERATED, AdaptiveLimit


def test_it_falls_once_for_calls_that_fail_together_and_comes_back() -> None:
    now = 0.0
    limit = AdaptiveLimit(64, lambda: now)
    began = now
    now = 1.0
    for _ in range(10):
        limit.failed(began)
    assert limit.limit == 32
    now = 2.0
    limit.failed(1.5)
    assert limit.limit == 16
    for _ in range(10_000):
        limit.succeeded()
    assert limit.limit == 64


def test_after_a_collapse_it_doubles_until_half_of_what_failed_and_then_grows_slowly() -> None:
    now = 0.0
    limit = AdaptiveLimit(256, lambda: now)
    for _ in range(12):
        now += 1
        limit.failed(now)
    assert limit.limit == 1

    def rounds(count: int) -> int:
        for _ in range(count):
            for _ in range(limit.limit):
                limit.succeeded()
        return limit.limit

    assert [rounds(1) for _ in range(7)] == [2, 4, 8, 16, 32, 64, 128]
    assert rounds(10) <= 138
    assert rounds(200) == 256


def test_what_fails_after_it_was_borne_is_approached_slowly() -> None:
    now = 0.0
    limit = AdaptiveLimit(256, lambda: now)
    for _ in range(5):
        now += 1
        limit.failed(now)
    assert limit.limit == 8
    for _ in range(8):
        limit.succeeded()
    assert limit.limit == 16
    now += 1
    limit.failed(now)
    for _ in range(8):
        limit.succeeded()
    assert limit.limit <= 9


def test_few_failures_among_many_successes_change_nothing_and_an_outage_is_noticed_all_the_same() -> None:
    now = 0.0
    limit = AdaptiveLimit(64, lambda: now)
    for number in range(1, 2_000):
        now += 1
        limit.failed(now) if number % 50 == 0 else limit.succeeded()
    assert limit.limit == 64
    for _ in range(int(MOST_TOLERATED) + 6):
        now += 1
        limit.failed(now)
    assert limit.limit == 1


@given(st.integers(1, 6), st.lists(st.sampled_from(["succeed", "fail", "cancel"]), max_size=30))
def test_never_more_than_it_allows_and_nobody_is_forgotten(most: int, outcomes: list[str]) -> None:
    async def run() -> None:
        limit = AdaptiveLimit(most)
        began: list[int] = []

        async def call(number: int, outcome: str) -> None:
            await limit.wait()
            try:
                assert limit.running <= most
                began.append(number)
                at = limit.now()
                await asyncio.sleep(0)
                limit.failed(at) if outcome == "fail" else limit.succeeded()
            finally:
                limit.leave()

        tasks = [asyncio.create_task(call(n, outcome)) for n, outcome in enumerate(outcomes)]
        await asyncio.sleep(0)
        for task, outcome in zip(tasks, outcomes, strict=True):
            if outcome == "cancel":
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert began == sorted(began)
        assert {n for n, outcome in enumerate(outcomes) if outcome != "cancel"} <= set(began)
        assert limit.running == 0

    asyncio.run(run())


def test_a_place_is_waited_for_only_so_long() -> None:
    async def run() -> None:
        limit = AdaptiveLimit(1)
        assert limit.enter()
        assert not limit.enter()
        with pytest.raises(TimeoutError):
            await limit.wait(0.01)
        limit.leave()
        await limit.wait(0.01)
        assert limit.running == 1

    asyncio.run(run())
