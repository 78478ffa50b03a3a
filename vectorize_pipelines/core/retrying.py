"""Calls that are made again while their failures may pass: the package's one retry, around tenacity.

Importing tenacity takes 25 ms, so the first failure does it.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from tenacity import RetryCallState

Result = TypeVar("Result")


def growing_pauses(first: float, longest: float = math.inf) -> Iterator[float]:
    """Yield pauses in seconds without end: each twice as long as the one before, none over `longest`."""
    pause = first
    while True:
        yield min(pause, longest)
        pause *= 2


def retry(
    call: Callable[[], Result],
    pauses: Iterable[float],
    may_pass: Callable[[Exception], bool],
    *,
    seconds: float = math.inf,
    asked: Callable[[Exception], float | None] = lambda failure: None,
    before_pause: Callable[[Exception, float], object] = lambda failure, pause: None,
    sleep: Callable[[float], bool | None] = time.sleep,
) -> Result:
    """Return the result of `call`, made again after each of the pauses (seconds) while its failure may pass.

    seconds       no further pause begins once so much time has passed since the first call began
    asked         the seconds that a failure itself asks to wait in place of the pause; None where it asks for none
    before_pause  called with the failure and the seconds until the next call
    sleep         waits; ends the attempts by returning True, or by raising what the caller is to get

    Raises the last failure, unchanged.
    """
    began = time.monotonic()
    try:
        return call()  # nearly every call succeeds, and then tenacity need not be imported
    except Exception as failure:
        if not may_pass(failure):
            raise
        failed = [failure]

    def call_again() -> Result:
        if failed:
            raise failed.pop()  # the first attempt, which has been made
        return call()

    return _retry(call_again, pauses, may_pass, lambda: time.monotonic() - began >= seconds, asked, before_pause, sleep)


def _retry(
    call: Callable[[], Result],
    pauses: Iterable[float],
    may_pass: Callable[[Exception], bool],
    is_late: Callable[[], bool],
    asked: Callable[[Exception], float | None],
    before_pause: Callable[[Exception, float], object],
    sleep: Callable[[float], bool | None],
) -> Result:
    from tenacity import Retrying, retry_if_exception

    upcoming = iter(pauses)

    def wait(state: "RetryCallState") -> float:
        pause = next(upcoming, math.inf)
        return pause if pause == math.inf else asked(_failure(state)) or pause

    def stop(state: "RetryCallState") -> bool:
        return state.upcoming_sleep == math.inf or is_late()

    def rest(state: "RetryCallState") -> None:
        failure = _failure(state)
        before_pause(failure, state.upcoming_sleep)
        if sleep(state.upcoming_sleep):
            raise failure

    retrying = Retrying(
        retry=retry_if_exception(lambda failure: isinstance(failure, Exception) and may_pass(failure)),
        wait=wait,
        stop=stop,
        before_sleep=rest,  # knows the failure, which tenacity's own `sleep` does not
        sleep=lambda _: None,
        reraise=True,
    )
    try:
        return retrying(call)
    finally:
        # It refers to itself by what it did last, and so would keep all that the call holds until a collection.
        retrying.iter_state.reset()


def _failure(state: "RetryCallState") -> Exception:
    failure = state.outcome.exception() if state.outcome is not None else None
    assert isinstance(failure, Exception), "only what `may_pass` has seen is waited for"
    return failure
