"""Makes a change of each file that is new, changed or deleted, and notes in the manifest what was done."""

import logging
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time
from functools import partial
from itertools import islice
from threading import Event

from vectorize_pipelines.core import notices
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.errors import ItemError, SourceError, UnreadableFileError
from vectorize_pipelines.pipeline.files.attempted import FileAttempts, Suspicion
from vectorize_pipelines.pipeline.files.changes import Change, Changed, Failed, Receipt, Touched, Vanished
from vectorize_pipelines.pipeline.files.comparison import compare, known_entries
from vectorize_pipelines.pipeline.files.contents import ContentComparison
from vectorize_pipelines.pipeline.files.context import FolderRun
from vectorize_pipelines.pipeline.files.reader import FileReader, Reading
from vectorize_pipelines.pipeline.files.tallies import UnchangedFiles, VanishedFiles
from vectorize_pipelines.sources.files import FileSource, OrderedListing, SourceFile, time_of
from vectorize_pipelines.state.attempts import killed_runs
from vectorize_pipelines.state.manifest import Manifest, ManifestEntry
from vectorize_pipelines.stores.filters.expressions import Equal

logger = logging.getLogger(__name__)

#: Files that are noted as in hand by one write.
NOTED_TOGETHER = 64
OTHER_KINDS_SHOWN = 5
_REMEDY = "It is read again once it has changed, or with --force, as if for the first time."


@dataclass(frozen=True, slots=True)
class Forget:
    """A receipt: the manifest's entry of a file that is gone."""

    source_id: str


