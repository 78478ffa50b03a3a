"""Values that take long to find: as they are now where that is quick, never older than they are worth."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from typing import Any

import pytest

from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.gateway.monitoring import remembered
from vectorize_pipelines.gateway.monitoring.remembered import AGE_FACTOR, GRACE_SECONDS, Remembered
from vectorize_pipelines.gateway.problems import Problem

SECONDS = 30.0


class Look:
    """A look that takes a second by a clock of its own, once it may end; it finds how often it was taken."""

    def __init__(self) -> None:
        self.now = 0.0
        self.taken = 0
        self.began = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.may_end.set()

    def __call__(self) -> int:
        self.began.release()
        assert self.may_end.wait(SECONDS)
        self.taken += 1
        self.now += 1.0
        return self.taken

    def clock(self) -> float:
        return self.now


def run(scenario: Callable[[Look, Remembered[int]], Awaitable[None]], quick_below: int = 0) -> None:
    """Have a scenario run with a look, and with its value remembered; a number below `quick_below` is a quick one."""

    async def running() -> None:
        look = Look()
        with closing(Remembered("test", look, lambda found: found < quick_below, look.clock)) as value:
            await scenario(look, value)

    asyncio.run(running())


async def asked(value: Remembered[int], times: int = 1) -> list[int]:
    """What so many callers get that ask at once."""
    return [reading.value for reading in await asyncio.gather(*(value.latest() for _ in range(times)))]


def test_what_is_quick_is_as_it_is_now() -> None:
    async def scenario(look: Look, value: Remembered[int]) -> None:
        assert [await asked(value) for _ in range(5)] == [[1], [2], [3], [4], [4]]

    run(scenario, quick_below=4)


def test_a_look_that_began_before_somebody_asks_does_not_do_where_it_is_quick() -> None:
    async def scenario(look: Look, value: Remembered[int]) -> None:
        look.may_end.clear()
        value.begin()
        assert await asyncio.to_thread(look.began.acquire, timeout=SECONDS)
        look.now += 1.0
        asking = asyncio.ensure_future(asked(value, 8))
        for _ in range(3):  # until all of them have asked
            await asyncio.sleep(0)
        look.may_end.set()
        assert await asking == [2] * 8, "all that asked meanwhile share the next one"

    run(scenario, quick_below=100)


def test_what_takes_long_is_kept_for_a_while_and_then_found_again() -> None:
    async def scenario(look: Look, value: Remembered[int]) -> None:
        assert await asked(value, 10) == [1] * 10
        look.now = AGE_FACTOR + 0.5
        assert await asked(value) == [1]
        look.now = AGE_FACTOR + 1.0
        assert await asked(value, 10) == [2] * 10

    run(scenario)


@pytest.mark.parametrize("seconds_late", [0.0, GRACE_SECONDS], ids=["due just now", "due for long"])
def test_who_asks_is_not_kept_waiting_where_there_is_an_older_value(
    monkeypatch: pytest.MonkeyPatch, seconds_late: float
) -> None:
    monkeypatch.setattr(remembered, "LONG_PATIENCE_SECONDS" if seconds_late else "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(remembered, "PATIENCE_SECONDS" if seconds_late else "LONG_PATIENCE_SECONDS", SECONDS)

    async def scenario(look: Look, value: Remembered[int]) -> None:
        first = await value.latest()
        look.now = first.due + seconds_late
        look.may_end.clear()
        assert await asyncio.gather(*(value.latest() for _ in range(10))) == [first] * 10
        look.may_end.set()
        monkeypatch.setattr(remembered, "LONG_PATIENCE_SECONDS", SECONDS)
        monkeypatch.setattr(remembered, "PATIENCE_SECONDS", SECONDS)
        assert await asked(value) == [2], "it was found in the background, once"

    run(scenario)


def test_the_first_value_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembered, "FIRST_SECONDS", 0.01)

    async def scenario(look: Look, value: Remembered[int]) -> None:
        look.may_end.clear()
        with pytest.raises(Problem) as raised:
            await value.latest()
        assert raised.value.status == 503
        look.may_end.set()

    run(scenario)


def test_an_error_comes_to_who_asks_and_the_next_one_is_tried() -> None:
    answers: list[Any] = [LedgerError("away"), 5]

    def look() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return int(answer)

    async def scenario() -> None:
        with closing(Remembered("test", look)) as value:
            with pytest.raises(LedgerError, match="away"):
                await value.latest()
            assert await asked(value) == [5]

    asyncio.run(scenario())
