"""The inside of a confined process: a service that answers one message after the other.

Started by `process.ConfinedProcess`. Parsers and codecs read hostile bytes in C: a process of its own is what bounds
their time and memory, what survives their crashes, and what keeps one that is taken over from reaching anything else.
"""

import contextlib
import importlib
import importlib.util
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.sandbox.confinement import confine, end_with_parent
from vectorize_pipelines.sandbox.frames import Channel, Message

PARENT_CHECK_SECONDS = 1.0
#: Beyond the parent's own limit: this alarm is for a process whose parent is gone.
ALARM_MARGIN_SECONDS = 10.0
#: The parent is believed: it may send as much as it likes.
UNLIMITED = 2**62
MAX_TRACE_CHARACTERS = 8_000

#: Called by a service before it takes so many bytes: it returns when the process may.
Reserve: TypeAlias = Callable[[int], None]
Service: TypeAlias = Callable[[Message, Reserve], Message]


def serve(channel: Channel, service: Service, timeout_seconds: float) -> None:
    """Answer tasks: first that one has come, then with the service's answer, or the error in its place.

    Raises EOFError or ConnectionError when the connection closes.
    """

    def reserve(size: int) -> None:
        _set_alarm(0)
        channel.send(Message({"needs": size}))
        channel.receive(UNLIMITED, UNLIMITED)
        _set_alarm(timeout_seconds + ALARM_MARGIN_SECONDS)

    while True:
        task = channel.receive(UNLIMITED, UNLIMITED)
        if isinstance(task.header, dict) and task.header.get("descriptor"):
            task = Message({**task.header, "descriptor": channel.receive_descriptor()})
        channel.send(Message({"taken": True}))
        _set_alarm(timeout_seconds + ALARM_MARGIN_SECONDS)
        try:
            answer = _answer(service, task, reserve)
            _set_alarm(0)  # the parent may have to wait before it takes a large one
            channel.send(answer)
            del answer
        except MemoryError:  # nothing has been sent: the memory is taken before
            _set_alarm(0)
            channel.send(Message({"error": "MemoryError", "reason": ""}))


def _answer(service: Service, task: Message, reserve: Reserve) -> Message:
    """Return the service's answer, or the error in its place. Raises `MemoryError`."""
    try:
        answer = service(task, reserve)
        return Message({"answer": answer.header}, answer.body)
    except ItemError as error:
        return Message({"error": type(error).__name__, "reason": _clean(str(error))})
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  one file must not end the run; the parent logs the trace
        trace = traceback.format_exc()[-MAX_TRACE_CHARACTERS:]
        return Message({"failed": _clean(f"{type(error).__name__}: {error}"), "trace": _clean(trace)})


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def write_bytecode(modules: Iterable[str]) -> None:
    """Import those of the modules that were never compiled: once confined, the process could not keep the result."""
    for name in modules:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.cached is not None and not Path(spec.cached).exists():
            importlib.import_module(name)


def _set_alarm(seconds: float) -> None:
    # Left to its default the signal ends the process at once, even inside a C function that never returns.
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def _be_silent() -> None:
    """Silence what libraries print: it may hold anything, and would reach the parent's terminal."""
    with Path(os.devnull).open("r+b") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)


def _begin(channel: Channel) -> tuple[Service, float]:
    """Make the service that the parent asks for, and confine this process."""
    setup: Any = channel.receive(UNLIMITED, UNLIMITED).header
    module, _, name = setup["service"].partition(":")
    service: Service = getattr(importlib.import_module(module), name)(setup["config"])
    _be_silent()
    lacking = confine(setup["memory_bytes"], setup["readable"])
    channel.send(Message({"ready": True, "lacking": lacking}))
    return service, setup["timeout_seconds"]


def main() -> None:
    """Run the process; its arguments are the connection's file descriptor and the parent's id."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they may reach the whole group; the parent decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    os.dup2(2, 1)  # what a library prints must not end up in the parent's output
    descriptor, parent = map(int, sys.argv[1:3])
    end_with_parent(parent)
    channel = Channel(socket.socket(fileno=descriptor))
    # The parent ends its processes by ending itself, too.
    with contextlib.suppress(EOFError, ConnectionError):
        service, timeout_seconds = _begin(channel)
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
        serve(channel, service, timeout_seconds)
