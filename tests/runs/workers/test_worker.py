"""Runs that workers execute, with real servers and real workers: what they keep, what they give back, what is lost."""

from contextlib import closing
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as sa
from dagster._core.events import DagsterEvent, DagsterEventType

from tests.messaging.requests_in_kafka import send, text
from tests.runs.workers.installation import (
    SECONDS,
    Worker,
    create,
    launch,
    launch_text,
    messages,
    run_of,
    sources,
    wait_for_end,
    worker,
)
from tests.servers import redis
from tests.servers.dev import until
from tests.small_corpus import DAYS, write_document
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.partitions import today
from vectorize_pipelines.runs.dead import close_dead_runs
from vectorize_pipelines.runs.held import PREFIX
from vectorize_pipelines.runs.tags import WIND_DOWN_TAG, drain_tags
from vectorize_pipelines.runs.workers.app import celery_app
from vectorize_pipelines.runs.workers.app import send as send_run
from vectorize_pipelines.runs.workers.waiting import send_again
from vectorize_pipelines.settings import KafkaSettings, Settings
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.heartbeats import workers
from vectorize_pipelines.state.leases import hold, leases

DOCUMENTS = 20
PARTITION = "dagster/partition"
REQUESTS = 40
#: Of a run that is stopped after its first batch, so that there are others.
ONE_BY_ONE = {"VECTORIZE_PIPELINE__BATCH_ITEMS": "1"}


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sources of a corpus of one day."""
    folder = tmp_path / "corpus"
    for number in range(DOCUMENTS):
        write_document(folder, f"{number}.txt", f"Entry {number} of the log: the wind turned.", 0)
    monkeypatch.setenv("VECTORIZE_CORPUS__PATH", str(folder))
    return sorted(f"{number}.txt" for number in range(DOCUMENTS))


def launch_corpus(instance: dg.DagsterInstance) -> str:
    return launch(instance, "embed_corpus", {}, {PARTITION: DAYS[0].isoformat()})


def wait_for_rows(settings: Settings, collection: str, started: Worker) -> None:
    until("the first rows", lambda: started.process.poll() is not None or sources(settings, collection))
    assert started.process.poll() is None, started.said()


def let_leases_lapse(settings: Settings) -> None:
    """Make it so much later that those which nobody renews have lapsed."""
    database = Database.open(settings)
    with database.write() as connection:
        connection.execute(sa.update(leases).values(expires_us=1))
    database.close()


def names(rows: list[str]) -> list[str]:
    return sorted(Path(row).name for row in rows)


def test_models_stay_loaded_from_run_to_run(instance: dg.DagsterInstance, shared: Settings, tmp_path: Path) -> None:
    with worker("first", tmp_path / "worker.log") as first:
        run = launch_text(instance, "a", "A lamp in the tower.")
        assert wait_for_end(instance, run) == dg.DagsterRunStatus.SUCCESS, messages(instance, run) + first.said()
        until("the loaded model", lambda: (beat := first.heartbeat(shared)) and beat.models and beat.run_id is None)
        run = launch_text(instance, "b", "A boat at sea.")
        assert wait_for_end(instance, run) == dg.DagsterRunStatus.SUCCESS, messages(instance, run) + first.said()
        assert sorted(sources(shared, "notes")) == ["a", "b"]
        assert first.end() == 0, first.said()
        assert workers(shared) == []
        loads = [line for line in first.said().splitlines() if "encoders.cache" in line and " loaded " in line]
        assert len(loads) == 1, first.said()


def test_what_a_killed_worker_had_in_hand_is_done_once_elsewhere(
    instance: dg.DagsterInstance, shared: Settings, many: list[str], tmp_path: Path
) -> None:
    with worker("slow", tmp_path / "slow.log", pausing=True, **ONE_BY_ONE) as slow:
        lost = launch_corpus(instance)
        wait_for_rows(shared, "corpus", slow)
        until("its queue", lambda: (beat := slow.heartbeat(shared)) and beat.run_queue == "document")
        slow.kill()
    assert run_of(instance, lost).status == dg.DagsterRunStatus.STARTED
    assert close_dead_runs(instance, shared) == []
    let_leases_lapse(shared)
    health = instance.run_launcher.check_run_worker_health(run_of(instance, lost))
    assert (health.status.name, shared.node_name in str(health.msg)) == ("FAILED", True)
    assert close_dead_runs(instance, shared) == [lost]
    with worker("next", tmp_path / "next.log") as following:
        send_run(celery_app(shared), shared, lost, "document")  # as Redis does, much later
        again = launch_corpus(instance)
        assert wait_for_end(instance, again) == dg.DagsterRunStatus.SUCCESS, following.said()
        assert names(sources(shared, "corpus")) == many
        assert f"run {lost} is FAILURE already: nothing is done" in following.said()
        assert run_of(instance, lost).status == dg.DagsterRunStatus.FAILURE


def test_a_worker_that_ends_gives_back_what_it_has_not_done(
    instance: dg.DagsterInstance, shared: Settings, many: list[str], tmp_path: Path
) -> None:
    with worker("ending", tmp_path / "ending.log", pausing=True, **ONE_BY_ONE) as ending:
        begun = launch_corpus(instance)
        wait_for_rows(shared, "corpus", ending)
        waiting = launch_text(instance, "a", "A lamp in the tower.")
        assert ending.end() == 0, ending.said()
        # Not canceled, after which Dagster would not launch it again.
        assert run_of(instance, begun).status == dg.DagsterRunStatus.FAILURE, ending.said()
        assert "interrupted unexpectedly" in messages(instance, begun)
        assert run_of(instance, waiting).status == dg.DagsterRunStatus.NOT_STARTED
    with worker("next", tmp_path / "next.log") as following:
        again = launch_corpus(instance)
        assert wait_for_end(instance, waiting) == dg.DagsterRunStatus.SUCCESS, following.said()
        assert wait_for_end(instance, again) == dg.DagsterRunStatus.SUCCESS, following.said()
        assert names(sources(shared, "corpus")) == many


def test_a_drain_run_winds_down_with_its_worker(
    instance: dg.DagsterInstance, shared: Settings, kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    create_topics(kafka_settings)
    send(kafka_settings, [text(f"note-{number}", f"Entry {number}: the wind turned.") for number in range(REQUESTS)])
    drains: list[str] = []
    for name in ("ending", "next"):
        pausing = name == "ending"
        with worker(name, tmp_path / f"{name}.log", pausing=pausing, VECTORIZE_PIPELINE__BATCH_ITEMS="4") as started:
            drains.append(launch_drain(instance, kafka_settings))
            if pausing:
                wait_for_rows(shared, "texts", started)
                started.process.terminate()
                until("the sign", lambda: WIND_DOWN_TAG in run_of(instance, drains[0]).tags)
                started.go_on.touch()
                assert started.wait() == 0, started.said()
            assert wait_for_end(instance, drains[-1]) == dg.DagsterRunStatus.SUCCESS, started.said()
    assert run_of(instance, drains[0]).tags[WIND_DOWN_TAG] == "its worker ends"
    assert sorted(sources(shared, "texts")) == sorted(f"note-{number}" for number in range(REQUESTS))


def launch_drain(instance: dg.DagsterInstance, settings: KafkaSettings) -> str:
    config = {"ops": {"text_embeddings": {"config": {"mode": "drain", "once": True}}}}
    return launch(instance, "embed_text", config, {**drain_tags(followed_topic(settings, "text")), PARTITION: today()})


def test_a_run_that_is_terminated_ends_wherever_it_is(
    instance: dg.DagsterInstance, shared: Settings, many: list[str], tmp_path: Path
) -> None:
    waiting = launch_text(instance, "a", "A lamp in the tower.")
    assert instance.run_launcher.terminate(waiting)
    assert run_of(instance, waiting).status == dg.DagsterRunStatus.CANCELED
    with worker("slow", tmp_path / "slow.log", pausing=True, **ONE_BY_ONE) as slow:
        begun = launch_corpus(instance)
        wait_for_rows(shared, "corpus", slow)
        assert instance.run_launcher.terminate(begun)
        assert wait_for_end(instance, begun) == dg.DagsterRunStatus.CANCELED, slow.said()
        slow.go_on.touch()
        run = launch_text(instance, "b", "A boat at sea.")  # by the same process, which goes on
        assert wait_for_end(instance, run) == dg.DagsterRunStatus.SUCCESS, slow.said()
    assert sources(shared, "notes") == ["b"]


def test_a_run_that_its_worker_gave_up_is_found_and_that_of_a_command_is_left_alone(
    instance: dg.DagsterInstance, shared: Settings
) -> None:
    launched, own = (create(instance, "embed_corpus", {}) for _ in range(2))
    instance.launch_run(launched.run_id, workspace=None)  # type: ignore[arg-type]  # which is not used
    for run in (launched, own):
        start = DagsterEvent(DagsterEventType.RUN_START.value, run.job_name)
        instance.report_dagster_event(start, run.run_id)
    check = instance.run_launcher.check_run_worker_health
    with closing(Database.open(shared)) as database, hold(database, PREFIX + launched.run_id, "the run"):
        assert check(run_of(instance, launched.run_id)).status.name == "RUNNING"
    assert check(run_of(instance, launched.run_id)).status.name == "FAILED"
    assert check(run_of(instance, own.run_id)).status.name == "RUNNING"


def test_runs_that_redis_has_lost_are_sent_again(
    instance: dg.DagsterInstance, shared: Settings, redis_server: redis.Server, tmp_path: Path
) -> None:
    run = launch_text(instance, "a", "A lamp in the tower.", dg.DagsterRunStatus.STARTING)
    assert send_again(instance, shared, 0) == []
    redis_server.empty()
    assert send_again(instance, shared, SECONDS) == []  # it may be about to begin
    other = launch_text(instance, "b", "A boat at sea.", dg.DagsterRunStatus.STARTING)  # waits in the same queue
    assert send_again(instance, shared, 0) == [run]
    assert send_again(instance, shared, 0) == []
    with worker("next", tmp_path / "next.log") as following:
        for each in (run, other):
            assert wait_for_end(instance, each) == dg.DagsterRunStatus.SUCCESS, following.said()
