"""A folder of documents -> the stream that brings its collection up to date.

`compare` says what differs between what lies there and what the manifest knows; `open_corpus` turns that into an
`EmbeddingStream`. Called by the asset `corpus_embeddings`; the sensor for new files calls `compare_corpus` only.
"""

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from vectorize_pipelines import home
from vectorize_pipelines.documents.chunking import Chunker, chunker_fingerprint
from vectorize_pipelines.documents.errors import UnreadableFileError
from vectorize_pipelines.documents.parsing import SUPPORTED_SUFFIXES
from vectorize_pipelines.documents.pool import ParseOutcome, ParserPool
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.encoders import describe_model, load_tokenizer
from vectorize_pipelines.encoders.protocol import Encoder, EncoderSpec
from vectorize_pipelines.errors import ItemError, SettingsError
from vectorize_pipelines.items import Item, Modality
from vectorize_pipelines.pipeline.changes import Change, Changed, Days, Failed, Receipt, Touched, Vanished
from vectorize_pipelines.pipeline.planning import Planner
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.pipeline.totals import Failure, Totals
from vectorize_pipelines.records import content_hash
from vectorize_pipelines.settings import DocumentSettings, Settings
from vectorize_pipelines.sources.files import FileSource, Listing, SourceFile
from vectorize_pipelines.sources.manifest import Manifest, ManifestEntry
from vectorize_pipelines.stores.filters import Equal, Or, Prefix
from vectorize_pipelines.stores.protocol import VectorStore

logger = logging.getLogger(__name__)

#: Chunk length for a model without a limit of its own.
DEFAULT_CHUNK_TOKENS = 512
FILES_IN_FLIGHT = 16
BYTES_IN_FLIGHT = 64 * 2**20
LOCK_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Forget:
    """A receipt: the manifest's entry of a file that is gone."""

    source_id: str


@dataclass(frozen=True, slots=True)
class CorpusRequest:
    """What one run is to do.

    mode        `drain`: whatever differs from the manifest; `replay`: what lies in the window
    window      first and last day of the run's partitions, both included
    force       encode also what has not changed
    reconcile   hold the manifest against the store before trusting it
    """

    path: str
    collection: str
    model: str
    mode: Literal["drain", "replay"]
    window: tuple[date, date]
    run_id: str
    force: bool = False
    reconcile: bool = False


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between the files that lie there and the manifest.

    changed    to be read: new, changed, failed in a way that may pass, or embedded under another fingerprint
    vanished   source ids that the manifest or the store has and the folder no longer
    unchanged  entries of the files that can be left alone, those that failed for good included
    """

    changed: Sequence[SourceFile]
    vanished: Sequence[str]
    unchanged: Sequence[ManifestEntry]
    unreadable: Mapping[str, str]

    def digest(self) -> str:
        """Two comparisons with the same work to do have the same digest."""
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(self.changed, key=lambda file: file.source_id):
            digest.update(repr(file).encode("utf-8", "surrogatepass"))
        for source_id in sorted(self.vanished):
            digest.update(source_id.encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()


def compare(
    listing: Listing, known: Mapping[str, ManifestEntry], stored: Iterable[str], source: FileSource, fingerprint: str
) -> Comparison:
    """Holds a listing against what is known. `stored`: further source ids of this source that the store has."""
    changed: list[SourceFile] = []
    unchanged: list[ManifestEntry] = []
    for source_id, file in listing.files.items():
        entry = known.get(source_id)
        if entry is not None and entry.is_of(file, fingerprint):
            unchanged.append(entry)
        else:
            changed.append(file)
    gone = {name for name in (*known, *stored) if source.holds(name)} - listing.files.keys()
    hidden = tuple(name.rstrip("/") + "/" for name in listing.unreadable)
    vanished = [name for name in gone if name not in listing.unreadable and not name.startswith(hidden)]
    return Comparison(changed, sorted(vanished), unchanged, listing.unreadable)


@dataclass(slots=True)
class Corpus:
    """The folder, the model and the way of cutting, ready to be compared or opened."""

    settings: Settings
    source: FileSource
    spec: EncoderSpec
    model: str = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        limits = self.chunk_limits()
        documents = self.settings.documents
        self.model = f"{self.spec.fingerprint} {chunker_fingerprint(*limits)}"
        self.fingerprint = f"{self.model} {_reading(documents)}"

    def chunk_limits(self) -> tuple[int, int]:
        """Longest chunk and overlap in tokens. Raises `SettingsError` where they do not fit the model."""
        longest = self.settings.documents.chunk_tokens or self.spec.max_length or DEFAULT_CHUNK_TOKENS
        overlap = self.settings.documents.overlap_tokens
        if self.spec.max_length is not None and longest > self.spec.max_length:
            raise SettingsError(
                f"documents.chunk_tokens is {longest}, but {self.spec.name} takes at most {self.spec.max_length} tokens"
            )
        if overlap * 2 > longest:
            raise SettingsError(f"documents.overlap_tokens is {overlap}: more than half of a chunk of {longest} tokens")
        return longest, overlap

    def chunker(self) -> Chunker:
        """Loads the model's tokenizer, but not the model."""
        return Chunker(
            load_tokenizer(self.spec.name, cache_directory=home.model_cache(self.settings)), *self.chunk_limits()
        )


