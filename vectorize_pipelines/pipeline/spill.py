"""Batches on disk while the store is away: encoding goes on, and nothing is encoded again.

    [thread] encode ──▶ queue ──▶ `writing.written`: write_batch ──▶ store
                          │             │ StoreUnavailableError: tried again, for `store_outage_seconds` at most
                          └──▶ Spill: batches go on to disk meanwhile, `spill_bytes` at most; then encoding waits

`core.prefetch` asks the run's `SpillingRetry` whether its queue may grow. Every batch that an outage finds, or that is
encoded during one, goes into the embedding cache too, whatever `cache.enabled: auto` has found: where the store does
not come back in time, or the process dies, the next run takes the vectors from there.
"""

import logging
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import IO

import pyarrow as pa

from vectorize_pipelines.pipeline.batch import EmbeddingBatch
from vectorize_pipelines.pipeline.outage import StoreRetry
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home

logger = logging.getLogger(__name__)


class Spill:
    """Tables on disk, within `max_bytes` but for the last one.

    The files have no names, so that they go with the process, however it ends.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self._folder = folder
        self._max_bytes = max_bytes
        self._counting = threading.Lock()
        self._usable = True
        self.bytes = 0

    def has_room(self) -> bool:
        """Return whether another table may be put there."""
        return self._usable and self.bytes < self._max_bytes

    def put(self, table: pa.Table) -> Callable[[], pa.Table] | None:
        """Write a table; return what reads it back, once. None where the disk takes no more: it stays in memory."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (closed by who reads it back)
            try:
                with pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table)
                size = file.tell()
            except BaseException:
                file.close()
                raise
        except OSError as error:
            self._usable = False
            logger.warning("no batches are laid aside in %s any more, and encoding waits: %s", self._folder, error)
            return None
        self._count(size)
        return partial(self._read_back, file, size)

    def _read_back(self, file: IO[bytes], size: int) -> pa.Table:
        with file:
            file.seek(0)
            table = pa.ipc.open_file(file).read_all()
        self._count(-size)
        return table

    def _count(self, size: int) -> None:
        with self._counting:
            self.bytes += size


class SpillingRetry(StoreRetry):
    """Retries during whose waits batches go on to disk: the `core.prefetch.Overflow` of a stream's queue."""

    def __init__(self, seconds: float, spill: Spill, first_pause: float | None = None):
        """`first_pause`: as for `StoreRetry`."""
        super().__init__(seconds, first_pause)
        self._spill = spill

    def has_room(self) -> bool:
        """Return whether the queue may grow beyond its depth now."""
        return self.on and self._spill.has_room()

    def spill(self, batch: EmbeddingBatch) -> Callable[[], EmbeddingBatch]:
        """Lay a batch aside, on disk if that can be; return what brings it back."""
        batch.cache_once()
        back = self._spill.put(batch.records)
        if back is None:
            return lambda: batch
        batch.records = batch.records.slice(0, 0)
        batch.contents = {}  # read again where another generation needs them
        return partial(_brought_back, batch, back)

    def discard(self, batch: EmbeddingBatch) -> None:
        """Keep the vectors of a batch that is not written because the run ends, where it ends by an outage."""
        if self._lasted:
            batch.cache_once()

    def _progress(self) -> str:
        return f", {self._spill.bytes / 2**20:,.0f} MiB of batches wait on disk"


def _brought_back(batch: EmbeddingBatch, records: Callable[[], pa.Table]) -> EmbeddingBatch:
    batch.records = records()
    return batch


def configured_outage(settings: Settings) -> SpillingRetry:
    """Return what a run bears with, as the settings say."""
    pipeline = settings.pipeline
    return SpillingRetry(pipeline.store_outage_seconds, Spill(home.spill(settings), pipeline.spill_bytes))
