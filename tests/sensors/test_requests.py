"""How many runs the lag sensors want, and what they say where they want none."""

import os
from collections.abc import Iterator, Sequence

import dagster as dg
import pytest
from confluent_kafka import TopicPartition
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from hypothesis import given
from hypothesis import strategies as st

from tests.messaging.requests_in_kafka import send, text
from tests.servers.ports import free_ports
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.kafka.clients import consumer
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.partitions import today
from vectorize_pipelines.runs import drain as drain_runs
from vectorize_pipelines.runs.drain import ActiveRun, active_runs, places
from vectorize_pipelines.runs.tags import MODE_TAG, SHARD_TAG, TOPIC_TAG, WIND_DOWN_TAG, drain_tags
from vectorize_pipelines.sensors import following as kafka_lag
from vectorize_pipelines.sensors.following import HandOver, Launch, Limits, Wait, decide
from vectorize_pipelines.sensors.requests import request_sensors
from vectorize_pipelines.settings import KafkaSettings, load_settings

LIMITS = Limits(lag_per_run=100, runs=4)


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setattr(kafka_lag, "TICK_SECONDS", 0.0)
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def active(count: int, *indexes: int, running: bool = True, winding_down: str | None = None) -> list[ActiveRun]:
    """Runs of a layout of `count` shards."""
    return [ActiveRun(f"run-{n}", Shard(n, count), running, winding_down, float(n)) for n in indexes]


