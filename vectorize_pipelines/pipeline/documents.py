"""How documents become items: parsed in processes of their own, cut to the encoder's length.

`corpus_source` and `DocumentReader` are what `pipeline.folder` needs for a folder of documents. Called by the asset
`corpus_embeddings`, the sensor for new files and `vectorize doctor`. `Cutting` is what documents in messages share.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from datetime import datetime
from typing import Self

from vectorize_pipelines import home
from vectorize_pipelines.documents.chunking import Chunker, chunker_fingerprint
from vectorize_pipelines.documents.parsing import SUPPORTED_SUFFIXES
from vectorize_pipelines.documents.pool import ParseOutcome, ParserPool
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.encoders import describe_model, load_tokenizer
from vectorize_pipelines.encoders.protocol import EncoderSpec
from vectorize_pipelines.errors import ItemError, SettingsError
from vectorize_pipelines.generations import InForce, in_force
from vectorize_pipelines.items import Item, JsonValue, Modality, content_hash
from vectorize_pipelines.pipeline.folder import Comparison, Reading, compare_folder
from vectorize_pipelines.settings import DocumentSettings, Settings
from vectorize_pipelines.sources.files import FileSource, SourceFile

#: Chunk length for a model without a limit of its own.
DEFAULT_CHUNK_TOKENS = 512
FILES_IN_FLIGHT = 16
BYTES_IN_FLIGHT = 64 * 2**20


def corpus_source(settings: Settings, path: str) -> FileSource:
    """The documents below a folder, as the settings' patterns choose them. Raises `SourceError`."""
    return FileSource(path, SUPPORTED_SUFFIXES, settings.corpus.include, settings.corpus.exclude)


def corpus_default(settings: Settings) -> InForce:
    """What documents are embedded with where their collection was never embedded again."""
    return InForce(settings.models.text, settings.models.dimension)


def compare_corpus(settings: Settings) -> Comparison:
    """What a drain run of the configured corpus would find to do; reads no file, asks no store and fetches no model.

    Raises `ModelNotFetchedError` where the model is not on this machine.
    """
    now = in_force(settings, settings.corpus.collection, "", corpus_default(settings))
    reader = DocumentReader(settings, now, fetch=False)
    return compare_folder(settings, settings.corpus.collection, corpus_source(settings, settings.corpus.path), reader)


class Cutting:
    """How documents are cut for one model: to its length, by its own tokenizer. Making one loads no model."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        *,
        dimension: int | None = None,
        limits: tuple[int, int] | None = None,
        fetch: bool = True,
    ):
        """`dimension`: that of the vectors; None is the model's own. Raises as `DocumentReader`.

        `limits`: longest chunk and overlap, in tokens; None: as the settings have them for the model.
        """
        self._cache = home.model_cache(settings)
        self.spec = describe_model(model, dimension=dimension, cache_directory=self._cache, fetch=fetch)
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
    ) -> list[Item]:
        """A document's chunks as items, numbered from `first_index`; `metadata` wins over what the document says."""
        if self._chunker is None:
            self._chunker = Chunker(load_tokenizer(self.spec.name, cache_directory=self._cache), *self._limits)
        return [
            Item(
                source_id=source_id,
                item_index=first_index + chunk.index,
                modality=Modality.DOCUMENT,
                text=chunk.text,
                uri=uri,
                content_hash=content_hash(chunk.text),
                occurred_at=occurred_at,
                page=chunk.page,
                start=chunk.start,
                end=chunk.end,
                tokens=chunk.tokens,
                metadata={**document.metadata, **chunk.metadata, **(metadata or {})},
            )
            for chunk in self._chunker.chunks(document)
        ]


def chunk_limits(settings: Settings, spec: EncoderSpec) -> tuple[int, int]:
    """Longest chunk and overlap, in tokens, as the settings have them for a model.

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


class DocumentReader:
    """A `pipeline.folder.Reader` of documents. Making one loads no model and starts no process."""

    may_refuse = False

    def __init__(self, settings: Settings, now: InForce, *, fetch: bool = True):
        """Raises `UnknownModelError`, and `SettingsError` where the chunks do not fit the model.

        With `fetch` false a model that is not on this machine raises `ModelNotFetchedError`.
        """
        self._cutting = Cutting(settings, now.model, dimension=now.dimension, limits=now.limits, fetch=fetch)
        self.spec, self.model = self._cutting.spec, self._cutting.model
        reading = f"{self._cutting.chunker} {_reading(settings.documents)}"
        self.fingerprint = f"{self.spec.fingerprint} {reading}"
        self.as_now = frozenset(f"{fingerprint} {reading}" for fingerprint in now.same_rows)
        documents = settings.documents
        self.limits = f"bytes={documents.max_file_bytes} decompressed={documents.max_decompressed_bytes}"
        self._pool = ParserPool(settings.documents)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the parser processes."""
        self._pool.close()

    def read(self, files: Iterable[tuple[SourceFile, str | None]]) -> Iterator[tuple[SourceFile, Reading | ItemError]]:
        """Parses as many files ahead as the limits above allow; a document's chunks come together."""
        for file, outcome in self._parsed(files):
            try:
                parsed = outcome.result()
            except CancelledError:
                return  # closed from outside
            except ItemError as error:
                yield file, error
                continue
            yield file, Reading(parsed.content_hash, self._items(file, parsed.document))

    def _parsed(
        self, files: Iterable[tuple[SourceFile, str | None]]
    ) -> Iterator[tuple[SourceFile, Future[ParseOutcome]]]:
        waiting: deque[tuple[SourceFile, Future[ParseOutcome]]] = deque()
        size = 0
        for file, known_hash in files:
            while waiting and (len(waiting) >= FILES_IN_FLIGHT or size + file.size > BYTES_IN_FLIGHT):
                size -= waiting[0][0].size
                yield waiting.popleft()
            waiting.append((file, self._pool.submit(file.source_id, file.size, known_hash)))
            size += file.size
        yield from waiting

    def _items(self, file: SourceFile, document: ParsedDocument | None) -> list[Item] | None:
        if document is None:
            return None
        return self._cutting.items(document, source_id=file.source_id, uri=file.source_id, occurred_at=file.occurred_at)


def _reading(settings: DocumentSettings) -> str:
    """The settings that decide what is read out of a document."""
    metadata = "*" if settings.metadata_columns is None else ",".join(settings.metadata_columns)
    return f"text_columns={','.join(settings.text_columns)} metadata_columns={metadata} pdf={settings.pdf_engine}"
