"""The thread that reads tasks ahead: how much it takes up, and in which order it is judged."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from tests.pipeline.assessments.tasks import Message, task
from vectorize_pipelines.core.days import Days
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.sources import MessageSource, Polled
from vectorize_pipelines.pipeline.assessments.progress import BLOCK_OFFSETS, MOST_BLOCKS
from vectorize_pipelines.pipeline.assessments.reading import PORTION_MESSAGES, TaskReading
from vectorize_pipelines.pipeline.assessments.window import TaskWindow
from vectorize_pipelines.pipeline.stop_policy import StopPolicy
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.assessments import Assessments

PLACE = ("tasks", 0)


class Topic(MessageSource):
    """A topic of one partition; more may be written meanwhile."""

    def __init__(self, messages: Sequence[Message] = ()):
        self.messages = list(messages)
        self._at = 0

    def poll(self, most: int) -> Polled:
        found = self.messages[self._at : self._at + most]
        self._at += len(found)
        if not found:
            time.sleep(0.01)
        return Polled(found, {PLACE: found[-1].offset() + 1} if found else {})

    def find(self, wanted: Mapping[PartitionId, Collection[int]]) -> list[Message]:
        """Return messages once more."""
        return [each for each in self.messages if each.offset() in wanted[PLACE]]

    def at_end(self) -> bool:
        return self._at == len(self.messages)

    def lag(self) -> int:
        return len(self.messages) - self._at

    def close(self) -> None:
        """There is nothing to close."""


def message(offset: int, *, size: int = 0, timestamp_ms: int = 0) -> Message:
    """A task's message of at least so many bytes."""
    value = task(f"task-{offset}").to_json()
    return Message(value + b" " * (size - len(value)), PLACE, offset, timestamp_ms)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until it is so. Raises `AssertionError` where it never is."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def reading(window: TaskWindow, topic: Topic) -> Iterator[TaskReading]:
    """Read the topic into the window until the test has seen enough."""
    today = datetime.now(UTC).date()
    with closing(Assessments.open(load_settings())) as assessments:
        days = Days(date(2020, 1, 1), today)
        found = TaskReading(
            window,
            topic,
            assessments,
            StopPolicy(600, 600, datetime.max.replace(tzinfo=UTC)),
            lambda: days,
            {},
            lookup=topic,
        )
        found.start()
        try:
            yield found
        finally:
            window.stop()
            found.join()


def test_no_more_bytes_are_held_than_may_be_but_for_a_portion(home: Path) -> None:
    size = 100_000
    window = TaskWindow(10_000, 10 * size)
    with reading(window, Topic([message(offset, size=size) for offset in range(200)])):
        wait_until(lambda: window.wait_for_room(0) is None)
        assert 0 < window.in_hand <= 5 + PORTION_MESSAGES


def test_no_more_tasks_are_held_than_may_be(home: Path) -> None:
    window = TaskWindow(10, 10**9)
    with reading(window, Topic([message(offset) for offset in range(200)])):
        wait_until(lambda: window.wait_for_room(0) is None)
        assert window.in_hand == 10


@pytest.mark.parametrize("step", [1, BLOCK_OFFSETS], ids=["dense", "sparse"])
@pytest.mark.slow
def test_all_of_a_backlog_that_does_not_fit_is_judged_the_newest_first(home: Path, step: int) -> None:
    """What is put aside is read once more, also where the offsets of a partition leave no room for more."""
    count, began_ms = 300, time.time_ns() // 1_000_000 - 60_000
    topic = Topic([message(number * step, timestamp_ms=began_ms + number) for number in range(count)])
    window = TaskWindow(20, 10**9)
    judged: list[int] = []
    with reading(window, topic):
        wait_until(lambda: window.in_hand >= min(count, MOST_BLOCKS if step > 1 else count))
        newest = (window.in_hand - 1) * step
        while len(judged) < count:
            wait_until(lambda: window.waiting > 0)
            pending = window.take()
            assert pending is not None
            assert pending.message is not None
            assert pending.task is not None
            assert pending.task.detected_objects
            judged.append(pending.offset)
            window.finish(pending)
            window.settle(window.collect(1000))
    assert judged[0] == newest
    assert sorted(judged) == [number * step for number in range(count)]
