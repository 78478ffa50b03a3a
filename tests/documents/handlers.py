"""What parser processes are made to do in the tests: the task's URI says what, and after a colon with what."""

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from vectorize_pipelines.documents.errors import EncryptedDocumentError
from vectorize_pipelines.documents.worker import ParseOutcome, Task
from vectorize_pipelines.settings import DocumentSettings


def act(task: Task, settings: DocumentSettings) -> ParseOutcome:
    """The handler; its outcome's hash is what the action returned."""
    action, _, argument = task.uri.partition(":")
    return ParseOutcome(ACTIONS[action](argument), None)


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


def announce_and_hang(fifo: str) -> str:
    Path(fifo).write_text(f"{os.getpid()}\n")
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
    "announce": announce_and_hang,
    "refuse": refuse,
    "fail": fail,
}
