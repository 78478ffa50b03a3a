"""Lets two stages of a pipeline run side by side: `prefetch` moves an iterator into a thread of its own."""

import threading
from collections import deque
from collections.abc import Generator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class _Channel(Generic[T]):
    """A bounded queue whose both ends can be closed, so that neither side ever waits for one that has gone."""

    def __init__(self, depth: int):
        self._items: deque[T] = deque()
        self._depth = depth
        self._changed = threading.Condition()
        self._finished = False
        self._abandoned = False
        self._error: BaseException | None = None

    def put(self, item: T) -> bool:
        """Waits for room; False where the reader has gone."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._items) < self._depth or self._abandoned)
            if not self._abandoned:
                self._items.append(item)
                self._changed.notify_all()
            return not self._abandoned

    def finish(self, error: BaseException | None = None) -> None:
        """Nothing more will be put; the reader gets what is there, then the error if there is one."""
        with self._changed:
            self._finished = True
            self._error = error
            self._changed.notify_all()

    def abandon(self) -> None:
        """Nothing more will be read."""
        with self._changed:
            self._abandoned = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._items) or self._finished)
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                item = self._items.popleft()
                self._changed.notify_all()
            yield item


def prefetch(items: Generator[T, None, None], depth: int, name: str) -> Generator[T, None, None]:
    """The same items in the same order, produced by a thread called `name`, at most `depth` ahead.

    What the generator raises is raised here, after the items before it. When this one is closed, the generator is
    closed too, in its own thread, and the thread has ended: an item in the making is finished first.
    """
    channel: _Channel[T] = _Channel(depth)

    def produce() -> None:
        try:
            for item in items:
                if not channel.put(item):
                    break
        except BaseException as error:  # noqa: BLE001 (handed to the reader, who raises it)
            channel.finish(error)
        else:
            channel.finish()
        finally:
            items.close()

    thread = threading.Thread(target=produce, name=name, daemon=True)
    thread.start()
    try:
        yield from channel
    finally:
        channel.abandon()
        thread.join()
