"""How many bytes of fetched content a run may hold, from before they are fetched until their rows are in the store.

Taken by `pipeline.request_reader` in the reading thread, given back by `pipeline.request_stream` in the writer's.
"""

import threading


class ContentBudget:
    """Bytes that are there to be taken. Safe for use by several threads."""

    def __init__(self, most: int):
        self.most = most
        self._taken = 0
        self._closed = False
        self._changed = threading.Condition()

    def take(self, size: int) -> bool:
        """Whether so many bytes were left; they are taken then."""
        with self._changed:
            fits = self._fits(size)
            self._taken += size if fits else 0
            return fits

    def give_back(self, size: int) -> None:
        """Bytes that were taken, and are no longer held or turned out not to be needed; negative: some more were."""
        if size:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()

    def wait_for(self, size: int, own: int) -> bool:
        """Waits until so many bytes are left, as long as others than the caller, who holds `own` bytes, hold any.

        Gives whether they are left; False after `close`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._fits(size) or self._taken <= own or self._closed)
            return self._fits(size) and not self._closed

    def _fits(self, size: int) -> bool:
        return self._taken + size <= self.most

    def close(self) -> None:
        """Ends every wait: nobody will give anything back any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
