"""uvicorn's server, which waits for requests under way before it ends: streams of events have to end by themselves.

Called by `vectorize serve`.
"""

import socket
from collections.abc import Callable

import uvicorn


class StreamingServer(uvicorn.Server):
    """A server that calls `ending` once it is to stop, before it waits for anything."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ending = ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening, end what is under way, and end the application."""
        self._ending()
        await super().shutdown(sockets)
