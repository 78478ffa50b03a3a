"""Documents as items: parsed in processes of their own, cut to the encoder's length.

`corpus_source` and `DocumentReader` are what `folder` needs for a folder of documents. Called by the asset
`corpus_embeddings`, the sensor for new files and `vectorize doctor`.
"""

import json
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from functools import partial
from itertools import count
from typing import Self

from vectorize_pipelines.core.items import Item
from vectorize_pipelines.documents.cutting import Cutting
from vectorize_pipelines.documents.parsed_ahead import ParsedAhead
from vectorize_pipelines.documents.pool import ParseOutcome, ParserPool
from vectorize_pipelines.documents.recognition import SUPPORTED_SUFFIXES
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.errors import ItemError, SettingsError
from vectorize_pipelines.pipeline.files.comparison import FolderComparison, compare_folder
from vectorize_pipelines.pipeline.files.reader import Reading
from vectorize_pipelines.settings import DocumentSettings, Settings
from vectorize_pipelines.sources.content import read_content
from vectorize_pipelines.sources.files import FileSource, SourceFile
from vectorize_pipelines.sources.reading_threads import ReadingThreads
from vectorize_pipelines.state.generations import EmbeddingConfig, resolve_embedding_config

FILES_IN_FLIGHT = 16
BYTES_IN_FLIGHT = 64 * 2**20


def corpus_source(
    settings: Settings, path: str, *, follow_links: bool | None = None, suffixes: Collection[str] = SUPPORTED_SUFFIXES
) -> FileSource:
    """The documents below a folder, as the settings' patterns choose them. Raises `SourceError`.

    `follow_links`: None is as the settings say. `suffixes`: of what is taken where no pattern says.
    """
    corpus = settings.corpus
    follow = corpus.follow_links if follow_links is None else follow_links
    return FileSource(path, suffixes, corpus.include, corpus.exclude, follow_links=follow)


def corpus_path(settings: Settings) -> str:
    """The configured folder. Raises `SettingsError` where none is."""
    if settings.corpus.path is None:
        raise SettingsError(
            "corpus.path is not set: give the folder of documents in VECTORIZE_CORPUS__PATH, or the path in the run's "
            "config"
        )
    return settings.corpus.path


def corpus_default(settings: Settings) -> EmbeddingConfig:
    """Return what documents are embedded with where their collection was never embedded again."""
    return EmbeddingConfig(settings.models.text, settings.models.dimension)


def compare_corpus(settings: Settings) -> FolderComparison:
    """Return what a drain run of the corpus would find to do; read no file, ask no store and fetch no model.

    Raises `ModelNotFetchedError` where the model is not on this machine.
    """
    source = corpus_source(settings, corpus_path(settings))
    now = resolve_embedding_config(settings, settings.corpus.collection, "", corpus_default(settings))
    reader = DocumentReader(settings, now, fetch=False)
    return compare_folder(settings, settings.corpus.collection, source, reader)


