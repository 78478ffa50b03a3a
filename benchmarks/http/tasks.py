"""The benchmark of `/tasks/submit` and `/tasks/batch`: requests a second that a real broker has confirmed.

Server, broker and clients share the cores.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.http.serving import load, vectorize_serve
from benchmarks.passages import passages
from tests.servers.kafka import Server
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.kafka.clients import producer
from vectorize_pipelines.kafka.topics import TopicNames, create_topics
from vectorize_pipelines.settings import KafkaSettings

CLIENTS = 64
REQUESTS = 20_000
#: About 600 bytes of text.
WORDS = 95
BATCHED = 40_000
BATCH = 1_000
BATCH_CLIENTS = 4
ROUNDS = 3
PACED_SECONDS = 20


def run(place: Path) -> list[Figure]:
    """One by one as fast as it goes, one by one at half of that, and in batches beside a bare producer."""
    with Server(place / "kafka", heap="1g") as kafka:
        settings = KafkaSettings(bootstrap_servers=kafka.bootstrap_servers, topic_prefix="http")
        create_topics(settings)
        environment = {
            "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "VECTORIZE_KAFKA__TOPIC_PREFIX": "http",
        }
        with vectorize_serve(place / "home", **environment) as server:
            return [*_one_by_one(server.url), _in_batches(server.url, settings)]


def _one_by_one(url: str) -> list[Figure]:
    bodies = [json.dumps(_request(text)).encode() for text in passages(REQUESTS // 10, WORDS)] * 10
    load(url, "/tasks/submit", bodies, CLIENTS)  # Java and Python compile, and prepare
    rate = statistics.median(REQUESTS / load(url, "/tasks/submit", bodies, CLIENTS).seconds for _ in range(ROUNDS))
    number = min(len(bodies), round(rate / 2 * PACED_SECONDS))
    paced = load(url, "/tasks/submit", bodies[:number], CLIENTS, rate / 2)
    p50, p99 = paced.percentile(50), paced.percentile(99)
    return [
        Figure("http: submit, confirmed by the broker", f"{rate:,.0f} requests/s", "≥ 1,500 requests/s", rate >= 1_500),
        Figure(
            "http: submit at half of that, p99",
            f"{p99 * 1000:.0f} ms (p50 {p50 * 1000:.1f} ms)",
            "< 200 ms",
            p99 < 0.2,
        ),
    ]


def _in_batches(url: str, settings: KafkaSettings) -> Figure:
    requests = [_request(text) for text in passages(BATCHED // 10, WORDS)] * 10
    bodies = [json.dumps(requests[start : start + BATCH]).encode() for start in range(0, BATCHED, BATCH)]
    values = [json.dumps({**request, "task_id": f"bare-{n}"}).encode() for n, request in enumerate(requests)]
    load(url, "/tasks/batch", bodies[:4], BATCH_CLIENTS)
    shares, rates = [], []
    for _ in range(ROUNDS):
        bare = _bare_producer(settings, values)
        rates.append(BATCHED / load(url, "/tasks/batch", bodies, BATCH_CLIENTS).seconds)
        shares.append(rates[-1] / bare)
    share = statistics.median(shares)
    measured = f"{share:.0%} of the bare producer's ({statistics.median(rates):,.0f} texts/s)"
    return Figure(f"http: batches of {BATCH:,} texts", measured, "≥ 60 %", share >= 0.6)


def _request(text: str) -> dict[str, str]:
    return {"task_type": "text_vectorization", "data": text}


def _bare_producer(settings: KafkaSettings, values: Sequence[bytes]) -> float:
    """Messages a second that a producer with the same properties has confirmed, into the same topic."""
    client = producer(settings)
    topic = TopicNames(settings.topic_prefix).requests(Modality.TEXT)
    started = time.perf_counter()
    for number, value in enumerate(values):
        while True:
            try:
                client.produce(topic, value, b"bare-%d" % number)
            except BufferError:
                client.poll(0.1)
            else:
                break
        client.poll(0)
    client.flush()
    return len(values) / (time.perf_counter() - started)
