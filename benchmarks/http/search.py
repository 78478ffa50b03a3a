"""The benchmark of a search over HTTP: what it takes beyond the encoding and the store's own call.

`python -m benchmarks.http.search HOME` is these two, in the process of its own that the benchmark starts.
"""

import json
import statistics
import sys
import time
from pathlib import Path

from benchmarks.figures import Figure, python
from benchmarks.http.serving import load, vectorize_serve
from benchmarks.passages import sentences, write_documents

QUERIES = 300
LIMIT = 10
ROUNDS = 3
COLLECTION = "searched"
_PATH = f"/collections/{COLLECTION}/search"
_COMMAND = ("-c", "from vectorize_pipelines.cli import main; main()")


def run(place: Path) -> list[Figure]:
    """One client alone, each round in turn with the store's own call."""
    folder, home = place / "docs", place / "home"
    write_documents(folder, 200, 10, 60)
    python(*_COMMAND, "ingest", folder, "--collection", COLLECTION, VECTORIZE_HOME=str(home))
    bodies = [json.dumps({"query": query, "limit": LIMIT}).encode() for query in _queries()]
    beyond, direct = [], []
    with vectorize_serve(home) as server:
        load(server.url, _PATH, bodies[:20], 1)
        for _ in range(ROUNDS):
            direct.append(float(python("-m", "benchmarks.http.search", home).stdout))
            beyond.append(load(server.url, _PATH, bodies, 1).percentile(50) - direct[-1])
    milliseconds = 1000 * statistics.median(beyond)
    measured = (
        f"{milliseconds:.1f} ms more than encoding and the store's call ({1000 * statistics.median(direct):.1f} ms)"
    )
    return [Figure("http: search, p50", measured, "≤ 3 ms more", milliseconds <= 3)]


def _queries() -> list[str]:
    return (sentences() * QUERIES)[:QUERIES]


def direct_seconds(home: str) -> float:
    """The median of what encoding a query and the store's search take together."""
    from vectorize_pipelines.encoders.configured import lease_configured
    from vectorize_pipelines.settings import load_settings
    from vectorize_pipelines.stores import open_store

    settings = load_settings({}, home=home)
    store = open_store(settings.store, settings.home)
    found = store.collection(COLLECTION)
    seconds = []
    with lease_configured(settings, found.model, found.dimension) as encoder:
        for query in [*_queries()[:20], *_queries()]:
            started = time.perf_counter()
            vectors, _ = encoder.encode_each([query], "query")
            hits = store.search(found.physical, vectors[0], LIMIT)
            seconds.append(time.perf_counter() - started)
            assert hits.num_rows == LIMIT, f"{hits.num_rows} hits"
    return statistics.median(seconds[20:])


if __name__ == "__main__":
    print(direct_seconds(sys.argv[1]))
