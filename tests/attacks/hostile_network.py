"""A network of its own, with a name server that lies: run in new namespaces by `test_addresses`, prints JSON.

Here "public" addresses are addresses of the loopback device, so that everything is real: the resolver, its questions
over UDP, the sockets and the servers that they reach.
"""

import json
import socket
import socketserver
import struct
import sys
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.servers.web import answer
from vectorize_pipelines.core.guarded_http import Deadline, exchange, parse
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.settings import UriSettings
from vectorize_pipelines.sources.fetching import FetchPolicy, fetch

PUBLIC, OTHER_PUBLIC, PUBLIC_6 = "93.184.215.14", "93.184.215.15", "2606:2800:21f:cb07::14"
PRIVATE, METADATA, LOOPBACK = "10.0.0.5", "169.254.169.254", "127.0.0.1"
#: What the namespace's loopback device answers to.
ADDRESSES = (PUBLIC, OTHER_PUBLIC, PUBLIC_6, PRIVATE, METADATA)
PORT = 8000

#: Name -> the answers to its first question, its second, …; the last one again and again. A and AAAA are told apart.
NAMES: dict[str, list[list[str]]] = {
    "public.test": [[PUBLIC]],
    "public6.test": [[PUBLIC_6]],
    "rebinding.test": [[PUBLIC], [LOOPBACK]],
    "rebinding-back.test": [[LOOPBACK], [PUBLIC]],
    "flipping.test": [[PUBLIC], [METADATA], [PUBLIC], [METADATA], [PUBLIC], [METADATA]],
    "mixed.test": [[PUBLIC, LOOPBACK]],
    "mixed-last.test": [[PUBLIC, OTHER_PUBLIC, PUBLIC_6, METADATA]],
    "mixed6.test": [[PUBLIC, "::1"]],
    "inner.test": [[PRIVATE]],
    "metadata.test": [[METADATA]],
    "mapped.test": [["::ffff:127.0.0.1"]],
    "nat64.test": [["64:ff9b:1::7f00:1"]],
    "aws6.test": [["fd00:ec2::254"]],
}

asked: defaultdict[tuple[str, int], int] = defaultdict(int)
connected: list[str] = []


class _Dns(socketserver.BaseRequestHandler):
    """Answers A (1) and AAAA (28) questions as `NAMES` says, with a lifetime of no second."""

    def handle(self) -> None:
        packet, server = self.request
        labels, place = [], 12
        while packet[place]:
            labels.append(packet[place + 1 : place + 1 + packet[place]].decode())
            place += 1 + packet[place]
        question = packet[12 : place + 5]
        kind = struct.unpack(">H", packet[place + 1 : place + 3])[0]
        name = ".".join(labels).lower()
        answers = NAMES.get(name, [[]])
        number = min(asked[name, kind], len(answers) - 1)
        asked[name, kind] += 1
        family = {1: socket.AF_INET, 28: socket.AF_INET6}.get(kind)
        wanted = [each for each in answers[number] if (":" in each) == (family == socket.AF_INET6)] if family else []
        records = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", kind, 1, 0, len(data)) + data
            for data in (socket.inet_pton(family or 0, each) for each in wanted)
        )
        code = 0 if name in NAMES else 3
        head = packet[:2] + struct.pack(">HHHHH", 0x8180 | code, 1, len(wanted), 0, 0)
        server.sendto(head + question + records, self.client_address)


class _Web(BaseHTTPRequestHandler):
    """`/to?URL` redirects; anything else is answered with the address that was connected to."""

    def do_GET(self) -> None:
        place = str(self.connection.getsockname()[0])
        connected.append(place)
        if self.path.startswith("/to?"):
            answer(self, 302, location=self.path[4:])
        else:
            answer(self, body=place.encode())

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing to stderr."""


class _Server(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _attempt(how: str, uri: str) -> dict[str, Any]:
    """What came of one URI, which addresses were connected to, and how often names were asked for."""
    asked.clear()
    connected.clear()
    policy = FetchPolicy.of(UriSettings(timeout_seconds=20))
    try:
        if how == "GET":
            result = fetch(uri, policy).decode()
        else:
            target, deadline = parse(uri), Deadline(20)
            answered = exchange("POST", target, headers={}, limit=100, allow_private=False, deadline=deadline)
            result = answered.body.decode()
    except ItemError as error:
        result = f"{type(error).__name__}: {error}"
    questions = {name: count for (name, kind), count in asked.items() if kind == 1}
    reached = sorted({each.removeprefix("::ffff:") for each in connected})
    return {"result": result.removeprefix("::ffff:"), "reached": reached, "questions": questions}


def main() -> None:
    """Reads a list of [method, URI], prints what came of each."""
    with (
        socketserver.ThreadingUDPServer((LOOPBACK, 53), _Dns) as names,
        _Server(("::", PORT), _Web) as web,
    ):
        for server in (names, web):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        json.dump([_attempt(*each) for each in json.load(sys.stdin)], sys.stdout)
        for server in (names, web):
            server.shutdown()


if __name__ == "__main__":
    main()
