"""The one retry: which calls are made again, after which pauses, and what its caller gets in the end."""

import gc
import weakref
from collections.abc import Callable
from itertools import islice, repeat
from typing import TypeAlias

import pytest

from vectorize_pipelines.core.retrying import growing_pauses, retry

Call: TypeAlias = Callable[[], int]


class _AskingError(Exception):
    """Says itself how long to wait."""

    seconds: float | None = None


def _failing(times: int, error: BaseException | None = None) -> tuple[Call, list[int]]:
    """A call that fails so often, and the numbers of the calls made."""
    calls: list[int] = []

    def call() -> int:
        calls.append(len(calls) + 1)
        if len(calls) <= times:
            raise error or ConnectionError(f"call {len(calls)}")
        return len(calls)

    return call, calls


def test_a_call_is_made_once_more_than_there_are_pauses() -> None:
    slept: list[float] = []
    call, _ = _failing(3)
    assert retry(call, [1, 2, 3], lambda _: True, sleep=slept.append) == 4
    assert slept == [1, 2, 3]
    call, calls = _failing(9)
    with pytest.raises(ConnectionError, match="call 4"):
        retry(call, [1, 2, 3], lambda _: True, sleep=slept.append)
    assert len(calls) == 4


def test_what_may_not_pass_is_raised_as_it_is_without_a_pause() -> None:
    error = ConnectionError("the one")
    call, calls = _failing(9, error)
    with pytest.raises(ConnectionError) as raised:
        retry(call, repeat(1.0), lambda _: False, sleep=lambda _: pytest.fail("it paused"))
    assert raised.value is error
    assert len(calls) == 1


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(1)])
def test_an_interrupt_is_no_failure(ending: BaseException) -> None:
    call, calls = _failing(9, ending)
    with pytest.raises(type(ending)):
        retry(call, repeat(1.0), lambda _: True, sleep=lambda _: pytest.fail("it paused"))
    assert len(calls) == 1


def test_a_failure_that_says_how_long_to_wait_is_taken_at_its_word() -> None:
    asking, silent = _AskingError(), _AskingError()
    asking.seconds = 7.0
    failures = iter([asking, silent])
    waited: list[tuple[Exception, float]] = []
    slept: list[float] = []

    def call() -> str:
        for failure in failures:
            raise failure
        return "done"

    done = retry(
        call,
        [1.0, 2.0],
        lambda _: True,
        asked=lambda failure: getattr(failure, "seconds", None),
        before_pause=lambda failure, pause: waited.append((failure, pause)),
        sleep=slept.append,
    )
    assert done == "done"
    assert waited == [(asking, 7.0), (silent, 2.0)]
    assert slept == [7.0, 2.0]


def test_no_call_is_made_again_once_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)

    def pass_time(seconds: float) -> None:
        nonlocal now
        now += seconds

    call, calls = _failing(99)
    with pytest.raises(ConnectionError, match="call 4"):
        retry(call, repeat(2.0), lambda _: True, seconds=5, sleep=pass_time)
    assert len(calls) == 4  # after 0, 2, 4 and 6 seconds


def test_a_sleep_that_is_cut_short_ends_the_attempts_with_the_last_failure() -> None:
    stops = iter([False, True])
    call, calls = _failing(9)
    with pytest.raises(ConnectionError, match="call 2"):
        retry(call, repeat(1.0), lambda _: True, sleep=lambda _: next(stops))
    assert len(calls) == 2


def test_what_the_sleep_raises_reaches_the_caller() -> None:
    def cancelled(_: float) -> None:
        raise InterruptedError

    call, calls = _failing(9)
    with pytest.raises(InterruptedError):
        retry(call, repeat(1.0), lambda _: True, sleep=cancelled)
    assert len(calls) == 1


def test_pauses_double_up_to_the_longest() -> None:
    assert list(islice(growing_pauses(0.5, 3), 5)) == [0.5, 1, 2, 3, 3]
    assert list(islice(growing_pauses(2), 4)) == [2, 4, 8, 16]


def test_nothing_is_kept_of_a_call_that_has_ended() -> None:
    """What a failing call and its listeners held is freed: a run's batches go as they are acknowledged."""

    class Batch:
        def listen(self, failure: Exception, pause: float) -> None:
            """Called before a pause."""

    def made(failures: int) -> "weakref.ref[Batch]":
        batch = Batch()
        call, _ = _failing(failures)
        assert retry(call, repeat(0.0), lambda _: True, before_pause=batch.listen) == failures + 1
        return weakref.ref(batch)

    gc.collect()
    gc.disable()
    try:
        assert made(0)() is None
        assert made(2)() is None
    finally:
        gc.enable()