class DocumentReader:
    """A `FileReader` of documents. Making one loads no model and starts no process."""

    may_refuse = False

    def __init__(self, settings: Settings, now: EmbeddingConfig, *, fetch: bool = True):
        """Raises `UnknownModelError`, and `SettingsError` where the chunks do not fit the model.

        With `fetch` false a model that is not on this machine raises `ModelNotFetchedError`.
        """
        self._cutting = Cutting(settings, now.model, dimension=now.dimension, limits=now.limits, fetch=fetch)
        self.spec, self.model = self._cutting.spec, self._cutting.model
        reading = f"{self._cutting.chunker} {_reading(settings.documents)}"
        self.fingerprint = f"{self.spec.fingerprint} {reading}"
        self.equivalent_fingerprints = frozenset(
            f"{fingerprint} {reading}" for fingerprint in now.equivalent_fingerprints
        )
        self.limits = _limits(settings.documents)
        self._settings = settings.documents
        self._pool = ParserPool(settings.documents)
        self._threads = ReadingThreads(settings.documents.parser_processes + 1, "document")
        self._ahead = ParsedAhead(BYTES_IN_FLIGHT)
        self._numbers = count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the parser processes, and what is being cut; wait for nothing that is being read."""
        self._cutting.interrupt()
        self._threads.close()
        self._ahead.close()
        self._pool.close()

    def read(self, files: Iterable[tuple[SourceFile, str | None]]) -> Iterator[tuple[SourceFile, Reading | ItemError]]:
        """Parse as many files ahead as the limits above allow; a document's chunks come together."""
        for number, file, outcome in self._parsed(files):
            self._ahead.await_(number)
            try:
                yield file, self._reading(file, self._threads.result(outcome))
            except CancelledError:
                return  # closed from outside
            except ItemError as error:
                yield file, error

    def _parsed(
        self, files: Iterable[tuple[SourceFile, str | None]]
    ) -> Iterator[tuple[int, SourceFile, Future[ParseOutcome]]]:
        waiting: deque[tuple[int, SourceFile, Future[ParseOutcome]]] = deque()
        size = 0
        for file, known_hash in files:
            while waiting and (len(waiting) >= FILES_IN_FLIGHT or size + file.size > BYTES_IN_FLIGHT):
                size -= waiting[0][1].size
                yield waiting.popleft()
            number = next(self._numbers)
            waiting.append((number, file, self._threads.submit(partial(self._parse, number, file, known_hash))))
            size += file.size
        while waiting:
            yield waiting.popleft()

    def _reading(self, file: SourceFile, parsed: ParseOutcome) -> Reading:
        """Cut what a file was parsed to. Raises `ItemError`s."""
        try:
            notices = () if parsed.document is None else parsed.document.notices
            return Reading(parsed.content_hash, self._items(file, parsed.document), notices)
        finally:
            self._ahead.release(parsed.document)

    def _parse(self, number: int, file: SourceFile, known_hash: str | None) -> ParseOutcome:
        """Have a file parsed. What has to lie in a folder is read here: the parsers do not look where it lies.

        Raises `ItemError`s.
        """
        self._ahead.wait(number)
        content, size = None, file.size
        if file.within is not None and size <= self._settings.max_file_bytes:
            content = read_content(file.source_id, self._settings.max_file_bytes + 1, file.within)
            size = len(content)
        outcome = self._pool.submit(file.source_id, size, known_hash, content).result()
        self._ahead.hold(outcome.document)
        return outcome

    def _items(self, file: SourceFile, document: ParsedDocument | None) -> list[Item] | None:
        if document is None:
            return None
        return self._cutting.items(document, source_id=file.source_id, uri=file.source_id, occurred_at=file.occurred_at)


def _limits(settings: DocumentSettings) -> str:
    """The settings by which a document may be refused: with another, what was refused is tried again."""
    return (
        f"bytes={settings.max_file_bytes} decompressed={settings.max_decompressed_bytes} rows={settings.max_rows} "
        f"chunks={settings.max_chunks} members={settings.max_members} "
        f"metadata={settings.max_metadata_bytes}/{settings.max_metadata_values} "
        f"seconds={settings.timeout_seconds:g} memory={settings.memory_bytes}"
    )


def _reading(settings: DocumentSettings) -> str:
    """The settings that decide what is read out of a document."""
    metadata = "*" if settings.metadata_columns is None else ",".join(settings.metadata_columns)
    reading = f"text_columns={','.join(settings.text_columns)} metadata_columns={metadata} pdf={settings.pdf_engine}"
    # Others are named only where they are not as they come: what was read before they existed stays as it is.
    if settings.pdf_annotations:
        reading += " pdf_annotations"
    if settings.ocr:
        reading += " ocr"
    if not settings.office_comments:
        reading += " office_comments=false"
    if settings.column_types:
        reading += f" column_types={','.join(f'{name}:{kind}' for name, kind in sorted(settings.column_types.items()))}"
    if settings.encodings:
        reading += f" encodings={json.dumps(settings.encodings)}"
    return reading
