"""Runs whose machine is lost, with real processes and a real PostgreSQL: declared lost, started again, and harmless."""

import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa

from tests.runs.leased_run import WRITTEN
from tests.servers import postgresql as servers
from vectorize_pipelines.definitions import defs
from vectorize_pipelines.runs import executor
from vectorize_pipelines.runs.dead import close_abandoned_runs, close_dead_runs
from vectorize_pipelines.runs.held import PREFIX, held
from vectorize_pipelines.runs.instance import open_instance
from vectorize_pipelines.runs.tags import CODE_SERVER_TAG, WILL_RETRY_TAG
from vectorize_pipelines.sensors.lost_runs import lost_runs_sensor
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state import leases
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.held_locks import LockLostError, check_run
from vectorize_pipelines.state.home import server_folder_prefix

NODE = "node-7"
#: Of leases that are to lapse, and of those that are not.
SHORT_SECONDS, LONG_SECONDS = 2.5, 60.0
LOST = f"The run was lost: the machine {NODE} was lost, or its process was killed."


@pytest.fixture(scope="module")
def server(postgresql_program: None) -> Iterator[servers.Server]:
    with servers.running() as server:
        yield server


@pytest.fixture
def shared(server: servers.Server, home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An installation whose database several machines may use, in the environment too."""
    name = f"test_{uuid.uuid4().hex}"
    engine = sa.create_engine(
        server.url().replace("postgresql://", "postgresql+psycopg2://", 1),
        isolation_level="AUTOCOMMIT",
        poolclass=sa.NullPool,
    )
    with engine.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    monkeypatch.setenv("VECTORIZE_LEDGER__URL", server.url(name))
    monkeypatch.setenv("VECTORIZE_NODE_NAME", NODE)
    return load_settings()


@pytest.fixture
def instance(shared: Settings) -> Iterator[dg.DagsterInstance]:
    with open_instance(shared) as instance:
        yield instance


class Run:
    """A run in a process of its own, which waits before it writes."""

    def __init__(self, seconds: float):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.runs.leased_run", str(seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        self.run_id = self.process.stdout.readline().rstrip("\n")
        assert self.run_id

    def go_on(self) -> None:
        """Have it write, if it may, and wait for its end."""
        self.process.communicate("\n", timeout=LONG_SECONDS)


@contextmanager
def running(seconds: float) -> Iterator[Run]:
    run = Run(seconds)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.communicate()


def test_a_run_that_lives_is_left_alone(shared: Settings, instance: dg.DagsterInstance) -> None:
    with running(LONG_SECONDS) as run:
        with closing(Database.open(shared)) as database:
            assert leases.is_held(database, f"{PREFIX}{run.run_id}")
        assert close_dead_runs(instance, shared) == []
        run.go_on()
    assert status(instance, run) == dg.DagsterRunStatus.SUCCESS
    assert (shared.home / WRITTEN).exists()
    with closing(Database.open(shared)) as database:
        assert not leases.is_held(database, f"{PREFIX}{run.run_id}")
        assert leases.lapsed(database, PREFIX) == []


def test_a_killed_run_is_told_with_its_machine_and_started_again(
    shared: Settings, instance: dg.DagsterInstance
) -> None:
    with running(SHORT_SECONDS) as run:
        run.process.kill()
        until(lambda: tick(shared, instance) == f"Lost: {run.run_id}.")
    assert status(instance, run) == dg.DagsterRunStatus.FAILURE
    assert failures(instance, run) == [LOST]
    assert will_retry(instance, run)
    assert tick(shared, instance) == "No run is lost."


def test_a_run_that_was_to_end_has_ended(shared: Settings, instance: dg.DagsterInstance) -> None:
    with running(SHORT_SECONDS) as run:
        run.process.kill()
        instance.report_run_canceling(found(instance, run))
        until(lambda: close_dead_runs(instance, shared) == [run.run_id])
    assert status(instance, run) == dg.DagsterRunStatus.CANCELED


def test_a_stalled_run_that_was_declared_lost_writes_nothing(shared: Settings, instance: dg.DagsterInstance) -> None:
    with running(SHORT_SECONDS) as run:
        run.process.send_signal(signal.SIGSTOP)
        until(lambda: close_dead_runs(instance, shared) == [run.run_id])
        run.process.send_signal(signal.SIGCONT)
        run.go_on()
    assert not (shared.home / WRITTEN).exists()
    assert status(instance, run) == dg.DagsterRunStatus.FAILURE
    assert failures(instance, run) == [LOST], "it adds no failure of its own"


def test_a_stalled_run_that_nobody_missed_is_started_again(shared: Settings, instance: dg.DagsterInstance) -> None:
    with running(SHORT_SECONDS) as run, closing(Database.open(shared)) as database:
        run.process.send_signal(signal.SIGSTOP)
        until(lambda: leases.lapsed(database, PREFIX) != [])
        run.process.send_signal(signal.SIGCONT)
        run.go_on()
    assert not (shared.home / WRITTEN).exists()
    assert status(instance, run) == dg.DagsterRunStatus.FAILURE
    assert will_retry(instance, run)
    assert close_dead_runs(instance, shared) == []


def test_what_is_written_by_an_ingest_that_was_declared_lost(shared: Settings, instance: dg.DagsterInstance) -> None:
    """It is executed without the jobs' executor, and holds its lease by itself."""
    run = instance.create_run_for_job(defs.resolve_job_def("embed_corpus"), status=dg.DagsterRunStatus.STARTED)
    with pytest.raises(LockLostError), held(shared, run.run_id):  # noqa: PT012 (it is held until its end)
        check_run()
        assert close_dead_runs(instance, shared) == []
        let_leases_lapse(shared)
        assert close_dead_runs(instance, shared) == [run.run_id]
        with pytest.raises(LockLostError):
            check_run()
    check_run()


def test_a_lost_run_whose_closing_fails_is_closed_later(
    shared: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ConnectionError

    run = instance.create_run_for_job(defs.resolve_job_def("embed_corpus"), status=dg.DagsterRunStatus.STARTED)
    with pytest.raises(LockLostError), held(shared, run.run_id):  # noqa: PT012 (it is held until its end)
        let_leases_lapse(shared)
        with monkeypatch.context() as away:
            away.setattr(instance, "report_run_failed", fail)
            with pytest.raises(ConnectionError):
                close_dead_runs(instance, shared)
        let_leases_lapse(shared)
        assert close_dead_runs(instance, shared) == [run.run_id]


def test_the_start_of_a_server_closes_the_runs_of_an_earlier_one_that_no_lease_tells_of(
    shared: Settings, instance: dg.DagsterInstance
) -> None:
    own = f"/tmp/{server_folder_prefix(shared)}earlier"
    abandoned, leased, elsewhere = (launched_by(instance, each) for each in (own, own, "/tmp/vectorize-dev-other"))
    with held(shared, leased):
        assert close_abandoned_runs(instance, shared, shared.home) == [abandoned]
    run = instance.get_run_by_id(elsewhere)
    assert run is not None
    assert run.status == dg.DagsterRunStatus.STARTED


def launched_by(instance: dg.DagsterInstance, folder: str) -> str:
    """The id of a run that a code server has launched which has this folder."""
    tags = {CODE_SERVER_TAG: json.dumps({"socket": f"{folder}/code.sock"})}
    job = defs.resolve_job_def("embed_corpus")
    return instance.create_run_for_job(job, tags=tags, status=dg.DagsterRunStatus.STARTED).run_id


def test_the_sensor_is_on_where_several_machines_share_the_runs(shared: Settings, tmp_path: Path) -> None:
    assert lost_runs_sensor(shared).default_status == dg.DefaultSensorStatus.RUNNING
    alone = load_settings(home=tmp_path / "alone", ledger={"url": None})
    assert lost_runs_sensor(alone).default_status == dg.DefaultSensorStatus.STOPPED


def test_every_job_holds_the_lease_of_its_run() -> None:
    jobs = defs.resolve_all_job_defs()
    assert len(jobs) > 10
    assert {job.executor_def for job in jobs} == {executor.in_process_executor}


def let_leases_lapse(settings: Settings) -> None:
    """Make it so much later that those which nobody renews have lapsed."""
    with closing(Database.open(settings)) as database, database.write() as connection:
        connection.execute(sa.update(leases.leases).values(expires_us=1))


def tick(settings: Settings, instance: dg.DagsterInstance) -> str | None:
    """What the sensor says."""
    result = lost_runs_sensor(settings)(dg.build_sensor_context(instance))
    assert isinstance(result, dg.SkipReason)
    return result.skip_message


def found(instance: dg.DagsterInstance, run: Run) -> dg.DagsterRun:
    dagster_run = instance.get_run_by_id(run.run_id)
    assert dagster_run is not None
    return dagster_run


def status(instance: dg.DagsterInstance, run: Run) -> dg.DagsterRunStatus:
    return found(instance, run).status


def will_retry(instance: dg.DagsterInstance, run: Run) -> bool:
    """Whether Dagster's daemon starts the run again."""
    return found(instance, run).tags.get(WILL_RETRY_TAG) == "true"


def failures(instance: dg.DagsterInstance, run: Run) -> list[str | None]:
    """What was said of the run when it was marked as failed."""
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    return [event.get_dagster_event().message for event in events]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
