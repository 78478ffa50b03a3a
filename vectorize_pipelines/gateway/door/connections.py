"""What one connection may cost before there is a request, and after its answer: bounds that uvicorn has none of.

uvicorn waits for the rest of a header for ever, keeps one of any length, and holds an answer until its client takes
it. `vectorize serve` gives it these classes of connections as `http` and `ws`.
"""

import asyncio
import resource
from enum import Enum
from http import HTTPStatus
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from vectorize_pipelines.gateway.door.limits import too_many
from vectorize_pipelines.gateway.problems import MEDIA_TYPE, Problem
from vectorize_pipelines.settings.gateway import GatewaySettings

_HEADER_SECONDS = 20.0
_HEADER_BYTES = 64 * 1024
#: Connections for each request that may be handled: others wait for their next one, or are a stream.
_PER_REQUEST = 4
#: Part of the descriptors that a process may have; the rest is for files, the store and the brokers.
_OF_DESCRIPTORS = 0.5


def bounded_connections(settings: GatewaySettings) -> type[asyncio.Protocol]:
    """Return the class of connections that a server with these settings is to have (`uvicorn.Config(http=…)`)."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = settings.max_requests * _PER_REQUEST
    if descriptors != resource.RLIM_INFINITY:
        most = min(most, max(1, int(descriptors * _OF_DESCRIPTORS)))

    class Bounded(BoundedConnection):
        most_connections = most
        header_seconds = min(_HEADER_SECONDS, settings.request_seconds)
        answer_seconds = settings.request_seconds

    return Bounded


class _Reading(Enum):
    """What of a request has come."""

    NOTHING = "nothing"
    HEADER = "a part of its header"
    BODY = "its header, and perhaps a part of its body"


class BoundedConnection(HttpToolsProtocol):
    """A connection that is closed when its client takes too long.

    It has `header_seconds` from opening, or from the first byte of a request, to the end of a header; and as long to
    send the rest of a body that nobody wants any more. An answer of which nothing is taken for `answer_seconds` is
    thrown away.
    """

    most_connections: ClassVar[int]
    header_seconds: ClassVar[float]
    answer_seconds: ClassVar[float]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading = _Reading.NOTHING
        self._header_bytes = 0
        self._overdue: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self._end(too_many("connections"))
        else:
            self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self._watch_no_longer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._reading is _Reading.NOTHING:
            self._expect()  # of empty lines, the parser says nothing
        super().data_received(data)
        if self._reading is not _Reading.HEADER:
            return
        self._header_bytes += len(data)
        if self._header_bytes > _HEADER_BYTES and not self.transport.is_closing():
            detail = f"the header has more than {_HEADER_BYTES} bytes"
            self._end(Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail))

    def on_message_begin(self) -> None:
        self._reading, self._header_bytes = _Reading.HEADER, 0
        self._expect()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._reading = _Reading.BODY
        self._expect_nothing()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reading = _Reading.NOTHING
        self._expect_nothing()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._reading is _Reading.BODY and self.cycle.response_complete and not self.transport.is_closing():
            self._expect()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._watch_no_longer()
        super().resume_writing()

    def _expect(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(self.header_seconds, self._is_overdue)

    def _expect_nothing(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _is_overdue(self) -> None:
        self._overdue = None
        if self.flow.read_paused:  # it is the server that reads nothing, while it handles an earlier request
            self._expect()
        else:
            self.transport.close()

    def _watch_reader(self) -> None:
        self._watch_no_longer()
        unsent = self.transport.get_write_buffer_size()
        self._stalled = self.loop.call_later(self.answer_seconds, self._look_at_reader, unsent)

    def _watch_no_longer(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _look_at_reader(self, unsent: int) -> None:
        if self.transport.get_write_buffer_size() < unsent:
            self._watch_reader()
        else:
            self.transport.abort()  # to close it would wait for the client again

    def _end(self, problem: Problem) -> None:
        """Answer before there is a request, and close."""
        self._expect_nothing()
        body = bytes(problem.response.body)
        head = [
            f"HTTP/1.1 {problem.status.value} {problem.status.phrase}",
            f"content-type: {MEDIA_TYPE}",
            f"content-length: {len(body)}",
            "connection: close",
            *(f"{name.lower()}: {value}" for name, value in problem.headers.items()),
        ]
        self.transport.write("\r\n".join(head).encode() + b"\r\n\r\n" + body)
        self.transport.close()


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket that ends when its client answers no ping, also where that takes nothing of what was sent to it.

    To close it waits until everything is sent. A client that is not gone has as long as for a ping to take that in.
    """

    def send_keepalive_ping(self) -> None:
        super().send_keepalive_ping()
        if self.close_sent or self.transport.is_closing():  # no ping was sent, whose answer could be missing
            self._abort_later()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._abort_later()

    def _abort_later(self) -> None:
        self.loop.call_later(self.ping_timeout or 0, self.transport.abort)
