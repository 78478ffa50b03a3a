"""Messages between a process and those that it confines: a JSON value and bytes, of bounded length, in bounded time.

Nothing here runs code that the other side chose: no pickle, no class by name.
"""

import json
import re
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from vectorize_pipelines.core.items import JsonValue

_LENGTHS = struct.Struct("!QQ")
_STEP_BYTES = 2**20
#: Below it a copy costs less than a system call.
_JOINED_BYTES = 2**14
#: A marker's byte, with which a file descriptor travels.
_MARK = b"\0"

#: What objects take in CPython, by the bytes that stand for them: one with a member, a list, another value, and a text,
#: which has two quotation marks.
_WEIGHTS = {b"{": 160, b"[": 96, b",": 48, b'"': 32}
#: No JSON takes more than so many times its size as objects; `[[0]],` comes close.
_MOST_PER_BYTE = 40

#: JSON that may hold what is no text (NUL, half of a surrogate pair) or no number of 64 bits.
_SUSPECT = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])|[0-9]{19}|[eE]\+?[0-9]{3}")


class InvalidAnswerError(Exception):
    """The other side sent what it must not; the message says what, without repeating it."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `body` travels as it is, `header` as JSON."""

    header: Any
    body: bytes | bytearray = b""


def _refused_constant(name: str) -> NoReturn:
    raise ValueError(f"the number {name}")


_DECODER = json.JSONDecoder(parse_constant=_refused_constant)


class Channel:
    """One end of a pair of connected sockets. Used by one thread at a time.

    Every wait ends at `deadline`, a time of `time.monotonic`, with `TimeoutError`; None waits for ever.
    """

    def __init__(self, connection: socket.socket):
        self._socket = connection

    def close(self) -> None:
        """Close the socket: the other end then reads its end."""
        self._socket.close()

    def send(self, message: Message, deadline: float | None = None, descriptor: int | None = None) -> None:
        """Send a message, and after it a file descriptor. Raises `OSError` where nobody is there to take it."""
        header = encoded(message.header)
        lengths = _LENGTHS.pack(len(header), len(message.body))
        self._bound(deadline)
        if len(message.body) < _JOINED_BYTES:
            self._socket.sendall(b"".join((lengths, header, message.body)))
        else:
            self._socket.sendall(lengths + header)
            self._bound(deadline)
            self._socket.sendall(message.body)
        if descriptor is not None:
            self._bound(deadline)
            socket.send_fds(self._socket, [_MARK], [descriptor])

    def receive_descriptor(self) -> int:
        """Return the file descriptor that follows a message. Raises `EOFError` where none does."""
        _, descriptors, _, _ = socket.recv_fds(self._socket, 1, 1)
        if not descriptors:
            raise EOFError("no file descriptor came")
        return descriptors[0]

    def receive(
        self,
        largest_header: int,
        largest_body: int,
        deadline: float | None = None,
        wanted: Callable[[], bool] | None = None,
        admit: Callable[[int], None] | None = None,
    ) -> Message:
        """Return the next message.

        `wanted` is asked every second, and ends the wait by being false. `admit` is called with the bytes of memory
        that the message may take at most, before it takes them, and returns when it may; that wait does not count.
        Raises `EOFError` where the other end is closed, and `InvalidAnswerError` for what is no message within these
        limits, in bytes.
        """
        lengths = self._read(_LENGTHS.size, deadline, wanted)
        header_size, body_size = _LENGTHS.unpack(lengths)
        if header_size > largest_header or body_size > largest_body:
            raise InvalidAnswerError(
                f"a message of {header_size:,} and {body_size:,} bytes, where {largest_header:,} and "
                f"{largest_body:,} are taken"
            )
        if admit is not None:
            begun = time.monotonic()
            admit(_most_memory(header_size, body_size, largest_header))
            deadline = None if deadline is None else deadline + time.monotonic() - begun
        header = _json(self._read(header_size, deadline, wanted), largest_header)
        return Message(header, self._read(body_size, deadline, wanted))

    def _read(self, size: int, deadline: float | None, wanted: Callable[[], bool] | None) -> bytearray:
        """Take memory only as bytes come, not as they are announced."""
        content = bytearray(min(size, _STEP_BYTES))
        self._fill(content, deadline, wanted)
        while len(content) < size:
            part = bytearray(min(size - len(content), _STEP_BYTES))
            self._fill(part, deadline, wanted)
            content += part
        return content

    def _fill(self, part: bytearray, deadline: float | None, wanted: Callable[[], bool] | None) -> None:
        with memoryview(part) as view:
            filled = 0
            while filled < len(part):
                self._bound(deadline, 1.0 if wanted else None)
                try:
                    count = self._socket.recv_into(view[filled:])
                except TimeoutError:
                    if wanted is not None and not wanted():
                        raise EOFError("nobody waits any more") from None
                    continue
                if count == 0:
                    raise EOFError("the other end is closed")
                filled += count

    def _bound(self, deadline: float | None, step: float | None = None) -> None:
        """Bound the next call. Raises `TimeoutError` where no time is left."""
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError("no answer in time")
        self._socket.settimeout(step if left is None else min(left, step or left))


def encoded(header: object) -> bytes:
    """Return a header as it travels."""
    return json.dumps(header, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def weight(content: bytes | bytearray) -> int:
    """Return about how many bytes the objects take that Python makes of this JSON, beside the characters of its texts.

    Counted before anything is made of it: `{}` takes two bytes there and sixty-four as an object. What stands within
    texts counts as well.
    """
    return sum(size * content.count(mark) for mark, size in _WEIGHTS.items())


def most_weight(largest_header: int) -> int:
    """Return what a header's objects may take: enough for a table's values, too little for mere empty objects."""
    return max(2**18, 3 * largest_header)


def _most_memory(header_size: int, body_size: int, largest_header: int) -> int:
    """Return what a message takes at most: its bytes, the text that they become, and the header's objects.

    A text takes four bytes a character as soon as one of them is an emoji.
    """
    return 9 * header_size + min(_MOST_PER_BYTE * header_size, most_weight(largest_header)) + 5 * body_size


def _json(content: bytearray, largest: int) -> JsonValue:
    """Return the JSON; raise `InvalidAnswerError` for what is none, or JSON that no record may hold."""
    if weight(content) > most_weight(largest):
        raise InvalidAnswerError("a message of too many values")
    try:
        value: JsonValue = _DECODER.decode(content.decode())
        if _SUSPECT.search(content):
            _check(value)
    except (ValueError, RecursionError) as error:
        raise InvalidAnswerError(f"no JSON that can be taken ({type(error).__name__})") from error
    return value


def _check(value: JsonValue) -> None:
    """Raise `ValueError` for text with NUL or half a surrogate pair, integers beyond 64 bits, infinite numbers."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("NUL in a text")
        value.encode()
    elif isinstance(value, dict):
        for key, member in value.items():
            _check(key)
            _check(member)
    elif isinstance(value, list):
        for member in value:
            _check(member)
    elif isinstance(value, float):
        if value in (float("inf"), float("-inf")):
            raise ValueError("an infinite number")
    elif isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("an integer of more than 64 bits")
