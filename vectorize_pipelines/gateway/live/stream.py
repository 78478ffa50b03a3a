"""The response that is a stream of Server-Sent Events. Returned by `gateway.routes.live`."""

from collections.abc import AsyncIterator, Callable

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


class EventStream(Response):
    """Sends what an iterator yields until that ends or the client goes away; calls `closed` then.

    The server's own writing waits while a client does not read, and with it the iterator: what comes meanwhile is
    kept for the client, or not, by whoever made the iterator.
    """

    media_type = "text/event-stream"

    def __init__(self, chunks: AsyncIterator[bytes], closed: Callable[[], None]) -> None:
        self._chunks = chunks
        self._closed = closed
        super().__init__(status_code=200, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as ASGI has it."""
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_until_gone, receive, tasks.cancel_scope)
                async for chunk in self._chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
                tasks.cancel_scope.cancel()
        finally:
            self._closed()


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()