class FolderChanges:
    """The changes of a folder, as a `stream.ChangeSource`: each file is noted as in hand before it is read.

    The folder is compared with the manifest while the changes are taken. `manifest_in_order` is the same manifest
    again, to be read by the thread that takes them.
    """

    def __init__(
        self,
        run: FolderRun,
        source: FileSource,
        listing: OrderedListing,
        reader: FileReader,
        manifest: Manifest,
        manifest_in_order: Manifest,
        attempts: FileAttempts,
    ):
        self.expected: int | None = None
        self.unchanged = UnchangedFiles(run.days)
        self._run = run
        self._request = run.request
        self._root = source.root
        self._listing = listing
        self._reader = reader
        found = compare(listing, known_entries(manifest_in_order, source, reader), reader, run.request.shard)
        self._contents = ContentComparison()
        reads_anyway = run.request.force or not run.request.compare_contents
        self._compared = found if reads_anyway else self._contents.compared(found)
        self._manifest = manifest
        self._attempts = attempts
        #: Notes of days in the manifest, see `_note`: those of runs that are gone, over what this one owns.
        self._notes = {note for note in manifest.unreported_days() if self._owns_note(note)}
        self.touched = {note.partition(" ")[0] for note in self._notes}
        #: What is known of files that are in hand.
        self._before: dict[str, ManifestEntry] = {}
        self._suspicions: dict[str, tuple[SourceFile, Suspicion]] = {}
        self._is_interrupted = Event()
        self._vanished = VanishedFiles()
        self._rows_vanished = False

    def close(self) -> None:
        """Release the file of what has vanished, and end what is being read."""
        self._contents.close()
        self._vanished.close()

    @property
    def left_out(self) -> int:
        """How many temporary files were passed over; of the shards of a run only the first one says so."""
        return 0 if self._request.shard.index else self._listing.left_out

    @property
    def other_kinds(self) -> Mapping[str, int]:
        """How many files were passed over for their suffix; of the shards of a run only the first one says so."""
        return {} if self._request.shard.index else dict(self._listing.other_kinds)

    def changes(self) -> Generator[Change, None, None]:
        """Yield the changes of all files but suspects; a renamed file is written before the old name's rows go."""
        for file, reading in self._reader.read(self._noted()):
            yield self._change(file, reading)
        if self.expected is None or self._is_interrupted.is_set():
            return  # closed from outside, maybe before everything was listed, or read
        self._log_surprises()
        last_day = datetime.combine(self._request.window[1], time(), UTC)
        for name, reason in self._unreadable():
            yield Failed(name, last_day, UnreadableFileError(reason), None)
        for file, suspicion in self._suspicions.values():
            if suspicion.is_set_aside:
                yield self._change(file, killed_runs("file", suspicion.deaths, _REMEDY))
        for source_id in self._vanished:
            yield Vanished(source_id, Forget(source_id))

    def suspects(self) -> list[Callable[[], Generator[Change, None, None]]]:
        """Return the files that an earlier run had in hand when it died: alone each, last those it had alone in hand.

        An error counts only once another file has been stored, so those that were alone least often come first.
        """
        files = [file for file, suspicion in self._suspicions.values() if not suspicion.is_set_aside]
        if files:
            logger.warning(
                "an earlier run died with %d files in hand: they are read one at a time, after the others", len(files)
            )
        files.sort(key=self._times_alone)
        return [partial(self._alone, file) for file in files]

    def announce(self, source_ids: Sequence[str]) -> None:
        """Have the manifest doubt sources whose rows are about to change: a run that finds this looks at them."""
        self._manifest.doubt(source_ids)

    def acknowledge(self, receipts: Sequence[Receipt], days: Collection[str]) -> None:
        """Note in the manifest what the store has now, and the days that were touched."""
        self._run.lock.check()
        self._manifest.record(
            [receipt for receipt in receipts if isinstance(receipt, ManifestEntry)],
            [receipt.source_id for receipt in receipts if isinstance(receipt, Forget)],
            [self._note(day) for day in days],
        )

    def reported(self) -> None:
        """Note that the days that were touched have been told to the user."""
        self._run.lock.check()
        self._manifest.days_reported(self._notes | {self._note(day) for day in self.touched})

    def interrupt(self) -> None:
        """Make a listing and a reading in progress end soon."""
        self._is_interrupted.set()
        self._contents.close()
        self._reader.close()

    def end_with(self, error: BaseException, *, proven: bool) -> None:
        """Note an error that ended the run and may have its reason in what the run had in hand."""
        self._attempts.ending(error, proven=proven)

    def _note(self, day: str) -> str:
        """Return a day as the manifest notes it: with the shard, where others go on beside it."""
        return day if self._request.shard.is_whole else f"{day} {self._request.shard}"

    def _owns_note(self, note: str) -> bool:
        shard = note.partition(" ")[2]
        return self._request.shard.overlaps(Shard.parse(shard) if shard else WHOLE)

    def _times_alone(self, file: SourceFile) -> int:
        suspicion = self._suspicions[file.source_id][1]
        return len(suspicion.deaths) + suspicion.unproven

    def _alone(self, file: SourceFile) -> Generator[Change, None, None]:
        self._attempts.note_alone(file, "reading")
        for _, reading in self._reader.read([(file, self._known_hash(file))]):
            change = self._change(file, reading)
            self._attempts.note_alone(file, "embedding")
            yield change

    def _noted(self) -> Iterator[tuple[SourceFile, str | None]]:
        """Yield the files to be read, but for suspects, with the content hashes that are known of them."""
        changed = self._changed_files()
        while (some := list(islice(changed, NOTED_TOGETHER))) and not self._is_interrupted.is_set():
            suspicions = self._attempts.suspects(some)
            self._suspicions |= {
                file.source_id: (file, suspicions[file.source_id]) for file in some if file.source_id in suspicions
            }
            some = [file for file in some if file.source_id not in suspicions]
            self._attempts.note_together(some)
            yield from ((file, self._known_hash(file)) for file in some)

    def _changed_files(self) -> Iterator[SourceFile]:
        """Go through folder and manifest; count what is unchanged, put by what has vanished, yield the others."""
        found = 0
        for file, entry, is_unchanged in self._compared:
            if self._is_interrupted.is_set():
                return  # what has not been listed yet has not vanished
            if not self._is_in_window(file, entry):
                continue
            if file is None:
                if entry is not None:
                    self._vanished.add(entry.source_id)
                    self._rows_vanished = self._rows_vanished or entry.rows > 0 or entry.is_in_doubt
                continue
            found += 1
            if is_unchanged and entry is not None and not self._is_read_anyway(entry):
                self.unchanged.add(entry)
                continue
            if entry is not None:
                self._before[file.source_id] = entry
            yield file
        if self._is_interrupted.is_set():
            return
        self._refuse_emptied()
        self.expected = found + sum(1 for _ in self._unreadable())

    def _refuse_emptied(self) -> None:
        """Raise `SourceError` where nothing lies there of all that did, unless that is said to be meant."""
        if self._listing.found or not self._rows_vanished or self._request.allow_empty:
            return
        raise SourceError(
            f"{self._root} holds none of the {len(self._vanished)} files that it had, and no other to be embedded; "
            "nothing is deleted. Was a disk or a share not mounted, ingest it again "
            "once it is. Where it was emptied on purpose, `vectorize ingest --allow-empty` has the rows of its files "
            "deleted, as have the settings corpus.allow_empty and gallery.allow_empty"
        )

    def _is_read_anyway(self, entry: ManifestEntry) -> bool:
        tried_in_vain = self._request.reconcile and entry.attempts > 0
        of_no_known_content = self._request.compare_contents and bool(entry.error_class)
        return tried_in_vain or of_no_known_content or self._run.encodes_again(entry.source_id)

    def _is_in_window(self, file: SourceFile | None, entry: ManifestEntry | None) -> bool:
        """Return whether a run has to do with a file: a replay only with those of its days."""
        if self._request.mode == "drain":
            return True
        known = file or entry
        if known is None or (file is None and entry is not None and entry.is_in_doubt and not entry.modified_ns):
            return False  # of which nobody knows the day
        first, last = (day.isoformat() for day in self._request.window)
        return first <= self._run.days.of(time_of(known.modified_ns)) <= last

    def _unreadable(self) -> Iterator[tuple[str, str]]:
        shard = self._request.shard
        return ((name, reason) for name, reason in self._listing.unreadable.items() if shard.owns_source(name))

    def _log_surprises(self) -> None:
        """Log what a user may not have meant: files that are passed over, a folder that holds nothing any more."""
        if len(self._vanished) and not self.expected:
            logger.warning(
                "%s holds none of the %d files that it had, and their rows go",
                self._root if self._request.shard.is_whole else f"shard {self._request.shard} of {self._root}",
                len(self._vanished),
            )
        if self.left_out:
            logger.info(
                "%d temporary files (locks, copies of editors, halves of downloads) are left out; a pattern of include "
                "that names them takes them",
                self.left_out,
            )
        if not self.other_kinds:
            return
        kinds = sorted(self.other_kinds.items(), key=lambda kind: (-kind[1], kind[0]))
        shown = ", ".join(f"{number} {suffix or 'without a suffix'}" for suffix, number in kinds[:OTHER_KINDS_SHOWN])
        others = sum(number for _, number in kinds[OTHER_KINDS_SHOWN:])
        logger.info("files of other kinds are left out: %s%s", shown, f", {others} others" if others else "")

    def _known_hash(self, file: SourceFile) -> str | None:
        entry = self._before.get(file.source_id)
        if entry is None or entry.fingerprint != self._reader.fingerprint or entry.error_class:
            return None
        return None if self._run.encodes_again(file.source_id) else entry.content_hash

    def _change(self, file: SourceFile, reading: Reading | ItemError) -> Change:
        before = self._before.pop(file.source_id, None)
        if before is not None and self._request.reconcile:
            before = replace(before, attempts=0)  # it is tried again as if for the first time
        return _change_of(file, reading, self._reader, lambda: self._stored_rows(before), before)

    def _stored_rows(self, before: ManifestEntry | None) -> int:
        """Return how many rows the store has of a file, by what is known of it before."""
        if before is None or not before.is_in_doubt:
            return 0 if before is None else before.rows
        run, where = self._run, Equal("source_id", before.source_id)
        return run.outage.call(lambda: run.store.count(run.physical, where))


