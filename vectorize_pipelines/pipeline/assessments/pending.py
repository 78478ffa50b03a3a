"""`PendingTask`: one assessment task from its message to its result."""

import math
from dataclasses import dataclass, field

from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.state.assessments import AssessmentRow

#: What a task that was put aside takes in memory, about.
ASIDE_BYTES = 2_000
#: A task that has waited for so much of its time is put aside where there is no room.
LATE_SHARE = 0.1


@dataclass(slots=True, eq=False)
class PendingTask:
    """A message on its way through a run.

    message    as it came; None while the task is put aside, which then has neither picture nor objects
    task       what it says; None where it says nothing that can be read
    day        the partition of its row
    deadline   seconds since 1970 after which its risk helps nobody; infinite where that does not count
    attempt    how often it had failed before
    size       bytes that it takes in memory, about, where it is not put aside
    row        what became of it, to be noted and told
    error      why it failed
    answered   whether the row was noted by an earlier run, which did not get to tell it
    needless   whether another message is, or was, answered in its place: nothing is to be told
    twins      messages of the same task that came while this one was in hand
    """

    place: PartitionId
    offset: int
    timestamp_ms: int
    day: str
    message: ReceivedMessage | None
    task: AssessmentTaskMessage | None = None
    deadline: float = math.inf
    attempt: int = 0
    size: int = 0
    row: AssessmentRow | None = None
    error: Exception | None = None
    answered: bool = False
    needless: bool = False
    twins: "list[PendingTask]" = field(default_factory=list)

    @property
    def is_done(self) -> bool:
        """Return whether there is nothing left but to tell what became of it."""
        return self.needless or self.row is not None or self.error is not None

    @property
    def held_bytes(self) -> int:
        """Return what it takes in memory now, about."""
        return self.size if self.message is not None else min(self.size, ASIDE_BYTES)

    def is_late(self, now: float) -> bool:
        """Return whether it has waited for a good part of its time, at `now` seconds since 1970."""
        sent = self.timestamp_ms / 1000
        return now - sent >= LATE_SHARE * (self.deadline - sent)

    def let_go(self) -> None:
        """Keep what its row and its result need, where nobody judges it."""
        if self.task is not None:
            group = self.task.group.model_copy(update={"group_image_base64": None})
            self.task = self.task.model_copy(update={"group": group, "detected_objects": []})
        self.message = None
