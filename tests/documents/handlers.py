"""What parser processes are made to do in the tests: the task's URI says what, and after a colon with what.

`ask` has a pool do something, `done` reads what it did. The processes see no files and write none: one that is to be
found while it is busy changes its name.
"""

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import NoReturn

import psutil

from vectorize_pipelines.core.items import content_hash
from vectorize_pipelines.documents import ParsedDocument, ParseOutcome, ParserPool
from vectorize_pipelines.documents.errors import EncryptedDocumentError
from vectorize_pipelines.documents.worker import Task
from vectorize_pipelines.settings import DocumentSettings

BUSY = "busy-parser"
PR_SET_NAME = 15


def act(task: Task, settings: DocumentSettings) -> ParseOutcome:
    """The handler; its outcome's text is what the action returned."""
    action, _, argument = task.uri.partition(":")
    return ParseOutcome(content_hash(""), ParsedDocument(ACTIONS[action](argument), {}))


def ask(pool: ParserPool, action: str) -> Future[ParseOutcome]:
    """Has a process of a pool with the handler `act` do something."""
    return pool.submit(action, content=b"")


def done(outcome: Future[ParseOutcome]) -> str:
    """What the action returned. Raises what it ended in."""
    document = outcome.result().document
    assert document is not None
    return document.text


def busy_process(parent: int | None = None, within_seconds: float = 60.0) -> int:
    """The child of a process, by default of this one, that does `busy`; waits for it."""
    deadline = time.monotonic() + within_seconds
    while time.monotonic() < deadline:
        for child in psutil.Process(parent).children():
            if child.name() == BUSY:
                return int(child.pid)
        time.sleep(0.01)
    raise AssertionError("no process is busy")


def process_id(_: str) -> str:
    return str(os.getpid())


def modules(_: str) -> str:
    return " ".join({name.partition(".")[0] for name in sys.modules})


def speak(text: str) -> str:
    print(text)
    return text


def segmentation_fault(_: str) -> str:
    return str(ctypes.string_at(0))


def kill_itself(_: str) -> str:
    os.kill(os.getpid(), signal.SIGKILL)
    return "unreachable"


def exit_early(_: str) -> NoReturn:
    os._exit(3)


def take_memory(_: str) -> str:
    held = []
    while True:
        held.append(bytearray(2**26))


def hang(_: str) -> str:
    return str(re.match(r"(a+)+$", "a" * 60 + "b"))  # in C, with the interpreter's lock held


def be_busy(_: str) -> str:
    ctypes.CDLL(None).prctl(PR_SET_NAME, BUSY.encode())
    signal.pause()
    return "unreachable"


def refuse(reason: str) -> str:
    raise EncryptedDocumentError(reason)


def fail(_: str) -> str:
    raise KeyError("a defect")


ACTIONS: dict[str, Callable[[str], str]] = {
    "pid": process_id,
    "modules": modules,
    "speak": speak,
    "segfault": segmentation_fault,
    "kill": kill_itself,
    "exit": exit_early,
    "memory": take_memory,
    "hang": hang,
    "busy": be_busy,
    "refuse": refuse,
    "fail": fail,
}
