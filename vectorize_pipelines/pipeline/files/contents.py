"""The contents of files held against the manifest, whatever their sizes and times say.

What `vectorize ingest --reconcile` asks for. Called by `folder_changes` in the reading thread. Files are read side by
side and hashed, and not parsed.
"""

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from functools import partial

from vectorize_pipelines.core.items import content_hash
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.pipeline.files.comparison import Compared
from vectorize_pipelines.pipeline.progress import PROGRESS_INTERVAL_SECONDS
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.sources.files import SourceFile
from vectorize_pipelines.sources.reading_threads import ReadingThreads

logger = logging.getLogger(__name__)

READING_THREADS = 8
FILES_AHEAD = 4 * READING_THREADS
BYTES_AHEAD = 64 * 2**20
#: At least so much is read of a file: some file systems say no size.
LEAST_BYTES = 2**20


class ContentComparison:
    """Files that seem unchanged, compared by the hash of what is in them. Closed by whoever made it."""

    def __init__(self) -> None:
        self._threads = ReadingThreads(READING_THREADS, "compare")
        self._files = self._bytes = self._differing = 0
        self._shown = time.monotonic()

    def compared(self, found: Iterable[Compared]) -> Iterator[Compared]:
        """Yield what was found, in its order; a file whose content is another one than is known has changed.

        So has one that cannot be read: its reader says why. Ends early once `close` has been called.
        """
        with suppress(CancelledError):
            yield from self._in_order(found)
        if self._files:
            self._show()

    def _in_order(self, found: Iterable[Compared]) -> Iterator[Compared]:
        waiting: deque[tuple[Compared, Future[str | None] | None]] = deque()
        size = 0
        for each in found:
            while waiting and (len(waiting) >= FILES_AHEAD or size + _size(each) > BYTES_AHEAD):
                size -= _size(waiting[0][0])
                yield self._judged(*waiting.popleft())
            waiting.append((each, self._begun(each)))
            size += _size(each)
        while waiting:
            yield self._judged(*waiting.popleft())

    def close(self) -> None:
        """End soon. Called from any thread; a second call does nothing."""
        self._threads.close()

    def _begun(self, each: Compared) -> Future[str | None] | None:
        """Have a file read where its content is known and nothing else says that it has changed."""
        if each.file is None or each.entry is None or not each.is_unchanged or not each.entry.content_hash:
            return None
        return self._threads.submit(partial(_hash, each.file))

    def _judged(self, each: Compared, digest: Future[str | None] | None) -> Compared:
        if digest is None or each.file is None or each.entry is None:
            return each
        same = self._threads.result(digest) == each.entry.content_hash
        self._files += 1
        self._bytes += each.file.size
        self._differing += not same
        if time.monotonic() - self._shown >= PROGRESS_INTERVAL_SECONDS:
            self._show()
        return each if same else each._replace(is_unchanged=False)

    def _show(self) -> None:
        self._shown = time.monotonic()
        logger.info(
            "%d files (%.1f MB) have been compared by their contents; %d are others than their sizes and times say",
            self._files,
            self._bytes / 1e6,
            self._differing,
        )


def _size(each: Compared) -> int:
    return 0 if each.file is None else each.file.size


def _hash(file: SourceFile) -> str | None:
    """Return the hash of a file's content; None where it cannot be read."""
    try:
        return content_hash(read_content(file.source_id, max(file.size, LEAST_BYTES) + 1, file.within))
    except ItemError:
        return None
