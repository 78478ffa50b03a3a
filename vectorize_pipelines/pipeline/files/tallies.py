"""What a run over a folder keeps of the files that it does not read: counts, and the names of those that are gone."""

import json
from collections.abc import Iterator
from tempfile import SpooledTemporaryFile
from threading import Lock

from vectorize_pipelines.core import notices
from vectorize_pipelines.core.days import Days
from vectorize_pipelines.pipeline.totals import Failure, RunNotices, Totals
from vectorize_pipelines.sources.files import time_of
from vectorize_pipelines.state.manifest import ManifestEntry

#: Bytes of names that are kept in memory; beyond, they lie in a file.
NAMES_IN_MEMORY = 2**20


class UnchangedFiles:
    """The counts of files that are left alone, those among them that failed for good, and the notices of the others.

    Safe for several threads.
    """

    def __init__(self, days: Days):
        self._days = days
        self._using = Lock()
        self._totals = Totals()
        self._failures: list[Failure] = []
        self._notices = RunNotices()

    def add(self, entry: ManifestEntry) -> None:
        """Count one more."""
        day = self._days.of(time_of(entry.modified_ns))
        with self._using:
            totals = self._totals.of(day)
            totals.documents += 1
            totals.chunks += entry.rows
            if entry.error_class:
                totals.failed += 1
                totals.errors[entry.error_class] += 1
                self._failures.append(Failure(entry.source_id, day, entry.error_class, entry.error_message))
            elif entry.notices:
                told = notices.from_json(entry.notices)
                totals.note(told)
                self._notices.add(entry.source_id, day, told)

    def take(self) -> tuple[Totals, list[Failure], RunNotices]:
        """Return the counts by day since the last call, those that failed, and what the others lack."""
        with self._using:
            taken = self._totals, self._failures, self._notices
            self._totals, self._failures, self._notices = Totals(), [], RunNotices()
        return taken


class VanishedFiles:
    """The names of files that are gone, whose rows go once everything else is written. Read after all were added."""

    def __init__(self) -> None:
        self._number = 0
        self._names = SpooledTemporaryFile(NAMES_IN_MEMORY)  # noqa: SIM115 (closed by `close`)

    def add(self, source_id: str) -> None:
        """Keep one more."""
        self._number += 1
        self._names.write(json.dumps(source_id).encode() + b"\n")

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[str]:
        self._names.seek(0)
        return (json.loads(line) for line in self._names)

    def close(self) -> None:
        """Release the file."""
        self._names.close()
