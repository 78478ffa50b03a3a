"""The benchmark `keys`: borrowing API keys from the pool that processes share, in SQLite and in Redis.

`python -m benchmarks.keys HOME REDIS_URL SECONDS` is one of the processes.
"""

import asyncio
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.figures import PROJECT_ROOT, Figure, ProcessFailedError
from tests.servers import redis
from vectorize_pipelines.providers.key_pool import APIKeyPool, create_key_pool_from_config
from vectorize_pipelines.settings import load_settings

KEYS = 20
PAIRS = 3000
WARM_UP = 300
PROCESSES = 8
SECONDS = 6.0
PAIRS_WANTED = 2000
#: All limits are there, and none is reached.
LIMITS = {"qps_limit": 5000, "rpm_limit": 200_000, "tpm_limit": 10**8, "max_concurrency": 50}
CONFIG = {"keys": [{"api_key": f"sk-{n}", "name": f"key-{n}", **LIMITS} for n in range(KEYS)]}
P50_MS = {"SQLite": 1.0, "Redis": 1.5}


def run(place: Path) -> list[Figure]:
    """Medians of one process alone, then what several processes do together."""
    figures = []
    with redis.running() as server:
        for state, url in (("SQLite", ""), ("Redis", server.url)):
            home = place / f"home-{state}"
            acquire, release = asyncio.run(_alone(home, url))
            bound = P50_MS[state]
            measured = f"{acquire:.2f} and {release:.2f} ms"
            met = acquire <= bound and release <= bound
            figures.append(Figure(f"keys: {state}, p50 of acquire and of release", measured, f"≤ {bound} ms", met))
            rate = _together(home, url)
            name = f"keys: {state}, pairs of {PROCESSES} processes"
            figures.append(Figure(name, f"{rate:,.0f}/s", f"≥ {PAIRS_WANTED:,}/s", rate >= PAIRS_WANTED))
    return figures


def _pool(home: Path, redis_url: str) -> APIKeyPool:
    settings = load_settings({}, home.parent, home=home, redis={"url": redis_url or None})
    return create_key_pool_from_config(CONFIG, settings=settings)


async def _pair(pool: APIKeyPool) -> tuple[float, float]:
    """Borrow a key and give it back. Return the milliseconds of both."""
    began = time.perf_counter()
    key = await pool.acquire_key(tokens=900)
    had = time.perf_counter()
    await pool.release_key(key, tokens=873)
    return (had - began) * 1e3, (time.perf_counter() - had) * 1e3


async def _alone(home: Path, redis_url: str) -> tuple[float, float]:
    pool = _pool(home, redis_url)
    pairs = [await _pair(pool) for _ in range(WARM_UP + PAIRS)][WARM_UP:]
    await pool.close()
    return statistics.median(each for each, _ in pairs), statistics.median(each for _, each in pairs)


def _together(home: Path, redis_url: str) -> float:
    """Return the pairs a second of all processes, from when each of them is ready."""
    command = [sys.executable, "-m", "benchmarks.keys", str(home), redis_url, str(SECONDS)]
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=PROJECT_ROOT) for _ in range(PROCESSES)
    ]
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    done = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise ProcessFailedError("a process of the benchmark `keys` failed")
    return sum(map(int, done)) / SECONDS


async def _work(home: Path, redis_url: str, seconds: float) -> int:
    pool = _pool(home, redis_url)
    await _pair(pool)
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    ends, pairs = time.monotonic() + seconds, 0
    while time.monotonic() < ends:
        await _pair(pool)
        pairs += 1
    await pool.close()
    return pairs


if __name__ == "__main__":
    print(asyncio.run(_work(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))), flush=True)
