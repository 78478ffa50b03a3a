"""What one caller may take of the server: an ASGI layer that bounds bodies, time, and requests at once.

A request is answered, or its work ends: when its body is too large or too slow, when its time is over, when its client
has gone. `gateway.app` puts the layer in front of the door, so that it counts for those too who have no token;
`gateway.door.connections` bounds what comes before a request is one.
"""

import asyncio
from http import HTTPStatus

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vectorize_pipelines.gateway.problems import Problem, refuse
from vectorize_pipelines.settings.gateway import GatewaySettings

#: Asked when a machine is in trouble, and answered at once: it finds no queue.
UNLIMITED = "/livez"
_EVENTS = b"text/event-stream"
#: A task for each request that is answered at once would cost as much as all the rest of this layer.
_WATCHED_AFTER_SECONDS = 0.1
#: Python reads no longer numbers than some thousand digits.
_MOST_DIGITS = 18


class _Count:
    """How many there are at once, up to a number."""

    def __init__(self, most: int) -> None:
        self._most, self._now = most, 0

    def take(self) -> bool:
        """Count one; return False where there are too many."""
        if self._now >= self._most:
            return False
        self._now += 1
        return True

    def give_back(self) -> None:
        """Count one no longer."""
        self._now -= 1


class Limits:
    """Counts requests, and what goes on for long (streams of events, WebSockets), each up to `max_requests`."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings) -> None:
        self._app = app
        self.settings = settings
        self.requests, self.streams = _Count(settings.max_requests), _Count(settings.max_requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI has it."""
        if scope["type"] == "lifespan" or scope["path"] == UNLIMITED:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._request(scope, receive, send)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self.streams.take():
            await refuse(too_many("WebSockets").response, scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self.streams.give_back()

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if _declared_size(headers) > self.settings.max_body_bytes:
            # Whatever of it still comes is passed over by the server (`gateway.door.connections`).
            await refuse(self.too_large().response, scope, receive, send)
        elif not self.requests.take():
            await refuse(too_many("requests").response, scope, receive, send)
        else:
            await _Exchange(self, scope, receive, send, has_body=_has_body(headers)).run(self._app)

    def too_large(self) -> Problem:
        """Return the answer to a body that is too large."""
        return Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body has more than {self.settings.max_body_bytes} bytes (setting gateway.max_body_bytes)",
        )


