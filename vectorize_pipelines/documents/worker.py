"""The inside of a parser process: it takes one file after the other from its parent and answers with the document.

`service` is what `pool.ParserPool` has its processes run.
"""

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vectorize_pipelines.core.items import content_hash
from vectorize_pipelines.documents.codec import ParseOutcome, answer_limits, to_message
from vectorize_pipelines.documents.parsing import parse, too_large
from vectorize_pipelines.errors import UnreadableFileError
from vectorize_pipelines.sandbox import Message, Reserve, Service
from vectorize_pipelines.sandbox.worker import write_bytecode
from vectorize_pipelines.settings import DocumentSettings

#: What parsers import when they first need it.
LIBRARIES = (
    "chardet",
    "fasttext",
    "lxml",
    "olefile",
    "oxmsg",
    "pathspec",
    "pyarrow",
    "pypdf",
    "pypdfium2",
    "pysubs2",
    "python_calamine",
    "selectolax",
    "spellchecker",
    "webencodings",
    "yaml",
)

#: The same, for OCR.
OCR_LIBRARIES = ("cv2", "omegaconf", "onnxruntime", "pyclipper", "rapidocr", "shapely")


@dataclass(frozen=True, slots=True)
class Task:
    """One file: its bytes, and the content hash of what was made of it before.

    media_type  as in `ParseContext`
    """

    uri: str
    known_hash: str | None
    content: bytes | bytearray
    media_type: str | None = None


Handler = Callable[[Task, DocumentSettings], ParseOutcome]


def read_and_parse(task: Task, settings: DocumentSettings) -> ParseOutcome:
    """Parse the file unless its content is known. Raises `ItemError`s."""
    content = bytes(task.content)
    digest = content_hash(content)
    if digest == task.known_hash:
        return ParseOutcome(digest, None)
    return ParseOutcome(digest, parse(content, task.uri, settings, task.media_type))


def service(config: Mapping[str, Any]) -> Service:
    """Return the service of a parser process; `config` is what `pool.ParserPool` made for it."""
    # What a parser has to say of a file is in its error; these log it too, without saying of which file.
    for library in ("pypdf", "pypdfium2"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    settings = DocumentSettings.model_validate(config["settings"])
    write_bytecode((*LIBRARIES, *(OCR_LIBRARIES if settings.ocr else ())))
    module, _, name = config["handler"].partition(":")
    handler: Handler = getattr(importlib.import_module(module), name)
    limits = answer_limits(settings)

    def answer(message: Message, reserve: Reserve) -> Message:
        del reserve  # the limit of each process is enough of a bound
        header = message.header
        descriptor = header.get("descriptor")
        content = message.body if descriptor is None else _read(descriptor, settings)
        task = Task(header["uri"], header["known_hash"], content, header["media_type"])
        return to_message(handler(task, settings), limits)

    return answer


def _read(descriptor: int, settings: DocumentSettings) -> bytes:
    """Return the bytes of an open file. Raises `UnreadableFileError`, or `TooLargeError` after `max_file_bytes`."""
    try:
        with os.fdopen(descriptor, "rb") as file:
            content: bytes | None = file.read(settings.max_file_bytes + 1)
    except OSError as error:
        raise UnreadableFileError(f"cannot be read: {error.strerror or error}") from error
    if content is None:  # some files of the kernel's have the mode of a regular one, and wait for what comes
        raise UnreadableFileError("is no regular file: reading it would wait; exclude it")
    if len(content) > settings.max_file_bytes:
        raise too_large(settings)
    return content
