"""A bound on what parsed documents take that wait to be cut: a small file may hold a large text.

Nobody knows how large before it is parsed. So a document is parsed only while those before it that wait are not much,
or when it is the next one.
"""

import threading

from vectorize_pipelines.documents.types import ParsedDocument

#: What a row or a section takes at least beside its text.
BYTES_OF_A_PART = 500


class ParsedAhead:
    """The documents that wait to be cut, numbered in the order in which they are asked for.

    Used by several threads.
    """

    def __init__(self, most: int):
        self._most = most
        self._held = 0
        self._awaited = -1
        self._closed = False
        self._changed = threading.Condition()

    def wait(self, number: int) -> None:
        """Return once the document may be parsed; at once after `close`."""
        with self._changed:
            self._changed.wait_for(lambda: self._held < self._most or number <= self._awaited or self._closed)

    def await_(self, number: int) -> None:
        """Let the document be parsed, whatever waits: it is the next one."""
        with self._changed:
            self._awaited = max(self._awaited, number)
            self._changed.notify_all()

    def hold(self, document: ParsedDocument | None) -> None:
        """Count a document that has been parsed."""
        with self._changed:
            self._held += _size(document)

    def release(self, document: ParsedDocument | None) -> None:
        """Count one that has been cut no more."""
        with self._changed:
            self._held -= _size(document)
            self._changed.notify_all()

    def close(self) -> None:
        """End every wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _size(document: ParsedDocument | None) -> int:
    if document is None:
        return 0
    own = len(document.text) + BYTES_OF_A_PART * (len(document.rows) + len(document.sections))
    return own + sum(BYTES_OF_A_PART + _size(member.document) for member in document.members)
