"""The benchmark `kafka`: drain runs from a real broker into LanceDB, in processes of their own.

`CAP_MESSAGES` in the environment makes it smaller, for trying: the numbers then mean little.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.figures import PROJECT_ROOT, Figure, python
from benchmarks.flat import short_texts
from benchmarks.passages import passages
from tests.servers.kafka import Server
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.clients import producer
from vectorize_pipelines.kafka.topics import TopicNames, create_topics
from vectorize_pipelines.settings import Settings, load_settings

if TYPE_CHECKING:
    from confluent_kafka import Producer

MESSAGES = 200_000
MESSAGES_WITH_MODEL = 6_000
WORDS = 110
MESSAGES_FOR_MEMORY = 1_000_000
LATENCY_SECONDS = 20


def run(place: Path) -> list[Figure]:
    """Throughput without and with a model, latency, and memory."""
    with Server(place / "kafka", heap="1g", compiling=()) as server:
        rate, figure = throughput(place, server)
        return [figure, with_model(place, server), *latency(place, server, rate), memory(place, server)]


def throughput(place: Path, server: Server) -> tuple[float, Figure]:
    """Messages a second with an encoder that costs nothing; also as a number."""
    count = _capped(MESSAGES)
    outcome = _drained(place, server, "null", short_texts(count))
    rate = outcome["messages"] / outcome["seconds"]
    measured = (
        f"{rate:,.0f} messages/s ({outcome['messages']:,} messages, {outcome['cpu_seconds']:.1f} s of CPU; then "
        f"{outcome['indexing_seconds']:.1f} s for the indexes of so many rows)"
    )
    return rate, Figure("kafka: without a model, topic to LanceDB", measured, "≥ 15,000 messages/s", rate >= 15_000)


def with_model(place: Path, server: Server) -> Figure:
    """A drain run against the bare encoder on the same texts, in the same process."""
    outcome = _drained(place, server, "model", passages(_capped(MESSAGES_WITH_MODEL), WORDS))
    share, rate = outcome["bare_seconds"] / outcome["seconds"], outcome["messages"] / outcome["seconds"]
    measured = f"{share:.0%} of the bare encoder ({rate:.0f} texts/s)"
    return Figure("kafka: with the default model", measured, "≥ 90 %", share >= 0.9)


def latency(place: Path, server: Server, rate: float) -> list[Figure]:
    """From a message's timestamp to when its batch was stored and acknowledged, at half of the maximum rate.

    The run has stored something before: how long a run takes to begin is another figure.
    """
    settings = settings_of(place / "home-latency", server, "latency")
    create_topics(settings.kafka)
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.kafka_run", str(settings.home), server.bootstrap_servers, "latency", "null"],
        cwd=PROJECT_ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "IDLE_SECONDS": "5"},
        text=True,
    )
    send(settings, ["a text that warms the run up"])
    assert child.stdout is not None, "it is a pipe"
    assert child.stdout.readline().strip() == "warm", "the run says when it has stored something"
    _send_at(settings, short_texts(int(rate / 2 * _capped(LATENCY_SECONDS, 3))), rate / 2)
    written = child.communicate(timeout=600)[0]
    outcome = json.loads(written.splitlines()[-1])
    p50, p99 = outcome["latency_p50"], outcome["latency_p99"]
    return [
        Figure("kafka: latency at half the rate, p50", f"{p50 * 1000:.0f} ms", "< 150 ms", p50 < 0.15),
        Figure("kafka: latency at half the rate, p99", f"{p99 * 1000:.0f} ms", "< 1 s", p99 < 1),
    ]


def memory(place: Path, server: Server) -> Figure:
    """Resident memory late in a long run against what it was after its first tenth."""
    outcome = _drained(place, server, "null", short_texts(_capped(MESSAGES_FOR_MEMORY)), name="memory")
    ratio = outcome["late_mib"] / outcome["early_mib"]
    measured = (
        f"{ratio:.2f} times ({outcome['early_mib']:.0f} MiB after a tenth of {outcome['messages']:,} messages, "
        f"{outcome['late_mib']:.0f} MiB at most after)"
    )
    return Figure("kafka: memory", measured, "≤ 1.2 times", ratio <= 1.2)


def _drained(place: Path, server: Server, encoder: str, texts: list[str], name: str | None = None) -> dict[str, Any]:
    """Sends the texts, drains them in a process of its own, and gives what `kafka_run` prints."""
    prefix = name or encoder
    settings = settings_of(place / f"home-{prefix}", server, prefix)
    send(settings, texts)
    outcome: dict[str, Any] = json.loads(
        python(
            "-m", "benchmarks.kafka_run", settings.home, server.bootstrap_servers, prefix, encoder
        ).stdout.splitlines()[-1]
    )
    assert outcome["messages"] == len(texts), f"{outcome['messages']} of {len(texts)} messages were drained"
    return outcome


def settings_of(home: Path, server: Server, prefix: str) -> Settings:
    """Return the settings of an installation of its own, on topics of its own."""
    kafka = {"bootstrap_servers": server.bootstrap_servers, "topic_prefix": prefix}
    return load_settings({}, home=home, kafka=kafka)


def send(settings: Settings, texts: Iterable[str], task_ids: list[str] | None = None) -> None:
    """Send each text as a request, and wait until all have been sent; `task_ids`: t0, t1 and so on by default."""
    create_topics(settings.kafka)
    send_by(producer(settings.kafka), settings, texts, task_ids)


def send_by(client: "Producer", settings: Settings, texts: Iterable[str], task_ids: list[str] | None = None) -> None:
    """The same by a producer that is there already, as that of a service is."""
    topic = TopicNames(settings.kafka.topic_prefix).requests(Modality.TEXT)
    for number, text in enumerate(texts):
        _produce(client, topic, task_ids[number] if task_ids else f"t{number}", text)
    client.flush()


def _send_at(settings: Settings, texts: list[str], rate: float) -> None:
    """So many messages a second, evenly."""
    client = producer(settings.kafka)
    topic = TopicNames(settings.kafka.topic_prefix).requests(Modality.TEXT)
    started = time.perf_counter()
    for number, text in enumerate(texts):
        ahead = number / rate - (time.perf_counter() - started)
        if ahead > 0.002:
            time.sleep(ahead)
        _produce(client, topic, f"t{number}", text)
    client.flush()


def _produce(client: Any, topic: str, task_id: str, text: str) -> None:
    value = json.dumps({"task_id": task_id, "task_type": "text_vectorization", "data": text}).encode()
    while True:
        try:
            client.produce(topic, value, task_id.encode())
        except BufferError:
            client.poll(0.1)
        else:
            client.poll(0)
            return


def _capped(number: int, least: int = 1) -> int:
    cap = os.environ.get("CAP_MESSAGES")
    return number if cap is None else max(least, min(number, int(cap)))
