"""Figures of `risk_assessments`: drain runs against a server that answers after 800 ms, beside the bare client.

`CAP_TASKS` in the environment makes it smaller, for trying: the numbers then mean little.
"""

import base64
import json
import os
import random
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.figures import Figure, python
from tests.servers.kafka import Server
from tests.servers.provider import KeyLimits, ProviderServer, serving_provider
from vectorize_pipelines.kafka.clients import produce, producer
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.settings import KafkaSettings, load_settings

TASKS = 6_000
TASKS_FOR_MEMORY = 500_000
#: Different pictures of the run that memory is measured in: what is equal is judged once, so it is fast.
PICTURES_FOR_MEMORY = 2_000
PICTURE_BYTES = 15_000
ANSWER_SECONDS = 0.8
KEY = "key-of-the-benchmark"
LEAST_RATE = 300
LEAST_SHARE = 0.9
#: What later tenths of a run may take beyond its first tenth.
MEMORY_GROWTH = 1.1


def run(place: Path, server: Server) -> list[Figure]:
    """Throughput beside the bare client's, and memory."""
    return [*throughput(place, server), memory(place, server)]


def throughput(place: Path, server: Server) -> list[Figure]:
    """Calls a second of a drain run, and of the bare client with the same questions and concurrency."""
    count = _capped(TASKS)
    with serving_provider({KEY: KeyLimits()}, answer_seconds=ANSWER_SECONDS) as provider:
        tree = _settings(place / "home-assessing", server, provider, "assessing")
        _send(tree, count, count)
        bare = _child("bare", tree)
        ours = _child("drain", tree)
    assert ours["judged"] == count, f"{ours['judged']} of {count} tasks were judged"
    rate, bare_rate = count / ours["seconds"], bare["calls"] / bare["seconds"]
    share = rate / bare_rate
    return [
        Figure(
            "risk_assessments: calls to a server that answers after 800 ms",
            f"{rate:,.0f} calls/s ({ours['cpu_seconds'] / count * 1000:.1f} ms of CPU each)",
            f"≥ {LEAST_RATE} calls/s",
            rate >= LEAST_RATE,
        ),
        Figure(
            "risk_assessments: share of the bare async client",
            f"{share:.0%} of {bare_rate:,.0f} calls/s ({bare['cpu_seconds'] / count * 1000:.1f} ms of CPU each)",
            f"≥ {LEAST_SHARE:.0%}",
            share >= LEAST_SHARE,
        ),
    ]


def memory(place: Path, server: Server) -> Figure:
    """The most memory of the last nine tenths of a long run, against that of its first tenth."""
    count = _capped(TASKS_FOR_MEMORY)
    with serving_provider({KEY: KeyLimits()}) as provider:
        tree = _settings(place / "home-memory", server, provider, "memory")
        _send(tree, count, PICTURES_FOR_MEMORY)
        outcome = _child("drain", tree)
    growth = outcome["late_mib"] / outcome["early_mib"]
    return Figure(
        f"risk_assessments: memory over {count:,} tasks",
        f"{outcome['early_mib']:.0f} MiB in the first tenth, {outcome['late_mib']:.0f} MiB later "
        f"({count / outcome['seconds']:,.0f} tasks/s)",
        f"≤ {MEMORY_GROWTH:g} times",
        growth <= MEMORY_GROWTH,
    )


def _child(kind: str, tree: dict[str, Any]) -> dict[str, Any]:
    written = python("-m", "benchmarks.assessments.assessing_run", kind, json.dumps(tree)).stdout
    outcome: dict[str, Any] = json.loads(written.splitlines()[-1])
    return outcome


def _settings(home: Path, server: Server, provider: ProviderServer, prefix: str) -> dict[str, Any]:
    home.mkdir(parents=True)
    keys = home / "keys.yaml"
    keys.write_text(json.dumps({"keys": [{"api_key": KEY, "name": "benchmark"}]}))
    roles = ("detections", "assessment_tasks", "risk_results", "assessment_dead_letter")
    topics = {f"{role}_topic": f"{prefix}.{role}" for role in roles}
    return {
        "home": str(home),
        "kafka": {"bootstrap_servers": server.bootstrap_servers, "topic_prefix": prefix, **topics},
        "providers": {"base_url": provider.url, "model": "judge", "keys_file": str(keys)},
    }


def _send(tree: dict[str, Any], count: int, pictures: int) -> None:
    kafka: KafkaSettings = load_settings({}, **tree).kafka
    create_topics(kafka, (Family.ASSESSMENTS,))
    client, chance = producer(kafka), random.Random(0)
    contents = [base64.b64encode(b"\xff\xd8\xff" + chance.randbytes(PICTURE_BYTES)).decode() for _ in range(100)]
    for number in range(count):
        task = task_of(number, number % pictures, contents[number % pictures % len(contents)])
        produce(client, kafka.assessment_tasks_topic, key=task.camera_id.encode(), value=task.to_json())
    client.flush(60)


def task_of(number: int, content: int, picture: str) -> AssessmentTaskMessage:
    """Return a task; of equal `content` and picture the question is the same."""
    now = datetime.now(UTC)
    detected = [
        {"object_id": n, "class_name": "car", "confidence": 0.9, "bbox": [content, n, 10, 20]} for n in range(4)
    ]
    group = {
        "group_index": 0,
        "object_count": 4,
        "bbox": [content, 0, 100, 100],
        "classes": ["car"],
        "avg_confidence": 0.9,
        "member_indices": [0, 1, 2, 3],
        "group_image_base64": picture,
    }
    return AssessmentTaskMessage.from_dict(
        {
            "task_id": f"task-{number}",
            "message_id": f"detection-{number}",
            "camera_id": f"camera-{number % 50}",
            "group_index": 0,
            "groups_total": 1,
            "group": group,
            "detected_objects": detected,
            "timestamp": now.isoformat(),
            "deadline": (now + timedelta(hours=6)).isoformat(),
        }
    )


def _capped(number: int) -> int:
    cap = os.environ.get("CAP_TASKS")
    return number if cap is None else min(number, int(cap))
