"""The sensors for detections and for groups to be assessed."""

from collections.abc import Iterator

import dagster as dg
import pytest

from tests.messaging.brokers import send, settle
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.runs.tags import SHARD_TAG, TOPIC_TAG
from vectorize_pipelines.sensors import following
from vectorize_pipelines.sensors.assessments import assessment_sensors
from vectorize_pipelines.settings import KafkaSettings, load_settings


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    monkeypatch.setattr(following, "TICK_SECONDS", 0.0)
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def tick(instance: dg.DagsterInstance, name: str) -> dg.SensorResult | dg.SkipReason:
    (sensor,) = (each for each in assessment_sensors(load_settings()) if each.name == name)
    result = sensor(dg.build_sensor_context(instance=instance))
    assert isinstance(result, dg.SensorResult | dg.SkipReason)
    return result


@pytest.mark.parametrize(
    ("name", "role", "asset"),
    [
        ("detections_lag", "detections_topic", "assessment_tasks"),
        ("assessments_lag", "assessment_tasks_topic", "risk_assessments"),
    ],
)
def test_lag_launches_a_run_of_its_asset(
    instance: dg.DagsterInstance, kafka_settings: KafkaSettings, name: str, role: str, asset: str
) -> None:
    missing = tick(instance, name)
    assert isinstance(missing, dg.SkipReason)
    assert "vectorize topics create" in (missing.skip_message or "")
    create_topics(kafka_settings, (Family.ASSESSMENTS,))
    nothing = tick(instance, name)
    assert isinstance(nothing, dg.SkipReason)
    assert nothing.skip_message == "Nothing waits."
    topic = getattr(kafka_settings, role)
    send(kafka_settings, topic, {"value": b"{}"})
    settle(kafka_settings, topic)
    launched = tick(instance, name)
    assert isinstance(launched, dg.SensorResult)
    (request,) = launched.run_requests or []
    assert (request.tags[TOPIC_TAG], request.tags[SHARD_TAG]) == (topic, "0/1")
    assert request.run_config == {"ops": {asset: {"config": {"mode": "drain", "shard": "0/1"}}}}
