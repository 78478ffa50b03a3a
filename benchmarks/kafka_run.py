"""One drain run over the text topic in this process; prints what it took as JSON.

Called by `kafka.py`, each time in a process of its own:
python -m benchmarks.kafka_run HOME BOOTSTRAP_SERVERS TOPIC_PREFIX null|model
With IDLE_SECONDS in the environment it follows the topic until it has been idle for so long.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil

from benchmarks.null_encoder import NullEncoder
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders import lease_encoder
from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.pipeline.requests.runs import DrainRequest, open_drain
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, load_settings
from vectorize_pipelines.stores import open_store

MIB = 2**20


@contextmanager
def _lease_null(model: str, dimension: int | None) -> Iterator[Encoder]:
    yield NullEncoder()


def main() -> None:
    """Warms the model up, drains, prints; with IDLE_SECONDS it prints `warm` first, once something is stored."""
    home, servers, prefix, kind = sys.argv[1:]
    idle = float(os.environ.get("IDLE_SECONDS", "0"))
    settings = load_settings(
        {},
        home=home,
        kafka={"bootstrap_servers": servers, "topic_prefix": prefix, "drain": {"idle_seconds": idle or 10}},
        cache={"enabled": "off"},
    )
    store = open_store(settings.store, settings.home)
    if kind == "model":
        with lease_encoder(DEFAULT_TEXT_MODEL) as encoder:
            encoder.encode(["warm"])
    lease = _lease_null if kind == "null" else lambda model, dimension: lease_encoder(model, dimension=dimension)
    process = psutil.Process()
    memory: list[int] = []
    latencies: list[np.ndarray] = []
    texts: list[str] = []
    request = DrainRequest(Modality.TEXT, "bench", once=not idle)
    started, cpu = time.perf_counter(), time.process_time()
    with open_drain(settings, request, store, lease) as stream:
        acknowledged = started
        for batch in written(DirectWriter(settings, store), stream):
            acknowledged = time.perf_counter()
            memory.append(process.memory_info().rss)
            if idle and len(memory) == 1:
                print("warm", flush=True)
            elif idle and batch.records.num_rows:
                times = batch.records["occurred_at"].to_numpy().astype("datetime64[us]").astype(np.int64)
                latencies.append(time.time() - times / 1e6)
            if kind == "model":
                texts.extend(batch.records["text"].to_pylist())
    outcome: dict[str, float] = {
        "seconds": acknowledged - started,
        "indexing_seconds": time.perf_counter() - acknowledged,
        "cpu_seconds": time.process_time() - cpu,
        "messages": stream.figures()["messages"],
        "early_mib": max(memory[: max(1, len(memory) // 10)], default=0) / MIB,
        "late_mib": max(memory[len(memory) // 10 :], default=0) / MIB,
    }
    if latencies:
        all_latencies = np.concatenate(latencies)
        outcome["latency_p50"], outcome["latency_p99"] = np.percentile(all_latencies, [50, 99]).tolist()
    if kind == "model":
        # The same texts through the bare encoder, in the same process, in the order in which they were read.
        with lease_encoder(DEFAULT_TEXT_MODEL) as encoder:
            started = time.perf_counter()
            encoder.encode(texts)
            outcome["bare_seconds"] = time.perf_counter() - started
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
