"""Notes of accepted requests in the ledger: all that wait are written in one transaction.

Called by `tasks.submitting`. A request is answered once it is noted, so that whoever asks for it next finds it. Yet
the topic decides whether a request is accepted, and it is in the topic by then: where the ledger is slow or away,
the request is answered without its note, which is tried until it succeeds, and no further ones are taken in meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from anyio import CapacityLimiter, to_thread

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.messaging.outgoing import OutgoingRequest
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow

logger = logging.getLogger(__name__)

#: So long a note may take before its request is answered without it.
PATIENCE_SECONDS = 5.0
#: Between two attempts to reach a ledger that failed.
RETRY_SECONDS = 1.0
#: So long a server that ends waits for a ledger that is away.
CLOSING_SECONDS = 10.0


@dataclass(slots=True)
class _Note:
    """Rows that are told of together."""

    rows: Sequence[RequestRow]
    told: Callable[[], None] | None

    def tell(self) -> None:
        told, self.told = self.told, None
        if told is not None:
            told()


class PendingNotes:
    """The rows that are to be noted. Every method is called on one event loop."""

    def __init__(self, ledger: RequestLedger):
        self._ledger = ledger
        self._waiting: list[_Note] = []
        self._writing: list[_Note] = []
        self._some = asyncio.Event()
        self._trouble: LedgerError | None = None
        # A thread of its own: those that all routes share may all be waiting for the ledger, too.
        self._limiter = CapacityLimiter(1)
        self._loop = asyncio.get_running_loop()
        self._writer = self._loop.create_task(self._write())
        self._writer.add_done_callback(self._ended)

    def check(self) -> None:
        """Return where notes are being written. Raises `LedgerError` from a failure until the next success."""
        if self._trouble is not None:
            raise LedgerError(f"{self._trouble}; nothing was accepted")

    def add(self, rows: Sequence[RequestRow], told: Callable[[], None]) -> None:
        """Have rows noted; `told` is called once, when they are, or when that takes too long to wait for."""
        self._waiting.append(_Note(rows, told))
        self._some.set()
        if self._trouble is not None:
            self._waiting[-1].tell()

    def find(self, request_id: str) -> RequestRow | None:
        """Return the row of a request that is still to be noted."""
        for note in (*reversed(self._waiting), *reversed(self._writing)):
            for row in reversed(note.rows):
                if row.request_id == request_id:
                    return row
        return None

    async def close(self) -> None:
        """Wait until all is noted, but no longer than `CLOSING_SECONDS`."""
        deadline = self._loop.time() + CLOSING_SECONDS
        while (self._waiting or self._writing) and not self._writer.done() and self._loop.time() < deadline:
            await asyncio.sleep(0.01)
        left = sum(len(note.rows) for note in (*self._waiting, *self._writing))
        if left:
            logger.warning("%d accepted requests are not in the ledger; the runs that embed them will note them", left)
        self._writer.cancel()
        await asyncio.wait([self._writer])

    async def _write(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            self._writing, self._waiting = self._waiting, []
            try:
                await self._record([row for note in self._writing for row in note.rows])
            except LedgerError as error:
                self._stall(error)
                self._waiting, self._writing = self._writing + self._waiting, []
                self._some.set()
                await asyncio.sleep(RETRY_SECONDS)
                continue
            done, self._writing = self._writing, []
            if self._trouble is not None:
                self._trouble = None
                logger.info("the ledger takes notes again; %d were late", sum(len(note.rows) for note in done))
            for note in done:
                note.tell()

    async def _record(self, rows: list[RequestRow]) -> None:
        too_long = self._loop.call_later(PATIENCE_SECONDS, self._stall, LedgerError("the database of requests is busy"))
        try:
            await to_thread.run_sync(self._ledger.record, rows, limiter=self._limiter, abandon_on_cancel=True)
        finally:
            too_long.cancel()

    def _stall(self, trouble: LedgerError) -> None:
        if self._trouble is None:
            logger.warning(
                "accepted requests cannot be noted now, and no more are accepted until they are: %s", trouble
            )
        self._trouble = trouble
        for note in (*self._writing, *self._waiting):
            note.tell()

    def _ended(self, writer: "asyncio.Task[None]") -> None:
        """A defect in the writer must not leave requests without an answer, nor accept any without a note."""
        if not writer.cancelled() and (error := writer.exception()) is not None:
            logger.error("notes of requests cannot be written any more: restart the server", exc_info=error)
            self._stall(LedgerError("the server cannot note requests any more; its log has the reason"))


def pending_row(request: OutgoingRequest, origin: Origin, run_id: str | None = None) -> RequestRow:
    """Return the row of a request that waits. `run_id` is that of a run for it alone."""
    return RequestRow(
        request_id=request.request.task_id,
        state=RequestState.PENDING,
        modality=request.modality,
        submitted_at=datetime.fromtimestamp(origin.timestamp_ms / 1000, UTC),
        topic=origin.topic,
        partition=origin.partition,
        offset=origin.offset,
        timestamp_ms=origin.timestamp_ms,
        collection=request.request.collection,
        run_id=run_id,
        items=len(request.request.items),
        task_type=request.request.task_type.value,
        metadata=request.request.metadata,
    )
