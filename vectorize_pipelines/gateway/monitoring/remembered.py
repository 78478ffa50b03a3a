"""Values that take long to find: kept for a while, and found again in the background. Used by `monitoring.figures`."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Generic, TypeVar

from vectorize_pipelines.gateway.monitoring.checks.question import Question
from vectorize_pipelines.gateway.problems import Problem

#: A value is kept for so many times as long as finding it took: then that takes a twentieth of a core at most.
AGE_FACTOR = 20
#: So long a newer value is waited for where there is an older one to show; longer, where that has been due for so long.
PATIENCE_SECONDS = 0.5
GRACE_SECONDS = 60.0
LONG_PATIENCE_SECONDS = 5.0
#: So long the first value is waited for.
FIRST_SECONDS = 30.0

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Reading(Generic[Value]):
    """A value, and when finding it began; `began` and `due`, from when on it is found again, by the clock."""

    value: Value
    as_of: datetime
    began: float
    due: float


def _never(value: object) -> bool:
    return False


class Remembered(Generic[Value]):
    """A value that takes long to find. Belongs to one event loop; a thread of its own finds it, once at a time.

    find      finds it; blocks
    is_quick  whether finding this value took so little that it is found for each caller, as it is then
    """

    def __init__(
        self,
        name: str,
        find: Callable[[], Value],
        is_quick: Callable[[Value], bool] = _never,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find = find
        self._is_quick = is_quick
        self._clock = clock
        self._question = Question(name, self._read)
        self._reading: Reading[Value] | None = None

    def begin(self) -> None:
        """Have it found for the first time, which nobody waits for."""
        self._question.put()

    async def latest(self) -> Reading[Value]:
        """Return the value; an older one, where finding it again takes too long to wait for.

        Raises what finding it does, and `Problem` where that takes too long for the first time.
        """
        asked = self._clock()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._patience(asked)
        with suppress(TimeoutError):  # then the older one has to do
            while not self._serves(asked):
                await self._question.answer(deadline - loop.time())
        if self._reading is None:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "the requests are being counted for the first time since the server has started",
                headers={"Retry-After": "10"},
            )
        return self._reading

    def close(self) -> None:
        """Find it no more. Waits for nothing."""
        self._question.close()

    def _serves(self, asked: float) -> bool:
        """Return whether the last value does for somebody who asks at this moment."""
        reading = self._reading
        if reading is None:
            return False
        return reading.began >= asked or (asked < reading.due and not self._is_quick(reading.value))

    def _patience(self, asked: float) -> float:
        reading = self._reading
        if reading is None:
            return FIRST_SECONDS
        is_late = self._is_quick(reading.value) or asked >= reading.due + GRACE_SECONDS
        return LONG_PATIENCE_SECONDS if is_late else PATIENCE_SECONDS

    def _read(self) -> None:
        as_of, began = datetime.now(UTC), self._clock()
        value = self._find()
        ended = self._clock()
        self._reading = Reading(value, as_of, began, ended + AGE_FACTOR * (ended - began))
