"""The tasks that a run has in hand: read ahead, judged newest first, and acknowledged as their partitions allow.

    [thread] reading ──add──▶ waiting ──take──▶ [thread] calls ──finish──▶ finished ──collect──▶ [main] results
                                                                                        settle ──▶ offsets

Bounded in tasks and bytes, so a run's memory does not grow with its topic. Whoever reads waits for room; as long as
calls keep up, hardly any task waits and each is judged as it comes. Once they do not, the newest goes first: a risk of
some minutes ago helps nobody, and what nobody came to is dropped when its time is over. So that the newest are read at
all then, the older of those that wait are put aside: of these only little is kept. Where their turn comes nevertheless,
they are read once more.
"""

import heapq
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.pipeline.assessments.pending import ASIDE_BYTES, PendingTask
from vectorize_pipelines.pipeline.assessments.progress import (
    MOST_BLOCKS,
    NOTHING_FINISHED,
    FinishedOffsets,
    PartitionProgress,
)


class Room(NamedTuple):
    """How much more may be read: messages, and bytes, each at least 1."""

    messages: int
    size: int


class TaskWindow:
    """The tasks in hand of one run; used by its three threads.

    most_tasks, most_bytes  reading waits while as much is in hand
    listen                  called, from the thread that reads, whenever there are new tasks to take
    """

    def __init__(self, most_tasks: int, most_bytes: int):
        self._most_tasks = most_tasks
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        # What readers wait for, and who tells results; calls are called up by `listen`.
        self._has_changed = threading.Condition(self._lock)
        self._has_finished = threading.Condition(self._lock)
        self._partitions: dict[PartitionId, PartitionProgress] = {}
        self._moved: set[PartitionId] = set()
        # (negative time, number, task): the newest first, those of one time in the order in which they came.
        self._waiting: list[tuple[int, int, PendingTask]] = []
        # As those that wait, of tasks that were put aside.
        self._aside: list[tuple[int, int, PendingTask]] = []
        self._numbers = itertools.count()
        self._by_id: dict[str, PendingTask] = {}
        self._finished: deque[PendingTask] = deque()
        self._tasks = self._light = self._bytes = 0
        self._stopped = self._abandoned = False
        self._error: BaseException | None = None
        self.listen: Callable[[], None] = lambda: None

    # The reading thread

    def begin(self, positions: Mapping[PartitionId, int], earlier: Mapping[PartitionId, FinishedOffsets]) -> None:
        """Note where reading begins in each partition, and what runs before had done behind that."""
        with self._lock:
            for place, position in positions.items():
                self._partitions[place] = PartitionProgress(position, earlier.get(place, NOTHING_FINISHED))

    def wait_for_room(self, seconds: float) -> Room | None:
        """Return how much more may be read, after waiting so long for any; None: nothing, as always after `stop`."""
        with self._lock:
            self._has_changed.wait_for(lambda: self._room() is not None or self._stopped, seconds)
            return None if self._stopped else self._room()

    def add(self, tasks: Iterable[PendingTask], positions: Mapping[PartitionId, int]) -> None:
        """Take up messages in the order in which they were read; `positions`: where reading stands now."""
        with self._lock:
            for each in tasks:
                self._partition(each.place, each.offset).read(each.offset)
                self._tasks += 1
                self._bytes += each.held_bytes
                self._take_up(each)
            for place, position in positions.items():
                self._partition(place, position).pass_to(position)
                self._moved.add(place)
            self._has_finished.notify_all()
        self.listen()

    def put_aside(self, now: float) -> int:
        """Make room where there is none, by what waits and is late; return how many tasks were put aside."""
        with self._lock:
            # The other half is for what waits: it has to be read again somewhere.
            is_most = 2 * ASIDE_BYTES * self._light >= self._most_bytes
            if is_most or self._space() is not None or not self._messages_with_offsets():
                return 0
            late = [entry for entry in self._waiting if entry[2].is_late(now)]
            if late:
                self._waiting = [entry for entry in self._waiting if not entry[2].is_late(now)]
                heapq.heapify(self._waiting)
            for entry in late:
                self._bytes -= entry[2].held_bytes
                entry[2].let_go()
                self._bytes += entry[2].held_bytes
                heapq.heappush(self._aside, entry)
            self._light += len(late)
            return len(late)

    def take_back(self, most: int) -> list[PendingTask]:
        """Return the newest of those that were put aside, to be read once more, and restored: as many as have room."""
        taken: list[PendingTask] = []
        with self._lock:
            tasks, size = self._space() or Room(0, 0)
            while self._aside and len(taken) < min(tasks, most) and size > 0:
                taken.append(heapq.heappop(self._aside)[2])
                size -= taken[-1].size
        return taken

    def restore(
        self, tasks: Iterable[PendingTask], again: Mapping[PendingTask, tuple[ReceivedMessage, AssessmentTaskMessage]]
    ) -> None:
        """Have tasks wait again, with what was read of them; those of which nothing is there any more expire."""
        with self._lock:
            for each in tasks:
                if each in again:
                    self._bytes -= each.held_bytes
                    each.message, each.task = again[each]
                    self._bytes += each.held_bytes
                    self._light -= 1
                    if not self._stopped:
                        self._wait(each)
                elif not self._stopped:
                    each.deadline = min(each.deadline, each.timestamp_ms / 1000)
                    heapq.heappush(self._aside, (-each.timestamp_ms, next(self._numbers), each))
        self.listen()

    def stop(self) -> None:
        """Let go of what waits, which a later run reads again; what is being judged is finished."""
        with self._lock:
            self._stopped = True
            self._waiting.clear()
            self._aside.clear()
            self._has_changed.notify_all()
            self._has_finished.notify_all()
        self.listen()

    def fail(self, error: BaseException) -> None:
        """End the run with this error, unless it has ended with another one."""
        with self._lock:
            self._error = self._error or error
        self.stop()

    def abandon(self) -> None:
        """End the calls that are being made, too: nobody wants their answers any more."""
        self._abandoned = True
        self.stop()

    # The thread of the calls

    def take(self) -> PendingTask | None:
        """Return the newest task that waits, to be judged; None where none does."""
        with self._lock:
            return heapq.heappop(self._waiting)[2] if self._waiting else None

    def put_back(self, task: PendingTask) -> None:
        """Have a task wait again, whose call failed for a reason that is not its own."""
        with self._lock:
            if not self._stopped:
                self._wait(task)

    def take_expired(self, now: float) -> list[PendingTask]:
        """Return those that wait and whose time is over, at `now` seconds since 1970: each has to be finished."""
        with self._lock:
            expired = []
            for entries in (self._waiting, self._aside):
                over = [each for _, _, each in entries if each.deadline <= now]
                if over:
                    entries[:] = [entry for entry in entries if entry[2].deadline > now]
                    heapq.heapify(entries)
                expired += over
        return expired

    def finish(self, task: PendingTask) -> None:
        """Hand on a task that is done."""
        with self._lock:
            self._finished.append(task)
            self._has_finished.notify_all()

    # The main thread

    def wait_for_finished(self, seconds: float) -> bool:
        """Return whether there are tasks that are done, or the run has failed, after waiting for it for so long."""
        with self._lock:
            return self._has_finished.wait_for(lambda: bool(self._finished) or self._error is not None, seconds)

    def collect(self, most: int) -> Sequence[PendingTask]:
        """Return tasks that are done, in the order in which they came to it, with the other messages of the same ones.

        Raises what the run was failed with.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            collected: list[PendingTask] = []
            while self._finished and len(collected) < most:
                task = self._finished.popleft()
                if task.task is not None and self._by_id.get(task.task.task_id) is task:
                    del self._by_id[task.task.task_id]
                collected += [task, *task.twins]
                task.twins = []
            return collected

    def settle(self, tasks: Iterable[PendingTask]) -> dict[PartitionId, tuple[int, str]]:
        """Note that tasks are done with; return the offsets, with their metadata, of the partitions that have moved on.

        Called right before these are committed: where that fails, so does the run.
        """
        with self._lock:
            for each in tasks:
                self._partitions[each.place].finish(each.offset)
                self._moved.add(each.place)
                self._tasks -= 1
                self._light -= each.message is None
                self._bytes -= each.held_bytes
            moved = {place: self._partitions[place] for place in self._moved}
            self._moved.clear()
            self._has_changed.notify_all()
            return {place: (progress.finished, progress.metadata()) for place, progress in moved.items()}

    @property
    def stopped(self) -> bool:
        """Return whether nothing new is to be begun."""
        return self._stopped

    @property
    def is_abandoned(self) -> bool:
        """Return whether nobody wants what is being judged any more."""
        return self._abandoned or self._error is not None

    @property
    def in_hand(self) -> int:
        """Return how many messages have been read and are not done with."""
        return self._tasks

    @property
    def finished(self) -> int:
        """Return how many of them are done, and not collected."""
        return len(self._finished)

    @property
    def waiting(self) -> int:
        """Return how many of them wait to be judged."""
        return len(self._waiting)

    def _space(self) -> Room | None:
        """Return the room in memory."""
        tasks, size = self._most_tasks - self._tasks + self._light, self._most_bytes - self._bytes
        return Room(tasks, size) if tasks > 0 and size > 0 else None

    def _room(self) -> Room | None:
        """Return the room in memory and in the metadata of offsets."""
        space = self._space()
        if space is None:
            return None
        messages = min(space.messages, self._messages_with_offsets())
        return Room(messages, space.size) if messages > 0 else None

    def _messages_with_offsets(self) -> int:
        """Return how many messages more fit into the metadata of offsets, of whatever partition they are."""
        return min((each.room for each in self._partitions.values()), default=MOST_BLOCKS)

    def _partition(self, place: PartitionId, position: int) -> PartitionProgress:
        """A topic may get more partitions."""
        if place not in self._partitions:
            self._partitions[place] = PartitionProgress(position)
        return self._partitions[place]

    def _take_up(self, task: PendingTask) -> None:
        if task.task is not None and not task.is_done:
            first = self._by_id.setdefault(task.task.task_id, task)
            if first is not task:
                task.needless = True
                first.twins.append(task)
                return
        if task.is_done:
            self._finished.append(task)
        elif not self._stopped:
            self._wait(task)

    def _wait(self, task: PendingTask) -> None:
        heapq.heappush(self._waiting, (-task.timestamp_ms, next(self._numbers), task))
