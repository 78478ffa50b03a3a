"""Processes that ask a provider with the keys of one pool until a time is over, some of them killed, and a count of it.

`python -m tests.providers.key_chaos --minutes 5` (`make chaos-keys`) is the proof that the windows of 20 keys are never
exceeded by 8 processes, that nearly everything that the limits allow is used, that no process starves, and that the
leases of killed ones end; else it exits with 1. The provider is the server of the tests, which holds each key to its
limits and counts what exceeds them when it arrives; beside it stand the times at which the processes sent.

The server's windows are exactly those of the limits. So of two calls of a key the earlier one may take longer to arrive
by no more than the margins of `Windows`, less the 10 ms by which a call may begin late: by 25 ms where the limit by
second counts (by up to 240 ms where that by minute is lower), by 490 ms where that by minute does. A machine that is
busy with other things keeps processes waiting for longer. `--second 30` makes the short window, its margins and its
limits thirty times as large, and the margin of a minute three times, so that a whole second is allowed; all else stays.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from tests.servers import redis
from tests.servers.provider import KeyLimits, Report, serving_provider
from vectorize_pipelines.errors import KeysError, ProviderUnavailableError
from vectorize_pipelines.providers.calls import Call, ProviderClient, Usage
from vectorize_pipelines.providers.key_pool import APIKeyPool, Windows, create_key_pool_from_config
from vectorize_pipelines.providers.models import parse_model
from vectorize_pipelines.settings import load_settings

if TYPE_CHECKING:
    from openai import AsyncOpenAI

#: Of each call: half of them are the question's, at four characters each, the others the answer's.
TOKENS = 100
_QUESTION = [{"role": "user", "content": "x" * (TOKENS // 2 * 4)}]
#: The share of what the limits allow that is to be used at least.
LEAST_USED = 0.95
_START_SECONDS = 120.0


@dataclass(frozen=True)
class Plan:
    """What is to happen. `calls`: callers side by side in each process; `answer_seconds`: of the provider.

    `skew`: the clock of one of the processes is off by so many seconds.
    """

    keys: int
    processes: int
    seconds: float
    kills: int
    windows: Windows
    qps: int = 3
    rpm: int = 60
    tpm: int = 70 * TOKENS
    concurrency: int = 3
    calls: int = 12
    answer_seconds: float = 0.05
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
    """What happened.

    refused     kind of limit -> requests that the provider refused for it; `early`: seconds, of the worst of them
    violations  windows that were exceeded by the times at which requests were sent
    used        share of the calls that the limits allowed, by those that the provider accepted
    calls       by process that was never killed
    left        loans that have not ended
    """

    refused: Mapping[str, int]
    early: float
    violations: Sequence[str]
    used: float
    calls: Mapping[int, int]
    left: int

    @property
    def holds(self) -> bool:
        """Whether no window was exceeded, nearly everything was used, nobody starved, and every loan has ended."""
        exceeded = self.refused or self.violations
        return not exceeded and self.used >= LEAST_USED and not self.left and min(self.calls.values()) > 0

    def __str__(self) -> str:
        refused = ", ".join(f"{number} by {name}" for name, number in sorted(self.refused.items())) or "none"
        worst = f", the worst {self.early * 1000:.1f} ms early" if self.refused else ""
        return (
            f"refused by the provider: {refused}{worst}; windows exceeded when sent: {len(self.violations)}; "
            f"{self.used:.1%} used; {self.left} leases left; calls by process {dict(self.calls)}"
        )


def run(plan: Plan, home: Path, redis_url: str | None, seed: int = 0) -> Result:
    """Run the provider and the processes, kill some, and count."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "plan.json").write_text(json.dumps(asdict(plan)))
    windows = {"second": plan.windows.second, "minute": plan.windows.minute}
    with serving_provider(_limits(plan), answer_seconds=plan.answer_seconds, **windows) as provider:
        environment = _environment(home, provider.url, redis_url)
        start = _run_processes(plan, home, environment, random.Random(seed))
        report = provider.report()
    assert set(report.statuses) <= {"200", "429"}, f"the provider answered {report.statuses}"
    return _count(plan, home, start, report, asyncio.run(_left(plan, home, redis_url)))