@pytest.mark.parametrize(
    ("lag", "runs"), [(1, 1), (100, 1), (101, 2), (399, 4), (10_000, 4)], ids=lambda value: str(value)
)
def test_the_lag_decides_how_many_runs_there_are(lag: int, runs: int) -> None:
    lags = {n: lag // 6 + (n < lag % 6) for n in range(6)}
    decision = decide(lags, [], LIMITS)
    assert isinstance(decision, Launch)
    assert {shard.count for shard in decision.shards} == {runs}


def test_nothing_is_launched_for_nothing_and_for_a_part_that_has_its_run() -> None:
    assert isinstance(decide({0: 0, 1: 0}, [], LIMITS), Wait)
    assert isinstance(decide({0: 50, 1: 50}, active(1, 0), LIMITS), Wait)
    assert isinstance(decide({0: 50, 1: 0}, active(2, 0), LIMITS), Wait)
    assert decide({0: 50, 1: 50}, active(2, 0), LIMITS) == Launch([Shard(1, 2)])


def test_a_larger_layout_comes_after_the_present_one_has_ended() -> None:
    lags = dict.fromkeys(range(6), 100)
    assert decide(lags, active(1, 0), LIMITS) == HandOver(4)
    assert isinstance(decide(lags, active(1, 0, running=False), LIMITS), Wait), "it has not even begun"
    assert isinstance(decide(lags, active(1, 0, winding_down="handing over to 4 runs"), LIMITS), Wait)
    assert isinstance(decide(lags, [*active(1, 0), *active(4, 1)], LIMITS), Wait)
    assert decide(lags, [], LIMITS) == Launch([Shard(n, 4) for n in range(4)])


@given(st.dictionaries(st.integers(0, 11), st.integers(0, 500), min_size=1), st.sets(st.integers(0, 2)))
def test_what_is_launched_covers_all_that_waits_once(lags: dict[int, int], present: set[int]) -> None:
    running = active(3, *present)
    decision = decide(lags, running, LIMITS)
    owners: Sequence[Shard] = [run.shard for run in running]
    if isinstance(decision, Launch):
        owners = [*owners, *decision.shards]
        assert len({shard.count for shard in owners}) == 1
    for partition, lag in lags.items():
        if lag:
            assert len([shard for shard in owners if shard.owns(partition)]) == 1


def tick(
    instance: dg.DagsterInstance, modality: Modality = Modality.TEXT, cursor: str | None = None
) -> dg.SensorResult | dg.SkipReason:
    (sensor,) = (each for each in request_sensors(load_settings()) if each.name == f"{modality.value}_lag")
    result = sensor(dg.build_sensor_context(instance=instance, cursor=cursor))
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


def reason(result: dg.SensorResult | dg.SkipReason) -> str:
    assert isinstance(result, dg.SkipReason), result
    return result.skip_message or ""


def test_without_kafka_the_sensor_says_so(instance: dg.DagsterInstance) -> None:
    assert "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS is not set" in reason(tick(instance))


def test_a_broker_that_is_away_is_said(instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka_lag, "REQUEST_SECONDS", 0.5)
    address = f"localhost:{free_ports(1)[0]}"
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", address)
    assert address in reason(tick(instance))


def test_missing_topics_are_said(instance: dg.DagsterInstance, kafka_settings: KafkaSettings) -> None:
    assert "vectorize topics create" in reason(tick(instance))


def launched(instance: dg.DagsterInstance, request: dg.RunRequest, status: dg.DagsterRunStatus) -> str:
    from vectorize_pipelines.definitions import defs

    job = defs.resolve_job_def("embed_text")
    return instance.create_run_for_job(job, tags=dict(request.tags), status=status).run_id


def test_lag_launches_a_run_and_no_second_one(instance: dg.DagsterInstance, kafka_settings: KafkaSettings) -> None:
    create_topics(kafka_settings)
    assert "Nothing waits" in reason(tick(instance))
    send(kafka_settings, [text(f"note-{n}", f"note {n}") for n in range(3)])
    before = today()
    result = tick(instance)
    assert isinstance(result, dg.SensorResult)
    (request,) = result.run_requests or []
    assert request.partition_key in (before, today())  # midnight may have passed
    assert request.run_config == {"ops": {"text_embeddings": {"config": {"mode": "drain", "shard": "0/1"}}}}
    topic = f"{kafka_settings.topic_prefix}.text"
    assert (request.tags[MODE_TAG], request.tags[SHARD_TAG], request.tags[TOPIC_TAG]) == ("drain", "0/1", topic)
    assert "Nothing waits" in reason(tick(instance, Modality.IMAGE))

    run_id = launched(instance, request, dg.DagsterRunStatus.NOT_STARTED)
    assert "1 of 1 runs" in reason(tick(instance))
    instance.delete_run(run_id)
    assert isinstance(tick(instance), dg.SensorResult)


def test_a_failed_run_is_not_launched_again_at_once(
    instance: dg.DagsterInstance, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(kafka_settings, [text("note", "a note")])
    request = (tick(instance).run_requests or [])[0]  # type: ignore[union-attr]
    run_id = launched(instance, request, dg.DagsterRunStatus.STARTED)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    instance.report_run_failed(run)
    assert "failed; the next try is in" in reason(tick(instance))
    monkeypatch.setattr(kafka_lag, "FIRST_PAUSE_SECONDS", 0.0)
    assert isinstance(tick(instance), dg.SensorResult)


def test_a_run_that_failed_after_it_had_got_somewhere_is_followed_by_another_at_once(
    instance: dg.DagsterInstance, kafka_settings: KafkaSettings
) -> None:
    send(kafka_settings, [text("one", "a note"), text("two", "a note")], partition=0)
    first = tick(instance)
    assert isinstance(first, dg.SensorResult)
    run = instance.get_run_by_id(launched(instance, (first.run_requests or [])[0], dg.DagsterRunStatus.STARTED))
    assert run is not None
    instance.report_run_failed(run)
    assert "failed; the next try is in" in reason(tick(instance, cursor=first.cursor))
    client = consumer(kafka_settings)
    client.commit(offsets=[TopicPartition(f"{kafka_settings.topic_prefix}.text", 0, 1)], asynchronous=False)
    client.close()
    kafka_lag._lag_watches.clear()  # which would tell what had been committed a second ago
    second = tick(instance, cursor=first.cursor)
    assert isinstance(second, dg.SensorResult)
    assert "failed; the next try is in" in reason(tick(instance, cursor=second.cursor))


def test_more_lag_than_the_runs_can_do_makes_them_hand_over(
    instance: dg.DagsterInstance, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_KAFKA__DRAIN__TARGET_LAG_PER_RUN", "2")
    monkeypatch.setattr(kafka_lag, "places", lambda *_: 3)
    create_topics(kafka_settings)
    request = dg.RunRequest(tags=drain_tags(followed_topic(kafka_settings, "text")))
    run_id = launched(instance, request, dg.DagsterRunStatus.STARTED)
    for partition in range(6):
        send(kafka_settings, [text(f"note-{partition}", "a note")], partition=partition)

    assert "ask for 3 runs" in reason(tick(instance))
    (run,) = active_runs(instance, followed_topic(kafka_settings, "text"))
    assert run.winding_down is None, "such lag may be gone in a moment"
    monkeypatch.setattr(kafka_lag, "PATIENCE_SECONDS", 0.0)
    tick(instance)
    told = instance.get_run_by_id(run_id)
    assert told is not None
    assert told.tags[WIND_DOWN_TAG] == "handing over to 3 runs"
    assert "1 of 1 runs are handing over" in reason(tick(instance))

    instance.report_run_canceled(told)
    result = tick(instance)
    assert isinstance(result, dg.SensorResult)
    assert [each.tags[SHARD_TAG] for each in result.run_requests or []] == ["0/3", "1/3", "2/3"]


def queued(instance: dg.DagsterInstance, job: str, **tags: str) -> None:
    from vectorize_pipelines.definitions import defs

    location = RegisteredCodeLocationOrigin("vectorize_pipelines.definitions")
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), job)
    definition = defs.resolve_job_def(job)
    instance.create_run_for_job(
        definition,
        tags=tags,
        status=dg.DagsterRunStatus.QUEUED,
        remote_job_origin=origin,
        job_code_origin=None,
        asset_selection=None,
    )


@pytest.mark.parametrize(("job", "gives_way"), [("embed_text", True), ("embed_image", False)])
def test_a_run_gives_way_to_one_that_is_queued_for_its_pool(
    instance: dg.DagsterInstance,
    kafka_settings: KafkaSettings,
    monkeypatch: pytest.MonkeyPatch,
    job: str,
    gives_way: bool,
) -> None:
    monkeypatch.setattr(drain_runs, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(drain_runs, "QUEUED_SECONDS", -5.0)
    request = dg.RunRequest(tags=drain_tags(followed_topic(kafka_settings, "text")))
    run_id = launched(instance, request, dg.DagsterRunStatus.STARTED)
    queued(instance, job)
    beside = drain_runs.DrainRun(instance, run_id, followed_topic(kafka_settings, "text"), WHOLE)
    assert beside.reason_to_end() is None, "it has only begun"
    monkeypatch.setattr(drain_runs, "BEFORE_GIVING_WAY_SECONDS", 0.0)
    said = beside.reason_to_end()
    assert said is not None and "giving way" in said if gives_way else said is None


def test_a_pool_has_one_place_unless_somebody_raised_it(home: os.PathLike[str]) -> None:
    from vectorize_pipelines.settings import load_settings
    from vectorize_pipelines.state.home import use_dagster_home

    use_dagster_home(load_settings())
    with dg.DagsterInstance.get() as instance:
        assert places(instance, "text_requests") == 1
        instance.event_log_storage.set_concurrency_slots("text_requests", 4)
        assert places(instance, "text_requests") == 4
        assert places(instance, "image_requests") == 1
