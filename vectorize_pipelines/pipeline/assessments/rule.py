"""Which groups of a detection are assessed, as the settings say it."""

from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from vectorize_pipelines.messaging.detections import DetectionResultMessage, TrafficGroup
from vectorize_pipelines.settings import AssessmentRule

#: Cameras that are remembered; the one that was assessed longest ago is forgotten.
MOST_CAMERAS = 10_000
#: Pictures that are remembered of a camera.
MOST_PICTURES = 64


class LeftOut(StrEnum):
    """Why a group is not assessed, as figures name it."""

    OBJECTS = "too_few_objects"
    CLASSES = "other_classes"
    CONFIDENCE = "low_confidence"
    AREA = "small"
    PAUSE = "too_soon"
    ALIKE = "alike"


@dataclass(frozen=True, slots=True)
class Choice:
    """The groups of one detection that are assessed, and how many are not, by reason."""

    groups: list[TrafficGroup]
    left_out: Counter[LeftOut]


@dataclass(slots=True)
class _Camera:
    """What was assessed of a camera: when last, and the hashes of pictures with their times."""

    assessed_at: datetime
    pictures: deque[tuple[datetime, int]] = field(default_factory=lambda: deque(maxlen=MOST_PICTURES))


class Rule:
    """The rule, with what it remembers of each camera. Used by one thread, with a camera's detections as they came.

    Times are those of the detections: the same detections are chosen however fast they are read. Memory is bounded.
    """

    def __init__(self, settings: AssessmentRule) -> None:
        self._settings = settings
        self._classes = frozenset(settings.classes)
        self._cameras: OrderedDict[str, _Camera] = OrderedDict()

    def deserving(self, detection: DetectionResultMessage) -> Choice:
        """Return the groups that objects, classes, confidence and area speak for; nothing is remembered."""
        groups: list[TrafficGroup] = []
        left_out: Counter[LeftOut] = Counter()
        for group in detection.traffic_groups:
            reason = self._reason(group)
            if reason is None:
                groups.append(group)
            else:
                left_out[reason] += 1
        return Choice(groups, left_out)

    def choose(self, camera_id: str, at: datetime, deserving: Choice, hashes: Mapping[int, int]) -> Choice:
        """Return those of the deserving groups that the camera's pause and standing scenes leave over.

        at      when the picture was taken
        hashes  group's number -> perceptual hash of its picture; a group without one is like no other

        What is chosen counts as assessed for the detections that follow.
        """
        if not deserving.groups:
            return deserving
        camera = self._cameras.get(camera_id)
        left_out = Counter(deserving.left_out)
        if camera is not None and _seconds_between(at, camera.assessed_at) < self._settings.pause_seconds:
            left_out[LeftOut.PAUSE] += len(deserving.groups)
            return Choice([], left_out)
        groups = [each for each in deserving.groups if not self._is_alike(camera, at, hashes.get(each.group_index))]
        if len(groups) < len(deserving.groups):
            left_out[LeftOut.ALIKE] += len(deserving.groups) - len(groups)
        if groups:
            self._remember(camera_id, at, [hashes[each.group_index] for each in groups if each.group_index in hashes])
        return Choice(groups, left_out)

    def _reason(self, group: TrafficGroup) -> LeftOut | None:
        rule = self._settings
        if group.object_count < rule.min_objects:
            return LeftOut.OBJECTS
        if self._classes and self._classes.isdisjoint(group.classes):
            return LeftOut.CLASSES
        if group.avg_confidence < rule.min_confidence:
            return LeftOut.CONFIDENCE
        if group.area < rule.min_area:
            return LeftOut.AREA
        return None

    def _is_alike(self, camera: _Camera | None, at: datetime, picture: int | None) -> bool:
        distance = self._settings.hash_distance
        if camera is None or picture is None or distance is None:
            return False
        return any(
            (picture ^ earlier).bit_count() <= distance and _seconds_between(at, seen_at) < self._settings.hash_seconds
            for seen_at, earlier in camera.pictures
        )

    def _remember(self, camera_id: str, at: datetime, pictures: list[int]) -> None:
        camera = self._cameras.setdefault(camera_id, _Camera(at))
        # Not the latest time: after a clock that was ahead is set right, the camera would be left out until then.
        camera.assessed_at = at
        camera.pictures.extend((at, picture) for picture in pictures)
        self._cameras.move_to_end(camera_id)
        if len(self._cameras) > MOST_CAMERAS:
            self._cameras.popitem(last=False)


def _seconds_between(one: datetime, other: datetime) -> float:
    return abs((one - other).total_seconds())
