"""A folder of files -> the stream that brings its collection up to date.

`compare` says what differs between what lies there and what the manifest knows; `open_folder` turns that into an
`EmbeddingStream`. How a file becomes items is its `Reader`'s. Called by the assets from files; the sensor for new
files calls `compare_folder` only.
"""

import hashlib
import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Literal, Protocol, Self

from filelock import FileLock, Timeout

from vectorize_pipelines import home
from vectorize_pipelines.encoders.protocol import Encoder, EncoderSpec
from vectorize_pipelines.errors import ItemError, UnreadableFileError
from vectorize_pipelines.items import Item
from vectorize_pipelines.pipeline.change_stream import SECONDS_PER_BATCH, ChangeStream
from vectorize_pipelines.pipeline.changes import Change, Changed, Days, Failed, Receipt, Touched, Vanished
from vectorize_pipelines.pipeline.encoding import ItemEncoder
from vectorize_pipelines.pipeline.outage import configured_outage
from vectorize_pipelines.pipeline.planning import Planner
from vectorize_pipelines.pipeline.reuse import configured_reuse
from vectorize_pipelines.pipeline.totals import Failure, Totals
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.files import FileSource, Listing, SourceFile, time_of
from vectorize_pipelines.sources.manifest import Manifest, ManifestEntry
from vectorize_pipelines.stores.filters import Equal, Or, Prefix
from vectorize_pipelines.stores.protocol import VectorStore

logger = logging.getLogger(__name__)

LOCK_POLL_SECONDS = 0.2
OTHER_KINDS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading a file gave; `items` is None where its content is the one that was known."""

    content_hash: str
    items: Sequence[Item] | None


class Reader(Protocol):
    """How the files of a folder become items of one model. A context manager, entered before anything is read.

    spec         the model
    model        fingerprint of model and way of cutting, as it is written into the records
    fingerprint  `model` and every setting that decides what is read out of a file
    as_now       further fingerprints: what was read under them is up to date under `fingerprint`
    limits       the settings by which a file may be refused
    may_refuse   whether a file is a single item, which the encoder may refuse when it looks at its content
    """

    spec: EncoderSpec
    model: str
    fingerprint: str
    as_now: frozenset[str]
    limits: str
    may_refuse: bool

    def read(self, files: Iterable[tuple[SourceFile, str | None]]) -> Iterator[tuple[SourceFile, Reading | ItemError]]:
        """Reads (file, known content hash) in order, some way ahead. Called once, in the reading thread."""

    def close(self) -> None:
        """Makes a reading in progress end soon. Called from another thread; a second call does nothing."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


@dataclass(frozen=True, slots=True)
class Forget:
    """A receipt: the manifest's entry of a file that is gone."""

    source_id: str


@dataclass(frozen=True, slots=True)
class FolderRequest:
    """What one run is to do.

    mode        `drain`: whatever differs from the manifest; `replay`: what lies in the window
    window      first and last day of the run's partitions, both included
    force       encode also what has not changed
    reconcile   hold the manifest against the store before trusting it
    """

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
    listing: Listing, known: Mapping[str, ManifestEntry], stored: Iterable[str], source: FileSource, reader: Reader
) -> Comparison:
    """Holds a listing against what is known. `stored`: further source ids of this source that the store has."""
    refused = f"{reader.fingerprint} {reader.limits}"
    changed: list[SourceFile] = []
    unchanged: list[ManifestEntry] = []
    for source_id, file in listing.files.items():
        entry = known.get(source_id)
        if entry is not None and entry.is_of(file, refused if entry.error_class else reader.fingerprint):
            unchanged.append(entry)
        else:
            changed.append(file)
    gone = {name for name in (*known, *stored) if source.holds(name)} - listing.files.keys()
    hidden = tuple(name.rstrip("/") + "/" for name in listing.unreadable)
    vanished = [name for name in gone if name not in listing.unreadable and not name.startswith(hidden)]
    return Comparison(changed, sorted(vanished), unchanged, listing.unreadable)


def compare_folder(settings: Settings, collection: str, source: FileSource, reader: Reader) -> Comparison:
    """What a drain run would find to do; reads no file and asks no store."""
    with closing(Manifest.open(home.manifest_file(settings, collection))) as manifest:
        known = {name: entry for name, entry in _entries(manifest, reader).items() if source.holds(name)}
    return compare(source.list(), known, (), source, reader)


