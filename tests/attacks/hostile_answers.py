"""What a parser process may answer once a file has taken it over: anything. Each answer costs a process."""

import os
import socket
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from vectorize_pipelines.sandbox import Message, Reserve, Service
from vectorize_pipelines.sandbox.frames import Channel

_LARGEST = 2**30


def service(config: Mapping[str, Any]) -> Service:
    """The service that answers as the header of each task says, with the task's body: `told`, `raw` or `drip`."""
    del config

    def answer(task: Message, reserve: Reserve) -> Message:
        del reserve
        with socket.socket(fileno=os.dup(int(sys.argv[1]))) as connection:
            connection.setblocking(True)
            WAYS[task.header](connection, bytes(task.body))

    return answer


def _told(connection: socket.socket, body: bytes) -> NoReturn:
    """Sends it as the header of a message with an empty body; takes all tasks after it as well."""
    channel = Channel(connection)
    while True:
        connection.sendall(struct.pack("!QQ", len(body), 0) + body)
        body = bytes(channel.receive(_LARGEST, _LARGEST).body)
        channel.send(Message({"taken": True}))


def _raw(connection: socket.socket, body: bytes) -> NoReturn:
    """Writes it where an answer should come, and then sleeps."""
    connection.sendall(body)
    time.sleep(600)
    raise AssertionError("the parent waited")


def _drip(connection: socket.socket, body: bytes) -> NoReturn:
    """Never ends its answer: a byte now and then."""
    while True:
        connection.sendall(b"\0")
        time.sleep(0.1)


WAYS = {"told": _told, "raw": _raw, "drip": _drip}
