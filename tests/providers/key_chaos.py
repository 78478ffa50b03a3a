"""Processes that borrow the keys of one pool until a time is over, some of them killed, and a count of what they did.

`python -m tests.providers.key_chaos --minutes 5` (`make chaos-keys`) is the proof that the windows of 20 keys are never
exceeded by 8 processes, that nearly everything that the limits allow is used, that no process starves, and that the
leases of killed ones end; else it exits with 1. Times are those at which a borrower has its key in hand, as a provider
would see them, by the clock that all processes have.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.servers import redis
from vectorize_pipelines.providers.key_pool import APIKeyPool, Windows, create_key_pool_from_config
from vectorize_pipelines.settings import load_settings

TOKENS = 100
#: The share of what the limits allow that is to be used at least.
LEAST_USED = 0.95
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Plan:
    """What is to happen. `calls`: borrowers side by side in each process; `hold`: seconds of one call, at most.

    `skew`: the clocks of one of the processes are off by so many seconds, where the state has a clock of its own.
    """

    keys: int
    processes: int
    seconds: float
    kills: int
    windows: Windows
    qps: int = 4
    rpm: int = 90
    tpm: int = 100 * TOKENS
    concurrency: int = 6
    calls: int = 12
    hold: float = 0.1
    lease_seconds: float = 5.0
    skew: float = 0.0

    def config(self) -> dict[str, Any]:
        """Return the file of keys: a third of them limited by the second alone, by requests, and by tokens."""
        limits = (
            {"qps_limit": self.qps},
            {"qps_limit": self.qps, "rpm_limit": self.rpm},
            {"qps_limit": self.qps, "tpm_limit": self.tpm},
        )
        return {
            "keys": [
                {"api_key": f"sk-{n}", "name": f"key-{n}", "max_concurrency": self.concurrency, **limits[n % 3]}
                for n in range(self.keys)
            ]
        }


@dataclass(frozen=True)
class Result:
    """What happened. `used`: share of the calls that the limits allowed; `calls`: by process that was never killed."""

    violations: list[str]
    used: float
    calls: dict[int, int]
    left: int

    @property
    def holds(self) -> bool:
        """Whether no window was exceeded, nearly everything was used, nobody starved, and every loan has ended."""
        return not self.violations and self.used >= LEAST_USED and not self.left and min(self.calls.values()) > 0


def run(plan: Plan, home: Path, redis_url: str | None, seed: int = 0) -> Result:
    """Run the processes, kill some, and count."""
    drawn = random.Random(seed)
    environment = {**os.environ, "VECTORIZE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("VECTORIZE_REDIS__URL", None)
    if redis_url is not None:
        environment["VECTORIZE_REDIS__URL"] = redis_url
    home.mkdir(parents=True, exist_ok=True)
    (home / "plan.json").write_text(json.dumps(asdict(plan)))
    with ExitStack() as running:
        processes = [running.enter_context(_process(home, n, environment)) for n in range(plan.processes)]
        _wait_until_ready(home, range(plan.processes))
        start = time.monotonic()
        (home / "start").write_text(str(start))
        moments = sorted(drawn.uniform(0.2, 0.8) * plan.seconds for _ in range(plan.kills))
        for number, moment in enumerate(moments):
            time.sleep(max(0.0, start + moment - time.monotonic()))
            processes[plan.processes - 1 - number].kill()
            processes.append(running.enter_context(_process(home, plan.processes + number, environment)))
        ended = [process.wait(plan.seconds + _START_SECONDS) for process in processes]
    killed = sum(code == -9 for code in ended)
    assert killed == plan.kills, f"{ended}: {killed} processes were killed"
    assert all(code in (0, -9) for code in ended), f"{ended}: a process failed"
    return _count(plan, home, start, asyncio.run(_left(plan, home, redis_url)))


def _process(home: Path, number: int, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.providers.key_chaos", "--borrow", str(home), str(number)]
    return subprocess.Popen(command, env=environment)


def _wait_until_ready(home: Path, numbers: Sequence[int]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not all((home / f"ready-{n}").exists() for n in numbers):
        assert time.monotonic() < deadline, "the processes did not start"
        time.sleep(0.05)


def _plan(home: Path) -> Plan:
    fields = json.loads((home / "plan.json").read_text())
    return Plan(**{**fields, "windows": Windows(**fields["windows"])})


def _pool(plan: Plan) -> APIKeyPool:
    return create_key_pool_from_config(
        plan.config(), settings=load_settings(), windows=plan.windows, lease_seconds=plan.lease_seconds
    )


async def _borrow(home: Path, number: int) -> None:
    """Borrow keys in many tasks until the time is over; write down when each was in hand."""
    plan = _plan(home)
    pool = _pool(plan)
    await pool.health_check()
    (home / f"ready-{number}").touch()
    while not (home / "start").exists() or not (home / "start").read_text():
        await asyncio.sleep(0.01)
    ends = float((home / "start").read_text()) + plan.seconds
    drawn = random.Random(number)
    clock = time.monotonic
    if number == 1 and load_settings().redis.url is not None:
        _shift_clocks(plan.skew)
    with (home / f"calls-{number}").open("w", buffering=1) as log:

        async def caller() -> None:
            while clock() < ends:
                with suppress(TimeoutError):
                    async with asyncio.timeout(max(0.0, ends - clock())):
                        key = await pool.acquire_key(tokens=TOKENS)
                        log.write(f"{clock()} {key.name}\n")
                        try:
                            await asyncio.sleep(drawn.uniform(0, plan.hold))
                        finally:
                            await pool.release_key(key, tokens=TOKENS)

        await asyncio.gather(*(caller() for _ in range(plan.calls)))
    await pool.close()


def _shift_clocks(seconds: float) -> None:
    """Let this process be wrong about the time."""
    for name in ("time", "monotonic"):
        real = getattr(time, name)
        setattr(time, name, lambda real=real: real() + seconds)


async def _left(plan: Plan, home: Path, redis_url: str | None) -> int:
    """Return how many loans there are when those of the killed processes must have ended."""
    settings = load_settings({}, home, home=home, redis={"url": redis_url})
    pool = create_key_pool_from_config(plan.config(), settings=settings, windows=plan.windows, lease_seconds=1.0)
    deadline = time.monotonic() + plan.lease_seconds + _START_SECONDS
    while True:
        left: int = sum(shown["in_use"] for shown in (await pool.health_check()).values())
        if not left or time.monotonic() > deadline:
            await pool.close()
            return left
        await asyncio.sleep(0.1)


def _calls(home: Path, number: int) -> Iterator[tuple[float, str]]:
    file = home / f"calls-{number}"
    for line in file.read_text().splitlines() if file.exists() else ():  # it may have come too late to borrow any
        at, _, name = line.partition(" ")
        if name:  # a killed process may have left half a line
            yield float(at), name


def _count(plan: Plan, home: Path, start: float, left: int) -> Result:
    by_key: dict[str, list[float]] = {}
    by_process: Counter[int] = Counter()
    for number in range(plan.processes + plan.kills):
        for at, name in _calls(home, number):
            by_key.setdefault(name, []).append(at)
            by_process[number] += 1
    violations = []
    allowed = 0
    for entry in plan.config()["keys"]:
        times = sorted(by_key.get(entry["name"], ()))
        windows = _windows(plan, entry)
        allowed += _most(windows, plan.seconds)
        for limit, window in windows:
            for first, later in zip(times, times[limit:], strict=False):
                if later - first < window:
                    violations.append(
                        f"{entry['name']}: {limit + 1} calls within {later - first:.4f} s at {first - start:.3f} s"
                    )
    calls = {number: by_process[number] for number in range(plan.processes - plan.kills)}
    return Result(violations, sum(map(len, by_key.values())) / allowed, calls, left)


def _windows(plan: Plan, entry: dict[str, Any]) -> list[tuple[int, float]]:
    """Return (calls, seconds) of each limit of a key; every call has the same number of tokens."""
    windows = [(entry["qps_limit"], plan.windows.second)]
    if "rpm_limit" in entry:
        windows.append((entry["rpm_limit"], plan.windows.minute))
    if "tpm_limit" in entry:
        windows.append((entry["tpm_limit"] // TOKENS, plan.windows.minute))
    return windows


def _most(windows: Sequence[tuple[int, float]], seconds: float) -> int:
    """Return how many calls the limits allow at most within a time."""
    times: list[float] = []
    while True:
        at = max((times[-limit] + window if len(times) >= limit else 0.0) for limit, window in windows)
        if at >= seconds:
            return len(times)
        times.append(at)


def main() -> None:
    """Run the large proof, in SQLite and in Redis; or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--borrow", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--state", choices=["sqlite", "redis", "both"], default="both")
    given = parser.parse_args()
    if given.borrow:
        asyncio.run(_borrow(Path(given.borrow[0]), int(given.borrow[1])))
        return
    plan = Plan(given.keys, given.processes, given.minutes * 60, given.kills, Windows(), skew=5.0)
    failed = False
    for state in ("sqlite", "redis") if given.state == "both" else (given.state,):
        with ExitStack() as stack:
            home = Path(stack.enter_context(TemporaryDirectory(prefix="vectorize-keys-")))
            url = stack.enter_context(redis.running()).url if state == "redis" else None
            result = run(plan, home, url)
        print(
            f"{state}: {len(result.violations)} violations, {result.used:.1%} used, {result.left} leases left, "
            f"calls by process {result.calls}"
        )
        for each in result.violations[:10]:
            print(f"  {each}")
        failed = failed or not result.holds
    sys.exit(failed)


if __name__ == "__main__":
    main()
