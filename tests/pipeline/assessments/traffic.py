"""Detections of all kinds, and the count of what became of their groups."""

import base64
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.messaging.brokers import read
from vectorize_pipelines.kafka.clients import produce, producer
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage
from vectorize_pipelines.messaging.detections import DetectionResultMessage
from vectorize_pipelines.settings import KafkaSettings

#: Shares of what is sent: messages that come twice, and such as cannot be read.
TWICE, POISON = 0.05, 0.01
PICTURE_BYTES = 3_000
MOST_GROUPS = 4


@dataclass(frozen=True)
class Check:
    """A number that is to be as expected, or at most that."""

    what: str
    expected: int
    found: int
    at_most: bool = False

    @property
    def is_right(self) -> bool:
        return self.found <= self.expected if self.at_most else self.found == self.expected

    def __str__(self) -> str:
        sign = "≤" if self.at_most else ""
        return (
            f"{self.what:<56}{sign + format(self.expected, ','):>10}{self.found:>10,}{'' if self.is_right else '  !'}"
        )


@dataclass
class Traffic:
    """What was sent; the same for the same seed. `groups`: (detection, group) of every group that is to be judged."""

    settings: KafkaSettings
    seed: int
    groups: set[tuple[str, int]] = field(default_factory=set)
    poison: int = 0
    detections: int = 0

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._producer = producer(self.settings)

    def send(self, count: int) -> None:
        """Send so many detections, some of them twice, and poison between them."""
        for _ in range(count):
            detection = self._detection()
            value = detection.to_json()
            for _ in range(1 + (self._chance.random() < TWICE)):
                self._send(value)
            if self._chance.random() < POISON:
                self.poison += 1
                self._send(value[: self._chance.randrange(len(value))])
        assert self._producer.flush(60) == 0

    def check(self, judged: int, kills: int, concurrency: int) -> list[Check]:
        """Hold what is there against what was sent.

        judged       answers that the provider gave beyond one for each group; no more than were in flight at the kills
        concurrency  calls of a run side by side
        """
        found = read(self.settings, self.settings.risk_results_topic)
        results = [RiskAssessmentResultMessage.from_json(each.value()) for each in found]
        letters = read(self.settings, self.settings.assessment_dead_letter_topic)
        of_tasks = [each for each in letters if _topic(each) == self.settings.assessment_tasks_topic]
        tasks = [AssessmentTaskMessage.from_json(each.value()) for each in of_tasks]
        ends = Counter([(each.message_id, each.group_index) for each in results])
        ends.update([(each.message_id, each.group_index) for each in tasks])
        return [
            Check("groups with a result or a dead letter", len(self.groups), len(self.groups & ends.keys())),
            Check("results or dead letters of anything else", 0, len(ends.keys() - self.groups)),
            Check("groups with several results or dead letters", 0, sum(count > 1 for count in ends.values())),
            Check("results without an assessment", 0, sum(each.error is not None for each in results)),
            Check("dead letters of detections", self.poison, len(letters) - len(of_tasks)),
            Check("answers that were asked for again", kills * concurrency, judged, at_most=True),
        ]

    def _send(self, value: bytes) -> None:
        produce(self._producer, self.settings.detections_topic, key=b"camera", value=value)

    def _detection(self) -> DetectionResultMessage:
        self.detections += 1
        name = f"detection-{self.seed}-{self.detections}"
        count = self._chance.randint(1, MOST_GROUPS)
        objects: list[dict[str, Any]] = [
            {"object_id": number, "class_name": "car", "confidence": 0.9, "bbox": [number, self.detections, 10, 20]}
            for number in range(count)
        ]
        groups = [
            {
                "group_index": number,
                "object_count": 1,
                "bbox": [self.detections, number, 100, 100],
                "classes": ["car"],
                "avg_confidence": 0.9,
                "member_indices": [number],
                "group_image_base64": base64.b64encode(
                    b"\xff\xd8\xff" + self._chance.randbytes(PICTURE_BYTES)
                ).decode(),
            }
            for number in range(count)
        ]
        self.groups.update((name, number) for number in range(count))
        return DetectionResultMessage.from_dict(
            {
                "message_id": name,
                "camera_id": f"camera-{self._chance.randrange(20)}",
                "timestamp": datetime.now(UTC).isoformat(),
                "detected_objects": objects,
                "traffic_groups": groups,
            }
        )


def _topic(letter: Any) -> str:
    headers = dict(letter.headers() or ())
    return (headers.get("__connect.errors.topic") or b"").decode()


def as_json(content: Any) -> str:
    """Return settings or parts of them as the child reads them."""
    return json.dumps(content, default=str)
