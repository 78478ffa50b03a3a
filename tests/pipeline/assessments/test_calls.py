"""Calls side by side: which tasks are taken, and when."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.pipeline.assessments.tasks import pending
from vectorize_pipelines.errors import ProviderUnavailableError
from vectorize_pipelines.pipeline.assessments.assessing import Judge
from vectorize_pipelines.pipeline.assessments.calls import FEWEST_IN_LINE, Calls
from vectorize_pipelines.pipeline.assessments.provider_outage import ProviderOutage
from vectorize_pipelines.pipeline.assessments.window import TaskWindow
from vectorize_pipelines.settings import Settings

PLACE = ("tasks", 0)
SECONDS = 60.0


class Model:
    """A model with a number of keys for one call each. Nobody is answered before `answers` is set."""

    def __init__(self, keys: int):
        self.keys = asyncio.Semaphore(keys)
        self.answers = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.in_line = 0
        self.begun: list[str] = []

    async def ask(self, *, prompt: str, begins: Callable[[], None], **_: Any) -> Any:
        self.in_line += 1
        await self.keys.acquire()
        self.in_line -= 1
        self.begun.append(prompt)
        begins()
        await self.answers.wait()
        raise ProviderUnavailableError("nobody needs the answer")

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Any]:
        self.loop = asyncio.get_running_loop()
        yield self

    def lend(self) -> None:
        """Let one more key be free."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.keys.release)


class Calling:
    """Calls to a model, of tasks that have as many objects as their offset."""

    def __init__(self, model: Model, concurrency: int):
        self.model = model
        self.window = TaskWindow(10_000, 10**9)
        self.window.begin({PLACE: 0}, {})
        judge = Judge(Settings(), "run")
        self.calls = Calls(self.window, judge, model.opened, concurrency, ProviderOutage(SECONDS))
        self._offset = 0

    def send(self, count: int) -> list[int]:
        """Have so many tasks wait, each newer than those before; return their offsets."""
        offsets = range(self._offset, self._offset + count)
        self._offset += count
        tasks = [pending(offset, timestamp_ms=offset) for offset in offsets]
        for each in tasks:
            assert each.task is not None
            group = each.task.group.model_copy(update={"object_count": each.offset})
            each.task = each.task.model_copy(update={"group": group})
        self.window.add(tasks, {PLACE: self._offset})
        return list(offsets)

    def begun(self) -> list[int]:
        """Return the offsets of the tasks that have a key, in the order in which they got it."""
        return [json.loads(prompt.splitlines()[-1])["objects"] for prompt in self.model.begun]

    def __enter__(self) -> "Calling":
        self.calls.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.window.abandon()
        self.calls.join()


def until(look: Callable[[], bool]) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + SECONDS
    while not look():
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_a_newer_task_waits_for_few_of_the_older_ones_when_keys_are_scarce() -> None:
    model = Model(keys=0)
    with Calling(model, concurrency=512) as calling:
        calling.send(500)
        until(lambda: model.in_line == FEWEST_IN_LINE)
        newer = calling.send(20)
        for number in range(FEWEST_IN_LINE + len(newer)):
            model.lend()
            until(lambda number=number: len(model.begun) == number + 1)  # type: ignore[misc]
        begun = calling.begun()
    # One joins the line as another leaves it; calls that have begun let a few more stand there.
    assert set(begun[FEWEST_IN_LINE:]) == set(newer)


def test_as_many_calls_as_may_be_are_made_side_by_side_while_keys_are_free() -> None:
    model = Model(keys=1000)
    with Calling(model, concurrency=512) as calling:
        calling.send(600)
        until(lambda: len(model.begun) == 512)
        assert calling.window.waiting == 88
    assert model.in_line == 0