def open_folder(
    settings: Settings,
    request: FolderRequest,
    source: FileSource,
    reader: Reader,
    store: VectorStore,
    lease_encoder: Callable[[str], AbstractContextManager[Encoder]],
) -> ChangeStream:
    """The stream that does what is asked for.

    `lease_encoder`, given the model's name, is called only where something has to be encoded.
    Holds the collection's lock until the stream is left, so that no two runs bring one collection up to date at
    once. Raises `SourceError` and `StoreError`.
    """
    with ExitStack() as resources:
        _lock(home.manifest_lock(settings, request.collection), resources)
        listing = source.list()  # not before: another run may have embedded files that came meanwhile
        physical = store.ensure_collection(request.collection, reader.spec).physical
        manifest = Manifest.open(home.manifest_file(settings, request.collection))
        resources.callback(manifest.close)
        known, stored = _trusted(_entries(manifest, reader), source, store, physical, request)
        days = Days(settings.partitions.start, datetime.now(UTC).date())
        work = compare(listing, known, stored, source, reader)
        if request.mode == "replay":
            work = _in_window(work, known, days, request.window)
        _tell(source, listing, work)
        if request.force:
            everything = [*work.changed, *(listing.files[entry.source_id] for entry in work.unchanged)]
            work = replace(work, changed=everything, unchanged=())
        totals, failures = _unchanged(work.unchanged, days)
        resources.enter_context(reader)
        outage = configured_outage(settings)
        return ChangeStream(
            changes=_changes(reader, work, known, stored, request),
            planner=Planner(
                store, request.collection, physical, reader.model, days, force=request.force, outage=outage
            ),
            collection=request.collection,
            physical=physical,
            model=reader.model,
            run_id=request.run_id,
            items=_item_encoder(settings, request, reader.spec, lease_encoder),
            announce=manifest.forget,
            acknowledged=_acknowledge(manifest),
            settings=settings.pipeline,
            expected=len(work.changed) + len(work.unchanged) + len(work.unreadable),
            outage=outage,
            resources=resources.pop_all(),
            totals=totals,
            failures=failures,
            touched=manifest.unreported_days(),
            interrupt=reader.close,
            all_days_reported=manifest.days_reported,
        )


def _tell(source: FileSource, listing: Listing, work: Comparison) -> None:
    """What a user may not have meant: files that are passed over, a folder that holds nothing any more."""
    if work.vanished and not listing.files:
        logger.warning(
            "%s holds none of the %d files that it had, and their rows go; was a disk not mounted, ingest it "
            "again once it is",
            source.root,
            len(work.vanished),
        )
    if not listing.other_kinds:
        return
    kinds = sorted(listing.other_kinds.items(), key=lambda kind: (-kind[1], kind[0]))
    shown = ", ".join(f"{number} {suffix or 'without a suffix'}" for suffix, number in kinds[:OTHER_KINDS_SHOWN])
    others = sum(number for _, number in kinds[OTHER_KINDS_SHOWN:])
    logger.info("files of other kinds are left out: %s%s", shown, f", {others} others" if others else "")