def _change_of(
    file: SourceFile,
    reading: Reading | ItemError,
    reader: FileReader,
    stored_rows: Callable[[], int],
    before: ManifestEntry | None,
) -> Change:
    """Return the change that a reading stands for; `stored_rows` returns how many the store has of the file now."""
    entry = ManifestEntry(
        file.source_id,
        file.size,
        file.modified_ns,
        file.version,
        content_hash="",
        fingerprint=reader.fingerprint,
        rows=0,
    )

    def failed(error: ItemError) -> ManifestEntry:
        fingerprint = f"{reader.fingerprint} {reader.limits}"
        attempts = 0
        if error.max_attempts is not None:
            again = before is not None and before.same_attempt(file, fingerprint)
            attempts = 1 + (before.attempts if before is not None and again else 0)
        waits = error.max_attempts is not None and attempts >= error.max_attempts
        return replace(
            entry,
            fingerprint=fingerprint,
            rows=stored_rows(),
            error_class=type(error).__name__,
            error_message=f"{error} {_waits(attempts)}" if waits else str(error),
            retryable=error.retryable and not waits,
            attempts=attempts,
        )

    if isinstance(reading, ItemError):
        return Failed(file.source_id, file.occurred_at, reading, failed(reading))
    done = replace(entry, content_hash=reading.content_hash)
    if reading.items is None:
        told = "" if before is None else before.notices
        done = replace(done, rows=stored_rows(), notices=told)
        return Touched(file.source_id, file.occurred_at, done, notices.from_json(told))
    done = replace(done, rows=len(reading.items), notices=notices.to_json(reading.notices))
    refused = failed if reader.may_refuse else None
    return Changed(file.source_id, file.occurred_at, reading.items, done, reading.notices, refused)


def _waits(attempts: int) -> str:
    return (
        f"(tried {attempts} times; it waits until the file or these settings change, or for `vectorize ingest "
        "--reconcile`)"
    )
