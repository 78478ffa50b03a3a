"""Waits out a store that is away, so that what was encoded is not encoded again.

    [thread] encode ──▶ queue ──▶ `written`: write_batch ──▶ store
                          │             │ StoreUnavailableError: tried again, for `store_outage_seconds` at most
                          └──▶ Spill: batches go on to disk meanwhile, `spill_bytes` at most; then encoding waits

One `Outage` belongs to a run. `written` makes its calls through `wait_out`, and so does the planner, whose look-ups
find no store either; `overlap.prefetch` asks it whether its queue may grow. Every batch that an outage finds, or that
is encoded during one, goes into the embedding cache too, whatever `cache.enabled: auto` has found: where the store
does not come back in time, or the process dies, the next run takes the vectors from there. Nothing is acknowledged
before the store has it, so none of this decides what is stored.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import pyarrow as pa

from vectorize_pipelines import home
from vectorize_pipelines.errors import StoreUnavailableError
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.stores.servers import pauses

if TYPE_CHECKING:
    from vectorize_pipelines.pipeline.stream import EmbeddingBatch

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

FIRST_PAUSE_SECONDS = 0.5
LOG_INTERVAL_SECONDS = 10.0


class Outage:
    """Whether the store of a run is away, how long that is borne, and what waits meanwhile. Used by several threads.

    With `seconds` 0 nothing is waited for.
    """

    def __init__(self, seconds: float = 0.0, spill: "Spill | None" = None, first_pause: float = FIRST_PAUSE_SECONDS):
        self._seconds = seconds
        self._spill = spill
        self._first_pause = first_pause
        self._changing = threading.Lock()
        self._waiting = 0
        self._left = threading.Event()
        self._lasted = False
        self._listeners: list[Callable[[], None]] = []

    @property
    def on(self) -> bool:
        """Whether somebody waits for the store."""
        return self._waiting > 0

    def listen(self, began: Callable[[], None]) -> None:
        """`began` is called whenever an outage has begun, by the thread that noticed."""
        self._listeners.append(began)

    def close(self) -> None:
        """Ends every waiting soon, with the failure that was waited out. A second call does nothing."""
        self._left.set()

    def wait_out(self, call: Callable[[], Result], began: Callable[[], None] = lambda: None) -> Result:
        """What the call gives, tried again for as long as the store is away.

        `began` is called before the first waiting. Raises `StoreUnavailableError` once the time is up, and at once
        every other error: what is refused stays refused.
        """
        try:
            return call()
        except StoreUnavailableError as error:
            if not self._seconds:
                raise
            first = error
        with self._noticed(first):
            began()
            return self._tried_again(call, first)

    def _tried_again(self, call: Callable[[], Result], error: StoreUnavailableError) -> Result:
        started = shown = time.monotonic()
        for pause in self._pauses():
            if self._left.wait(pause):
                break
            try:
                return call()
            except StoreUnavailableError as again:
                error = again
            now = time.monotonic()
            if now - shown >= LOG_INTERVAL_SECONDS:
                shown = now
                logger.info("the store has been away for %.0f s%s: %s", now - started, self._progress(), error)
        self._lasted = True
        waited = time.monotonic() - started
        raise StoreUnavailableError(
            f"{error}; it was waited for {waited:.0f} s (pipeline.store_outage_seconds is {self._seconds:g}); "
            "nothing that waited is acknowledged, and the next run takes its vectors from the embedding cache, unless "
            "that is off"
        ) from error

    def _pauses(self) -> Iterator[float]:
        """Pauses that grow, until the time is up."""
        end = time.monotonic() + self._seconds
        growing = iter(pauses(64, self._first_pause))
        while (remaining := end - time.monotonic()) > 0:
            yield min(next(growing, remaining), remaining)

    @contextmanager
    def _noticed(self, error: StoreUnavailableError) -> Iterator[None]:
        with self._changing:
            self._waiting += 1
            first = self._waiting == 1
        try:
            if first:
                logger.warning("the store is away; waiting for it, %g s at most: %s", self._seconds, error)
                for began in self._listeners:
                    began()
            yield
        finally:
            with self._changing:
                self._waiting -= 1

    def _progress(self) -> str:
        return "" if self._spill is None else f", {self._spill.bytes / 2**20:,.0f} MiB of batches wait on disk"

    # ---- as `overlap.Overflow`: what the queue of batches asks

    def has_room(self) -> bool:
        """Whether the queue may grow beyond its depth now."""
        return self.on and self._spill is not None and self._spill.has_room()

    def put_aside(self, batch: "EmbeddingBatch") -> "Callable[[], EmbeddingBatch]":
        """Lays a batch aside, on disk if that can be; gives what brings it back."""
        batch.secure()
        if self._spill is None:
            return lambda: batch
        back = self._spill.put(batch.records)
        if back is None:
            return lambda: batch
        batch.records = batch.records.slice(0, 0)
        batch.contents = {}  # read again where another generation needs them
        return partial(_brought_back, batch, back)

    def lose(self, batch: "EmbeddingBatch") -> None:
        """Called with a batch that is not written because the run ends; after an outage its vectors are kept."""
        if self._lasted:
            batch.secure()


def configured_outage(settings: Settings) -> Outage:
    """What a run bears with, as the settings say."""
    pipeline = settings.pipeline
    return Outage(pipeline.store_outage_seconds, Spill(home.spill(settings), pipeline.spill_bytes), FIRST_PAUSE_SECONDS)


def _brought_back(batch: "EmbeddingBatch", records: Callable[[], pa.Table]) -> "EmbeddingBatch":
    batch.records = records()
    return batch


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
        """Whether another table may be put there."""
        return self._usable and self.bytes < self._max_bytes

    def put(self, table: pa.Table) -> Callable[[], pa.Table] | None:
        """Writes a table; gives what reads it back, once. None where the disk takes no more: it stays in memory."""
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
