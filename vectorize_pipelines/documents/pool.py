"""Parsing of files in processes of their own, side by side, so that no file can take the run down, or take it over.

Called by the readers of files and of messages in `pipeline/`. The processes are confined
(`vectorize_pipelines.sandbox`): they have no network and see no files. Local files are opened here and handed over
open; what lies elsewhere is read here.
"""

import os
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Self

from vectorize_pipelines.core.extras import missing
from vectorize_pipelines.documents import errors
from vectorize_pipelines.documents.codec import ParseOutcome, answer_limits, from_message
from vectorize_pipelines.documents.errors import ParserCrashedError, ParserMemoryError, ParseTimeoutError
from vectorize_pipelines.documents.parsing import too_large
from vectorize_pipelines.documents.worker import Handler, read_and_parse
from vectorize_pipelines.errors import SettingsError, UnreadableFileError
from vectorize_pipelines.sandbox import Failures, Message, ProcessPool, ServiceSpec, known_errors
from vectorize_pipelines.settings import DocumentSettings
from vectorize_pipelines.sources.content import open_local, read_content

__all__ = ["ParseOutcome", "ParserPool"]

#: The errors that a parser process may report: those of this package, and that a file cannot be read.
KNOWN_ERRORS = known_errors(errors, UnreadableFileError)


class ParserPool:
    """A context manager around `settings.parser_processes` processes, each started when first needed.

    A file may take `settings.timeout_seconds`, then its process is killed, and `settings.memory_bytes` of
    address space; only Linux enforces the latter, elsewhere the system's own limits apply. Runs on POSIX systems.

    Leaving the context, or `close`, cancels what is pending and kills the processes at once. They also end by
    themselves within seconds when this process dies.
    """

    def __init__(self, settings: DocumentSettings, *, handler: Handler = read_and_parse) -> None:
        """Take `handler`, which the processes run: a function of a module that they can import.

        Raises `SettingsError` where they ask for OCR that is not installed.
        """
        if settings.ocr and (reason := missing("documents.ocr", "ocr")):
            raise SettingsError(reason)
        self._settings = settings
        self._limits = answer_limits(settings)
        spec = ServiceSpec(
            "vectorize_pipelines.documents.worker:service",
            {
                "handler": f"{handler.__module__}:{handler.__qualname__}",
                "settings": settings.model_dump(mode="json"),
            },
            settings.memory_bytes,
            settings.timeout_seconds,
        )
        self._pool = ProcessPool(settings.parser_processes, spec, _failures(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything now, from whatever thread; a second call does nothing. Files in hand get an error."""
        self._pool.close()

    def submit(
        self,
        uri: str,
        size: int | None = None,
        known_hash: str | None = None,
        content: bytes | None = None,
        media_type: str | None = None,
    ) -> Future[ParseOutcome]:
        """Have the file read and parsed; a path without `://` is local.

        `size` in bytes, where the caller knows it, refuses a file that is too large without reading it. With
        `known_hash`, a file of the same content is not parsed: its outcome has no document. With `content` nothing
        is read: these are the bytes. `media_type`: as in `ParseContext`. The future raises a subclass of `ItemError`
        from `documents.errors`.
        """
        if size is not None and size > self._settings.max_file_bytes:
            refused: Future[ParseOutcome] = Future()
            refused.set_exception(too_large(self._settings))
            return refused
        return self._pool.submit(partial(self._run, uri, known_hash, content, media_type))

    def _run(self, uri: str, known_hash: str | None, content: bytes | None, media_type: str | None) -> ParseOutcome:
        if content is None and "://" in uri:
            content = read_content(uri, self._settings.max_file_bytes + 1)
        if content is not None and len(content) > self._settings.max_file_bytes:
            raise too_large(self._settings)
        descriptor = open_local(uri) if content is None else None
        try:
            task = Message({"uri": uri, "known_hash": known_hash, "media_type": media_type}, content or b"")
            with self._pool.process() as process:
                return process.call(task, self._limits, from_message, descriptor=descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _failures(settings: DocumentSettings) -> Failures:
    return Failures(
        noun="parser",
        done="parsed",
        known=KNOWN_ERRORS,
        crashed=ParserCrashedError,
        timeout=lambda: ParseTimeoutError(
            f"took longer than {settings.timeout_seconds:g} s to parse; "
            "exclude it, or raise VECTORIZE_DOCUMENTS__TIMEOUT_SECONDS"
        ),
        memory=lambda: ParserMemoryError(
            f"needs more than {settings.memory_bytes:,} bytes of memory to parse; "
            "split it, or raise VECTORIZE_DOCUMENTS__MEMORY_BYTES"
        ),
    )
