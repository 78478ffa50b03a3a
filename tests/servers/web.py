"""A web server of the tests' own, in a thread: it answers as a function says, also badly."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

#: Writes an answer to the socket that it is given, for the path that was asked for.
Answering = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Web:
    """Where the server is, and what it was asked."""

    port: int
    asked: list[str] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    def url(self, path: str = "/", host: str = "127.0.0.1") -> str:
        """An address of this server."""
        return f"http://{host}:{self.port}{path}"


def answer(handler: BaseHTTPRequestHandler, status: int = 200, body: bytes = b"", **headers: str) -> None:
    """A whole answer; `content_type="…"` is a header."""
    handler.send_response(status)
    names = {name.replace("_", "-").title(): value for name, value in headers.items()}
    for name, value in {"Content-Length": str(len(body)), **names}.items():
        if value:
            handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(answering: Answering, address: str = "127.0.0.1") -> Iterator[Web]:
    """A server that runs until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            web.asked.append(self.path)
            web.hosts.append(self.headers.get("Host", ""))
            try:
                answering(self)
            except OSError:
                self.close_connection = True  # the client went away, as it should

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            """Nothing to stderr."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Nothing to stderr."""

    with Server((address, 0), Handler) as server:
        web = Web(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield web
        server.shutdown()
        thread.join()
