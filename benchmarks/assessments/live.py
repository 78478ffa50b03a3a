"""The way of a detection to a WebSocket: producer, tasks, model, results, server; without the time the model takes.

`CAP_SECONDS` in the environment makes it shorter, for trying.
"""

import asyncio
import base64
import json
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from websockets.asyncio.client import connect

from benchmarks.figures import Figure
from benchmarks.http.serving import vectorize_serve
from tests.servers.kafka import Server
from tests.servers.provider import KeyLimits, serving_provider
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.messaging.assessments import DetectionKafkaProducer
from vectorize_pipelines.settings import load_settings

#: With three groups each these are 30 calls of the model a second, a tenth of what one run has to be able to do.
DETECTIONS_PER_SECOND = 10
GROUPS = 3
CAMERAS = 20
#: Of a group's picture; three of them make a detection of 60 kB.
PICTURE_BYTES = 14_200
SECONDS = 60
#: Until both runs and the server have what they need: their first transactions, connections, code that is loaded late.
WARM_SECONDS = 10
ANSWER_SECONDS = 0.8
KEY = "key-of-the-benchmark"
#: After the last detection was sent, none is waited for longer.
_PATIENCE_SECONDS = 30.0


def run(place: Path, server: Server) -> list[Figure]:
    """What is left of the time from sending a detection to its message by WebSocket, when the model's is taken off."""
    seconds = min(SECONDS, float(os.environ.get("CAP_SECONDS", SECONDS)))
    home = place / "home-live"
    home.mkdir(parents=True)
    with serving_provider({KEY: KeyLimits()}, answer_seconds=ANSWER_SECONDS) as provider, ExitStack() as started:
        tree = _settings(home, server, provider.url)
        settings = load_settings({}, **tree)
        create_topics(settings.kafka, (Family.ASSESSMENTS,))
        for kind in ("tasks", "assessing"):
            started.enter_context(_following(kind, tree))
        environment = {f"VECTORIZE_KAFKA__{name.upper()}": str(value) for name, value in tree["kafka"].items()}
        served = started.enter_context(vectorize_serve(home, **environment))
        producer = started.enter_context(DetectionKafkaProducer(settings=settings))
        seen = asyncio.run(_measure(served.url.replace("http", "ws", 1) + "/ws/risk", producer, seconds))
    own = sorted(each - ANSWER_SECONDS for each in seen)
    p50, p99 = own[len(own) // 2], own[int(len(own) * 0.99)]
    name = f"live: from detection to WebSocket without the model's time, {DETECTIONS_PER_SECOND} a second"
    return [
        Figure(f"{name}, p50", f"{p50 * 1000:.0f} ms ({len(own):,} detections)", "< 250 ms", p50 < 0.25),
        Figure(f"{name}, p99", f"{p99 * 1000:.0f} ms (at most {own[-1] * 1000:.0f} ms)", "< 1 s", p99 < 1),
    ]


async def _measure(address: str, producer: DetectionKafkaProducer, seconds: float) -> list[float]:
    """Send detections, and return how long each took to come by WebSocket, those of the first seconds left out."""
    sent: dict[str, float] = {}
    warm = round(WARM_SECONDS * DETECTIONS_PER_SECOND)
    count = warm + round(seconds * DETECTIONS_PER_SECOND)
    sender = threading.Thread(target=_send, args=(producer, count, sent), daemon=True)
    took: dict[str, float] = {}
    async with connect(address, proxy=None, max_size=None) as socket:
        sender.start()
        while len(took) < count:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                message = json.loads(await socket.recv())
            if message["type"] == "detection":
                took[message["message_id"]] = time.perf_counter() - sent[message["message_id"]]
    return [took[_name(number)] for number in range(warm, count)]


def _send(producer: DetectionKafkaProducer, count: int, sent: dict[str, float]) -> None:
    chance = random.Random(0)
    pictures = [base64.b64encode(b"\xff\xd8\xff" + chance.randbytes(PICTURE_BYTES)).decode() for _ in range(200)]
    began = time.perf_counter()
    for number in range(count):
        detection = _detection(number, chance.sample(pictures, GROUPS))
        time.sleep(max(0.0, began + number / DETECTIONS_PER_SECOND - time.perf_counter()))
        sent[_name(number)] = time.perf_counter()
        producer.send_detection_result(detection)


def _name(number: int) -> str:
    return f"detection-{number}"


def _detection(number: int, pictures: list[str]) -> dict[str, Any]:
    found = [
        {"object_id": number * GROUPS + place, "class_name": "car", "confidence": 0.9, "bbox": [place, 0, 10, 20]}
        for place in range(GROUPS)
    ]
    groups = [
        {
            "group_index": place,
            "object_count": 1,
            "bbox": [number, place, 100, 100],  # no two questions are the same
            "classes": ["car"],
            "avg_confidence": 0.9,
            "member_indices": [place],
            "group_image_base64": picture,
        }
        for place, picture in enumerate(pictures)
    ]
    return {
        "message_id": _name(number),
        "camera_id": f"camera-{number % CAMERAS}",
        "detected_objects": found,
        "traffic_groups": groups,
    }


def _settings(home: Path, server: Server, provider: str) -> dict[str, Any]:
    keys = home / "keys.yaml"
    keys.write_text(json.dumps({"keys": [{"api_key": KEY, "name": "benchmark"}]}))
    roles = ("detections", "assessment_tasks", "risk_results", "assessment_dead_letter")
    topics = {f"{role}_topic": f"live.{role}" for role in roles}
    return {
        "home": str(home),
        "kafka": {"bootstrap_servers": server.bootstrap_servers, "topic_prefix": "live", **topics},
        "providers": {"base_url": provider, "model": "judge", "keys_file": str(keys)},
    }


@contextmanager
def _following(kind: str, tree: dict[str, Any]) -> Iterator[None]:
    """A drain run in a process of its own, which follows its topic until it is ended."""
    command = [sys.executable, "-m", "benchmarks.assessments.live_run", kind, json.dumps(tree)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait()
