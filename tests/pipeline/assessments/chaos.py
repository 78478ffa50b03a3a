"""Kills the runs from detections to risks again and again, and counts what is there afterwards.

`make chaos-assessments` (DETECTIONS=20000 KILLS=20 SEED=0): with real Kafka and Redis, each restarted once meanwhile,
and a provider that enforces limits by key and fails now and then. Prints the count, and ends with 1 where anything is
wrong.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.paths import CHECKOUT
from tests.pipeline.assessments.traffic import Check, Traffic, as_json
from tests.servers import kafka, redis
from tests.servers.provider import Fault, KeyLimits, ProviderServer, serving_provider
from vectorize_pipelines.kafka.followed import ASSESSMENTS, DETECTIONS
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.settings import load_settings

CONCURRENCY = 64
#: As many as a run has room for by default.
HELD_TASKS = 10_000
#: So long that no task expires; where there is no room, tasks that have waited for a tenth of it are put aside.
DEADLINE_SECONDS = 86_400.0
RUN_SECONDS = 900.0
#: A run is killed so long at most after it was opened.
TIMER_SECONDS = 4.0
KEYS = {f"key-{number}": KeyLimits(qps=20, concurrency=16) for number in range(10)}
#: Of so many requests one may come so late that it is beyond the limits of its key.
REQUESTS_FOR_ONE_LATE = 5_000
#: Faults that pass, and such as make dead letters; how often they come is made for thousands of calls.
FAULTS = [
    Fault("rate_limited", count=None, every=211, seconds=0.2),
    Fault("server_error", count=None, every=307),
    Fault("bad_gateway", count=None, every=401),
    Fault("cut", count=None, every=503),
    Fault("no_json", count=None, every=97),
    Fault("refused", count=None, every=601),
]


def tree_of(
    home: Path,
    servers: str,
    provider: ProviderServer,
    redis_url: str | None,
    prefix: str,
    held_tasks: int = HELD_TASKS,
    deadline_seconds: float = DEADLINE_SECONDS,
    keys: Mapping[str, KeyLimits] = KEYS,
) -> dict[str, Any]:
    """Return the settings of the runs, as a tree."""
    home.mkdir(exist_ok=True)
    listed = [
        {"api_key": key, "name": f"name-of-{key}", "qps_limit": limits.qps, "max_concurrency": limits.concurrency}
        for key, limits in keys.items()
    ]
    (home / "keys.yaml").write_text(json.dumps({"keys": listed}))
    roles = ("detections", "assessment_tasks", "risk_results", "assessment_dead_letter")
    topics = {f"{role}_topic": f"{prefix}.{role}" for role in roles}
    return {
        "home": str(home),
        "kafka": {"bootstrap_servers": servers, "topic_prefix": prefix, **topics},
        "providers": {"base_url": provider.url, "model": "judge", "keys_file": str(home / "keys.yaml")},
        "assessments": {
            "deadline_seconds": deadline_seconds,
            "concurrency": CONCURRENCY,
            "held_tasks": held_tasks,
        },
        "redis": {"url": redis_url},
    }


class Runs:
    """The runs over one topic, one after another, each in a process; some of them are killed."""

    def __init__(self, tree: dict[str, Any], followed: str, log: Path):
        self._specification = as_json({"followed": followed, "settings": tree})
        self._log = log
        self.killed = 0

    def start(self) -> "subprocess.Popen[bytes]":
        """Start a run, and wait until it is open or has ended."""
        command = [sys.executable, "-m", "tests.pipeline.assessments.child", self._specification]
        with self._log.open("ab") as log:
            run = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=log)
        assert run.stdout is not None
        run.stdout.readline()
        return run

    def kill_one(self, seconds: float) -> bool:
        """Start a run and kill it so long after it was opened; return whether it had not ended before."""
        run = self.start()
        try:
            run.wait(seconds)
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            return True
        return False

    def kill(self, seconds: float) -> None:
        """Kill a run at its work, so long at most after it was opened; one that had ended before does not count."""
        while not self.kill_one(seconds):
            seconds /= 2
        self.killed += 1

    def finish(self) -> None:
        """Let a run do what is left. Raises `RuntimeError` with what it wrote where it fails."""
        status = self.start().wait(RUN_SECONDS)
        if status:
            raise RuntimeError(f"a run ended with {status}: {self._log.read_text(errors='replace')[-4000:]}")


def kill_runs(
    tree: dict[str, Any],
    provider: ProviderServer,
    detections: int,
    kills: int,
    seed: int,
    seconds: float = TIMER_SECONDS,
) -> list[Check]:
    """Send detections in portions, kill runs over both topics meanwhile, let the last ones end; return the count.

    A run is killed `seconds` at most after it was opened.
    """
    chance, settings = random.Random(seed), load_settings(**tree)
    create_topics(settings.kafka, (Family.ASSESSMENTS,))
    traffic = Traffic(settings.kafka, seed)
    runs = {name: Runs(tree, name, settings.home / f"{name}.log") for name in (DETECTIONS, ASSESSMENTS)}
    for number in range(kills):
        traffic.send(detections // kills + (number < detections % kills))
        delays = {name: chance.uniform(0, seconds) for name in runs}
        threads = [threading.Thread(target=each.kill, args=(delays[name],)) for name, each in runs.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(each.killed == kills for each in runs.values())
    runs[DETECTIONS].finish()
    runs[ASSESSMENTS].finish()
    again = sum(count - 1 for count in provider.report().answered.values())
    return traffic.check(again, kills, CONCURRENCY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--detections", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20, help="how many runs over each of the two topics are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--held-tasks", type=int, default=HELD_TASKS, help="for how many tasks a run has room")
    parser.add_argument("--deadline-seconds", type=float, default=DEADLINE_SECONDS, help="of a task")
    options = parser.parse_args()
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="vectorize-chaos-") as place,
        kafka.Server(Path(place) / "kafka") as broker,
        redis.running(appendonly=True) as store,
        serving_provider(KEYS, answer_seconds=0.3, faults=FAULTS) as provider,
    ):
        tree = tree_of(
            Path(place) / "home",
            broker.bootstrap_servers,
            provider,
            store.url,
            "chaos",
            options.held_tasks,
            options.deadline_seconds,
        )
        restarts = threading.Thread(target=_restart_both, args=(broker, store), daemon=True)
        restarts.start()
        checks = kill_runs(tree, provider, options.detections, options.kills, options.seed)
        restarts.join()
        report = provider.report()
    # On a busy machine a request may be on its way for longer than the next one; `make chaos-keys` counts every one.
    late = sum(report.statuses.values()) // REQUESTS_FOR_ONE_LATE
    checks.append(Check("requests beyond the limits of a key", late, report.violations, at_most=True))
    print(f"{options.detections:,} detections, {2 * options.kills} runs killed, {time.monotonic() - started:.0f} s")
    print(f"statuses of the provider: {dict(report.statuses)}\n")
    print(f"{'afterwards':<56}{'expected':>10}{'found':>10}")
    print(*checks, sep="\n")
    sys.exit(not all(check.is_right for check in checks))


def _restart_both(broker: kafka.Server, store: redis.Server) -> None:
    """Kill and start again what the runs rely on, while they are at it."""
    time.sleep(20)
    broker.kill()
    time.sleep(2)
    broker.start()
    time.sleep(10)
    store.kill()
    time.sleep(1)
    store.start()


if __name__ == "__main__":
    main()
