"""Cutting of documents for a model: to its length, by its own tokenizer.

Called by the readers of files and of messages, and where another generation of a collection is begun.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import replace
from datetime import datetime
from threading import Event
from time import thread_time

from vectorize_pipelines.core.items import Item, JsonValue, Modality, content_hash, metadata_size
from vectorize_pipelines.core.notices import row_fields
from vectorize_pipelines.documents.chunking import Chunker, chunker_fingerprint
from vectorize_pipelines.documents.errors import ParseTimeoutError, TooMuchMetadataError
from vectorize_pipelines.documents.parsing import too_many_chunks
from vectorize_pipelines.documents.types import MEMBER_SEPARATOR, Chunk, ParsedDocument
from vectorize_pipelines.encoders import describe_model, load_tokenizer
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.encoders.configured import describe_options
from vectorize_pipelines.errors import SettingsError
from vectorize_pipelines.settings import DocumentSettings, Settings

#: Chunk length for a model without a limit of its own.
DEFAULT_CHUNK_TOKENS = 512
#: For each character: several times what the slowest of texts take on a busy machine.
CUTTING_SECONDS = 30e-6


class Cutting:
    """The cutting of documents for one model: to its length, by its own tokenizer. Making one loads no model."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        *,
        dimension: int | None = None,
        limits: tuple[int, int] | None = None,
        fetch: bool = True,
    ):
        """Take the `dimension` of the vectors; None is the model's own.

        `limits`: longest chunk and overlap, in tokens; None: as the settings have them for the model. Raises
        `UnknownModelError`, and `SettingsError` where the chunks do not fit the model; with `fetch` false,
        `ModelNotFetchedError` for a model that is not on this machine.
        """
        self._name, self._options = model, describe_options(settings)
        self._settings = settings.documents
        self._interrupted = Event()
        self.spec = describe_model(model, dimension=dimension, fetch=fetch, **self._options)
        self._limits = limits or chunk_limits(settings, self.spec)
        self.chunker = chunker_fingerprint(*self._limits)
        self.model = f"{self.spec.fingerprint} {self.chunker}"
        self._chunker: Chunker | None = None

    def items(
        self,
        document: ParsedDocument,
        *,
        source_id: str,
        uri: str | None,
        occurred_at: datetime,
        first_index: int = 0,
        metadata: Mapping[str, JsonValue] | None = None,
        modality: Modality = Modality.DOCUMENT,
    ) -> list[Item]:
        """Return a document's chunks as items, numbered from `first_index`; `metadata` wins over the document's own.

        Those of its members follow, each with the metadata `member` and its own address: `archive.zip!/a.pdf`.
        `modality` is another one for a text that is cut as a document is. Raises `TooManyChunksError`,
        `TooMuchMetadataError` and `ParseTimeoutError`; `CancelledError` after `interrupt`.
        """
        items: list[Item] = []
        for member, each in [("", document), *((member.name, member.document) for member in document.members)]:
            within = uri if uri is None or not member else f"{uri}{MEMBER_SEPARATOR}{member}"
            named = replace(each, metadata={"member": member, **each.metadata}) if member else each
            template = Item(source_id, first_index + len(items), modality, None, within, "", occurred_at)
            items += self._own_items(named, template, metadata or {})
            if len(items) > self._settings.max_chunks:
                raise too_many_chunks(self._settings)
        return items

    def _own_items(self, document: ParsedDocument, template: Item, metadata: Mapping[str, JsonValue]) -> Iterator[Item]:
        """Yield the chunks of the document itself, numbered from the template's index."""
        if self._chunker is None:
            self._chunker = Chunker(load_tokenizer(self._name, **self._options), *self._limits)
        fields = _ChunkFields(document, metadata, self._settings)
        for chunk in self._bounded(self._chunker.chunks(document), len(document.text)):
            yield replace(
                template,
                item_index=template.item_index + chunk.index,
                text=chunk.text,
                content_hash=content_hash(chunk.text),
                page=chunk.page,
                start=chunk.start,
                end=chunk.end,
                tokens=chunk.tokens,
                metadata=fields.of(chunk),
            )

    def interrupt(self) -> None:
        """End what is being cut, from another thread."""
        self._interrupted.set()

    def _bounded(self, chunks: Iterator[Chunk], characters: int) -> Iterator[Chunk]:
        """Yield the chunks, up to the limits. Their time is this thread's own: a busy machine refuses no document."""
        began, settings = thread_time(), self._settings
        seconds = max(settings.timeout_seconds, characters * CUTTING_SECONDS)
        for number, chunk in enumerate(chunks, start=1):
            if self._interrupted.is_set():
                raise CancelledError
            if number > settings.max_chunks:
                raise too_many_chunks(settings)
            if thread_time() - began > seconds:
                raise ParseTimeoutError(
                    f"took longer than {seconds:g} s to cut into passages; "
                    "exclude it, or raise VECTORIZE_DOCUMENTS__TIMEOUT_SECONDS"
                )
            yield chunk


class _ChunkFields:
    """The metadata of a document's chunks, its notices among them; those of one section share an object.

    What a document says of itself stands in every chunk, so that few bytes can become many.
    """

    def __init__(self, document: ParsedDocument, given: Mapping[str, JsonValue], settings: DocumentSettings):
        # A table's columns are the user's: what the document says of itself does not stand in for an empty cell.
        columns = frozenset[str]().union(*(row.metadata for row in document.rows))
        self._own = {name: value for name, value in document.metadata.items() if name not in columns}
        self._is_table = bool(document.rows)
        self._notices = document.notices
        self._given = given
        self._settings = settings
        self._last: Mapping[str, JsonValue] | None = None
        self._fields: Mapping[str, JsonValue] = {}
        self._size = 0
        self._total = 0

    def of(self, chunk: Chunk) -> Mapping[str, JsonValue]:
        """Return a chunk's metadata. Raises `TooMuchMetadataError` where all together exceed what they may grow to."""
        if chunk.metadata is not self._last:
            self._last = chunk.metadata
            fields = {**self._own, **chunk.metadata, **self._given}
            self._size = 0 if self._is_table else metadata_size(fields)  # of rows it has been counted
            self._fields = row_fields(self._notices, fields, self._settings.metadata_limits)
        self._total += self._size
        if self._total > self._settings.max_decompressed_bytes:
            raise TooMuchMetadataError(
                f"its metadata, which stand in each of its passages, add up to more than "
                f"{self._settings.max_decompressed_bytes:,} bytes; shorten them, split it, or raise "
                "VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"
            )
        return self._fields


def chunk_limits(settings: Settings, spec: EncoderSpec) -> tuple[int, int]:
    """Return longest chunk and overlap, in tokens, as the settings have them for a model.

    Raises `SettingsError` where they do not fit it.
    """
    longest = settings.documents.chunk_tokens or spec.max_length or DEFAULT_CHUNK_TOKENS
    overlap = settings.documents.overlap_tokens
    if spec.max_length is not None and longest > spec.max_length:
        raise SettingsError(
            f"documents.chunk_tokens is {longest}, but {spec.name} takes at most {spec.max_length} tokens"
        )
    if overlap * 2 > longest:
        raise SettingsError(f"documents.overlap_tokens is {overlap}: more than half of a chunk of {longest} tokens")
    return longest, overlap
