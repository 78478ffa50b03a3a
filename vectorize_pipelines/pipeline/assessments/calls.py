"""Hundreds of calls side by side, in the event loop of a thread of its own, beside reading and telling.

Takes tasks from the run's `TaskWindow` and hands them back when they are done.

A task that is taken keeps its place in the line for a key, however many newer ones come meanwhile. So only few stand
there: the next is taken when one of them begins. Enough of them, that is, for keys not to wait for tasks: between
taking a task and sending its question there are some milliseconds, and up to 50 where a key is lent ahead of its time.
To take a task only when its key is there would be more exact by those few, but cost a loan for nothing wherever the
answer turns out to be known already, and a guess at the tokens that it needs.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial
from typing import TypeAlias

from vectorize_pipelines.errors import NoSuitableKeyError
from vectorize_pipelines.pipeline.assessments.assessing import TRANSIENT, Judge
from vectorize_pipelines.pipeline.assessments.pending import PendingTask
from vectorize_pipelines.pipeline.assessments.provider_outage import ProviderOutage
from vectorize_pipelines.pipeline.assessments.window import TaskWindow
from vectorize_pipelines.providers.chat import ChatModel
from vectorize_pipelines.state.assessments import AssessmentState

logger = logging.getLogger(__name__)

#: How often is looked whether the time of a waiting task is over.
LOOK_SECONDS = 0.25
#: So many tasks may stand in line for a key, and one more for so many calls that have one. At 300 calls/s of 0.8 s
#: these are 68, the tasks of a quarter of a second; at 5 calls/s of 2 s ten, of two seconds.
FEWEST_IN_LINE = 8
CALLS_FOR_ONE_IN_LINE = 4

#: Opens the model in the loop that asks it, and closes it.
OpenModel: TypeAlias = Callable[[], AbstractAsyncContextManager[ChatModel]]


class Calls:
    """The thread of the calls. `concurrency`: how many are made side by side, at most."""

    def __init__(
        self, window: TaskWindow, judge: Judge, open_model: OpenModel, concurrency: int, outage: ProviderOutage
    ):
        self._window = window
        self._judge = judge
        self._open_model = open_model
        self._concurrency = concurrency
        self._outage = outage
        self._has_judged = False
        self._running: set[asyncio.Task[None]] = set()
        self._in_line: set[PendingTask] = set()
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="vectorize-calls", daemon=True)

    @property
    def ended(self) -> bool:
        """Return whether the window was stopped, and what was being judged then is done."""
        return not self._thread.is_alive()

    def start(self) -> None:
        """Begin to take tasks."""
        self._window.listen = self._call_up
        self._thread.start()

    def join(self) -> None:
        """Wait until the calls have ended, after `TaskWindow.stop` or `TaskWindow.fail`."""
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._main())
        except BaseException as error:  # noqa: BLE001 (raised by whoever collects)
            self._window.fail(error)

    def _call_up(self) -> None:
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has just been closed: there is nobody to call
                loop.call_soon_threadsafe(self._wake.set)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        try:
            async with self._open_model() as model:
                try:
                    await self._make_calls(model)
                finally:
                    await self._cancel()
        finally:
            self._loop = None

    async def _make_calls(self, model: ChatModel) -> None:
        looked = 0.0
        while True:
            self._wake.clear()
            if time.monotonic() - looked >= LOOK_SECONDS:
                looked = time.monotonic()
                for expired in self._window.take_expired(time.time()):
                    self._judge.expire(expired)
                    self._window.finish(expired)
            self._fill(model)
            if self._window.is_abandoned or (self._window.stopped and not self._running):
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()

    def _fill(self, model: ChatModel) -> None:
        """Begin as many calls as may be made."""
        while self._may_take():
            pending = self._window.take()
            if pending is None:
                return
            self._in_line.add(pending)
            call = asyncio.create_task(self._call(model, pending))
            self._running.add(call)
            call.add_done_callback(partial(self._follow, model, pending))

    def _may_take(self) -> bool:
        """Return whether one more task may be taken, to stand in line for a key."""
        running, in_line = len(self._running), len(self._in_line)
        most_in_line = FEWEST_IN_LINE + (running - in_line) // CALLS_FOR_ONE_IN_LINE
        return running < self._concurrency and in_line < most_in_line and self._outage.may_call(running)

    def _begins(self, model: ChatModel, pending: PendingTask) -> None:
        """Let another task stand in line in the place of one that has its key."""
        if pending in self._in_line:
            self._in_line.remove(pending)
            self._fill(model)

    def _follow(self, model: ChatModel, pending: PendingTask, call: "asyncio.Task[None]") -> None:
        """Let other calls take the place of one that has ended."""
        self._running.discard(call)
        self._in_line.discard(pending)
        if self._window.stopped:
            self._wake.set()
        else:
            self._fill(model)

    async def _call(self, model: ChatModel, pending: PendingTask) -> None:
        try:
            answered = await self._judge.judge(model, pending, partial(self._begins, model, pending))
        except NoSuitableKeyError as error:
            self._window.fail(error)
            return
        except TRANSIENT as error:
            given_up = self._outage.failed(error)
            if given_up is not None:
                self._window.fail(given_up)
            else:
                self._window.put_back(pending)
            return
        except Exception as error:
            # Of the task, where others could be judged; else of whatever is common to all of them.
            if not self._has_judged:
                self._window.fail(error)
                return
            logger.exception("a task failed with an error that nobody foresaw, and goes to the dead letters")
            self._judge.fail(pending, error)
        else:
            if answered:
                self._outage.answered()
            self._has_judged |= pending.row is not None and pending.row.state is AssessmentState.COMPLETED
        self._window.finish(pending)

    async def _cancel(self) -> None:
        """End the calls that are left, of a run that has failed."""
        calls = list(self._running)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return what makes the loop, None for asyncio's own: uvloop's leaves more of the time to the calls."""
    if sys.platform == "win32":  # there is none for it
        return None
    import uvloop

    return uvloop.new_event_loop
