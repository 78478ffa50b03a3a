"""Bytes that several processes may take together. Used by the decoders of images, and for answers."""

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class ByteBudget:
    """At most `most` bytes are held at a time; more than that by one that then holds all of it alone.

    First come, first served, so that small ones do not keep a large one waiting for ever.
    """

    def __init__(self, most: int):
        self.most = most
        self._held = 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until there is room for `size` bytes, and hold them inside the context."""
        size = min(size, self.most)
        turn = object()
        with self._changed:
            self._waiting.append(turn)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is turn and self._held + size <= self.most)
                self._held += size
            finally:
                self._waiting.remove(turn)
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._held -= size
                self._changed.notify_all()
