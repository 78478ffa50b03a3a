"""An installation of several machines: servers and the control host on this one, and workers in namespaces.

The control host is `vectorize serve --with-daemon`, each other machine a `vectorize worker` with a VECTORIZE_HOME of
its own, as docs/workers.md says. They share PostgreSQL, Redis, Kafka, Weaviate and the folder of documents.
Used by `chaos.py`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import sqlalchemy as sa

from tests.machines.network import Machine, network
from tests.machines.worker import LEASE_SECONDS
from tests.paths import CHECKOUT
from tests.pipeline.requests.installation import DIMENSION, Installation, install
from tests.servers import kafka, postgresql, redis, weaviate
from tests.servers.dev import DevServer, dev_server, until
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.runs.held import PREFIX
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.settings import PREFIX as VARIABLES
from vectorize_pipelines.settings import variable_name
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.heartbeats import workers
from vectorize_pipelines.state.leases import leases

_PASSWORD = "s3cret-of-tests"
#: As on every host: PostgreSQL is what machines share.
_DAGSTER_YAML = CHECKOUT / "deploy" / "dagster.yaml"
_DATABASE_VARIABLE = "DAGSTER_DATABASE_URL"
#: A broker that was killed is let in again when the session has lapsed that it had: after 9 s by default.
_BROKER = {"broker.session.timeout.ms": "3000", "broker.heartbeat.interval.ms": "1000"}


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large an installation is.

    machines        workers, each on its own machine
    processes       of each worker, which execute a run each
    text_runs       side by side
    lag_per_run     one more of them for each so many messages
    batch_messages  messages, and `batch_items` rows, that are written together
    idle_seconds    after which a run over messages ends
    lease_seconds   None: as everywhere
    """

    machines: int = 4
    processes: int = 2
    text_runs: int = 2
    lag_per_run: int = 1000
    batch_messages: int = 500
    batch_items: int = 500
    idle_seconds: float = 10.0
    lease_seconds: float | None = None


