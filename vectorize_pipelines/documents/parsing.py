"""Parsing of a file's bytes to a `ParsedDocument`. Called by the parser processes, and in place by tests, clients."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import EmptyDocumentError, TooLargeError, TooManyChunksError
from vectorize_pipelines.documents.formats.language import language_of
from vectorize_pipelines.documents.formats.values import check_metadata, is_blank, short_label
from vectorize_pipelines.documents.recognition import Format, recognised_format
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.settings import DocumentSettings

#: Part of every chunk's fingerprint: raise it when the same bytes give another text than before.
PARSER_VERSION = 2

Parser = Callable[[bytes, ParseContext], ParsedDocument]

FORMATS_PACKAGE = "vectorize_pipelines.documents.formats"

#: Metadata that name a document, and are shown.
LABELS = ("title", "author")


def parse(content: bytes, name: str, settings: DocumentSettings, media_type: str | None = None) -> ParsedDocument:
    """Return the document in `content`. `name` is its path or URI, `media_type` as in `ParseContext`.

    `recognition.recognised_format` chooses the parser. Raises a subclass of `ItemError` from `documents.errors`; its
    message does not repeat the name.
    """
    return _parse(content, ParseContext(settings, name, media_type, _parse))


def _parse(content: bytes, context: ParseContext) -> ParsedDocument:
    settings = context.settings
    if len(content) > settings.max_file_bytes:
        raise too_large(settings)
    if not content.strip():
        raise EmptyDocumentError("is empty; fill it, or exclude it by VECTORIZE_CORPUS__EXCLUDE")
    kind = recognised_format(content, context.name, context.media_type)
    document = _parser_of(kind)(content, context)
    if is_blank(document.text) and not document.members:
        raise EmptyDocumentError(
            "has no text that a reader would see; fill it, or exclude it by VECTORIZE_CORPUS__EXCLUDE"
        )
    if len(document.sections) > settings.max_chunks:
        raise too_many_chunks(settings)
    document = replace(document, metadata={**document.metadata, **_short_labels(document.metadata)})
    check_metadata(document.metadata, settings, "its metadata")
    language = document.metadata.get("language") or language_of(document.text)
    return replace(document, metadata={**document.metadata, "language": language}) if language else document


def _parser_of(kind: Format) -> Parser:
    module, _, function = kind.parser.partition(":")
    parser: Parser = getattr(importlib.import_module(f"{FORMATS_PACKAGE}.{module}"), function)
    return parser


def too_large(settings: DocumentSettings) -> TooLargeError:
    """Return the error for a file beyond the limit."""
    return TooLargeError(
        f"is larger than {settings.max_file_bytes:,} bytes; split it, or raise VECTORIZE_DOCUMENTS__MAX_FILE_BYTES"
    )


def too_many_chunks(settings: DocumentSettings) -> TooManyChunksError:
    """Return the error for a document beyond the limit."""
    return TooManyChunksError(
        f"is cut into more than {settings.max_chunks:,} passages; split it, or raise VECTORIZE_DOCUMENTS__MAX_CHUNKS"
    )


def _short_labels(metadata: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return what names a document, cut to the length of a name: a page without an end tag is all title."""
    labels = {name: metadata[name] for name in LABELS if name in metadata}
    return {name: short_label(text) for name, text in labels.items() if isinstance(text, str)}
