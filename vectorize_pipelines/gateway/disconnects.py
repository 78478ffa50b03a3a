"""Work that is for a client alone, and ends when the client goes away. Called by routes that encode."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response

Result = TypeVar("Result")

#: What is noted where nobody hears the answer; nginx has it so, too.
CLIENT_CLOSED_REQUEST = 499


class ClientGoneError(Exception):
    """The client has closed the connection before it was answered; nobody hears of it."""


async def while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns; cancel it when the client goes away, and raise `ClientGoneError`.

    The request's body has been read: what comes next is that the client has gone.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            gone.result()
            raise ClientGoneError
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def install(app: FastAPI) -> None:
    """Have nothing logged, and nothing answered, where the client has gone."""

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: ClientGoneError) -> Response:
        return Response(status_code=CLIENT_CLOSED_REQUEST)
