"""The progress of large requests while they are encoded, noted in the ledger now and then.

Made by `encoding`, in its thread, for the requests that take long; most are done before there is anything to tell.
"""

import time
from collections import Counter
from collections.abc import Sequence
from math import inf

from vectorize_pipelines.pipeline.requests.pending import PendingRequest
from vectorize_pipelines.pipeline.requests.report import Report

#: A request that takes longer is noted as being processed, and how far it is no more often than this; of a faster one
#: the note would come late.
NOTED_SECONDS = 1.0


class Advance:
    """The rows of some requests that have their vectors, out of all that are encoded together.

    owners  the request of each item that is to be encoded, by the item's position
    """

    def __init__(self, report: Report, requests: Sequence[PendingRequest], owners: Sequence[PendingRequest]):
        self._report = report
        self._requests = requests
        self._owners = owners
        self._waiting: Counter[int] = Counter()
        self._noted_at = -inf

    @classmethod
    def of(
        cls,
        report: Report,
        requests: Sequence[PendingRequest],
        owners: Sequence[PendingRequest],
        seconds_per_row: float,
    ) -> "Advance | None":
        """Return the advance of those that take long, at so many seconds for a row; None where there are none."""
        followed = [
            pending
            for pending in requests
            if len(pending.items) > 1 and len(pending.items) * seconds_per_row > NOTED_SECONDS
        ]
        return cls(report, followed, owners) if owners and followed else None

    def begin(self) -> None:
        """Note how many rows have their vectors from elsewhere. Called again where encoding begins again."""
        self._waiting = Counter(map(id, self._owners))
        self._note()

    def encoded(self, positions: Sequence[int]) -> None:
        """Count items that have got their vectors, and note that where the last note is old."""
        self._waiting.subtract(id(self._owners[position]) for position in positions)
        if time.monotonic() - self._noted_at >= NOTED_SECONDS:
            self._note()

    def _note(self) -> None:
        changed = []
        for pending in self._requests:
            done = len(pending.items) - self._waiting[id(pending)]
            # Never back: what was tried alone before is encoded again, unless the run remembers its vectors.
            if done > pending.done or self._noted_at == -inf:
                pending.done = max(pending.done, done)
                changed.append(pending)
        self._noted_at = time.monotonic()
        if changed:
            self._report.advanced(changed)
