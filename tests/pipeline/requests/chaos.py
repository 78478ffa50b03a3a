"""Kills drain runs again and again, at every step and at random moments, and counts what is there afterwards.

`make chaos` (COUNT=50 SEED=0 MESSAGES=20000): prints the count as a table and ends with 1 where anything is wrong.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.pipeline.requests.child import FENCED, STEPS
from tests.pipeline.requests.installation import Installation, install
from tests.pipeline.requests.traffic import Check, Traffic
from tests.servers import kafka

RUN_SECONDS = 120
#: Every step, and the moments around it; a run may come to the step so often before it is struck.
MOMENTS = [(step, moment) for step in STEPS for moment in ("before", "after")]
MOST_TIMES = 5
TIMER_SECONDS = 2.0


def child_specification(installation: Installation, **further: Any) -> dict[str, Any]:
    """What `child` is given for a run of this installation."""
    settings = installation.settings
    return {
        "home": str(settings.home),
        "bootstrap_servers": settings.kafka.bootstrap_servers,
        "topic_prefix": settings.kafka.topic_prefix,
        "kafka": {"drain": settings.kafka.drain.model_dump(mode="json")},
        **further,
    }


def start_child(installation: Installation, **further: Any) -> "subprocess.Popen[bytes]":
    """A drain run in a process of its own."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.pipeline.requests.child",
            json.dumps(child_specification(installation, **further)),
        ],
        stdin=subprocess.DEVNULL,
        stderr=(installation.settings.home / "child.log").open("ab"),
    )


def run_child(installation: Installation, **further: Any) -> int:
    """The exit status of such a run. Raises `RuntimeError` with what it wrote where it failed by itself."""
    status = start_child(installation, **further).wait(RUN_SECONDS)
    if status not in (0, -signal.SIGKILL, FENCED):
        log = (installation.settings.home / "child.log").read_text(errors="replace")
        raise RuntimeError(f"a run ended with {status}: {log[-4000:]}")
    return status


def kill_runs(installation: Installation, count: int, seed: int, messages: int) -> tuple[Counter[str], list[Check]]:
    """Sends `messages` in `count` portions, kills a run over each, lets a last one end; gives kills by moment, and the
    count."""
    chance, traffic = random.Random(seed), Traffic(installation, seed)
    # Every moment in turn, in an order of this seed's own, and after each two a random one.
    moments = chance.sample(MOMENTS, len(MOMENTS))
    kills: Counter[str] = Counter()
    for number in range(count):
        traffic.send(messages // count + (number < messages % count))
        if number % 3 == 2:
            further: dict[str, Any] = {"kill_after": chance.uniform(0, TIMER_SECONDS)}
            name = "a random moment"
        else:
            step, moment = moments[(number - number // 3) % len(moments)]
            further, name = {"kill_at": (step, moment, chance.randint(1, MOST_TIMES))}, f"{moment} {step}"
        status = run_child(installation, **further)
        kills[name if status else "a run that ended before it was struck"] += 1
    if (status := run_child(installation)) != 0:
        raise RuntimeError(f"the last run, which nobody struck, ended with {status}")
    return kills, traffic.check()


def portion_settings(count: int, messages: int) -> dict[str, Any]:
    """Settings with which a portion is some more batches than a run may do before it is struck."""
    return {"drain": {"batch_messages": max(10, messages // count // (2 * MOST_TIMES))}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50, help="how many runs are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--messages", type=int, default=20_000)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vectorize-chaos-") as place, kafka.Server(Path(place) / "kafka") as server:
        settings = portion_settings(options.count, options.messages)
        installation = install(Path(place) / "home", server.bootstrap_servers, "chaos", kafka=settings)
        kills, checks = kill_runs(installation, options.count, options.seed, options.messages)
    print(f"{sum(kills.values())} runs over {options.messages:,} messages on 6 partitions a lane, seed {options.seed},")
    print(f"{time.monotonic() - started:.0f} s; killed\n")
    for name, number in sorted(kills.items()):
        print(f"{name:<44}{number:>10,}")
    print(f"\n{'afterwards':<44}{'expected':>10}{'found':>10}")
    print(*checks, sep="\n")
    sys.exit(not all(check.is_right for check in checks))


if __name__ == "__main__":
    main()


def wait_for(file: Path, child: "subprocess.Popen[bytes]") -> None:
    """Returns once the child has paused."""
    deadline = time.monotonic() + 60
    while not file.exists():
        assert child.poll() is None, f"the run ended with {child.returncode} before it paused"
        assert time.monotonic() < deadline
        time.sleep(0.01)
