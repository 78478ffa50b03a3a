"""The asset `assessment_tasks`, as a run of it shows itself in Dagster."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest

from tests.messaging.brokers import read, send, settle
from tests.messaging.detections import detection
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.partitions import today
from vectorize_pipelines.settings import KafkaSettings

YESTERDAY = timedelta(days=1)


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def run(instance: dg.DagsterInstance, partition: str, **config: object) -> dg.ExecuteInProcessResult:
    from vectorize_pipelines.definitions import defs

    job = defs.resolve_job_def("make_assessment_tasks")
    run_config = {"ops": {"assessment_tasks": {"config": config}}} if config else {}
    return job.execute_in_process(instance=instance, partition_key=partition, run_config=run_config)


def tasks(kafka_settings: KafkaSettings) -> int:
    """The number of tasks that are committed."""
    settle(kafka_settings, kafka_settings.assessment_tasks_topic)
    return len(read(kafka_settings, kafka_settings.assessment_tasks_topic))


def test_a_run_shows_the_figures_of_its_days(instance: dg.DagsterInstance, kafka_settings: KafkaSettings) -> None:
    create_topics(kafka_settings, (Family.ASSESSMENTS,))
    now = datetime.now(UTC)
    value = json.dumps(detection(groups=2)).encode()
    at, own_day = round(now.timestamp() * 1000), today()
    messages = ({"value": each, "timestamp": at} for each in (value, b"no JSON"))
    send(kafka_settings, kafka_settings.detections_topic, *messages)
    settle(kafka_settings, kafka_settings.detections_topic)
    drained = run(instance, own_day, mode="drain", once=True)
    assert drained.success
    shown = {
        each.partition: {name: value.value for name, value in each.metadata.items()}
        for each in drained.asset_materializations_for_node("assessment_tasks")
    }
    day = now.date().isoformat()
    assert (shown[day]["messages"], shown[day]["tasks"], shown[day]["dead_letters"]) == (2, 2, 1)
    assert "lag" in shown[own_day], "figures of the run stand with its own day"
    assert tasks(kafka_settings) == 2

    replayed = run(instance, day)
    assert replayed.success
    assert tasks(kafka_settings) == 4
    before = run(instance, (now - YESTERDAY).date().isoformat())
    (empty,) = before.asset_materializations_for_node("assessment_tasks")
    assert empty.metadata["messages"].value == 0
