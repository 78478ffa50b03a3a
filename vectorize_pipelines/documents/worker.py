"""What runs inside a parser process: takes one file after the other from its parent and sends back the document.

Started by `pool.ParserPool`. Parsers read hostile bytes in C: a process of its own is what bounds their time and
memory, and what survives their crashes.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from vectorize_pipelines.documents.errors import ParserCrashedError, ParserMemoryError
from vectorize_pipelines.documents.parsing import parse, too_large
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.items import content_hash
from vectorize_pipelines.settings import DocumentSettings
from vectorize_pipelines.sources.content import read_content

PARENT_CHECK_SECONDS = 1.0
#: Beyond the parent's own limit: this alarm is for a process whose parent is gone.
ALARM_MARGIN_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ParseOutcome:
    """What became of a file: its `items.content_hash`, and the document unless that hash was known already."""

    content_hash: str
    document: ParsedDocument | None


@dataclass(frozen=True, slots=True)
class Task:
    """One file to read; `known_hash` is the content hash of what was made of it before.

    `content` is the file's bytes, where the caller has them already; `uri` then only names its format.
    """

    uri: str
    known_hash: str | None
    content: bytes | None = None


Handler = Callable[[Task, DocumentSettings], ParseOutcome]


def read_and_parse(task: Task, settings: DocumentSettings) -> ParseOutcome:
    """Reads the file unless it has been read, and parses it unless its content is known. Raises `ItemError`s."""
    content = read_bytes(task.uri, settings) if task.content is None else task.content
    digest = content_hash(content)
    if digest == task.known_hash:
        return ParseOutcome(digest, None)
    return ParseOutcome(digest, parse(content, task.uri, settings))


def read_bytes(uri: str, settings: DocumentSettings) -> bytes:
    """The file's bytes. Raises `UnreadableFileError`, or `TooLargeError` after `max_file_bytes`."""
    content = read_content(uri, settings.max_file_bytes + 1)
    if len(content) > settings.max_file_bytes:
        raise too_large(settings)
    return content


def serve(connection: Connection, handler: Handler, settings: DocumentSettings) -> None:
    """Answers tasks: its process id when it has one, and then the outcome, or an `ItemError` in its place.

    Raises EOFError or ConnectionError when the connection closes.
    """
    connection.send(os.getpid())
    while True:
        task = connection.recv()
        connection.send(os.getpid())
        _set_alarm(settings.timeout_seconds + ALARM_MARGIN_SECONDS)
        try:
            connection.send(_answer(handler, task, settings))
        except MemoryError:  # nothing has been sent: an answer is serialised as a whole first
            connection.send(
                ParserMemoryError(
                    f"needs more than {settings.memory_bytes:,} bytes of memory to parse; "
                    "split it, or raise VECTORIZE_DOCUMENTS__MEMORY_BYTES"
                )
            )
        _set_alarm(0)


def _answer(handler: Handler, task: Task, settings: DocumentSettings) -> ParseOutcome | ItemError:
    """Raises `MemoryError`."""
    try:
        return handler(task, settings)
    except ItemError as error:
        # Without its cause and trace, which may hold what cannot be pickled, or all of the document.
        return type(error)(*error.args)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  one file must not end the run; the trace goes to the log
        traceback.print_exc()
        return ParserCrashedError(f"made the parser fail with {type(error).__name__}: {error}")


def _set_alarm(seconds: float) -> None:
    # Left to its default the signal ends the process at once, even inside a C function that never returns.
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _limit_memory(limit: int) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    os._exit(1)


def main() -> None:
    """Entry point of the process; its arguments are the connection's file descriptor and the parent's id."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they may reach the whole group; the parent decides
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    # What a parser has to say of a file is in its error; pypdf also logs it, without saying of which file.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    os.dup2(2, 1)  # what a library prints must not end up in the parent's output
    descriptor, parent = map(int, sys.argv[1:3])
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    # The parent ends its processes by ending itself, too.
    with contextlib.suppress(EOFError, ConnectionError), Connection(descriptor) as connection:
        handler, settings = connection.recv()
        _limit_memory(settings.memory_bytes)
        serve(connection, handler, settings)
