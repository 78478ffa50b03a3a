"""The benchmark of what became of tasks, where there are very many: single ones, and pages however far on.

`ROWS` in the environment makes it smaller, for trying.
"""

import http.client
import json
import os
import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from benchmarks.figures import Figure
from benchmarks.http.serving import vectorize_serve
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.database import Database

ROWS = int(os.environ.get("ROWS", "10_000_000"))
#: Of all rows; the others are completed.
WAITING = ROWS // 10
REPEATED = 100
PAGES = 50

#: As `RequestLedger.record` writes them; at a hundred thousand rows a second instead of twenty.
_FILL = """
INSERT INTO vectorize_requests (request_id, state, modality, collection, submitted_us, started_us, finished_us, run_id,
    topic, "partition", "offset", timestamp_ms, items, vectors, tokens, task_type, metadata)
WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n + 1 < :rows)
SELECT printf('%08x-task-%d', (n * 2654435761) % 4294967296, n), CASE WHEN n >= :completed THEN 'pending' ELSE
    'completed' END, 'text', 'documents', 1700000000000000 + n * 1000, CASE WHEN n < :completed THEN
    1700000001000000 + n * 1000 END, CASE WHEN n < :completed THEN 1700000002000000 + n * 1000 END, 'a-run',
    'vectorize.requests.text', 0, n, 1700000000000 + n, 1, 1, 30, 'text_vectorization', '{"batch": "of the benchmark"}'
FROM numbers
"""


def run(place: Path) -> list[Figure]:
    """One client, which asks for waiting and completed tasks, and goes from page to page."""
    place.mkdir(parents=True, exist_ok=True)
    home = place / "home"
    with closing(Database.open(load_settings({}, home=str(home)))) as database, database.write() as connection:
        connection.execute(sa.text(_FILL), {"rows": ROWS, "completed": ROWS - WAITING})
    with vectorize_serve(home) as server:
        client = http.client.HTTPConnection(str(urlsplit(server.url).netloc))
        _get(client, "/tasks?page_size=1")
        single = [_get(client, f"/tasks/{_id(number)}")[0] for number in _spread()]
        newest = _walk(client, "/tasks?page_size=50")
        waiting = _walk(client, "/tasks?page_size=50&status_filter=pending&task_type=text_vectorization")
        far = [_get(client, f"/tasks?page_size=50&page={page}")[0] for page in range(150, 201)]
    return [
        _figure(f"http: a task among {ROWS:,}, of which {WAITING:,} wait", single),
        _figure("http: a page of 50 of these tasks, by cursor", newest),
        _figure("http: a page of those that wait, of one type", waiting),
        _figure("http: a page of these tasks, by number (7,500 to 10,000 before it)", far),
    ]


def _spread() -> list[int]:
    """Numbers of tasks from the first to the last, which waits."""
    return [number * (ROWS - 1) // (REPEATED - 1) for number in range(REPEATED)]


def _id(number: int) -> str:
    return f"{number * 2654435761 % 2**32:08x}-task-{number}"


def _walk(client: http.client.HTTPConnection, path: str) -> list[float]:
    """Seconds of each page; the first counts all that there are."""
    seconds, found = [], _get(client, path)[1]
    for _ in range(PAGES):
        taken, found = _get(client, f"{path}&cursor={found['next_cursor']}")
        assert len(found["tasks"]) == 50, f"a page has {len(found['tasks'])} tasks"
        seconds.append(taken)
    return seconds


def _get(client: http.client.HTTPConnection, path: str) -> tuple[float, dict[str, Any]]:
    started = time.perf_counter()
    client.request("GET", path)
    answer = client.getresponse()
    body = answer.read()
    seconds = time.perf_counter() - started
    assert answer.status == 200, f"{path} was answered with {answer.status}: {body[:300]!r}"
    return seconds, json.loads(body)


def _figure(name: str, seconds: list[float]) -> Figure:
    worst = max(seconds)
    measured = f"at most {1000 * worst:.1f} ms, p50 {1000 * statistics.median(seconds):.1f} ms"
    return Figure(name, measured, "< 20 ms", worst < 0.02)
