"""The benchmark of Dagster's GraphQL behind the server: what a query takes beyond asking Dagster itself."""

import json
import statistics
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.http.serving import load, vectorize_serve, wait_for
from tests.servers.dagster_web import dagster_web
from tests.servers.ports import free_ports

QUERIES = 300
ROUNDS = 3
_BODY = json.dumps({"query": "query Runs {runsOrError(limit: 10) {... on Runs {results {runId status}}}}"}).encode()


def run(place: Path) -> list[Figure]:
    """One client alone, in turn through the server and without it."""
    place.mkdir(parents=True)
    (port,) = free_ports(1)
    beyond, direct = [], []
    own = f"http://127.0.0.1:{port}"
    arguments = ("--port", str(port), "--path-prefix", "/dagster")
    with dagster_web(place / "dagster", place / "dagster.log", *arguments) as process:
        wait_for(f"{own}/dagster/server_info", process)
        with vectorize_serve(place / "home", VECTORIZE_GATEWAY__DAGSTER_URL=own) as server:
            for url, path in ((own, "/dagster/graphql"), (server.url, "/graphql")):
                load(url, path, [_BODY] * 20, 1)
            for _ in range(ROUNDS):
                direct.append(load(own, "/dagster/graphql", [_BODY] * QUERIES, 1).percentile(50))
                beyond.append(load(server.url, "/graphql", [_BODY] * QUERIES, 1).percentile(50) - direct[-1])
    milliseconds = 1000 * statistics.median(beyond)
    measured = f"{milliseconds:.1f} ms more than without it ({1000 * statistics.median(direct):.1f} ms)"
    return [Figure("http: a GraphQL query behind the server, p50", measured, "< 3 ms more", milliseconds < 3)]
