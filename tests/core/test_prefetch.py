"""`prefetch`: same items, same order, errors where they belong, nothing left running."""

import threading
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.core.prefetch import prefetch


def numbers(upto: int, closed: threading.Event | None = None) -> Generator[int, None, None]:
    try:
        yield from range(upto)
    finally:
        if closed is not None:
            closed.set()


@given(upto=st.integers(0, 200), depth=st.integers(1, 5), late=st.lists(st.booleans(), min_size=1, max_size=3))
def test_order_is_kept_through_any_number_of_stages(upto: int, depth: int, late: list[bool]) -> None:
    items = numbers(upto)
    for n, begun_late in enumerate(late):
        items = prefetch(items, depth, f"stage-{n}", late=begun_late)
    assert list(items) == list(range(upto))


def test_an_error_comes_after_the_items_before_it() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        yield 2
        raise KeyError("three")

    seen = []
    with pytest.raises(KeyError, match="three"):  # noqa: PT012
        for item in prefetch(failing(), 1, "failing"):
            seen.append(item)  # noqa: PERF402
    assert seen == [1, 2]


@pytest.mark.parametrize("read", [0, 1, 5])
def test_closing_early_closes_the_source_and_ends_the_thread(read: int) -> None:
    closed = threading.Event()
    items = prefetch(numbers(1_000_000, closed), 2, "left-early")
    for _ in range(read):
        next(items)
    items.close()
    assert closed.is_set() or read == 0  # a generator never started has nothing to close
    assert not [thread for thread in threading.enumerate() if thread.name == "left-early"]


def test_at_most_depth_items_wait() -> None:
    made = []
    third = threading.Event()

    def counting() -> Generator[int, None, None]:
        for n in range(10):
            made.append(n)
            if n == 3:
                third.set()
            yield n

    items = prefetch(counting(), 2, "bounded")
    assert next(items) == 0
    assert third.wait(10)  # one read, two waiting, one in the making
    assert made == [0, 1, 2, 3]
    items.close()


def test_an_item_made_late_is_not_begun_before_there_is_room() -> None:
    made: list[int] = []
    second = threading.Event()

    def counting() -> Generator[int, None, None]:
        for n in range(10):
            made.append(n)
            yield n
            if n == 1:
                second.set()  # asked for the third, which cannot be before the first has been read

    items = prefetch(counting(), 1, "late", late=True)
    assert next(items) == 0
    assert next(items) == 1
    assert second.wait(10)
    assert next(items) == 2
    items.close()
    assert len(made) <= 4, "three that were read, and one that waits"


@pytest.mark.parametrize("read", [0, 1, 5])
def test_closing_early_ends_a_thread_that_waits_for_room(read: int) -> None:
    items = prefetch(numbers(1_000_000), 1, "late-left-early", late=True)
    for _ in range(read):
        next(items)
    items.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "late-left-early"]
