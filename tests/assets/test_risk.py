"""The assets of assessments and their checks, in this process, with a real broker and a real provider."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.instances import installed_instance
from tests.messaging.brokers import send
from tests.messaging.detections import detection
from tests.pipeline.assessments.installation import KEY, UNLIMITED, Installation, install
from tests.pipeline.assessments.tasks import task
from tests.servers.provider import Fault, serving_provider
from tests.small_corpus import TODAY
from vectorize_pipelines.jobs import STREAM_JOBS
from vectorize_pipelines.kafka.followed import DETECTIONS
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.settings import KafkaSettings


@pytest.fixture
def instance(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    with installed_instance(monkeypatch) as instance:
        yield instance


@pytest.fixture
def installation(home: Path, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """An installation whose settings are in the environment, since assets load them."""
    with serving_provider({KEY: UNLIMITED}, faults=[Fault("refused", contains="[0, 0, 1003")]) as provider:
        monkeypatch.setenv("VECTORIZE_PROVIDERS__BASE_URL", provider.url)
        monkeypatch.setenv("VECTORIZE_PROVIDERS__KEYS_FILE", str(home / "api_keys.yaml"))
        yield install(home, kafka_settings, provider)


def run(instance: dg.DagsterInstance, job: str, day: str = TODAY, **config: Any) -> dg.ExecuteInProcessResult:
    from vectorize_pipelines.definitions import defs

    return defs.resolve_job_def(job).execute_in_process(
        instance=instance,
        partition_key=day,
        run_config={"ops": {"risk_assessments": {"config": config}}} if config else None,
    )


def metadata(instance: dg.DagsterInstance, asset: str, day: str = TODAY) -> dict[str, Any]:
    """The metadata of a day's latest materialization."""
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[day])
    (record,) = instance.fetch_materializations(wanted, limit=1).records
    assert record.asset_materialization is not None
    return {name: value.value for name, value in record.asset_materialization.metadata.items()}


def checks(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    return {each.check_name: each for each in result.get_asset_check_evaluations()}


@pytest.mark.usefixtures("kafka_settings")
def test_tasks_are_judged_and_reported_by_day_and_camera(
    instance: dg.DagsterInstance, installation: Installation
) -> None:
    sent = [task(f"task-{n}", camera=f"camera-{n % 2}", bbox=[0, 0, 1000 + n, 10]) for n in range(6)]
    installation.send(*sent, task("late", camera="camera-0", seconds=-1))
    judged = run(instance, "assess_risks", mode="drain", once=True)
    assert len(installation.results()) == 6
    shown = metadata(instance, "risk_assessments")
    assert (shown["completed"], shown["failed"], shown["expired"]) == (5, 1, 1)
    assert sum(shown[f"level/{level}"] for level in ("none", "low", "medium", "high", "critical")) == 5
    assert shown["prompt_tokens"] > 0
    (key,) = shown["keys"].records
    assert key.data["key"] == f"name of {KEY}"
    found = checks(judged)
    assert not found["valid_answers"].passed
    assert not found["fresh_results"].passed
    assert all(each.severity is dg.AssetCheckSeverity.WARN for each in found.values())

    reported = run(instance, "report_camera_risk")
    shown = metadata(instance, "camera_risk")
    assert (shown["cameras"], shown["completed"], shown["failed"], shown["expired"]) == (2, 5, 1, 1)
    assert {each.data["camera"] for each in shown["by_camera"].records} == {"camera-0", "camera-1"}
    scores = [each.data["score"] for each in shown["worst_moments"].records]
    assert scores == sorted(scores, reverse=True)
    assert shown["plot"].startswith("![assessed groups by camera and level](data:image/png;base64,")
    assert checks(reported)["silent_cameras"].passed


@pytest.mark.usefixtures("kafka_settings")
def test_a_camera_that_has_fallen_silent_is_named(
    instance: dg.DagsterInstance, installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vectorize_pipelines.definitions import defs

    kafka = installation.kafka
    create_topics(kafka, (Family.ASSESSMENTS,))
    monkeypatch.setenv("VECTORIZE_ASSESSMENTS__RULE__MIN_OBJECTS", "100")
    now_ms = time.time_ns() // 1_000_000
    cameras = {"empty": (0, now_ms), "left out": (1, now_ms), "silent": (1, now_ms - 1_200_000)}
    messages = [
        {"value": json.dumps(detection(name, groups=groups)).encode(), "timestamp": at}
        for name, (groups, at) in cameras.items()
    ]
    send(kafka, kafka.detections_topic, *messages)
    config = {"ops": {"assessment_tasks": {"config": {"mode": "drain", "once": True}}}}
    job = defs.resolve_job_def(STREAM_JOBS[DETECTIONS].job.name)
    assert job.execute_in_process(instance=instance, partition_key=TODAY, run_config=config).success
    assert installation.results() == []
    check = checks(run(instance, "report_camera_risk"))["silent_cameras"]
    assert not check.passed
    assert (check.metadata["cameras"].value, check.metadata["silent"].value) == (3, 1)
    assert check.description is not None
    assert "silent since" in check.description
    assert "empty" not in check.description
    assert "left out" not in check.description
