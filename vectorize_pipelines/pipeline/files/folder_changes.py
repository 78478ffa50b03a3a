"""The changes of a folder, file by file, and what is noted of each in the manifest."""

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, time
from functools import partial

from vectorize_pipelines.errors import ItemError, UnreadableFileError
from vectorize_pipelines.pipeline.files.attempted import FileAttempts
from vectorize_pipelines.pipeline.files.changes import Change, Changed, Failed, Receipt, Touched, Vanished
from vectorize_pipelines.pipeline.files.comparison import FolderComparison, count_unchanged
from vectorize_pipelines.pipeline.files.context import FolderRun
from vectorize_pipelines.pipeline.files.reader import FileReader, Reading
from vectorize_pipelines.sources.files import SourceFile
from vectorize_pipelines.state.attempts import killed_runs
from vectorize_pipelines.state.manifest import Manifest, ManifestEntry

logger = logging.getLogger(__name__)

#: Files that are noted as in hand by one write.
NOTED_TOGETHER = 64
_REMEDY = "It is read again once it has changed, or with --force, as if for the first time."


@dataclass(frozen=True, slots=True)
class Forget:
    """A receipt: the manifest's entry of a file that is gone."""

    source_id: str


@dataclass(frozen=True, slots=True)
class FolderWork:
    """The work of one run over a folder.

    comparison  what differs
    known       the manifest's entries that agree with the store, by source id
    stored      the store's number of rows of each source; empty where it has those that the manifest says
    """

    comparison: FolderComparison
    known: Mapping[str, ManifestEntry]
    stored: Mapping[str, int]


class FolderChanges:
    """The changes of a folder, as a `stream.ChangeSource`: each file is noted as in hand before it is read."""

    def __init__(
        self,
        run: FolderRun,
        reader: FileReader,
        work: FolderWork,
        manifest: Manifest,
        attempts: FileAttempts,
    ):
        self.expected = work.comparison.number_of_files
        self.totals, self.failures = count_unchanged(work.comparison.unchanged, run.days)
        self.touched = manifest.unreported_days()
        self._request = run.request
        self._lock = run.lock
        self._reader = reader
        self._work = work
        self._manifest = manifest
        self._attempts = attempts
        self._suspects = attempts.suspects(work.comparison.changed)

    def changes(self) -> Generator[Change, None, None]:
        """Yield the changes of all files but suspects; a renamed file is written before the old name's rows go."""
        last_day = datetime.combine(self._request.window[1], time(), UTC)
        for name, reason in self._work.comparison.unreadable.items():
            yield Failed(name, last_day, UnreadableFileError(reason), None)
        files = [file for file in self._work.comparison.changed if file.source_id not in self._suspects]
        for file, reading in self._reader.read(self._noted(files)):
            yield self._change(file, reading)
        for file in self._work.comparison.changed:
            suspicion = self._suspects.get(file.source_id)
            if suspicion is not None and suspicion.is_set_aside:
                yield self._change(file, killed_runs("file", suspicion.deaths, _REMEDY))
        for source_id in self._work.comparison.vanished:
            yield Vanished(source_id, Forget(source_id))

    def suspects(self) -> list[Callable[[], Generator[Change, None, None]]]:
        """Return the files that an earlier run had in hand when it died: alone each, last those it had alone in hand.

        An error counts only once another file has been stored, so those that were alone least often come first.
        """
        files = [file for file in self._work.comparison.changed if file.source_id in self._suspects]
        files = [file for file in files if not self._suspects[file.source_id].is_set_aside]
        if files:
            logger.warning(
                "an earlier run died with %d files in hand: they are read one at a time, after the others", len(files)
            )
        files.sort(key=self._times_alone)
        return [partial(self._alone, file) for file in files]

    def announce(self, source_ids: Sequence[str]) -> None:
        """Have the manifest forget sources whose rows are about to change."""
        self._manifest.forget(source_ids)

    def acknowledge(self, receipts: Sequence[Receipt], days: Iterable[str]) -> None:
        """Note in the manifest what the store has now, and the days that were touched."""
        self._lock.check()
        self._manifest.record(
            [receipt for receipt in receipts if isinstance(receipt, ManifestEntry)],
            [receipt.source_id for receipt in receipts if isinstance(receipt, Forget)],
            days,
        )

    def reported(self) -> None:
        """Note that the days that were touched have been told to the user."""
        self._lock.check()
        self._manifest.days_reported(self.touched)

    def interrupt(self) -> None:
        """Make a reading in progress end soon."""
        self._reader.close()

    def end_with(self, error: BaseException, *, proven: bool) -> None:
        """Note an error that ended the run and may have its reason in what the run had in hand."""
        self._attempts.ending(error, proven=proven)

    def _times_alone(self, file: SourceFile) -> int:
        suspicion = self._suspects[file.source_id]
        return len(suspicion.deaths) + suspicion.unproven

    def _alone(self, file: SourceFile) -> Generator[Change, None, None]:
        self._attempts.note_alone(file, "reading")
        for _, reading in self._reader.read([(file, self._known_hash(file))]):
            change = self._change(file, reading)
            self._attempts.note_alone(file, "embedding")
            yield change

    def _noted(self, files: Sequence[SourceFile]) -> Iterator[tuple[SourceFile, str | None]]:
        for start in range(0, len(files), NOTED_TOGETHER):
            some = files[start : start + NOTED_TOGETHER]
            self._attempts.note_together(some)
            yield from ((file, self._known_hash(file)) for file in some)

    def _known_hash(self, file: SourceFile) -> str | None:
        entry = self._work.known.get(file.source_id)
        if entry is None or entry.fingerprint != self._reader.fingerprint or entry.error_class or self._request.force:
            return None
        return entry.content_hash

    def _change(self, file: SourceFile, reading: Reading | ItemError) -> Change:
        before = self._work.known.get(file.source_id)
        rows = before.rows if before is not None else self._work.stored.get(file.source_id, 0)
        return _change_of(file, reading, self._reader, rows, before)


def _change_of(
    file: SourceFile, reading: Reading | ItemError, reader: FileReader, rows: int, before: ManifestEntry | None
) -> Change:
    """Return the change that a reading stands for; `rows` is how many the store has of the file now."""
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
        fingerprint = f"{reader.fingerprint} {reader.limits}"
        attempts = 0
        if error.max_attempts is not None:
            again = before is not None and before.same_attempt(file, fingerprint)
            attempts = 1 + (before.attempts if before is not None and again else 0)
        waits = error.max_attempts is not None and attempts >= error.max_attempts
        return replace(
            entry,
            fingerprint=fingerprint,
            error_class=type(error).__name__,
            error_message=f"{error} {_waits(attempts)}" if waits else str(error),
            retryable=error.retryable and not waits,
            attempts=attempts,
        )

    if isinstance(reading, ItemError):
        return Failed(file.source_id, file.occurred_at, reading, failed(reading))
    done = replace(entry, content_hash=reading.content_hash)
    if reading.items is None:
        return Touched(file.source_id, file.occurred_at, done)
    done = replace(done, rows=len(reading.items))
    return Changed(file.source_id, file.occurred_at, reading.items, done, failed if reader.may_refuse else None)


def _waits(attempts: int) -> str:
    return (
        f"(tried {attempts} times; it waits until the file or these settings change, or for `vectorize ingest "
        "--reconcile`)"
    )