class _Exchange:
    """One request, which is counted already, and its answer.

    The app's work runs in a cancel scope. Whatever ends it early answers at once by itself, as work in a thread cannot
    be cancelled, and may go on for a while: the request is counted until the app has answered or its work has ended.
    """

    def __init__(self, limits: Limits, scope: Scope, receive: Receive, send: Send, *, has_body: bool) -> None:
        self._limits, self._scope, self._receive, self._send = limits, scope, receive, send
        self._counted_in: _Count | None = limits.requests
        self._loop = asyncio.get_running_loop()
        self._work = anyio.CancelScope()
        self._seconds = limits.settings.request_seconds
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._refusal: asyncio.Task[None] | None = None
        self._client_gone = asyncio.Event()
        self._empty_body_due = not has_body
        self._body_complete = not has_body
        self._waits_for_body = False
        self._size = 0
        self._answer_begun = self._answer_complete = False

    async def run(self, app: ASGIApp) -> None:
        """Have the app answer, within the limits."""
        self._restart_timer()
        try:
            with self._work:
                await app(self._scope, self.receive, self.send)
        finally:
            self._count_no_longer()
            self._stop_timer()
            if self._watcher is not None:
                self._watcher.cancel()
            if self._refusal is not None:
                await self._refusal

    async def receive(self) -> Message:
        """Return the next piece of the body; after its last, return when the client has gone."""
        if self._empty_body_due:
            self._empty_body_due = False
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._body_complete:
            self._watch_client()
            await self._client_gone.wait()
            return {"type": "http.disconnect"}
        self._waits_for_body = True
        message = await self._receive()
        self._waits_for_body = False
        if message["type"] == "http.disconnect":
            self._work.cancel()
            await anyio.sleep_forever()  # until it is cancelled: there is nobody to work for
        self._size += len(message.get("body", b""))
        if self._size > self._limits.settings.max_body_bytes:
            self._refuse(self._limits.too_large())
            await anyio.sleep_forever()
        if not message.get("more_body", False):
            self._body_complete = True
            self._restart_timer()
        return message

    async def send(self, message: Message) -> None:
        """Pass a piece of the answer on, unless another answer has been given meanwhile."""
        if self._refusal is not None:
            return
        if message["type"] == "http.response.start":
            if _is_stream(message) and not self._begin_stream():
                return
            self._answer_begun = True
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self._answer_complete = True
            self._count_no_longer()  # before the client has the answer, and may send its next request
        await self._send(message)

    def _begin_stream(self) -> bool:
        if not self._limits.streams.take():
            self._refuse(too_many("streams of events"))
            return False
        self._count_no_longer()
        self._counted_in = self._limits.streams
        return True

    def _count_no_longer(self) -> None:
        if self._counted_in is not None:
            self._counted_in.give_back()
            self._counted_in = None

    def _watch_client(self) -> None:
        """Watch, from the end of the body on, for the client to go; nobody else asks the server for messages then."""
        if self._watcher is None:
            self._watcher = self._loop.create_task(self._end_with_client())

    async def _end_with_client(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._client_gone.set()
        # The server says the same once the answer is complete; what the app does after that is to be done.
        if not self._answer_complete:
            self._work.cancel()

    def _restart_timer(self) -> None:
        """Begin the time of the body, or that of the work, whose client is watched once it goes on for a moment."""
        self._stop_timer()
        if self._body_complete:
            self._timer = self._loop.call_later(_WATCHED_AFTER_SECONDS, self._goes_on)
        else:
            self._timer = self._loop.call_later(self._seconds, self._time_is_over)

    def _goes_on(self) -> None:
        self._watch_client()
        if not self._answer_begun:
            left = max(0.0, self._seconds - _WATCHED_AFTER_SECONDS)
            self._timer = self._loop.call_later(left, self._time_is_over)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _time_is_over(self) -> None:
        if self._answer_begun:
            return
        if self._waits_for_body:
            detail = f"the body did not arrive within {self._seconds:g} s (setting gateway.request_seconds)"
            self._refuse(Problem(HTTPStatus.REQUEST_TIMEOUT, detail, headers={"Connection": "close"}))
        else:
            detail = f"there was no answer within {self._seconds:g} s (setting gateway.request_seconds)"
            self._refuse(Problem(HTTPStatus.GATEWAY_TIMEOUT, detail))

    def _refuse(self, problem: Problem) -> None:
        """End the work and answer in its place; an answer that has begun stays a part, and the server cuts it off."""
        self._work.cancel()
        if not self._answer_begun:
            self._answer_begun = self._answer_complete = True
            answer = problem.response
            self._refusal = self._loop.create_task(refuse(answer, self._scope, self._receive, self._send))


def too_many(what: str) -> Problem:
    """Return the answer to one more than there may be at once."""
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        f"too many {what} are open at once (setting gateway.max_requests): come again in a moment",
        headers={"Retry-After": "1"},
    )


def _declared_size(headers: Headers) -> int:
    """The size of the body as its sender says; 0 where it does not say, or not in digits, which no server lets pass."""
    declared = headers.get("content-length", "")
    if not (declared.isascii() and declared.isdigit()):
        return 0
    return int(declared) if len(declared) <= _MOST_DIGITS else 10**_MOST_DIGITS


def _has_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _is_stream(message: Message) -> bool:
    return any(
        name.lower() == b"content-type" and value.startswith(_EVENTS) for name, value in message.get("headers", ())
    )
