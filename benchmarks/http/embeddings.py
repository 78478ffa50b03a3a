"""The benchmark of `/v1/embeddings`: what is left over HTTP of what `encode` does with the same texts, and Infinity.

`python -m benchmarks.http.embeddings HOME FILE` is `encode`, in the process of its own that the benchmark starts.
"""

import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure, python
from benchmarks.http import infinity
from benchmarks.http.serving import load, vectorize_serve
from benchmarks.passages import passages_of_tokens, sentences
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL

CLIENTS = 64
PASSAGES = 16 * CLIENTS
QUERIES = 200
ROUNDS = 3
#: For Infinity, which takes longer for them than we do for all.
TRIAL_PASSAGES = 4 * CLIENTS
_PATH = "/v1/embeddings"


@dataclass(frozen=True)
class _Texts:
    """What all are given: requests of one passage each, and of one query each; as texts in a file, for `encode`."""

    file: Path
    passages: list[bytes]
    queries: list[bytes]


def run(place: Path) -> list[Figure]:
    """Many clients with one text each, and one alone; each round in turn with `encode` in a process of its own."""
    place.mkdir(parents=True)
    home = place / "home"
    texts = _texts(place / "texts.json", home)
    _bare(home, texts)  # writes the export, which takes more memory than a server does
    peer = infinity.best_setting(texts.passages[:TRIAL_PASSAGES], CLIENTS, place)
    shares, rates, leads, beyond, alone = [], [], [], [], []
    with vectorize_serve(home) as server:
        load(server.url, _PATH, texts.queries[:1], 1)  # loads the model
        mebibytes = server.peak_mib()
        load(server.url, _PATH, texts.passages[: 2 * CLIENTS], CLIENTS)  # prepares its kernels
        for _ in range(ROUNDS):
            alone_in_process = _bare(home, texts)
            together = load(server.url, _PATH, texts.passages, CLIENTS)
            latency = load(server.url, _PATH, texts.queries, 1).percentile(50)
            shares.append(alone_in_process["seconds"] / together.seconds)
            rates.append(PASSAGES / together.seconds)
            beyond.append(latency - alone_in_process["latency"])
            alone.append(latency)
            if peer is not None:
                leads.append(rates[-1] / infinity.rate(peer, texts.passages[:TRIAL_PASSAGES], CLIENTS))
        under_load = server.peak_mib()
    share, milliseconds = statistics.median(shares), 1000 * statistics.median(beyond)
    many = f"{share:.0%} of encode ({statistics.median(rates):.0f} texts/s)"
    one = f"{milliseconds:.1f} ms more than encode ({1000 * statistics.median(alone):.1f} ms)"
    return [
        Figure("http: start, to the first answer", f"{server.start_seconds:.1f} s", "< 4 s", server.start_seconds < 4),
        Figure(f"http: embeddings, {CLIENTS} clients with one passage each", many, "≥ 85 %", share >= 0.85),
        _lead(leads, peer),
        Figure("http: embeddings, one client alone, p50 of a query", one, "≤ 5 ms more", milliseconds <= 5),
        _memory(mebibytes, under_load),
    ]


def _memory(loaded: float, under_load: float) -> Figure:
    measured = f"{loaded:.0f} MiB ({under_load:.0f} MiB after the load of {CLIENTS} clients)"
    return Figure("http: memory with the default model loaded", measured, "< 400 MB", loaded * 1.048576 < 400)


def _texts(file: Path, home: Path) -> _Texts:
    texts = {"passages": passages_of_tokens(PASSAGES, home / "encoders"), "queries": (sentences() * QUERIES)[:QUERIES]}
    file.write_text(json.dumps(texts), encoding="utf-8")
    return _Texts(file, *([_body(text) for text in texts[kind]] for kind in ("passages", "queries")))


def _bare(home: Path, texts: _Texts) -> dict[str, float]:
    """See `bare`."""
    outcome: dict[str, float] = json.loads(python("-m", "benchmarks.http.embeddings", home, texts.file).stdout)
    return outcome


def _body(text: str) -> bytes:
    """A request as the client of OpenAI sends it."""
    request = {"input": text, "model": DEFAULT_TEXT_MODEL, "encoding_format": "base64"}
    return json.dumps(request, ensure_ascii=False).encode()


def _lead(leads: Sequence[float], setting: infinity.Setting | None) -> Figure:
    name, wanted = "http: embeddings, the same clients at Infinity", "≥ 4 times as fast"
    if setting is None:
        return Figure(name, "not measured: Infinity does not run here", wanted, met=False)
    lead = statistics.median(leads)
    return Figure(name, f"{lead:.1f} times its texts/s ({setting}: its best)", wanted, lead >= 4)


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
