"""What a run has in hand: bounded, newest first, and acknowledged only as far as everything before is done."""

import random
import statistics
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.pipeline.assessments.tasks import pending
from vectorize_pipelines.pipeline.assessments.pending import PendingTask
from vectorize_pipelines.pipeline.assessments.progress import BLOCK_OFFSETS, MOST_BLOCKS, FinishedOffsets
from vectorize_pipelines.pipeline.assessments.window import TaskWindow


def taken(window: TaskWindow) -> list[PendingTask]:
    """Everything that waits, in the order in which it is judged."""
    found = []
    while (task := window.take()) is not None:
        found.append(task)
    return found


def settle(window: TaskWindow) -> dict[tuple[str, int], tuple[int, str]]:
    return window.settle(window.collect(1000))


@given(st.lists(st.integers(0, 5), max_size=30))
def test_the_newest_goes_first_and_among_equals_the_first(times: list[int]) -> None:
    window = TaskWindow(100, 100)
    tasks = [pending(offset, timestamp_ms=time) for offset, time in enumerate(times)]
    window.add(tasks, {})
    assert [task.offset for task in taken(window)] == sorted(range(len(times)), key=lambda n: (-times[n], n))


@given(st.data())
def test_in_whatever_order_tasks_are_done_no_offset_is_committed_before_what_lies_before_it(
    data: st.DataObject,
) -> None:
    counts = {partition: data.draw(st.integers(0, 12)) for partition in range(3)}
    window = TaskWindow(1000, 1000)
    window.begin({("tasks", partition): 100 for partition in counts}, {})
    tasks = [
        pending(100 + offset, partition=partition) for partition, count in counts.items() for offset in range(count)
    ]
    window.add(tasks, {("tasks", partition): 100 + count for partition, count in counts.items()})
    taken(window)
    told: set[tuple[int, int]] = set()
    order = data.draw(st.permutations(tasks))
    while order:
        count = data.draw(st.integers(1, len(order)))
        for task in order[:count]:
            window.finish(task)
        assert window.collect(1000) == order[:count], "told in the order in which they were done"
        positions = window.settle(order[:count])
        told.update((task.place[1], task.offset) for task in order[:count])
        order = order[count:]
        for (_, partition), (committed, metadata) in positions.items():
            finished = FinishedOffsets.parse(committed, metadata)
            for offset in range(100, 100 + counts[partition]):
                assert (offset < committed or offset in finished) == ((partition, offset) in told)
    assert window.in_hand == 0


def test_reading_waits_for_room_in_tasks_and_in_bytes() -> None:
    window = TaskWindow(3, 100)
    window.add([pending(0), pending(1)], {})
    assert window.wait_for_room(0)
    window.add([pending(2, size=98)], {})
    assert not window.wait_for_room(0)
    (third, *_) = [task for task in taken(window) if task.offset == 2]
    window.finish(third)
    assert not window.wait_for_room(0), "it is done, and not told"
    settle(window)
    assert window.wait_for_room(0)
    window.add([pending(3, size=99)], {})
    assert not window.wait_for_room(0), "in bytes"


def test_a_partition_with_much_that_is_not_done_waits() -> None:
    window = TaskWindow(10**6, 10**9)
    window.begin({("tasks", 0): 0}, {})
    window.add([pending(BLOCK_OFFSETS * number) for number in range(MOST_BLOCKS)], {("tasks", 0): 10**9})
    assert not window.wait_for_room(0)
    first = window.take()
    assert first is not None
    window.finish(first)
    settle(window)
    assert window.wait_for_room(0) == (1, 10**9 - MOST_BLOCKS + 1)