@dataclass
class WorkerMachine:
    """A machine with its worker, which a service manager would start again."""

    name: str
    machine: Machine
    folder: Path
    environment: Mapping[str, str]
    processes: int
    _worker: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return self.folder / "worker.log"

    def start(self) -> None:
        """Start the worker; return at once."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arguments = ["--node-name", self.name, "--node-id", self.name, "--pool-size", str(self.processes)]
        command = [sys.executable, "-m", "tests.machines.worker", "worker", *arguments, "--heartbeat-interval", "1"]
        with self.log.open("ab") as output:
            self._worker = subprocess.Popen(
                self.machine.command(command),
                env={**self.environment, "VECTORIZE_HOME": str(self.folder / "home")},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.folder,
                start_new_session=True,
            )

    def kill(self) -> None:
        """Have the machine lose its power."""
        self.machine.kill()
        if self._worker is not None:
            self._worker.wait()

    def check_alive(self) -> None:
        """Raise `RuntimeError` with what the worker wrote where it has ended by itself."""
        if self._worker is not None and self._worker.poll() is not None:
            said = self.log.read_text(errors="replace")[-4000:]
            raise RuntimeError(f"the worker of {self.name} ended with {self._worker.returncode}: {said}")


@dataclass
class Site:
    """The installation while it runs; `installation` is how its control host sees it."""

    corpus: Path
    broker: kafka.Server
    redis: redis.Server
    database: postgresql.Server
    workers: list[WorkerMachine]
    installation: Installation
    instance: dg.DagsterInstance
    tables: Database
    control: DevServer | None = None

    def runs_on(self, machine: WorkerMachine) -> list[str]:
        """Return the ids of the runs that a machine holds the leases of."""
        held = sa.select(leases.c.name).where(leases.c.node == machine.name, leases.c.name.startswith(PREFIX))
        with self.tables.statements() as connection:
            return [name.removeprefix(PREFIX) for name in connection.scalars(held)]

    def wait_for_workers(self) -> None:
        """Return once all processes of all workers are listed."""
        settings, wanted = self.installation.settings, sum(each.processes for each in self.workers)

        def all_there() -> bool:
            for each in self.workers:
                each.check_alive()
            with suppress(VectorizeError):
                return len(workers(settings)) == wanted
            return False

        until(f"{wanted} processes of workers", all_there)


@contextmanager
def running_site(folder: Path, sizes: Sizes) -> Iterator[Site]:
    """Start servers, control host and workers, and end all of them. Raises `UnavailableError` and `NetworkError`.

    PostgreSQL runs under another account: `folder` has to be one that all may pass through.
    """
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    with ExitStack() as stack:
        net = stack.enter_context(network(sizes.machines))
        broker = kafka.Server(folder / "kafka", properties=_BROKER, host=net.host)
        store = weaviate.Server(folder / "weaviate", host=net.host)
        memory = redis.Server(folder / "redis", _PASSWORD, appendonly=True, host=net.host)
        database = postgresql.Server(folder / "postgresql", host=net.host)
        for stop in (broker.stop, store.stop, memory.stop, database.stop):
            stack.callback(stop)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda start: start(), (broker.start, store.start, memory.start, database.start)))
        tree = _tree(sizes, corpus, broker, store, memory)
        environment = _environment(tree, sizes, database)
        os.environ[_DATABASE_VARIABLE] = environment[_DATABASE_VARIABLE]
        stack.callback(os.environ.pop, _DATABASE_VARIABLE)
        homes = [folder / "control", *(folder / f"machine-{n + 1}" / "home" for n in range(sizes.machines))]
        for home in homes:
            home.mkdir(mode=0o700, parents=True)
            (home / "dagster").mkdir(mode=0o700)
            (home / "dagster" / "dagster.yaml").write_text(_DAGSTER_YAML.read_text())
        given = {name: value for name, value in tree.items() if name not in ("kafka", "models", "cache")}
        address, prefix = tree["kafka"]["bootstrap_servers"], tree["kafka"]["topic_prefix"]
        installation = install(homes[0], address, prefix, kafka={"drain": tree["kafka"]["drain"]}, **given)
        create_topics(installation.settings.kafka)
        stack.enter_context(closing(installation.store))
        tables = stack.enter_context(closing(Database.open(installation.settings)))
        instance = stack.enter_context(open_instance(installation.settings))
        instance.event_log_storage.set_concurrency_slots("text_requests", sizes.text_runs)
        machines = [
            WorkerMachine(f"machine-{n + 1}", each, folder / f"machine-{n + 1}", environment, sizes.processes)
            for n, each in enumerate(net.machines)
        ]
        site = Site(corpus, broker, memory, database, machines, installation, instance, tables)
        for machine in machines:
            stack.callback(machine.kill)
            machine.start()
        control = {**environment, "VECTORIZE_RUN_LAUNCHER": "celery"}
        site.control = stack.enter_context(dev_server(homes[0], folder / "control.log", control))
        site.control.wait_until_ready()
        site.wait_for_workers()
        yield site


def _tree(
    sizes: Sizes, corpus: Path, broker: kafka.Server, store: weaviate.Server, memory: redis.Server
) -> dict[str, Any]:
    """Return the settings that all hosts have."""
    drain = {
        "batch_messages": sizes.batch_messages,
        "target_lag_per_run": sizes.lag_per_run,
        "idle_seconds": sizes.idle_seconds,
    }
    return {
        "kafka": {"bootstrap_servers": broker.bootstrap_servers, "topic_prefix": "machines", "drain": drain},
        "redis": {"url": memory.url},
        "store": {"kind": "weaviate", "url": store.url, "grpc_port": store.grpc_port},
        "corpus": {"path": str(corpus)},
        "models": {"dimension": DIMENSION},
        "cache": {"enabled": "off"},
        "pipeline": {"batch_items": sizes.batch_items},
    }


def _environment(tree: Mapping[str, Any], sizes: Sizes, database: postgresql.Server) -> dict[str, str]:
    """Return the environment that all hosts have: the settings as variables, and none of the developer's own."""
    own = {name: value for name, value in os.environ.items() if not name.startswith((VARIABLES, "DAGSTER_HOME"))}
    further = {} if sizes.lease_seconds is None else {LEASE_SECONDS: str(sizes.lease_seconds)}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    python = os.pathsep.join([str(CHECKOUT), *([os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else [])])
    settings = {variable_name(path): str(value) for path, value in _leaves(tree)}
    return {
        **own,
        **threads,
        **further,
        **settings,
        "PYTHONPATH": python,
        "DAGSTER_DISABLE_TELEMETRY": "yes",
        _DATABASE_VARIABLE: database.url("postgres"),
    }


def _leaves(tree: Mapping[str, Any], *above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, *above, name)
        else:
            yield (*above, name), value
