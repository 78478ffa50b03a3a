"""Detections a second that become tasks, on the machine that the broker runs on, too.

`CAP_DETECTIONS` in the environment makes it smaller, for trying: the number then means little.
"""

import base64
import json
import os
import random
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, python
from tests.servers.kafka import Server
from vectorize_pipelines.kafka.clients import produce, producer
from vectorize_pipelines.kafka.topics import Family, compression_of, create_topics
from vectorize_pipelines.messaging.detections import DetectionResultMessage
from vectorize_pipelines.settings import KafkaSettings

DETECTIONS = 30_000
CAMERAS = 40
GROUPS = 3
OBJECTS = 21
#: Of a group's picture; three of them make a detection of 60 kB.
PICTURE_BYTES = 14_200
#: Pictures differ, as those of cameras do: the broker cannot compress one by another.
PICTURES = 200


def run(place: Path) -> list[Figure]:
    """One drain run over a topic that is full."""
    count = min(DETECTIONS, int(os.environ.get("CAP_DETECTIONS", DETECTIONS)))
    with Server(place / "kafka", heap="1g", compiling=()) as server:
        settings = KafkaSettings(bootstrap_servers=server.bootstrap_servers)
        size = _send(settings, count)
        done = python("-m", "benchmarks.assessments.tasks_run", str(place / "home"), server.bootstrap_servers)
    outcome: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    rate = outcome["messages"] / outcome["seconds"]
    measured = (
        f"{rate:,.0f} detections/s of {size / 1000:.0f} kB ({outcome['messages']:,} detections, {outcome['tasks']:,} "
        f"tasks; {outcome['cpu_seconds']:.1f} s of CPU in {outcome['seconds']:.1f} s; {outcome['peak_mib']:.0f} MiB)"
    )
    wanted = "≥ 1,000 detections/s"
    return [Figure("assessments: detections that become tasks", measured, wanted, rate >= 1000)]


def _send(settings: KafkaSettings, count: int) -> float:
    """Fill the topic; return the mean size of a detection in bytes."""
    create_topics(settings, (Family.ASSESSMENTS,))
    sender = producer(settings, **compression_of(settings, Family.ASSESSMENTS))
    noise = random.Random(7)
    pictures = [base64.b64encode(noise.randbytes(PICTURE_BYTES)).decode() for _ in range(PICTURES)]
    size = 0
    for number in range(count):
        detection = _detection(number, noise.sample(pictures, GROUPS))
        value = detection.to_json()
        size += len(value)
        produce(sender, settings.detections_topic, key=detection.camera_id.encode(), value=value)
        sender.poll(0)
    sender.flush()
    return size / count


def _detection(number: int, pictures: list[str]) -> DetectionResultMessage:
    members = [list(range(OBJECTS))[place::GROUPS] for place in range(GROUPS)]
    return DetectionResultMessage.from_dict(
        {
            "message_id": f"detection-{number}",
            "camera_id": f"camera-{number % CAMERAS}",
            "detected_objects": [
                {"object_id": n, "class_name": "car", "confidence": 0.91, "bbox": [10.5 * n, 20, 10.5 * n + 40, 60]}
                for n in range(OBJECTS)
            ],
            "traffic_groups": [
                {
                    "group_index": place,
                    "object_count": len(members[place]),
                    "bbox": [100 * place, 0, 100 * place + 90, 80],
                    "classes": ["car"],
                    "avg_confidence": 0.91,
                    "member_indices": members[place],
                    "group_image_base64": picture,
                }
                for place, picture in enumerate(pictures)
            ],
        }
    )
