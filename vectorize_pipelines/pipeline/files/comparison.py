"""The differences between a folder and what is known of it: by the manifest, and by the store where that is in doubt.

Called by `folder`; the sensor for new files and `vectorize doctor` call `compare_folder` only.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.pipeline.files.context import FolderRun
from vectorize_pipelines.pipeline.files.reader import FileReader
from vectorize_pipelines.pipeline.totals import Failure, Totals
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.files import FileSource, Listing, SourceFile, time_of
from vectorize_pipelines.state.manifest import Manifest, ManifestEntry, open_manifest
from vectorize_pipelines.stores.filters.expressions import Equal, Or, Prefix

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FolderComparison:
    """The differences between the files that lie there and the manifest.

    changed    to be read: new, changed, failed in a way that may pass, or embedded under another fingerprint
    vanished   source ids that the manifest or the store has and the folder no longer
    unchanged  entries of the files that can be left alone, those that failed for good included
    attempted  what runs that died had in hand
    """

    changed: Sequence[SourceFile]
    vanished: Sequence[str]
    unchanged: Sequence[ManifestEntry]
    unreadable: Mapping[str, str]
    attempted: Sequence[tuple[str, str]] = ()

    @property
    def number_of_files(self) -> int:
        """The number of files that lie there, unreadable ones included."""
        return len(self.changed) + len(self.unchanged) + len(self.unreadable)

    def digest(self) -> str:
        """Return the same digest for the same work to do, unless a run has died of it meanwhile."""
        digest = hashlib.blake2b(digest_size=16)
        for file in sorted(self.changed, key=lambda file: file.source_id):
            digest.update(repr(file).encode("utf-8", "surrogatepass"))
        for source_id in sorted(self.vanished):
            digest.update(source_id.encode("utf-8", "surrogatepass") + b"\0")
        if self.attempted:
            digest.update(repr(self.attempted).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()


def compare(
    listing: Listing, known: Mapping[str, ManifestEntry], stored: Iterable[str], source: FileSource, reader: FileReader
) -> FolderComparison:
    """Compare a listing with what is known. `stored`: further source ids of this source that the store has."""
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
    return FolderComparison(changed, sorted(vanished), unchanged, listing.unreadable)


def compare_folder(settings: Settings, collection: str, source: FileSource, reader: FileReader) -> FolderComparison:
    """Return what a drain run would find to do; read no file and ask no store."""
    with closing(open_manifest(settings, collection)) as manifest:
        known = {name: entry for name, entry in known_entries(manifest, reader).items() if source.holds(name)}
        attempted = manifest.attempted()
    return replace(compare(source.list(), known, (), source, reader), attempted=attempted)


def known_entries(manifest: Manifest, reader: FileReader) -> dict[str, ManifestEntry]:
    """Return the manifest's entries, in the terms of this reader: a change of the model has left files as they were."""
    now = dict.fromkeys(reader.equivalent_fingerprints, reader.fingerprint)
    now |= {
        f"{before} {reader.limits}": f"{reader.fingerprint} {reader.limits}"
        for before in reader.equivalent_fingerprints
    }
    return {
        name: replace(entry, fingerprint=now[entry.fingerprint]) if entry.fingerprint in now else entry
        for name, entry in manifest.entries().items()
    }


def trusted_entries(
    run: FolderRun, entries: Mapping[str, ManifestEntry], source: FileSource
) -> tuple[dict[str, ManifestEntry], dict[str, int]]:
    """Return the entries of this source that agree with the store, and the store's number of rows of each source.

    Counting the store's rows tells cheaply whether it has others than the manifest says, as after a run that was
    killed; only then, or when asked to reconcile, is every source looked at.
    """
    known = {
        name: entry
        for name, entry in entries.items()
        if source.holds(name) and not (run.request.reconcile and entry.attempts)  # which are tried again then
    }
    below = Or((Equal("source_id", source.root), Prefix("source_id", source.root.rstrip("/") + "/")))
    expected_rows = sum(entry.rows for entry in known.values())
    if not run.request.reconcile and run.store.count(run.physical, below) == expected_rows:
        return known, {}
    stored = run.store.count_by(run.physical, "source_id", below)
    agreeing = {name: entry for name, entry in known.items() if entry.rows == stored.get(name, 0)}
    if len(agreeing) < len(known):
        logger.warning(
            "%d files have other rows in %s than the manifest says; they are read again",
            len(known) - len(agreeing),
            run.collection,
        )
    return agreeing, stored


def in_window(
    comparison: FolderComparison, known: Mapping[str, ManifestEntry], days: Days, window: tuple[date, date]
) -> FolderComparison:
    """Return what a replay of the window has to do."""
    first, last = (day.isoformat() for day in window)

    def inside(file: SourceFile | ManifestEntry) -> bool:
        return first <= days.of(time_of(file.modified_ns)) <= last

    return FolderComparison(
        changed=[file for file in comparison.changed if inside(file)],
        vanished=[name for name in comparison.vanished if name in known and inside(known[name])],
        unchanged=[entry for entry in comparison.unchanged if inside(entry)],
        unreadable=comparison.unreadable,
    )


def count_unchanged(entries: Iterable[ManifestEntry], days: Days) -> tuple[Totals, list[Failure]]:
    """Return the counts of files that are left alone, and those among them that failed for good."""
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