def _environment(home: Path, provider_url: str, redis_url: str | None) -> dict[str, str]:
    environment = {**os.environ, "VECTORIZE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[2])}
    environment["VECTORIZE_PROVIDERS__BASE_URL"] = provider_url
    environment.pop("VECTORIZE_REDIS__URL", None)
    if redis_url is not None:
        environment["VECTORIZE_REDIS__URL"] = redis_url
    return environment


def _limits(plan: Plan) -> dict[str, KeyLimits]:
    """Return the limits that the provider holds the keys to: those of the file."""
    return {
        key["api_key"]: KeyLimits(key["qps_limit"], key.get("rpm_limit"), key.get("tpm_limit"), key["max_concurrency"])
        for key in plan.config()["keys"]
    }


def _run_processes(plan: Plan, home: Path, environment: Mapping[str, str], drawn: random.Random) -> float:
    """Run the processes, and kill some; return when the others began.

    Those that take the place of killed ones are there from the beginning: to start a process takes all of a core.
    """
    numbers = range(plan.processes + plan.kills)
    with ExitStack() as running:
        processes = [running.enter_context(_process(home, number, environment)) for number in numbers]
        _wait_until_ready(home, numbers)
        start = time.monotonic()
        for number in range(plan.processes):
            _begin(home, number, start)
        moments = sorted(drawn.uniform(0.2, 0.8) * plan.seconds for _ in range(plan.kills))
        for number, moment in enumerate(moments):
            time.sleep(max(0.0, start + moment - time.monotonic()))
            processes[plan.processes - 1 - number].kill()
            _begin(home, plan.processes + number, start)
        ended = [process.wait(plan.seconds + _START_SECONDS) for process in processes]
    killed = sum(code == -9 for code in ended)
    assert killed == plan.kills, f"{ended}: {killed} processes were killed"
    assert all(code in (0, -9) for code in ended), f"{ended}: a process failed"
    return start


def _process(home: Path, number: int, environment: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "tests.providers.key_chaos", "--call", str(home), str(number)]
    return subprocess.Popen(command, env=environment)


def _begin(home: Path, number: int, start: float) -> None:
    """Let a process begin, which waits for a file with the time from which all of them count."""
    written = home / f"starting-{number}"
    written.write_text(str(start))
    written.rename(home / f"start-{number}")


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


async def _call(home: Path, number: int) -> None:
    """Ask the provider in many tasks until the time is over; write down when each request was sent, with which key."""
    plan, settings = _plan(home), load_settings()
    names = {key["api_key"]: key["name"] for key in plan.config()["keys"]}
    pool = _pool(plan)
    client = ProviderClient(settings, pool)
    await pool.health_check()
    (home / f"ready-{number}").touch()
    while not (home / f"start-{number}").exists():
        await asyncio.sleep(0.05)
    ends = float((home / f"start-{number}").read_text()) + plan.seconds
    clock = time.monotonic
    if number == 1:
        _shift_clock(plan.skew)
    model = parse_model("judge", settings.providers)
    with (home / f"calls-{number}").open("w", buffering=1) as log:

        async def send(openai: "AsyncOpenAI") -> tuple[object, Usage]:
            log.write(f"{clock()} {names[openai.api_key]}\n")
            body = {"model": model.model, "messages": _QUESTION}
            answer: Any = await openai.post("/chat/completions", cast_to=object, body=body)
            return answer, Usage(answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])

        async def caller() -> None:
            while clock() < ends:
                with suppress(KeysError, ProviderUnavailableError):  # the time is over
                    await client.call(Call(model, TOKENS, max(0.0, ends - clock())), send)

        await asyncio.gather(*(caller() for _ in range(plan.calls)))
    await client.close()
    await pool.close()


def _shift_clock(seconds: float) -> None:
    """Let this process be wrong about the time; monotonic clocks of several machines have nothing in common anyway."""
    real = time.time
    time.time = lambda: real() + seconds


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
    for line in file.read_text().splitlines() if file.exists() else ():  # it may have come too late to call at all
        at, _, name = line.partition(" ")
        if name:  # a killed process may have left half a line
            yield float(at), name


def _count(plan: Plan, home: Path, start: float, report: Report, left: int) -> Result:
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
    refused: Counter[str] = Counter()
    for key in report.keys.values():
        refused.update(key.violations)
    early = max(key.most_early for key in report.keys.values())
    used = sum(key.accepted for key in report.keys.values()) / allowed
    return Result(refused, early, violations, used, calls, left)


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


def _stretched(second: float) -> Windows:
    """Return the windows of the pool, the short one of another length, and the margins in proportion.

    Three times the margin of a minute costs as much of it as the other does of a second.
    """
    usual = Windows()
    return replace(
        usual,
        second=second,
        second_margin=usual.second_margin * second,
        second_margin_most=usual.second_margin_most * second,
        minute_margin=usual.minute_margin * min(second, 3.0),
    )


def main() -> None:
    """Run the large proof, in SQLite and in Redis; or be one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--call", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--second", type=float, default=1.0, help="length of the short window, in seconds")
    parser.add_argument("--keys", type=int, default=20)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--state", choices=["sqlite", "redis", "both"], default="both")
    given = parser.parse_args()
    if given.call:
        asyncio.run(_call(Path(given.call[0]), int(given.call[1])))
        return
    plan = Plan(given.keys, given.processes, given.minutes * 60, given.kills, _stretched(given.second), skew=5.0)
    plan = replace(plan, qps=round(plan.qps * given.second))
    failed = False
    for state in ("sqlite", "redis") if given.state == "both" else (given.state,):
        with ExitStack() as stack:
            home = Path(stack.enter_context(TemporaryDirectory(prefix="vectorize-keys-")))
            url = stack.enter_context(redis.running()).url if state == "redis" else None
            result = run(plan, home, url)
        print(f"{state}: {result}", flush=True)
        for each in result.violations[:10]:
            print(f"  {each}")
        failed = failed or not result.holds
    sys.exit(failed)


if __name__ == "__main__":
    main()
