"""The thread that reads tasks ahead, as far as the run's window has room, and says when the run is to end."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from math import inf
from typing import Protocol

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.sources import MessageSource, Polled
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.messaging.dead_letters import attempts_of
from vectorize_pipelines.messaging.messages import origin_of
from vectorize_pipelines.pipeline.assessments.pending import PendingTask
from vectorize_pipelines.pipeline.assessments.progress import FinishedOffsets
from vectorize_pipelines.pipeline.assessments.tasks import LATEST_MS
from vectorize_pipelines.pipeline.assessments.window import Room, TaskWindow
from vectorize_pipelines.pipeline.stop_policy import StopPolicy
from vectorize_pipelines.state.assessments import AssessmentRow, Assessments, AssessmentState

logger = logging.getLogger(__name__)

#: Messages that are taken up together; more of them do not make it faster.
MESSAGES_TOGETHER = 500
#: They are read in portions of so many: between two of them is looked how many bytes there are.
PORTION_MESSAGES = 16
#: While fewer wait to be judged and nothing newer is there, tasks that were put aside are read once more.
FEW_WAITING = 500
#: How often is looked whether the run is to end, while there is no room.
LOOK_SECONDS = 0.25
#: What a task takes in memory beside its message: the message itself once more, as what was read out of it.
COPIES = 2
OVERHEAD_BYTES = 2_000


class Lookup(Protocol):
    """Reads single messages by their places."""

    def find(self, wanted: Mapping[PartitionId, Collection[int]]) -> Sequence[ReceivedMessage]:
        """Return those that are there. Raises `KafkaError`."""


class TaskReading:
    """Reads the tasks of one run into its window. `run` is the body of its thread; it closes nothing.

    finished    what earlier runs have done behind the committed offsets
    days        asked for each batch: a run may go on past midnight
    lookup      reads tasks once more that were put aside; None: none is, however many wait
    is_replay   tasks are judged whatever their deadline, and again where they were not completed
    force       those that were completed, too
    """

    def __init__(
        self,
        window: TaskWindow,
        source: MessageSource,
        assessments: Assessments,
        stop_policy: StopPolicy,
        days: Callable[[], Days],
        finished: Mapping[PartitionId, FinishedOffsets],
        *,
        lookup: Lookup | None = None,
        is_replay: bool = False,
        force: bool = False,
    ):
        self._window = window
        self._source = source
        self._assessments = assessments
        self._stop_policy = stop_policy
        self._days = days
        self._finished = finished
        self._lookup = lookup
        self._is_replay = is_replay
        self._force = force
        self._begun = time.monotonic()
        self._thread = threading.Thread(target=self._work, name="vectorize-read", daemon=True)
        self.messages = 0
        self.lag = 0
        self.why_ended = ""
        window.begin(source.begins_at(), finished)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def join(self) -> None:
        """Wait until reading has ended, after `TaskWindow.stop` or by itself."""
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self) -> None:
        try:
            self._read()
        except BaseException as error:  # noqa: BLE001 (raised by whoever collects)
            self._window.fail(error)
        else:
            self._window.stop()

    def _read(self) -> None:
        last_message = last_look = time.monotonic()
        while not self._window.stopped:
            now = time.monotonic()
            if now - last_look >= LOOK_SECONDS:
                last_look = now
                self.lag = self._source.lag()
                self.why_ended = self._stop_policy.reason(self._begun) or ""
                if self.why_ended:
                    return
            room = self._window.wait_for_room(LOOK_SECONDS)
            if room is None:
                self._make_room()
                continue
            polled = self._poll(room)
            if polled.messages or polled.positions:
                self._window.add(self._taken_up(polled.messages), polled.positions)
                self.messages += len(polled.messages)
            if not polled.messages:
                self._read_again()
            if polled.messages or self._window.in_hand:
                last_message = time.monotonic()
            elif self._source.at_end():
                self.why_ended = self._stop_policy.reason_at_end(time.monotonic() - last_message) or ""
                if self.why_ended:
                    return

    def _poll(self, room: Room) -> Polled:
        """Read what is there and there is room for, and of its bytes a portion more at most."""
        messages: list[ReceivedMessage] = []
        positions: dict[PartitionId, int] = {}
        left, size = min(room.messages, MESSAGES_TOGETHER), room.size
        while left > 0 and size > 0:
            most = min(left, PORTION_MESSAGES)
            polled = self._source.poll(most)
            messages += polled.messages
            positions.update(polled.positions)
            left -= len(polled.messages)
            size -= sum(map(_size_of, polled.messages))
            if len(polled.messages) < most:
                break
        return Polled(messages, positions)

    def _make_room(self) -> None:
        if self._lookup is None or (self.lag and self._window.put_aside(time.time())):
            return
        # Where it is the offsets of a partition that leave no room, only what was put aside can make some.
        self._read_again()

    def _read_again(self) -> None:
        """Have tasks that were put aside wait again, where few others do: nothing newer can be had."""
        if self._lookup is None or self._window.waiting >= FEW_WAITING:
            return
        tasks = self._window.take_back(MESSAGES_TOGETHER)
        if not tasks:
            return
        by_place = {(each.place, each.offset): each for each in tasks}
        wanted: dict[PartitionId, set[int]] = {}
        for place, offset in by_place:
            wanted.setdefault(place, set()).add(offset)
        again: dict[PendingTask, tuple[ReceivedMessage, AssessmentTaskMessage]] = {}
        for message in self._lookup.find(wanted):
            pending = by_place[(message.topic(), message.partition()), message.offset()]
            again[pending] = (message, AssessmentTaskMessage.from_json(message.value() or b""))
        self._window.restore(tasks, again)

    def _taken_up(self, messages: Sequence[ReceivedMessage]) -> list[PendingTask]:
        """Return the tasks in messages, those that are done already as such."""
        days = self._days()
        pending = [self._pending(message, days) for message in messages if not self._is_finished(message)]
        known = self._assessments.known({each.task.task_id for each in pending if each.task is not None})
        for each in pending:
            row = known.get(each.task.task_id) if each.task is not None else None
            if row is not None:
                self._compare(each, row)
        return pending

    def _is_finished(self, message: ReceivedMessage) -> bool:
        finished = self._finished.get((message.topic(), message.partition()))
        return finished is not None and message.offset() in finished

    def _compare(self, pending: PendingTask, row: AssessmentRow) -> None:
        """Spare a task what was done for it: an earlier run may have been killed before it told so."""
        same = row.place == (*pending.place, pending.offset)
        completed = row.state is AssessmentState.COMPLETED
        if self._is_replay:
            pending.needless = completed and not self._force
        elif same and completed:
            pending.row, pending.answered = row, True
        elif row.state is AssessmentState.EXPIRED and not same and pending.deadline > row.assessed_at.timestamp():
            # Made again by a replay of its detection, with a deadline of its own.
            pending.attempt = max(pending.attempt, row.attempt + 1)
        elif not same:
            pending.needless = completed or pending.attempt <= row.attempt

    def _pending(self, message: ReceivedMessage, days: Days) -> PendingTask:
        origin = origin_of(message)
        timestamp_ms = min(max(origin.timestamp_ms, 0), LATEST_MS)
        pending = PendingTask(
            (origin.topic, origin.partition),
            origin.offset,
            timestamp_ms,
            days.of(datetime.fromtimestamp(timestamp_ms / 1000, UTC)),
            message,
            attempt=attempts_of(message.headers()),
            size=_size_of(message),
        )
        try:
            pending.task = AssessmentTaskMessage.from_json(message.value() or b"")
        except ItemError as error:
            error.__traceback__ = error.__cause__ = error.__context__ = None
            pending.error = error
        else:
            pending.deadline = inf if self._is_replay else pending.task.deadline.timestamp()
        return pending


def _size_of(message: ReceivedMessage) -> int:
    return COPIES * len(message.value() or b"") + OVERHEAD_BYTES