def make_corpus(settings: Settings, path: str, model: str) -> Corpus:
    """Raises `SourceError`, `UnknownModelError` or `SettingsError`; loads no model."""
    source = FileSource(path, SUPPORTED_SUFFIXES, settings.corpus.include, settings.corpus.exclude)
    return Corpus(settings, source, describe_model(model, cache_directory=home.model_cache(settings)))


def compare_corpus(settings: Settings) -> Comparison:
    """What a drain run of the configured corpus would find to do; reads no file and asks no store."""
    corpus = make_corpus(settings, settings.corpus.path, settings.models.text)
    with closing(Manifest.open(home.manifest_file(settings, settings.corpus.collection))) as manifest:
        known = {name: entry for name, entry in manifest.entries().items() if corpus.source.holds(name)}
    return compare(corpus.source.list(), known, (), corpus.source, corpus.fingerprint)


def open_corpus(
    settings: Settings,
    request: CorpusRequest,
    store: VectorStore,
    lease_encoder: Callable[[str], AbstractContextManager[Encoder]],
) -> EmbeddingStream:
    """The stream that does what is asked for.

    `lease_encoder`, given the model's name, is called only where something has to be encoded.
    Holds the collection's lock until the stream is left, so that no two runs bring one collection up to date at
    once. Raises `SourceError`, `SettingsError`, `UnknownModelError`, `StoreError`.
    """
    corpus = make_corpus(settings, request.path, request.model)
    listing = corpus.source.list()
    store.ensure_collection(request.collection, corpus.spec)
    with ExitStack() as resources:
        _lock(home.manifest_lock(settings, request.collection), resources)
        manifest = Manifest.open(home.manifest_file(settings, request.collection))
        resources.callback(manifest.close)
        known, stored = _trusted(manifest.entries(), corpus.source, store, request)
        days = Days(settings.partitions.start, datetime.now(UTC).date())
        comparison = compare(listing, known, stored, corpus.source, corpus.fingerprint)
        work = comparison if request.mode == "drain" else _in_window(comparison, known, days, request.window)
        if request.force:
            everything = [*work.changed, *(listing.files[entry.source_id] for entry in work.unchanged)]
            work = replace(work, changed=everything, unchanged=())
        pool = resources.enter_context(ParserPool(settings.documents))
        totals, failures = _unchanged(work.unchanged, days)
        return EmbeddingStream(
            changes=_changes(corpus, work, known, pool, force=request.force),
            planner=Planner(store, request.collection, corpus.model, days, force=request.force),
            collection=request.collection,
            model=corpus.model,
            dimension=corpus.spec.dimension,
            run_id=request.run_id,
            lease_encoder=lambda: lease_encoder(request.model),
            acknowledge=_acknowledge(manifest),
            settings=settings.pipeline,
            expected=len(work.changed) + len(work.unchanged),
            resources=resources.pop_all(),
            totals=totals,
            failures=failures,
            interrupt=pool.close,
        )


def _lock(file: Path, resources: ExitStack) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another run is bringing this collection up to date; waiting for it to end (%s)", file)
        lock.acquire(poll_interval=LOCK_POLL_SECONDS)
    resources.callback(lock.release)


def _trusted(
    entries: dict[str, ManifestEntry], source: FileSource, store: VectorStore, request: CorpusRequest
) -> tuple[dict[str, ManifestEntry], set[str]]:
    """The manifest's entries of this source that agree with the store, and the sources that the store has.

    Counting the store's rows tells cheaply whether it lost some, or whether the manifest is lost; only then, or
    when asked to reconcile, is every source looked at.
    """
    known = {name: entry for name, entry in entries.items() if source.holds(name)}
    stored_rows = store.count(request.collection)
    expected_rows = sum(entry.rows for entry in entries.values())
    if not request.reconcile and stored_rows >= expected_rows and (known or not stored_rows):
        return known, set()
    below = Or((Equal("source_id", source.root), Prefix("source_id", source.root.rstrip("/") + "/")))
    stored = store.count_by(request.collection, "source_id", below)
    agreeing = {name: entry for name, entry in known.items() if entry.rows == stored.get(name, 0)}
    if len(agreeing) < len(known):
        logger.warning(
            "%d files have other rows in %s than the manifest says; they are read again",
            len(known) - len(agreeing),
            request.collection,
        )
    return agreeing, set(stored)


