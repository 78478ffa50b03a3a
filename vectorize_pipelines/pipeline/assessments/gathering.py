"""Results of single groups, gathered until all of their detection are there. Plain: who calls says what time it is.

A detection is released once, complete or, where its results do not all come in time, without the missing ones.
Detections of one camera are released in the order of their own times as far as that costs no more than a moment: a
complete one waits for an earlier one that is on its way, but not for long, since models answer when they like. Results
say when they were assessed; when the picture was taken is known from the tasks.

Called by `gateway.risk`. Not safe for several threads at once.
"""

from bisect import insort
from collections import OrderedDict
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heappop, heappush
from math import inf
from typing import TypeAlias

from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage, RiskLevel

#: How long a detection waits for an earlier one of its camera.
ORDER_SECONDS = 2.0
#: Detections that may be on their way at once; and released ones, and cameras, that are remembered.
MOST_OPEN = 100_000
REMEMBERED = 100_000

#: Camera and message.
_Key: TypeAlias = tuple[str, str]
#: What detections of one camera are ordered by: the time, and what tells those of the same time apart.
_Place: TypeAlias = tuple[datetime, str]


@dataclass(frozen=True, slots=True)
class GatheredDetection:
    """The results of one detection.

    timestamp     when the picture was taken; where no task of it was seen, when the first group was assessed
    is_timed      a task of it was seen
    groups        its results, by `group_index`
    groups_total  how many there ought to be
    missing       indices of groups whose results have not come in time, as far as their tasks were seen
    is_late       a later detection of the same camera was released before
    """

    camera_id: str
    message_id: str
    timestamp: datetime
    groups: tuple[RiskAssessmentResultMessage, ...]
    groups_total: int
    missing: tuple[int, ...]
    is_late: bool
    is_timed: bool = True

    @property
    def assessed_at(self) -> datetime:
        """When the first of its groups was assessed."""
        return min(group.timestamp for group in self.groups)

    def is_before(self, other: "GatheredDetection") -> bool:
        """Return whether it is the earlier of two of one camera: by their pictures, or else by their assessments."""
        if self.is_timed and other.is_timed:
            return (self.timestamp, self.message_id) < (other.timestamp, other.message_id)
        return self.assessed_at < other.assessed_at

    @property
    def is_complete(self) -> bool:
        """Return whether all results are there."""
        return len(self.groups) >= self.groups_total

    @property
    def risk_level(self) -> RiskLevel | None:
        """The highest level of its groups; None where none could be assessed."""
        levels = [group.risk_level for group in self.groups if group.risk_level is not None]
        return max(levels, key=lambda level: level.rank, default=None)

    @property
    def risk_score(self) -> float | None:
        """The highest score of its groups; None where none could be assessed."""
        return max((group.risk_score for group in self.groups if group.risk_score is not None), default=None)


@dataclass(slots=True, eq=False)
class _Open:
    """A detection on its way.

    timestamp  when the picture was taken; None until a task says it
    expected   indices of the groups of which there are tasks
    since      when its first result came; None: only its tasks are known
    closed_at  when it became complete or its time was over; None: it is waited for
    in_queue   it has its place among the detections of its camera, and waits for those before it
    may_be_cut   reading began after its first result, perhaps after others of it
    """

    key: _Key
    total: int
    timestamp: datetime | None = None
    expected: set[int] = field(default_factory=set)
    results: dict[int, RiskAssessmentResultMessage] = field(default_factory=dict)
    since: float | None = None
    closed_at: float | None = None
    in_queue: bool = False
    may_be_cut: bool = False

    @property
    def place(self) -> _Place | None:
        return None if self.timestamp is None else (self.timestamp, self.key[1])

    @property
    def can_be_released(self) -> bool:
        return bool(self.results) and (self.closed_at is not None or not self.may_be_cut)

    @property
    def assessed_at(self) -> datetime:
        return min(result.timestamp for result in self.results.values())

    def gathered(self, *, is_late: bool) -> GatheredDetection:
        """Return the detection as it is now."""
        groups = tuple(self.results[index] for index in sorted(self.results))
        missing = tuple(sorted(self.expected - self.results.keys()))
        timestamp, is_timed = self.timestamp or self.assessed_at, self.timestamp is not None
        return GatheredDetection(*self.key, timestamp, groups, self.total, missing, is_late, is_timed)


@dataclass(slots=True)
class _Camera:
    """The detections of one camera that wait for each other, the earliest first, and the latest that were released.

    last_assessed  the place of those of which no task was seen
    """

    queue: list[_Open] = field(default_factory=list)
    last_released: _Place | None = None
    last_assessed: datetime | None = None


