"""The bytes of fetched content that a run may hold, from before they are fetched until their rows are in the store.

Taken by `reader` in the reading thread, given back by `stream` in the writer's.
"""

import threading
from concurrent.futures import CancelledError


class ContentBudget:
    """Bytes that are there to be taken. Safe for use by several threads."""

    def __init__(self, most: int):
        self.most = most
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()

    def has_room(self, size: int) -> bool:
        """Return whether so many bytes are left."""
        with self._changed:
            return self._fits(size)

    def take(self, size: int) -> bool:
        """Take so many bytes, and return True, where they are left."""
        with self._changed:
            fits = self._fits(size)
            self._taken += size if fits else 0
            return fits

    def take_when_left(self, size: int, own: int) -> int:
        """Take so many bytes once they are left; or fewer, all that there are, where only the caller holds any.

        own  bytes that the caller holds itself, and would wait for in vain

        Returns how many were taken. Raises `CancelledError` after `close`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._fits(size) or self._taken <= own or self._closed)
            if self._closed:
                raise CancelledError
            taken = max(0, min(size, self.most - self._taken))
            self._taken += taken
            return taken

    def give_back(self, size: int) -> None:
        """Give back bytes that are no longer held or turned out not to be needed; a negative number takes some more."""
        if size:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()

    def close(self) -> None:
        """End every wait: nobody will give anything back any more. A second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        return not self._closed and self._taken + size <= self.most