def _item_encoder(
    settings: Settings,
    request: FolderRequest,
    spec: EncoderSpec,
    lease_encoder: Callable[[str], AbstractContextManager[Encoder]],
) -> ItemEncoder:
    return ItemEncoder(
        spec.dimension,
        lambda: lease_encoder(request.model),
        configured_reuse(settings, spec, force=request.force),
        most_rows=settings.pipeline.batch_items,
        seconds_per_batch=SECONDS_PER_BATCH,
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


def _entries(manifest: Manifest, reader: Reader) -> dict[str, ManifestEntry]:
    """What the manifest knows, in the terms of this reader: a change of the model has left files as they were."""
    now = dict.fromkeys(reader.as_now, reader.fingerprint)
    now |= {f"{before} {reader.limits}": f"{reader.fingerprint} {reader.limits}" for before in reader.as_now}
    return {
        name: replace(entry, fingerprint=now[entry.fingerprint]) if entry.fingerprint in now else entry
        for name, entry in manifest.entries().items()
    }


def _trusted(
    entries: dict[str, ManifestEntry], source: FileSource, store: VectorStore, physical: str, request: FolderRequest
) -> tuple[dict[str, ManifestEntry], dict[str, int]]:
    """The manifest's entries of this source that agree with the store, and the store's rows of each source.

    Counting the store's rows tells cheaply whether it has others than the manifest says, as after a run that was
    killed; only then, or when asked to reconcile, is every source looked at.
    """
    known = {name: entry for name, entry in entries.items() if source.holds(name)}
    below = Or((Equal("source_id", source.root), Prefix("source_id", source.root.rstrip("/") + "/")))
    expected_rows = sum(entry.rows for entry in known.values())
    if not request.reconcile and store.count(physical, below) == expected_rows:
        return known, {}
    stored = store.count_by(physical, "source_id", below)
    agreeing = {name: entry for name, entry in known.items() if entry.rows == stored.get(name, 0)}
    if len(agreeing) < len(known):
        logger.warning(
            "%d files have other rows in %s than the manifest says; they are read again",
            len(known) - len(agreeing),
            request.collection,
        )
    return agreeing, stored


def _in_window(
    comparison: Comparison, known: Mapping[str, ManifestEntry], days: Days, window: tuple[date, date]
) -> Comparison:
    """What a replay of the window has to do."""
    first, last = (day.isoformat() for day in window)

    def inside(file: SourceFile | ManifestEntry) -> bool:
        return first <= days.of(time_of(file.modified_ns)) <= last

    return Comparison(
        changed=[file for file in comparison.changed if inside(file)],
        vanished=[name for name in comparison.vanished if name in known and inside(known[name])],
        unchanged=[entry for entry in comparison.unchanged if inside(entry)],
        unreadable=comparison.unreadable,
    )


def _unchanged(entries: Iterable[ManifestEntry], days: Days) -> tuple[Totals, list[Failure]]:
    """The counts of the files that are left alone, and those among them that failed for good."""
    totals = Totals()
    failures: list[Failure] = []
    for entry in entries:
        day = days.of(time_of(entry.modified_ns))
        totals.of(day).documents += 1
        totals.of(day).chunks += entry.rows
        if entry.error_class:
            totals.of(day).failed += 1
            totals.of(day).errors[entry.error_class] += 1
            failures.append(Failure(entry.source_id, day, entry.error_class, entry.error_message))
    return totals, failures


def _acknowledge(manifest: Manifest) -> Callable[[Sequence[Receipt], Iterable[str]], None]:
    def acknowledge(receipts: Sequence[Receipt], days: Iterable[str]) -> None:
        manifest.record(
            [receipt for receipt in receipts if isinstance(receipt, ManifestEntry)],
            [receipt.source_id for receipt in receipts if isinstance(receipt, Forget)],
            days,
        )

    return acknowledge


def _changes(
    reader: Reader,
    work: Comparison,
    known: Mapping[str, ManifestEntry],
    stored: Mapping[str, int],
    request: FolderRequest,
) -> Generator[Change, None, None]:
    """Reads what has changed, file by file; a file that was renamed is written before the old name's rows go."""
    last_day = datetime.combine(request.window[1], time(), UTC)
    for name, reason in work.unreadable.items():
        yield Failed(name, last_day, UnreadableFileError(reason), None)

    def known_hash(file: SourceFile) -> str | None:
        entry = known.get(file.source_id)
        read_so = entry is not None and entry.fingerprint == reader.fingerprint and not entry.error_class
        return entry.content_hash if entry is not None and read_so and not request.force else None

    for file, reading in reader.read((file, known_hash(file)) for file in work.changed):
        before = known.get(file.source_id)
        rows = before.rows if before is not None else stored.get(file.source_id, 0)
        yield _change(file, reading, reader, rows)
    for source_id in work.vanished:
        yield Vanished(source_id, Forget(source_id))


def _change(file: SourceFile, reading: Reading | ItemError, reader: Reader, rows: int) -> Change:
    """The change that a reading stands for; `rows` is how many the store has of the file now."""
    entry = ManifestEntry(
        file.source_id,
        file.size,
        file.modified_ns,
        file.version,
        content_hash="",
        fingerprint=reader.fingerprint,
        rows=rows,
    )

    def failed(error: ItemError) -> ManifestEntry:
        return replace(
            entry,
            fingerprint=f"{reader.fingerprint} {reader.limits}",
            error_class=type(error).__name__,
            error_message=str(error),
            retryable=error.retryable,
        )

    if isinstance(reading, ItemError):
        return Failed(file.source_id, file.occurred_at, reading, failed(reading))
    done = replace(entry, content_hash=reading.content_hash)
    if reading.items is None:
        return Touched(file.source_id, file.occurred_at, done)
    done = replace(done, rows=len(reading.items))
    return Changed(file.source_id, file.occurred_at, reading.items, done, failed if reader.may_refuse else None)
