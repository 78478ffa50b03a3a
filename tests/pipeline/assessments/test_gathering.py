"""Detections are released once, complete if that can be had in time, in order if that costs no more than a moment."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from tests.messaging.assessed import LATENCY, result, taken_at, task
from vectorize_pipelines.messaging.assessments import RiskLevel
from vectorize_pipelines.pipeline.assessments.gathering import GatheredDetection, Gathering

GATHER, EXPECTED, ORDER = 10.0, 120.0, 2.0
CAMERAS = ("north", "south")


class Event(NamedTuple):
    """Something that happens to a detection: its tasks are made (`group` is None), or a result comes."""

    at: float
    camera: str
    detection: int
    group: int | None
    groups: int

    @property
    def name(self) -> str:
        return f"{self.camera}/{self.detection}"


def gathering(**bounds: int) -> Gathering:
    return Gathering(GATHER, EXPECTED, ORDER, **bounds)


def names(released: list[GatheredDetection]) -> list[str]:
    return [each.message_id for each in released]


def test_a_detection_is_released_with_its_last_result() -> None:
    gathered = gathering()
    assert gathered.add(result("north", 1, 4, 2, risk_level="none", risk_score=0.0), 0) == []
    (released,) = gathered.add(result("north", 1, 2, 2, risk_level="high", risk_score=0.75), 1)
    assert released.is_complete
    assert [group.group_index for group in released.groups] == [2, 4]
    assert (released.risk_level, released.risk_score) == (RiskLevel.HIGH, 0.75)
    assert released.timestamp == taken_at(1) + LATENCY
    assert len(gathered) == 0


def test_the_time_of_the_picture_is_that_of_its_task() -> None:
    gathered = gathering()
    gathered.expect(task("north", 1), 0)
    (released,) = gathered.add(result("north", 1), 1)
    assert released.timestamp == taken_at(1)


def test_results_that_come_twice_or_too_late_change_nothing() -> None:
    gathered = gathering()
    assert gathered.add(result("north", 1, 0, 2), 0) == []
    assert gathered.add(result("north", 1, 0, 2, summary="again"), 1) == []
    (released,) = gathered.add(result("north", 1, 1, 2), 2)
    assert released.groups[0].summary == "north 1"
    assert gathered.add(result("north", 1, 1, 2), 3) == []
    assert gathered.pass_time(1_000) == []


def test_what_does_not_come_in_time_is_named() -> None:
    gathered = gathering()
    for group in (0, 3, 7):
        gathered.expect(task("north", 1, group, 3), 0)
    assert gathered.add(result("north", 1, 3, 3), 5) == []
    assert gathered.pass_time(5 + GATHER - 0.1) == []
    (released,) = gathered.pass_time(5 + GATHER)
    assert (released.is_complete, released.missing, released.groups_total) == (False, (0, 7), 3)
    assert gathered.add(result("north", 1, 0, 3), 16) == []


def test_groups_that_could_not_be_assessed_count_as_results() -> None:
    failed: dict[str, Any] = {
        "error": {"class": "InvalidAnswerError", "message": "no JSON"},
        "risk_level": None,
        "risk_score": None,
    }
    gathered = gathering()
    gathered.add(result("north", 1, 0, 2, **failed), 0)
    (released,) = gathered.add(result("north", 1, 1, 2), 0)
    assert (released.is_complete, released.risk_level) == (True, RiskLevel.LOW)
    (released,) = gathered.add(result("north", 2, **failed), 0)
    assert (released.is_complete, released.risk_level, released.risk_score) == (True, None, None)


def test_a_detection_waits_for_an_earlier_one_of_its_camera_for_a_moment() -> None:
    gathered = gathering()
    for detection in (1, 2, 3):
        gathered.expect(task("north", detection), 0)
    gathered.expect(task("south", 1), 0)
    assert gathered.add(result("north", 2), 1) == []
    assert names(gathered.add(result("south", 1), 1)) == ["south/1"]
    assert names(gathered.add(result("north", 1), 2)) == ["north/1", "north/2"]
    assert names(gathered.add(result("north", 3), 2)) == ["north/3"]


def test_it_waits_no_longer_and_then_the_earlier_one_is_late() -> None:
    gathered = gathering()
    for detection in (1, 2, 3, 4):
        gathered.expect(task("north", detection), 0)
    assert gathered.add(result("north", 2), 1) == []
    assert gathered.add(result("north", 4), 1.5) == []
    assert gathered.pass_time(1 + ORDER - 0.1) == []
    assert names(gathered.pass_time(1 + ORDER)) == ["north/2"]
    assert names(gathered.add(result("north", 3), 3.2)) == ["north/3", "north/4"], (
        "nothing waits for what was overtaken"
    )
    (late,) = gathered.add(result("north", 1), 4)
    assert (late.message_id, late.is_late, late.is_complete) == ("north/1", True, True)


def test_a_detection_of_which_nothing_comes_is_forgotten() -> None:
    gathered = gathering()
    gathered.expect(task("north", 1), 0)
    assert gathered.pass_time(EXPECTED) == []
    assert (len(gathered), gathered.next_due) == (0, None)
    assert names(gathered.add(result("north", 1), EXPECTED + 1)) == ["north/1"]


def test_there_is_room_for_so_many_at_once() -> None:
    gathered = gathering(most_open=3)
    for detection in range(10):
        gathered.expect(task("north", detection, 0, 2), 0)
    assert len(gathered) == 3
    released = [each for detection in range(20, 30) for each in gathered.add(result("south", detection, 0, 2), 1)]
    assert len(gathered) == 3
    assert names(released) == [f"south/{detection}" for detection in range(20, 27)]
    assert not any(each.is_complete for each in released)


def test_what_may_have_been_cut_off_is_released_only_when_it_is_complete() -> None:
    gathered = gathering()
    for detection in (1, 2):
        assert gathered.add(result("north", detection, 1, 2), 0, looked_back=True) == []
    (released,) = gathered.add(result("north", 1, 0, 2), 1)
    assert released.is_complete
    assert gathered.pass_time(GATHER) == []
    assert (len(gathered), gathered.next_due) == (0, None)
    assert gathered.add(result("north", 2, 0, 2), GATHER + 1) == [], "it is over"
    assert gathered.pass_time(1_000) == []


def test_without_tasks_what_was_assessed_before_is_late() -> None:
    gathered = gathering()
    gathered.add(result("north", 1, 0, 2), 0)
    (later,) = gathered.add(result("north", 2), 1)
    (late,) = gathered.add(result("north", 1, 1, 2), 2)
    assert (later.is_late, late.is_late) == (False, True)
    gathered.expect(task("north", 3), 3)
    (timed,) = gathered.add(result("north", 3), 4)
    assert not timed.is_late, "its picture is older than the assessment of the one before, and its own is not"
    assert [later.is_before(timed), timed.is_before(later), late.is_before(later)] == [True, False, True]


@dataclass
class Day:
    """What is made of a day: tasks, results with delays and duplicates, and when each detection was released.

    first  detection -> when its first result was handed in
    """

    gathered: Gathering = field(default_factory=gathering)
    released: list[tuple[float, GatheredDetection]] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)

    def live(self, events: list[Event]) -> None:
        """Hand everything in at its time, and look at what is due when it is due."""
        for event in sorted(events, key=lambda each: each.at):
            at, camera, detection, group, groups = event
            self._wait_until(at)
            if group is None:
                for index in range(groups):
                    self.gathered.expect(task(camera, detection, index, groups), at)
                continue
            self.first.setdefault(event.name, at)
            self.released += [(at, each) for each in self.gathered.add(result(camera, detection, group, groups), at)]
        self._wait_until(float("inf"))

    def _wait_until(self, time: float) -> None:
        while (due := self.gathered.next_due) is not None and due <= time:
            self.released += [(due, each) for each in self.gathered.pass_time(due)]


@st.composite
def days(draw: st.DrawFn) -> list[Event]:
    """Detections of two cameras, a second apart, whose results come after a delay of their own, some twice or never."""
    chance = draw(st.randoms(use_true_random=False))
    slowest = draw(st.sampled_from([1.5, 5.0, 30.0]))
    lost = draw(st.sampled_from([0.0, 0.2]))
    unseen = draw(st.sampled_from([0.0, 0.3, 1.0]))
    events: list[Event] = []
    for camera in CAMERAS:
        for detection in range(draw(st.integers(1, 15))):
            groups = chance.randint(1, 4)
            if chance.random() >= unseen:
                events.append(Event(detection, camera, detection, None, groups))
            for group in range(groups):
                times = 0 if chance.random() < lost else chance.choice((1, 1, 1, 2))
                events += [
                    Event(detection + 0.01 + chance.random() * slowest, camera, detection, group, groups)
                    for _ in range(times)
                ]
    return events


@given(days())
def test_whatever_comes_each_detection_is_released_once_and_in_time(events: list[Event]) -> None:
    day = Day()
    day.live(events)
    released = {each.message_id: (at, each) for at, each in day.released}
    assert Counter(each.message_id for _, each in day.released) == Counter(day.first.keys())
    assert len(day.gathered) == 0
    for name, (at, detection) in released.items():
        end = day.first[name] + GATHER
        in_time = {each.group for each in events if each.name == name and each.group is not None and each.at < end}
        got = {group.group_index for group in detection.groups}
        assert in_time <= got, "what came in time is there"
        assert detection.is_complete == (len(got) == detection.groups_total)
        assert at <= end + ORDER
        assert detection.is_complete or at >= end


@given(days())
def test_only_what_is_late_comes_after_a_later_one(events: list[Event]) -> None:
    day = Day()
    day.live(events)
    for camera in CAMERAS:
        seen = {each.detection for each in events if each.camera == camera and each.group is None}
        placed = [each for _, each in day.released if each.camera_id == camera and _number(each) in seen]
        in_order = [_number(each) for each in placed if not each.is_late]
        assert in_order == sorted(in_order)


def _number(detection: GatheredDetection) -> int:
    return int(detection.message_id.partition("/")[2])
