"""The benchmark of `/v1/embeddings`: what is left over HTTP of what `encode` does with the same texts."""

import json
import statistics
import sys
import time
from pathlib import Path

from benchmarks.figures import Figure, python
from benchmarks.passages import passages_of_tokens, sentences
from benchmarks.serving import load, server
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL

CLIENTS = 64
PASSAGES = 16 * CLIENTS
QUERIES = 200
ROUNDS = 3
_PATH = "/v1/embeddings"


def run(place: Path) -> list[Figure]:
    """Many clients with one text each, and one alone; each round in turn with `encode` in a process of its own."""
    place.mkdir(parents=True, exist_ok=True)
    home, source = place / "home", place / "texts.json"
    texts = {"passages": passages_of_tokens(PASSAGES, home / "encoders"), "queries": (sentences() * QUERIES)[:QUERIES]}
    source.write_text(json.dumps(texts), encoding="utf-8")
    passages, queries = ([_body(text) for text in texts[kind]] for kind in ("passages", "queries"))
    shares, rates, beyond, alone = [], [], [], []
    with server(home) as url:
        load(url, _PATH, passages[: 2 * CLIENTS], CLIENTS)  # loads the model, and prepares its kernels
        for _ in range(ROUNDS):
            bare = json.loads(python("-m", "benchmarks.http_embeddings", home, source).stdout)
            together = load(url, _PATH, passages, CLIENTS)
            latency = statistics.median(load(url, _PATH, queries, 1).latencies)
            shares.append(bare["seconds"] / together.seconds)
            rates.append(PASSAGES / together.seconds)
            beyond.append(latency - bare["latency"])
            alone.append(latency)
    share, milliseconds = statistics.median(shares), 1000 * statistics.median(beyond)
    many = f"{share:.0%} of encode ({statistics.median(rates):.0f} texts/s)"
    one = f"{milliseconds:.1f} ms more than encode ({1000 * statistics.median(alone):.1f} ms)"
    return [
        Figure(f"embeddings over HTTP, {CLIENTS} clients with one passage each", many, "≥ 85 %", share >= 0.85),
        Figure("embeddings over HTTP, one client alone, p50 of a query", one, "≤ 5 ms more", milliseconds <= 5),
    ]


def _body(text: str) -> bytes:
    """A request as the client of OpenAI sends it."""
    request = {"input": text, "model": DEFAULT_TEXT_MODEL, "encoding_format": "base64"}
    return json.dumps(request, ensure_ascii=False).encode()


def bare(home: Path, source: Path) -> dict[str, float]:
    """Seconds that `encode` takes for all passages in one call, and the median of those for a query."""
    from vectorize_pipelines.encoders.configured import lease_configured
    from vectorize_pipelines.settings import load_settings

    texts = json.loads(source.read_text(encoding="utf-8"))
    with lease_configured(load_settings({}, home=str(home)), DEFAULT_TEXT_MODEL) as encoder:
        encoder.encode(texts["passages"][: 2 * CLIENTS])
        started = time.perf_counter()
        encoder.encode(texts["passages"])
        seconds = time.perf_counter() - started
        latencies = []
        for text in texts["queries"]:
            started = time.perf_counter()
            encoder.encode([text])
            latencies.append(time.perf_counter() - started)
    return {"seconds": seconds, "latency": statistics.median(latencies)}


if __name__ == "__main__":
    print(json.dumps(bare(*map(Path, sys.argv[1:]))))
