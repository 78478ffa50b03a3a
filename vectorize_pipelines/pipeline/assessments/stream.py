"""A run over assessment tasks: reading, calls and results, side by side until the run is to end.

[thread] TaskReading ──▶ TaskWindow ──▶ [thread] Calls ──▶ TaskWindow ──▶ [main] Results
"""

import gc
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from vectorize_pipelines.kafka.sources import LostRange
from vectorize_pipelines.pipeline.assessments.calls import Calls
from vectorize_pipelines.pipeline.assessments.pending import PendingTask
from vectorize_pipelines.pipeline.assessments.reading import TaskReading
from vectorize_pipelines.pipeline.assessments.results import Results
from vectorize_pipelines.pipeline.assessments.window import TaskWindow
from vectorize_pipelines.pipeline.progress import PROGRESS_INTERVAL_SECONDS

logger = logging.getLogger(__name__)

#: Tasks that are told in one transaction, at most.
TASKS_TOGETHER = 1000
#: So long further tasks are waited for: a transaction costs about as much, however few are in it.
LINGER_SECONDS = 0.05
#: The longest turn of a thread that others wait for.
SWITCH_SECONDS = 0.0005
#: New objects after which circles of them are looked for; a call makes some thousand.
OBJECTS_BETWEEN_COLLECTIONS = 50_000
#: How long the first of them is waited for; then is looked whether the run has ended.
WAIT_SECONDS = 0.25


@dataclass(slots=True)
class DayFigures:
    """The tasks of one day that a run has dealt with.

    latency_seconds  of the calls that were completed, added up
    """

    completed: int = 0
    failed: int = 0
    expired: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    latency_seconds: float = 0.0
    levels: Counter[str] = field(default_factory=Counter)

    def add(self, pending: PendingTask) -> None:
        """Count a task."""
        row = pending.row
        if row is None or pending.error is not None:
            self.failed += 1
        elif row.level is None:
            self.expired += 1
        else:
            self.completed += 1
            self.cached += row.cached
            self.prompt_tokens += row.prompt_tokens
            self.completion_tokens += row.completion_tokens
            self.cost += row.cost
            self.latency_seconds += row.latency_ms / 1000
            self.levels[row.level] += 1


class AssessmentRun:
    """One run. A context manager: leaving it ends the threads, and closes what `resources` holds.

    touched  days of which something was told
    """

    def __init__(
        self,
        window: TaskWindow,
        reading: TaskReading,
        calls: Calls,
        results: Results,
        lost: Callable[[], Sequence[LostRange]],
        resources: ExitStack,
    ):
        self._window = window
        self._reading = reading
        self._calls = calls
        self._results = results
        self._lost = lost
        self._resources = resources
        self._begun = time.monotonic()
        self._duplicates = 0
        self.days: dict[str, DayFigures] = {}

    def run(self) -> None:
        """Deal with tasks until the run is to end.

        Raises `ProviderUnavailableError` and `NoKeyAvailableError` where a provider stays away, `LedgerError`,
        `KafkaError`; what has not been told then is a later run's.
        """
        with _short_turns(), _rare_collections():
            self._run()
        logger.info("%s; ended: %s", self.progress(), self._reading.why_ended)

    def _run(self) -> None:
        shown = time.monotonic()
        self._reading.start()
        self._calls.start()
        while True:
            # Asked before: what is done by then is collected, and nothing comes after it.
            ended = self._calls.ended
            found = self._window.wait_for_finished(WAIT_SECONDS)
            if found and not ended and self._window.finished < TASKS_TOGETHER:
                time.sleep(LINGER_SECONDS)
            tasks = self._window.collect(TASKS_TOGETHER)
            self._tell(tasks)
            if ended and not tasks:
                break
            if time.monotonic() - shown >= PROGRESS_INTERVAL_SECONDS:
                shown = time.monotonic()
                logger.info("%s", self.progress())

    def _tell(self, tasks: Sequence[PendingTask]) -> None:
        counting = self._results.tell(tasks)
        self._duplicates += len(tasks) - len(counting)
        for each in counting:
            self.days.setdefault(each.day, DayFigures()).add(each)

    @property
    def touched(self) -> set[str]:
        """Return the days of which something was told."""
        return set(self.days)

    def figures(self) -> Mapping[str, int | float]:
        """Return figures of the run as a whole, for its metadata."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        told = sum(each.completed + each.failed + each.expired for each in self.days.values())
        return {
            "messages": self._reading.messages,
            "tasks_per_second": round(told / seconds, 1),
            "duplicates": self._duplicates,
            "lost_unread": sum(lost.messages for lost in self._lost()),
            "lag": self._reading.lag,
        }

    def losses(self) -> Sequence[str]:
        """Return the places of what the broker had deleted before it was read, for people."""
        return [str(lost) for lost in self._lost()]

    def progress(self) -> str:
        """Describe how far the run is."""
        figures = self.figures()
        total = [sum(getattr(each, name) for each in self.days.values()) for name in ("completed", "failed", "expired")]
        return (
            f"{total[0]} tasks judged ({figures['tasks_per_second']} a second), {total[1]} dead letters, {total[2]} "
            f"expired, {figures['duplicates']} answered before; {self._window.in_hand} in hand, about "
            f"{figures['lag']} to be read"
        )

    def close(self) -> None:
        """End the threads, and release everything. A second call does nothing."""
        self._window.abandon()
        self._calls.join()
        self._reading.join()
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _short_turns() -> Iterator[None]:
    """Let threads wait less for each other than Python has them wait.

    A call waits for the threads of SQLite that have keys and answers. These need Python's lock again after each
    statement, and a thread that computes gives it up after `sys.getswitchinterval()` only: 5 ms, each time.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def _rare_collections() -> Iterator[None]:
    """Have the garbage collector look for circles seldom, and not among what was there before the run.

    By default it looks after 700 new objects, and every now and then through all objects of the process: calls that are
    answered meanwhile wait for it.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(OBJECTS_BETWEEN_COLLECTIONS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
