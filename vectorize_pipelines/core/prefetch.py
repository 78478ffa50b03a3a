"""Two stages of a pipeline side by side: `prefetch` moves an iterator into a thread of its own."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")


class Overflow(Protocol[T]):
    """The place where items go while a queue may grow beyond its depth."""

    def has_room(self) -> bool:
        """Return whether the queue may grow now."""

    def spill(self, item: T) -> Callable[[], T]:
        """Lay an item aside; return what brings it back, called once."""

    def listen(self, began: Callable[[], None]) -> None:
        """Have `began` called whenever there begins to be room."""

    def discard(self, item: T) -> None:
        """Do without an item that nobody will read any more."""


@dataclass(slots=True)
class _InMemory(Generic[T]):
    item: T


@dataclass(slots=True)
class _Aside(Generic[T]):
    back: Callable[[], T]


class _Channel(Generic[T]):
    """A bounded queue whose both ends can be closed, so that neither side ever waits for one that has gone."""

    def __init__(self, depth: int, overflow: Overflow[T] | None):
        self._items: deque[_InMemory[T] | _Aside[T]] = deque()
        self._depth = depth
        self._overflow = overflow
        self._changed = threading.Condition()
        self._finished = False
        self._abandoned = False
        self._error: BaseException | None = None
        if overflow is not None:
            overflow.listen(self._grow)

    def wait_for_room(self) -> bool:
        """Wait until an item would find room; False where the reader has gone."""
        with self._changed:
            self._changed.wait_for(self._has_room_or_nobody_reads)
            return not self._abandoned

    def put(self, item: T) -> bool:
        """Wait for room; False where the reader has gone."""
        with self._changed:
            self._changed.wait_for(self._has_room_or_nobody_reads)
            grows = self._may_grow()
        # Outside the lock: it may take its time.
        entry = _Aside(self._overflow.spill(item)) if grows and self._overflow is not None else _InMemory(item)
        with self._changed:
            if not self._abandoned:
                self._items.append(entry)
                self._changed.notify_all()
            abandoned = self._abandoned
        if abandoned and isinstance(entry, _InMemory):
            self._discard([entry])
        return not abandoned

    def _has_room_or_nobody_reads(self) -> bool:
        return len(self._items) < self._depth or self._may_grow() or self._abandoned

    def _may_grow(self) -> bool:
        return self._overflow is not None and self._overflow.has_room()

    def _grow(self) -> None:
        """Lay aside what waits in the queue, which may grow now, and what waits for room."""
        with self._changed:
            for place, entry in enumerate(self._items):
                if isinstance(entry, _InMemory) and self._overflow is not None:
                    self._items[place] = _Aside(self._overflow.spill(entry.item))
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """Note that nothing more will be put; the reader gets what is there, then the error if there is one."""
        with self._changed:
            self._finished = True
            self._error = error
            self._changed.notify_all()

    def abandon(self) -> None:
        """Note that nothing more will be read."""
        with self._changed:
            self._abandoned = True
            left, self._items = self._items, deque()
            self._changed.notify_all()
        self._discard(left)

    def _discard(self, entries: Iterable[_InMemory[T] | _Aside[T]]) -> None:
        for entry in entries:
            if isinstance(entry, _InMemory) and self._overflow is not None:
                self._overflow.discard(entry.item)

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: bool(self._items) or self._finished)
                if not self._items:
                    if self._error is not None:
                        raise self._error
                    return
                entry = self._items.popleft()
                self._changed.notify_all()
            yield entry.item if isinstance(entry, _InMemory) else entry.back()


def prefetch(
    items: Generator[T, None, None],
    depth: int,
    name: str,
    overflow: Overflow[T] | None = None,
    *,
    late: bool = False,
    leaving: Callable[[], None] = lambda: None,
) -> Generator[T, None, None]:
    """Yield the same items in the same order, produced by a thread called `name`, at most `depth` ahead, or as far as
    `overflow` has room.

    With `late` an item is begun when there is room for it, rather than made and then held until there is: for batches
    of what arrives meanwhile, which would only wait.

    What the generator raises is raised here, after the items before it. When this one is closed, the generator is
    closed too, in its own thread, and the thread has ended: an item in the making is finished first. Where it is closed
    before its end, `leaving` is called before that is waited for, to end what the generator itself waits for.
    """
    channel: _Channel[T] = _Channel(depth, overflow)

    def produce() -> None:
        try:
            while not late or channel.wait_for_room():
                try:
                    item = next(items)
                except StopIteration:
                    break
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
    except BaseException:
        channel.abandon()
        leaving()
        raise
    finally:
        channel.abandon()
        thread.join()
