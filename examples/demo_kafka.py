"""`make demo-kafka`: texts by Kafka into the store, launched by nobody: a sensor sees them wait and starts a run.

Starts a broker and Dagster on free ports, in an installation of its own, and ends and removes all of it.
"""

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.commands import COMMAND
from tests.servers.kafka import Server
from tests.servers.packages import UnavailableError
from tests.servers.ports import free_ports
from vectorize_pipelines.client import VectorizeClient
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state import home
from vectorize_pipelines.state.home import use_dagster_home

TEXTS = 1000
TIMEOUT_SECONDS = 300.0
PLACES = ("harbour", "lighthouse", "north terrace", "generator house", "landing stage")
EVENTS = ("a fog bank rolled in", "the supply boat was late", "the lamp was cleaned", "a seal slept", "the pump failed")
QUERY = "query Runs { runsOrError(limit: 5) { ... on Runs { results { runId status jobName } } } }"


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m", flush=True)


def texts() -> list[str]:
    """A diary's entries, no two alike."""
    return [
        f"Day {n}: at the {PLACES[n % len(PLACES)]} {EVENTS[n // len(PLACES) % len(EVENTS)]}, wind force {n % 12}."
        for n in range(TEXTS)
    ]


def vectorize(*arguments: str) -> None:
    print(f"\n$ vectorize {shlex.join(arguments)}", flush=True)
    subprocess.run([*COMMAND, *arguments], check=True)


@contextlib.contextmanager
def dagster(folder: Path) -> Iterator[str]:
    """`vectorize serve`, at a free port; gives its address."""
    port = free_ports(1)[0]
    command = [*COMMAND, "serve", "--with-daemon", "--port", str(port)]
    log = folder / "dagster.log"
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        url = f"http://localhost:{port}"
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"Dagster does not start: {log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/dagster/server_info", timeout=5).ok
    except requests.ConnectionError:
        return False


def wait_for_run(url: str) -> str:
    """The run that the sensor launched."""
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        answer = requests.post(f"{url}/graphql", json={"query": QUERY}, timeout=30).json()
        for run in answer["data"]["runsOrError"]["results"]:
            if run["jobName"] == "embed_text" and run["status"] in ("STARTED", "SUCCESS"):
                return str(run["runId"])
        time.sleep(0.1)
    sys.exit("no run was launched")


def show(folder: Path) -> None:
    settings = load_settings()
    create_topics(settings.kafka)
    use_dagster_home(settings)
    say("1. Dagster starts. Nothing waits, so its sensors launch nothing.")
    with dagster(folder) as url:
        print(f"Dagster's UI: {url}/dagster", flush=True)
        say(f"2. {TEXTS:,} texts are submitted with the Python client.")
        with VectorizeClient.from_settings(settings.kafka) as client:
            started = time.monotonic()
            ids = client.submit_many(texts())
            submitted = time.monotonic() - started
            print(f"submitted in {submitted:.2f} s")

            say("3. The sensor text_lag sees them wait and launches a drain run.")
            run_id = wait_for_run(url)
            launched = time.monotonic() - started
            print(f"run {run_id[:8]} is at work {launched:.1f} s after the first text")

            say("4. Each text is answered on the results topic once the store has it.")
            events = client.wait(ids, TIMEOUT_SECONDS)
            finished = time.monotonic() - started
            states = sorted({event.status.value for event in events.values()})
            print(f"{len(events):,} answers after {finished:.1f} s: {', '.join(states)}")
            if len(events) < TEXTS or states != ["completed"]:
                sys.exit("not every text was embedded")

        say("5. They can be searched.")
        vectorize("search", "the boat did not come in time", "--collection", "texts", "--limit", "3")
        vectorize("status", ids[0])
        vectorize("lag")
        say(
            f"Done: submitted in {submitted:.2f} s, a run after {launched:.1f} s, all {TEXTS:,} searchable after "
            f"{finished:.1f} s. Everything is ended and removed now."
        )


def main() -> None:
    cache = home.model_cache(load_settings()).absolute()  # what was found out about models need not be found again
    with tempfile.TemporaryDirectory(prefix="vectorize-demo-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        try:
            with Server(folder / "kafka") as broker:
                os.environ |= {
                    "VECTORIZE_HOME": str(folder / "home"),
                    "VECTORIZE_GATEWAY__METRICS_PORT": "0",
                    "VECTORIZE_ENCODER__CACHE_DIRECTORY": str(cache),
                    "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
                }
                show(folder)
        except UnavailableError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
