"""The benchmarks `kafka-cold` and `kafka-warm`: from a message to its row while no run is active.

`vectorize serve --with-daemon` and its sensors as users have them; cold, each run is a process of its own, warm, a
`vectorize worker` has imports and model from the run before.
"""

import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from benchmarks.figures import PROJECT_ROOT, Figure
from benchmarks.kafka import send_by, settings_of
from tests.commands import COMMAND
from tests.servers import postgresql, redis
from tests.servers.kafka import Server
from vectorize_pipelines.kafka.clients import producer
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.runs.tags import UNFINISHED
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.home import DAGSTER_YAML

if TYPE_CHECKING:
    from confluent_kafka import Producer

ROW_SECONDS = 120
STARTS = 5
STARTS_WARM = 12


def cold(place: Path) -> list[Figure]:
    """Each run in a process of its own, which `dagster.yaml` of the package has the daemon launch."""
    with Server(place / "kafka", compiling=()) as server:
        settings = settings_of(place / "home", server, "cold")
        create_topics(settings.kafka)
        with _started(_environment(settings), "serve", "--with-daemon", "--port", "3997"):
            starts = _measured(settings, STARTS)
    _show_stages("cold start", starts)
    seconds = [start[-1][1] for start in starts]
    measured = f"{statistics.median(seconds):.1f} s, at most {max(seconds):.1f} s of {len(seconds)} times"
    return [Figure("kafka: cold, from sending to the row", measured, "< 6 s", max(seconds) < 6)]


def warm(place: Path) -> list[Figure]:
    """Runs go to a worker, by Redis; Dagster's storage is PostgreSQL."""
    with ExitStack() as servers:
        server = servers.enter_context(Server(place / "kafka", compiling=()))
        database = servers.enter_context(postgresql.running())
        queue = servers.enter_context(redis.running())
        settings = settings_of(place / "home", server, "warm")
        create_topics(settings.kafka)
        file = settings.home / "dagster" / DAGSTER_YAML.name
        file.parent.mkdir(parents=True)
        storage = f"\nstorage:\n  postgres:\n    postgres_url: {database.url()}\n"
        file.write_text(DAGSTER_YAML.read_text() + storage)
        environment = {
            **_environment(settings),
            "VECTORIZE_REDIS__URL": queue.url,
            "VECTORIZE_RUN_LAUNCHER": "celery",
            # A run ends soon, so that many can be measured.
            "VECTORIZE_KAFKA__DRAIN__IDLE_SECONDS": "2",
        }
        servers.enter_context(_started(environment, "serve", "--with-daemon", "--port", "3997"))
        servers.enter_context(_started(environment, "worker"))
        starts = _measured(settings, STARTS_WARM)
    _show_stages("warm worker", starts)
    seconds = [start[-1][1] for start in starts]
    median, most = statistics.median(seconds), max(seconds)
    measured = f"median {median:.1f} s, at most {most:.1f} s of {len(seconds)} times"
    name = "kafka: with a warm worker, from sending to the row"
    return [Figure(name, measured, "median < 2 s, at most 3 s", median < 2 and most <= 3)]


def _environment(settings: Settings) -> dict[str, str]:
    return {
        **os.environ,
        "VECTORIZE_HOME": str(settings.home),
        "VECTORIZE_GATEWAY__METRICS_PORT": "0",
        "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS": str(settings.kafka.bootstrap_servers),
        "VECTORIZE_KAFKA__TOPIC_PREFIX": settings.kafka.topic_prefix,
    }


@contextmanager
def _started(environment: Mapping[str, str], *arguments: str) -> Iterator[None]:
    """Run a command of `vectorize` beside; end it at the end."""
    log = Path(environment["VECTORIZE_HOME"]) / f"{arguments[0]}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*COMMAND, *arguments], cwd=PROJECT_ROOT, env=environment, stdout=output, stderr=output
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _measured(settings: Settings, count: int) -> list[list[tuple[str, float]]]:
    """Measure so many starts, after one that warms everything up."""
    client = producer(settings.kafka)
    _wait_for_row(settings, client, "warm-up")
    return [_start_of_run(settings, client, number) for number in range(count)]


def _start_of_run(settings: Settings, client: "Producer", number: int) -> list[tuple[str, float]]:
    """What had happened how many seconds after a text was sent; the last is that its row is there.

    The sensor's ticks begin every 20 s: the texts of several starts come at different places between them.
    """
    with dg.DagsterInstance.from_config(str(settings.home / "dagster")) as instance:
        while instance.get_runs_count(dg.RunsFilter(statuses=UNFINISHED)):
            time.sleep(1)
        time.sleep(1 + 3.7 * (number % STARTS))
        sent = time.time()  # but for opening the store, some milliseconds
        seconds = _wait_for_row(settings, client, f"measured-{number}")
        run = instance.get_run_records(limit=1)[0]
        first: dict[str, float] = {}
        for event in instance.all_logs(run.dagster_run.run_id):
            if event.dagster_event is not None:
                first.setdefault(event.dagster_event.event_type_value, event.timestamp - sent)
    launched = run.create_timestamp.timestamp() - sent
    return [
        ("the sensor has seen it", launched),
        ("the queue has let the run go", first["PIPELINE_STARTING"]),
        ("its process runs", first["PIPELINE_START"]),
        ("Dagster executes the step", first["STEP_START"]),
        ("its row is in the store", seconds),
    ]


def _show_stages(title: str, starts: list[list[tuple[str, float]]]) -> None:
    """A table of the medians."""
    before = 0.0
    print(f"{title}, seconds after sending (median):")
    for stage in zip(*starts, strict=True):
        after = statistics.median(seconds for _, seconds in stage)
        print(f"  {stage[0][0]:30} {after:5.2f}  (+{after - before:.2f})")
        before = after


def _wait_for_row(settings: Settings, client: "Producer", task_id: str) -> float:
    """Sends one text, and gives the seconds until its row can be found."""
    from vectorize_pipelines.errors import CollectionNotFoundError
    from vectorize_pipelines.stores import open_store
    from vectorize_pipelines.stores.filters.expressions import In

    store = open_store(settings.store, settings.home)
    started = time.perf_counter()
    send_by(client, settings, [f"a text called {task_id}"], task_ids=[task_id])
    while time.perf_counter() - started < ROW_SECONDS:
        try:
            if store.count(settings.kafka.text_collection, In("source_id", (task_id,))):
                return time.perf_counter() - started
        except CollectionNotFoundError:
            pass
        time.sleep(0.02)
    raise TimeoutError(f"{task_id} was not stored within {ROW_SECONDS} s: is the sensor of the text topic on?")
