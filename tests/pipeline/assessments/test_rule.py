"""Which groups deserve to be assessed, by each part of the rule."""

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.messaging.detections import SOME_TIME, detection
from vectorize_pipelines.messaging.detections import DetectionResultMessage
from vectorize_pipelines.pipeline.assessments import rule as rules
from vectorize_pipelines.pipeline.assessments.picture_hashes import difference_hash
from vectorize_pipelines.pipeline.assessments.rule import LeftOut, Rule
from vectorize_pipelines.settings import AssessmentRule


def numbers(
    rule: Rule, *, camera: str = "cam", at: datetime = SOME_TIME, hashes: dict[int, int] | None = None, **given_: Any
) -> tuple[list[int], dict[LeftOut, int]]:
    """The numbers of the groups that are chosen, and what is left out."""
    content = DetectionResultMessage.from_dict(detection(**{"groups": 1, **given_}))
    choice = rule.choose(camera, at, rule.deserving(content), hashes or {})
    return [group.group_index for group in choice.groups], dict(choice.left_out)


def test_by_default_every_group_is_assessed() -> None:
    rule = Rule(AssessmentRule())
    for _ in range(3):
        assert numbers(rule, groups=3, avg_confidence=0.0, bbox=[0, 0, 0, 0], classes=[]) == ([0, 1, 2], {})


@pytest.mark.parametrize(
    ("settings", "group", "reason"),
    [
        ({"min_objects": 3}, {"object_count": 2}, LeftOut.OBJECTS),
        ({"classes": ("bus", "person")}, {"classes": ["car"]}, LeftOut.CLASSES),
        ({"min_confidence": 0.5}, {"avg_confidence": 0.49}, LeftOut.CONFIDENCE),
        ({"min_area": 200.0}, {"bbox": [10, 10, 29, 20]}, LeftOut.AREA),
    ],
)
def test_a_group_below_a_limit_is_left_out(settings: dict[str, Any], group: dict[str, Any], reason: LeftOut) -> None:
    rule = Rule(AssessmentRule(**settings))
    assert numbers(rule, groups=2, **group) == ([], {reason: 2})


def test_a_group_at_the_limits_is_assessed() -> None:
    limits = AssessmentRule(min_objects=2, classes=("bus", "car"), min_confidence=0.9, min_area=200.0)
    assert numbers(Rule(limits)) == ([0], {})
    assert numbers(Rule(limits), bbox=[20, 10, 0, 0]) == ([0], {}), "corners may come in any order"


def test_a_camera_pauses_for_itself() -> None:
    rule = Rule(AssessmentRule(pause_seconds=2.0))
    assert numbers(rule, groups=2) == ([0, 1], {}), "the groups of one detection are assessed together"
    soon, later = SOME_TIME + timedelta(seconds=1.9), SOME_TIME + timedelta(seconds=2)
    assert numbers(rule, at=soon) == ([], {LeftOut.PAUSE: 1})
    assert numbers(rule, at=soon, camera="another") == ([0], {})
    assert numbers(rule, at=later) == ([0], {})
    assert numbers(rule, at=later) == ([], {LeftOut.PAUSE: 1}), "the same detection once more"


def test_a_clock_that_is_set_back_does_not_silence_a_camera() -> None:
    rule = Rule(AssessmentRule(pause_seconds=2.0))
    assert numbers(rule, at=SOME_TIME + timedelta(days=1))[0] == [0]
    assert numbers(rule, at=SOME_TIME)[0] == [0]
    assert numbers(rule, at=SOME_TIME + timedelta(seconds=3))[0] == [0]


def test_a_standing_scene_is_left_out_for_a_while() -> None:
    rule = Rule(AssessmentRule(hash_distance=2, hash_seconds=10))
    assert numbers(rule, groups=2, hashes={0: 0b1111, 1: 0b0}) == ([0, 1], {})
    soon = SOME_TIME + timedelta(seconds=9)
    assert numbers(rule, groups=2, at=soon, hashes={0: 0b110000, 1: 0b111111}) == ([], {LeftOut.ALIKE: 2})
    assert numbers(rule, groups=2, at=soon, hashes={0: 0b111, 1: 0xFF0000}) == ([1], {LeftOut.ALIKE: 1})
    assert numbers(rule, at=soon, hashes={}) == ([0], {}), "a picture that cannot be had is like no other"
    assert numbers(rule, at=soon, camera="another", hashes={0: 0}) == ([0], {})
    assert numbers(rule, at=SOME_TIME + timedelta(seconds=10), hashes={0: 0b1111}) == ([0], {}), "it may have changed"


def test_what_is_left_out_does_not_count_as_assessed() -> None:
    rule = Rule(AssessmentRule(min_objects=2, pause_seconds=5.0))
    assert numbers(rule, object_count=1) == ([], {LeftOut.OBJECTS: 1})
    assert numbers(rule) == ([0], {})


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "MOST_CAMERAS", 3)
    rule = Rule(AssessmentRule(pause_seconds=5.0))
    for camera in ("a", "b", "c", "d"):
        assert numbers(rule, camera=camera)[0] == [0]
    assert numbers(rule, camera="d")[0] == []
    assert numbers(rule, camera="a")[0] == [0], "it is forgotten"


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40), st.integers(0, 3)), max_size=30))
def test_no_two_assessed_detections_of_a_camera_are_closer_than_its_pause(events: list[tuple[str, int, int]]) -> None:
    rule = Rule(AssessmentRule(pause_seconds=3.0))
    last: dict[str, datetime] = {}
    for camera, seconds, groups in events:
        at = SOME_TIME + timedelta(seconds=seconds)
        chosen, left_out = numbers(rule, camera=camera, at=at, groups=groups)
        assert len(chosen) + sum(left_out.values()) == groups
        too_soon = camera in last and abs((at - last[camera]).total_seconds()) < 3.0
        assert chosen == ([] if too_soon else list(range(groups)))
        if chosen:
            last[camera] = at


def test_alike_pictures_have_hashes_that_differ_little() -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    brighter = (pixels // 2 + 90).astype(np.uint8)
    other = random.integers(0, 256, (8, 9, 3), dtype=np.uint8)
    assert difference_hash(pixels) == difference_hash(pixels.copy())
    assert (difference_hash(pixels) ^ difference_hash(brighter)).bit_count() <= 3
    assert (difference_hash(pixels) ^ difference_hash(other)).bit_count() > 15
    assert difference_hash(np.zeros((8, 9, 3), dtype=np.uint8)) == 0
