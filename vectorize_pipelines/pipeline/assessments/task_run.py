"""A run over detections: read, chosen by the rule, and sent on as tasks, in one transaction with the offsets.

    MessageSource ──▶ [thread] decode, Rule ──TaskBatch──▶ [main] tasks, dead letters, offsets: one Kafka transaction

`task_runs` makes it. Killed anywhere, it has sent all of a batch or nothing of it.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import datetime
from types import TracebackType
from typing import Self, TypeAlias

from vectorize_pipelines.core.prefetch import prefetch
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.sources import LostRange
from vectorize_pipelines.kafka.transactions import OutgoingMessage
from vectorize_pipelines.pipeline.assessments.task_batches import TaskBatch, TaskBatches
from vectorize_pipelines.pipeline.assessments.task_figures import DayFigures
from vectorize_pipelines.pipeline.progress import PROGRESS_INTERVAL_SECONDS
from vectorize_pipelines.pipeline.totals import Failure

logger = logging.getLogger(__name__)

#: A run that goes on for a day may meet any number; all of them are in the dead letters.
FAILURES_KEPT = 1000

#: When cameras were heard of is noted so often.
NOTE_SECONDS = 5.0

#: Sends everything and commits the offsets, or nothing of it. Raises `KafkaError`.
Send: TypeAlias = Callable[[Sequence[OutgoingMessage], Mapping[PartitionId, int]], None]


class TaskRun:
    """One run over detections. A context manager, which closes what it was given.

    days      figures by day, in UTC
    failures  the first messages that are no detections
    """

    def __init__(
        self,
        batches: TaskBatches,
        send: Send,
        note_seen: Callable[[Mapping[str, datetime]], None],
        lost: Callable[[], Sequence[LostRange]],
        resources: ExitStack,
    ) -> None:
        self._batches = batches
        self._note_seen = note_seen
        self._seen: dict[str, datetime] = {}
        self._send = send
        self._lost = lost
        self._resources = resources
        self._begun = time.monotonic()
        self.days: dict[str, DayFigures] = {}
        self.failures: list[Failure] = []

    def run(self) -> None:
        """Deal with detections until the run is to end; what was not sent is a later run's.

        Raises `KafkaError`, and `LedgerError` where cannot be noted when cameras were heard of.
        """
        shown = noted = time.monotonic()
        with closing(prefetch(self._batches.read(), 1, "vectorize-read", late=True)) as batches:
            for batch in batches:
                self._send(batch.messages, batch.positions)
                self._count(batch)
                if time.monotonic() - noted >= NOTE_SECONDS:
                    noted = time.monotonic()
                    self._note_cameras()
                if time.monotonic() - shown >= PROGRESS_INTERVAL_SECONDS:
                    shown = time.monotonic()
                    logger.info("%s", self.progress())
        self._note_cameras()
        logger.info("%s; ended: %s", self.progress(), self._batches.why_ended)

    def _count(self, batch: TaskBatch) -> None:
        for day, figures in batch.days.items():
            self.days.setdefault(day, DayFigures()).add(figures)
        for camera_id, at in batch.seen.items():
            self._seen[camera_id] = max(at, self._seen.get(camera_id, at))
        self.failures += batch.failures[: FAILURES_KEPT - len(self.failures)]

    def _note_cameras(self) -> None:
        self._note_seen(self._seen)
        self._seen = {}

    @property
    def total(self) -> DayFigures:
        """Return the figures of all days together."""
        total = DayFigures()
        for each in self.days.values():
            total.add(each)
        return total

    def figures(self) -> Mapping[str, int | float]:
        """Return figures of the run as a whole, beside those of its days."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        return {
            "messages_per_second": round(self.total.messages / seconds, 1),
            "lost_unread": sum(lost.messages for lost in self._lost()),
            "lag": self._batches.lag,
        }

    def losses(self) -> Sequence[str]:
        """Return the places of what the broker had deleted before it was read, for people."""
        return [str(lost) for lost in self._lost()]

    def progress(self) -> str:
        """Describe how far the run is."""
        total, figures = self.total, self.figures()
        return (
            f"{total.messages} detections ({figures['messages_per_second']} a second), {total.tasks} tasks, "
            f"{total.left_out.total()} groups left out, {total.dead_letters} dead letters; about {figures['lag']} "
            "waiting"
        )

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
