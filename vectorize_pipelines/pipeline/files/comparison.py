"""The differences between a folder and what the manifest knows of it, found file by file; neither is held.

Listing and manifest both come in the order of the source ids, so they are gone through side by side. `folder` does so
for a run; the sensor for new files and `vectorize doctor` call `compare_folder`, which only counts.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from vectorize_pipelines.core.shards import WHOLE, Shard, slot
from vectorize_pipelines.errors import SourceError
from vectorize_pipelines.pipeline.files.reader import FileReader
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.sources.files import FileSource, OrderedListing, SourceFile
from vectorize_pipelines.state.manifest import Manifest, ManifestEntry, open_manifest

#: Parts of a folder whose work is told apart, whatever the number of shards: a power of two that is at most this.
PARTS = 256


class Compared(NamedTuple):
    """A file that lies there, or is known, or both; `is_unchanged`: it can be left alone."""

    file: SourceFile | None
    entry: ManifestEntry | None
    is_unchanged: bool


@dataclass(slots=True)
class FolderComparison:
    """The differences between the files that lie there and the manifest, in numbers.

    changed     files to be read: new, changed, failed in a way that may pass, or embedded under another fingerprint
    vanished    files that the manifest knows and the folder no longer has
    unchanged   files that can be left alone, those that failed for good included
    failed      the latter
    incomplete  files that can be left alone, though not all of them is embedded
    unreadable  files and folders that could not be looked at
    attempted   what runs that died had in hand
    """

    changed: int = 0
    vanished: int = 0
    unchanged: int = 0
    failed: int = 0
    incomplete: int = 0
    unreadable: int = 0
    attempted: Sequence[tuple[str, str]] = ()
    _work: "list[hashlib.blake2b | None]" = field(default_factory=lambda: [None] * PARTS)

    @property
    def number_of_files(self) -> int:
        """The number of files that lie there, unreadable ones included."""
        return self.changed + self.unchanged + self.unreadable

    def add(self, compared: Compared) -> None:
        """Count one more."""
        if compared.is_unchanged:
            self.unchanged += 1
            entry = compared.entry
            self.failed += bool(entry and entry.error_class)
            self.incomplete += bool(entry and entry.is_incomplete)
        elif compared.file is not None:
            self.changed += 1
            self._note(compared.file.source_id, repr(compared.file))
        elif compared.entry is not None:
            self.vanished += 1
            self._note(compared.entry.source_id, compared.entry.source_id)

    def digest(self, shard: Shard = WHOLE) -> str:
        """Return the same digest for the same work to do, unless a run has died of it meanwhile; empty for none.

        The count of shards is a power of two, and `PARTS` at most.
        """
        digest = hashlib.blake2b(digest_size=16)
        work = [each for part, each in enumerate(self._work) if each is not None and part % shard.count == shard.index]
        if not work:
            return ""
        for each in work:
            digest.update(each.digest())
        if attempted := [each for each in self.attempted if shard.owns_source(each[0])]:
            digest.update(repr(attempted).encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def _note(self, source_id: str, what: str) -> None:
        part = slot(source_id) % PARTS
        digest = self._work[part] = self._work[part] or hashlib.blake2b(digest_size=16)
        digest.update(what.encode("utf-8", "surrogatepass") + b"\0")


def compare_folder(settings: Settings, collection: str, source: FileSource, reader: FileReader) -> FolderComparison:
    """Return what a drain run would find to do; read no file and ask no store."""
    comparison = FolderComparison()
    listing = source.ordered()
    with closing(open_manifest(settings, collection)) as manifest:
        for compared in compare(listing, known_entries(manifest, source, reader), reader):
            comparison.add(compared)
        comparison.attempted = manifest.attempted()
    comparison.unreadable = len(listing.unreadable)
    return comparison


def compare(
    listing: OrderedListing, entries: Iterable[ManifestEntry], reader: FileReader, shard: Shard = WHOLE
) -> Iterator[Compared]:
    """Yield what lies there or is known of a shard, in the order of the source ids.

    A file that is known and not listed, and of which the listing does not say that it could not be looked at, has
    vanished. Raises `SourceError` as the listing does, and where it does not come in order.
    """
    refused = f"{reader.fingerprint} {reader.limits}"
    for file, entry in _side_by_side(_ordered(listing), entries, shard.owns_source):
        if file is not None:
            is_unchanged = entry is not None and entry.is_of(file, refused if entry.error_class else reader.fingerprint)
            yield Compared(file, entry, is_unchanged)
        elif entry is not None and not listing.hides(entry.source_id):
            yield Compared(None, entry, is_unchanged=False)


def known_entries(manifest: Manifest, source: FileSource, reader: FileReader) -> Iterator[ManifestEntry]:
    """Yield a source's entries, in the terms of this reader: a change of the model has left files as they were."""
    now = dict.fromkeys(reader.equivalent_fingerprints, reader.fingerprint)
    now |= {
        f"{before} {reader.limits}": f"{reader.fingerprint} {reader.limits}"
        for before in reader.equivalent_fingerprints
    }
    for entry in manifest.below(source.root):
        yield replace(entry, fingerprint=now[entry.fingerprint]) if entry.fingerprint in now else entry


def _side_by_side(
    files: Iterator[SourceFile], entries: Iterable[ManifestEntry], owns: Callable[[str], bool]
) -> Iterator[tuple[SourceFile | None, ManifestEntry | None]]:
    """Yield what is owned of two sequences in order, what both have together."""
    owned_files = (file for file in files if owns(file.source_id))
    owned_entries = (entry for entry in entries if owns(entry.source_id))
    file, entry = next(owned_files, None), next(owned_entries, None)
    while file is not None or entry is not None:
        if entry is None or (file is not None and file.source_id < entry.source_id):
            yield file, None
            file = next(owned_files, None)
        elif file is None or entry.source_id < file.source_id:
            yield None, entry
            entry = next(owned_entries, None)
        else:
            yield file, entry
            file, entry = next(owned_files, None), next(owned_entries, None)


def _ordered(listing: OrderedListing) -> Iterator[SourceFile]:
    """Yield the files of a listing. Raises `SourceError` where they do not come in order, or one comes twice.

    A file that came too late would be taken for one that has vanished.
    """
    last = ""
    for file in listing:
        if file.source_id <= last:
            raise SourceError(
                f"the file system does not list its files in the order of their names: {file.source_id} comes after "
                f"{last}; ingest its folders one by one, or from a copy"
            )
        last = file.source_id
        yield file
