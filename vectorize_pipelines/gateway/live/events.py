"""Changes of state for as long as the server runs: the hub, and the sources that fill it. A field of `Services`."""

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

import anyio.to_thread

from vectorize_pipelines.gateway.live.hub import Hub
from vectorize_pipelines.gateway.live.sources import LedgerWatch, ResultsReader
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.ledger import RequestLedger

#: How long a client waits at most until the source has a place. Without one it is served, too.
POSITION_SECONDS = 2.0


class LiveEvents:
    """The changes of all requests. An async context manager; `end` before the server waits for its streams to end.

    Nothing is asked of the brokers or of the ledger before it returns: they may be away.
    """

    def __init__(self, settings: Settings, ledger: RequestLedger) -> None:
        self.hub = Hub()
        self._settings = settings
        self._ledger = ledger
        self._reader: ResultsReader | None = None
        self._watching: asyncio.Task[None] | None = None

    async def position(self) -> None:
        """Return once no change is missed from now on or, where the source is away, after a while."""
        with suppress(TimeoutError):
            async with asyncio.timeout(POSITION_SECONDS):
                await self.hub.positioned.wait()

    def end(self) -> None:
        """End every stream, each with a comment that says why; a second call does nothing."""
        self.hub.end()

    async def __aenter__(self) -> Self:
        kafka = self._settings.kafka
        has_kafka = kafka.bootstrap_servers is not None
        if has_kafka:
            self._reader = ResultsReader(kafka, self.hub, asyncio.get_running_loop())
            self._reader.start()
        watch = LedgerWatch(self._ledger, self.hub, everything=not has_kafka)
        self._watching = asyncio.create_task(watch.run(), name="ledger-watch")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        if self._reader is not None:
            await anyio.to_thread.run_sync(self._reader.close)