def _in_window(
    comparison: Comparison, known: Mapping[str, ManifestEntry], days: Days, window: tuple[date, date]
) -> Comparison:
    """What a replay of the window has to do."""
    first, last = (day.isoformat() for day in window)

    def inside(file: SourceFile | ManifestEntry) -> bool:
        return first <= days.of(_occurred_at(file.modified_ns)) <= last

    return Comparison(
        changed=[file for file in comparison.changed if inside(file)],
        vanished=[name for name in comparison.vanished if name in known and inside(known[name])],
        unchanged=[entry for entry in comparison.unchanged if inside(entry)],
        unreadable={},
    )


def _unchanged(entries: Iterable[ManifestEntry], days: Days) -> tuple[Totals, list[Failure]]:
    """The counts of the files that are left alone, and those among them that failed for good."""
    totals = Totals()
    failures: list[Failure] = []
    for entry in entries:
        day = days.of(_occurred_at(entry.modified_ns))
        totals.of(day).documents += 1
        totals.of(day).chunks += entry.rows
        if entry.error_class:
            totals.of(day).failed += 1
            totals.of(day).errors[entry.error_class] += 1
            failures.append(Failure(entry.source_id, day, entry.error_class, entry.error_message))
    return totals, failures


def _acknowledge(manifest: Manifest) -> Callable[[Sequence[Receipt]], None]:
    def acknowledge(receipts: Sequence[Receipt]) -> None:
        manifest.record(
            [receipt for receipt in receipts if isinstance(receipt, ManifestEntry)],
            [receipt.source_id for receipt in receipts if isinstance(receipt, Forget)],
        )

    return acknowledge


def _changes(
    corpus: Corpus, work: Comparison, known: Mapping[str, ManifestEntry], pool: ParserPool, *, force: bool
) -> Generator[Change, None, None]:
    """Reads what has changed, file by file; a file that was renamed is written before the old name's rows go."""
    for name, reason in work.unreadable.items():
        yield Failed(name, datetime.now(UTC), UnreadableFileError(reason), None)
    if work.changed:
        chunker = corpus.chunker()
        for file, outcome in _parsed(pool, work.changed, known, corpus.fingerprint, force=force):
            yield _change(file, outcome, corpus, chunker, known.get(file.source_id))
    for source_id in work.vanished:
        yield Vanished(source_id, Forget(source_id))


def _parsed(
    pool: ParserPool,
    files: Iterable[SourceFile],
    known: Mapping[str, ManifestEntry],
    fingerprint: str,
    *,
    force: bool,
) -> Generator[tuple[SourceFile, Future[ParseOutcome]], None, None]:
    """Files with their parse results, in order; so many are parsed ahead as the limits above allow."""
    waiting: deque[tuple[SourceFile, Future[ParseOutcome]]] = deque()
    size = 0
    for file in files:
        while waiting and (len(waiting) >= FILES_IN_FLIGHT or size + file.size > BYTES_IN_FLIGHT):
            size -= waiting[0][0].size
            yield waiting.popleft()
        entry = known.get(file.source_id)
        same_way = entry is not None and entry.fingerprint == fingerprint and not entry.error_class and not force
        known_hash = entry.content_hash if entry is not None and same_way else None
        waiting.append((file, pool.submit(file.source_id, file.size, known_hash)))
        size += file.size
    yield from waiting


def _change(
    file: SourceFile, outcome: Future[ParseOutcome], corpus: Corpus, chunker: Chunker, before: ManifestEntry | None
) -> Change:
    entry = ManifestEntry(
        file.source_id,
        file.size,
        file.modified_ns,
        file.version,
        content_hash="",
        fingerprint=corpus.fingerprint,
        rows=before.rows if before is not None else 0,
    )
    try:
        parsed = outcome.result()
    except ItemError as error:
        failed = replace(entry, error_class=type(error).__name__, error_message=str(error), retryable=error.retryable)
        return Failed(file.source_id, file.occurred_at, error, failed)
    entry = replace(entry, content_hash=parsed.content_hash)
    if parsed.document is None:
        return Touched(file.source_id, file.occurred_at, entry)
    items = _items(file, parsed.document, chunker)
    return Changed(file.source_id, file.occurred_at, items, replace(entry, rows=len(items)))


def _items(file: SourceFile, document: ParsedDocument, chunker: Chunker) -> list[Item]:
    return [
        Item(
            source_id=file.source_id,
            item_index=chunk.index,
            modality=Modality.DOCUMENT,
            text=chunk.text,
            uri=file.source_id,
            content_hash=content_hash(chunk.text),
            occurred_at=file.occurred_at,
            page=chunk.page,
            start=chunk.start,
            end=chunk.end,
            tokens=chunk.tokens,
            metadata={**document.metadata, **chunk.metadata},
        )
        for chunk in chunker.chunks(document)
    ]


def _occurred_at(modified_ns: int) -> datetime:
    return datetime.fromtimestamp(modified_ns // 1_000_000_000, UTC)


def _reading(settings: DocumentSettings) -> str:
    """The settings that decide what is read out of a document."""
    metadata = "*" if settings.metadata_columns is None else ",".join(settings.metadata_columns)
    return f"text_columns={','.join(settings.text_columns)} metadata_columns={metadata} pdf={settings.pdf_engine}"
