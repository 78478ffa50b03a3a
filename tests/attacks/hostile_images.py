"""What an image does that has taken over the process which decodes it. Run in image processes by the tests."""

import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from vectorize_pipelines.sandbox import Message, Reserve, Service
from vectorize_pipelines.sandbox.frames import Channel

PR_SET_NAME = 15


def image_service(config: Mapping[str, Any]) -> Service:
    """The service of image processes that do what the bytes of the image say, in the place of decoding."""
    del config

    def answer(message: Message, reserve: Reserve) -> Message:
        action, _, argument = bytes(message.body).decode().partition(":")
        size = 0 if message.header["preprocessing"] is None else _pixels_size(message.header["preprocessing"])
        return IMAGE_ACTIONS[action](argument, size, reserve)

    return answer


def _pixels_size(preprocessing: Mapping[str, Any]) -> int:
    return int(preprocessing["height"] * preprocessing["width"] * 3)


def _crash(_: str, size: int, reserve: Reserve) -> Message:
    del size, reserve
    return Message(ctypes.string_at(0))


def _hang(_: str, size: int, reserve: Reserve) -> Message:
    """In C, with the interpreter's lock held: no thread of the process runs, and no signal handler."""
    del size, reserve
    ctypes.CDLL(None).prctl(PR_SET_NAME, b"hanging")
    ctypes.PyDLL(None).sleep(600)
    raise AssertionError("the parent waited")


def _process_id(_: str, size: int, reserve: Reserve) -> Message:
    del reserve
    return Message(None, struct.pack("!Q", os.getpid()).ljust(size, b"\0"))


def _wrong_size(_: str, size: int, reserve: Reserve) -> Message:
    del reserve
    return Message(None, bytes(size - 1))


def _wrong_header(_: str, size: int, reserve: Reserve) -> Message:
    del size, reserve
    return Message(["JPEG", 2**40, -1])


def _large_header(length: str, size: int, reserve: Reserve) -> Message:
    del size, reserve
    return Message("x" * int(length))


def _large_reservation(_: str, size: int, reserve: Reserve) -> Message:
    """A message that reserves a byte and is large by what else it says, and then a large answer."""
    del size, reserve
    channel = Channel(socket.socket(fileno=os.dup(int(sys.argv[1]))))
    channel.send(Message({"needs": 1, "more": "x" * 2**18}))
    channel.receive(2**20, 0)
    return Message("x" * 2**18)


def _reserve(wanted: str, size: int, reserve: Reserve) -> Message:
    """Gives from when to when it had the bytes that it asked for."""
    reserve(int(wanted))
    begun = time.monotonic()
    time.sleep(0.2)
    return Message(None, struct.pack("!dd", begun, time.monotonic()).ljust(size, b"\0"))


IMAGE_ACTIONS: Mapping[str, Callable[[str, int, Reserve], Message]] = {
    "crash": _crash,
    "hang": _hang,
    "pid": _process_id,
    "wrong size": _wrong_size,
    "wrong header": _wrong_header,
    "reserve": _reserve,
    "large header": _large_header,
    "large reservation": _large_reservation,
}