class Gathering:
    """The detections that are on their way.

    gather_seconds    after its first result a detection waits so long for the others
    expected_seconds  so long a detection is waited for of which there is a task and no result
    order_seconds     so long a complete detection waits for an earlier one
    """

    def __init__(
        self,
        gather_seconds: float,
        expected_seconds: float,
        order_seconds: float = ORDER_SECONDS,
        *,
        most_open: int = MOST_OPEN,
        remembered: int = REMEMBERED,
    ) -> None:
        self._gather_seconds = gather_seconds
        self._expected_seconds = expected_seconds
        self._order_seconds = order_seconds
        self._most_open, self._remembered = most_open, remembered
        #: The one that was seen first comes first.
        self._open: OrderedDict[_Key, _Open] = OrderedDict()
        #: The one that was seen last comes last.
        self._cameras: OrderedDict[str, _Camera] = OrderedDict()
        self._released: OrderedDict[_Key, None] = OrderedDict()
        #: When to look again at a detection; one that is gone is passed over.
        self._due: list[tuple[float, _Key]] = []

    def __len__(self) -> int:
        """Return how many detections are on their way."""
        return len(self._open)

    @property
    def next_due(self) -> float | None:
        """The time at which `pass_time` may release something; None: not before the next result."""
        return self._due[0][0] if self._due else None

    def expect(self, task: AssessmentTaskMessage, now: float) -> None:
        """Take note that a result is on its way: later detections of the camera wait for it, for a moment."""
        key = (task.camera_id, task.message_id)
        if key in self._released:
            return
        found = self._open.get(key)
        if found is None:
            if len(self._open) >= self._most_open:
                return
            found = self._open[key] = _Open(key, task.groups_total)
            self._look_again(found, now + self._expected_seconds)
        found.expected.add(task.group_index)
        if found.timestamp is None:
            found.timestamp = task.timestamp
            self._enqueue(found)

    def add(
        self, result: RiskAssessmentResultMessage, now: float, *, looked_back: bool = False
    ) -> list[GatheredDetection]:
        """Take a result up, unless it is there already, and return the detections that are released by it.

        looked_back  it is of before the reading began, and others of its detection may have been passed over: such a
                     detection is released when it is complete, and else forgotten
        """
        key = (result.camera_id, result.message_id)
        if key in self._released:
            return []
        found = self._open.get(key)
        if found is None:
            found = self._open[key] = _Open(key, result.groups_total)
        found.may_be_cut |= looked_back
        if len(found.results) >= found.total or result.group_index in found.results:
            return []
        found.results[result.group_index] = result
        if found.since is None:
            found.since = now
            self._look_again(found, now + self._gather_seconds)
        released = self._close(found, now) if len(found.results) >= found.total else []
        while len(self._open) > self._most_open:
            released += self._make_room()
        return released

    def pass_time(self, now: float) -> list[GatheredDetection]:
        """Return the detections that are released because they, or others before them, have waited long enough."""
        released: list[GatheredDetection] = []
        while self._due and self._due[0][0] <= now:
            _, key = heappop(self._due)
            found = self._open.get(key)
            if found is None:
                continue
            if found.closed_at is not None:
                released += self._release(key[0], now)
            elif found.since is None or found.since + self._gather_seconds <= now:
                released += self._give_up(found, now)
        return released

    def _look_again(self, opened: _Open, at: float) -> None:
        heappush(self._due, (at, opened.key))

    def _enqueue(self, opened: _Open) -> None:
        """Give a detection its place, unless it is late already: then nothing is left to wait for."""
        camera = self._camera(opened.key[0])
        if camera.last_released is None or _place(opened) > camera.last_released:
            opened.in_queue = True
            insort(camera.queue, opened, key=_place)

    def _camera(self, camera_id: str) -> _Camera:
        camera = self._cameras.setdefault(camera_id, _Camera())
        self._cameras.move_to_end(camera_id)
        if len(self._cameras) > self._remembered:
            longest_silent, silent = self._cameras.popitem(last=False)
            if silent.queue:
                self._cameras[longest_silent] = silent
        return camera

    def _give_up(self, opened: _Open, now: float) -> list[GatheredDetection]:
        """Wait no longer for what is missing: release the detection, or forget it where nothing can come of it."""
        if opened.can_be_released:
            return self._close(opened, now)
        del self._open[opened.key]
        if opened.results:
            self._remember(opened.key)
        if not opened.in_queue:
            return []
        self._camera(opened.key[0]).queue.remove(opened)
        return self._release(opened.key[0], now)

    def _make_room(self) -> list[GatheredDetection]:
        """Give up the detection that has been on its way for longest, and have it wait for none before it."""
        oldest = next(iter(self._open.values()))
        if oldest.can_be_released:
            oldest.closed_at = -inf
        return self._give_up(oldest, -inf)

    def _close(self, opened: _Open, now: float) -> list[GatheredDetection]:
        if opened.closed_at is None:
            opened.closed_at = now
            self._look_again(opened, now + self._order_seconds)
        return self._release(opened.key[0], now) if opened.in_queue else [self._finish(opened)]

    def _release(self, camera_id: str, now: float) -> list[GatheredDetection]:
        """Release what waits for nothing before it, or has waited long enough: then that waits for nothing either."""
        camera = self._camera(camera_id)
        first_left = 0
        for place, each in enumerate(camera.queue):
            if each.closed_at is None:
                continue
            if place == first_left or each.closed_at + self._order_seconds <= now:
                first_left = place + 1
        passed, camera.queue = camera.queue[:first_left], camera.queue[first_left:]
        for each in passed:
            each.in_queue = False
        return [self._finish(each) for each in passed if each.closed_at is not None]

    def _finish(self, opened: _Open) -> GatheredDetection:
        del self._open[opened.key]
        self._remember(opened.key)
        camera, place, assessed_at = self._camera(opened.key[0]), opened.place, opened.assessed_at
        if place is not None and camera.last_released is not None:
            is_late = place < camera.last_released
        else:
            is_late = camera.last_assessed is not None and assessed_at < camera.last_assessed
        if not is_late:
            camera.last_released = place or camera.last_released
            camera.last_assessed = max(assessed_at, camera.last_assessed or assessed_at)
        return opened.gathered(is_late=is_late)

    def _remember(self, key: _Key) -> None:
        self._released[key] = None
        if len(self._released) > self._remembered:
            self._released.popitem(last=False)


def _place(opened: _Open) -> _Place:
    place = opened.place
    assert place is not None, "only what has a place stands in a queue"
    return place