def test_what_is_judged_stays_new_however_long_calls_do_not_keep_up() -> None:
    """Three times as many come as can be judged, and more wait than may be held."""
    held, rate, capacity, deadline = 200, 24, 8, 120.0
    window = TaskWindow(held, 10**9)
    read, ages, over = 0, list[float](), 0
    for now in range(1, 400):
        for expired in window.take_expired(now):
            over += 1
            window.finish(expired)
        for _ in range(capacity):
            task = window.take()
            if task is not None:
                ages.append(now - task.timestamp_ms / 1000)
                assert task.message is not None
                window.finish(task)
        window.settle(window.collect(10**6))
        while read < now * rate:
            if window.wait_for_room(0) is None and not window.put_aside(now):
                break
            place, at = read % 4, read / rate
            window.add([pending(read // 4, partition=place, timestamp_ms=int(at * 1000), deadline=at + deadline)], {})
            read += 1
        assert window.in_hand < rate * deadline * 1.1
    late = ages[len(ages) // 2 :]
    assert len(late) > 1000
    assert statistics.median(late) < 5
    assert over > 1000, "what nobody came to has expired"


def test_what_was_put_aside_is_judged_once_it_was_read_again_and_expires_where_it_is_gone() -> None:
    window = TaskWindow(3, 10**6)
    tasks = [pending(offset, timestamp_ms=offset * 1000, deadline=100.0) for offset in range(3)]
    contents = {each: (each.message, each.task) for each in tasks}
    window.add(tasks, {})
    assert window.put_aside(5) == 0, "none has waited for long"
    assert window.put_aside(11) == 2
    assert window.wait_for_room(0) == (2, 10**6 - 3)
    assert [task.offset for task in taken(window)] == [2]
    back = window.take_back(10)
    assert [(each.offset, each.message) for each in back] == [(1, None), (0, None)]
    message, content = contents[tasks[1]]
    assert message is not None
    assert content is not None
    window.restore(back, {tasks[1]: (message, content)})
    assert [(each.offset, each.message) for each in taken(window)] == [(1, message)]
    assert window.take_expired(12) == [tasks[0]]
    for each in tasks:
        window.finish(each)
    settle(window)
    assert window.wait_for_room(0) == (3, 10**6)


def test_messages_of_one_task_are_judged_once_and_told_together() -> None:
    window = TaskWindow(10, 100)
    window.add([pending(0, name="a"), pending(1, name="b"), pending(2, name="a")], {})
    tasks = taken(window)
    assert [task.offset for task in tasks] == [0, 1]
    window.add([pending(3, name="a")], {})
    assert window.take() is None
    window.finish(tasks[0])
    assert [(task.offset, task.needless) for task in window.collect(10)] == [(0, False), (2, True), (3, True)]
    window.add([pending(4, name="a")], {})
    assert window.take() is not None, "the first has been handed on: the table knows of it"


def test_what_is_over_time_is_given_once() -> None:
    window = TaskWindow(10, 100)
    window.add([pending(0, deadline=5.0), pending(1, deadline=7.0), pending(2)], {})
    assert [task.offset for task in window.take_expired(4.9)] == []
    assert [task.offset for task in window.take_expired(5.0)] == [0]
    assert {task.offset for task in taken(window)} == {1, 2}
    assert window.take_expired(99) == []


def test_after_stop_nothing_begins_and_what_was_begun_is_told() -> None:
    window = TaskWindow(10, 100)
    window.begin({("tasks", 0): 0}, {})
    window.add([pending(0, timestamp_ms=2), pending(1, timestamp_ms=1)], {("tasks", 0): 2})
    begun = window.take()
    assert begun is not None
    window.stop()
    assert window.take() is None
    assert not window.wait_for_room(0)
    window.put_back(pending(0))
    assert window.take() is None
    window.finish(begun)
    assert window.settle(window.collect(10)) == {("tasks", 0): (1, "")}


def test_an_error_reaches_whoever_collects() -> None:
    window = TaskWindow(10, 100)
    window.fail(ValueError("first"))
    window.fail(ValueError("second"))
    assert window.wait_for_finished(60)
    with pytest.raises(ValueError, match="first"):
        window.collect(10)


def test_three_threads_settle_everything_once() -> None:
    """What is in hand stays within bounds, whoever is faster."""
    count, most = 3000, 50
    window = TaskWindow(most, 10**6)
    told: list[int] = []
    most_in_hand = 0

    def read() -> None:
        for offset in range(count):
            while not window.wait_for_room(60):
                pass
            window.add([pending(offset, timestamp_ms=offset)], {("tasks", 0): offset + 1})

    def judge() -> None:
        chance = random.Random(1)
        held: list[PendingTask] = []
        while len(told) + len(held) < count or held:
            task = window.take()
            if task is not None:
                held.append(task)
            if held and (task is None or len(held) > 20):
                window.finish(held.pop(chance.randrange(len(held))))

    threads = [threading.Thread(target=each, daemon=True) for each in (read, judge)]
    for thread in threads:
        thread.start()
    committed = 0
    while len(told) < count:
        assert window.wait_for_finished(60)
        most_in_hand = max(most_in_hand, window.in_hand)
        tasks = window.collect(10)
        told += [task.offset for task in tasks]
        (position,) = window.settle(tasks).values()
        assert position[0] >= committed
        committed = position[0]
    for thread in threads:
        thread.join(60)
    assert sorted(told) == list(range(count))
    assert committed == count
    assert most_in_hand <= most
