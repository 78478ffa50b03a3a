"""Log messages that say how far a stream is."""

import logging
import time

from vectorize_pipelines.pipeline.stream import EmbeddingStream

logger = logging.getLogger(__name__)

PROGRESS_INTERVAL_SECONDS = 10.0


class ProgressLog:
    """The progress of one stream. Whoever writes it calls `show` after each batch.

    Every message carries the `stream` itself, for handlers that draw a bar; those between two intervals have level
    DEBUG.
    """

    def __init__(self, stream: EmbeddingStream):
        self._stream = stream
        self._started = self._shown = time.monotonic()

    def show(self, *, last: bool = False) -> None:
        """Log one message."""
        now = time.monotonic()
        due = last or now - self._shown >= PROGRESS_INTERVAL_SECONDS
        if due:
            self._shown = now
        done = self._stream.totals.sum()
        further = self._stream.progress() if due else ""
        logger.log(
            logging.INFO if due else logging.DEBUG,
            "%s: %d%s documents, %d chunks encoded (%.0f a second), %d deleted, %d documents refused%s",
            self._stream.collection,
            done.documents,
            f" of {self._stream.expected}" if self._stream.expected is not None else "",
            done.encoded,
            done.encoded / max(now - self._started, 1e-9),
            done.deleted,
            done.failed,
            f"; {further}" if further else "",
            extra={"stream": self._stream},
        )
