"""Runs over detections on a real broker: each deserving group becomes one task, whatever happens to runs."""

import base64
import json
import signal
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.forks import Fork
from tests.images.pictures import encoded, photo
from tests.messaging.brokers import make_topic, read, send, settle
from tests.messaging.detections import SOME_TIME, detection, noise
from tests.pipeline.assessments.killed_tasks import drain as drain_and_die
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.lag import partition_lags
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.messaging.detections import DetectionResultMessage
from vectorize_pipelines.pipeline.assessments.drain_request import DrainRequest
from vectorize_pipelines.pipeline.assessments.rule import LeftOut
from vectorize_pipelines.pipeline.assessments.task_run import TaskRun
from vectorize_pipelines.pipeline.assessments.task_runs import open_task_drain, open_task_replay
from vectorize_pipelines.settings import KafkaSettings, Settings, load_settings

SECONDS = 120.0


@pytest.fixture
def kafka(home: Path, kafka_settings: KafkaSettings) -> KafkaSettings:
    """The broker, with the topics of assessments."""
    create_topics(kafka_settings, (Family.ASSESSMENTS,))
    return kafka_settings


def detect(kafka: KafkaSettings, *contents: Mapping[str, Any] | bytes | None, **message: Any) -> None:
    """Send detections, or what is none."""
    values = [json.dumps(each).encode() if isinstance(each, Mapping) else each for each in contents]
    send(kafka, kafka.detections_topic, *({"key": b"cam", "value": value, **message} for value in values))
    settle(kafka, kafka.detections_topic)


def drain(settings: Settings | None = None) -> TaskRun:
    """Drain the detections' topic; return the run, for its figures."""
    with open_task_drain(settings or load_settings(), DrainRequest("run", once=True)) as run:
        run.run()
    return run


def tasks(kafka: KafkaSettings) -> list[AssessmentTaskMessage]:
    """All tasks that are committed."""
    settle(kafka, kafka.assessment_tasks_topic)
    found = read(kafka, kafka.assessment_tasks_topic)
    assert all(each.key() == b"cam-1" for each in found)
    return [AssessmentTaskMessage.from_json(each.value()) for each in found]


def letters(kafka: KafkaSettings) -> list[Any]:
    """All dead letters, as messages."""
    settle(kafka, kafka.assessment_dead_letter_topic)
    return read(kafka, kafka.assessment_dead_letter_topic)


def test_every_group_becomes_a_task_and_what_is_none_a_dead_letter(kafka: KafkaSettings) -> None:
    detect(kafka, detection(groups=2), b"no JSON", None, detection(message_id=None, at=None), detection(groups=0))
    run = drain()
    assert (run.total.messages, run.total.tasks, run.total.dead_letters) == (5, 3, 2)
    assert run.total.left_out.total() == 0
    assert {each.error_class for each in run.failures} == {"InvalidMessageError"}
    first, second, nameless = sorted(tasks(kafka), key=lambda each: (each.message_id != "m-1", each.group_index))
    content = DetectionResultMessage.from_dict(detection(groups=2))
    for task, group in zip((first, second), content.traffic_groups, strict=True):
        assert (task.message_id, task.camera_id, task.groups_total) == ("m-1", "cam-1", 2)
        assert (task.group, task.detected_objects) == (group, content.members(group))
        assert (task.timestamp, task.deadline) == (SOME_TIME, SOME_TIME + timedelta(seconds=120))
    assert nameless.message_id.startswith(f"{kafka.detections_topic}/")
    assert abs(nameless.timestamp - datetime.now(UTC)) < timedelta(minutes=5), "it is the message's time"
    assert len({each.task_id for each in (first, second, nameless)}) == 3
    headers = [dict(each.headers()) for each in letters(kafka)]
    assert {each["__connect.errors.topic"] for each in headers} == {kafka.detections_topic.encode()}
    assert {each["__connect.errors.stage"] for each in headers} == {b"decode"}
    assert not any(each.lag for each in partition_lags(kafka, followed_topic(kafka, "detections")))
    assert drain().total.messages == 0


def test_copies_and_replays_make_the_same_tasks(kafka: KafkaSettings) -> None:
    detect(kafka, detection(groups=2), detection(groups=2), b"no JSON")
    assert drain().total.tasks == 4
    made = tasks(kafka)
    assert len({each.task_id for each in made}) == 2
    now = datetime.now(UTC)
    with open_task_replay(load_settings(), "replay", (now.date() - timedelta(days=1), now.date())) as run:
        run.run()
    assert (run.total.tasks, run.total.dead_letters) == (4, 1)
    again = tasks(kafka)
    assert len(again) == 8
    replayed = {each.task_id: each for each in again if each.deadline > now}
    assert len(replayed) == 2
    for each in made:
        copy = replayed[each.task_id]
        assert copy.deadline - now > timedelta(seconds=119), "nobody waited for it before"
        assert copy.model_copy(update={"deadline": each.deadline}) == each
    assert len(letters(kafka)) == 1, "a replay writes none"


def test_a_task_has_its_detections_time_whenever_it_is_made(kafka: KafkaSettings) -> None:
    now = datetime.now(UTC)
    times = [now - timedelta(minutes=40), now + timedelta(minutes=30), now - timedelta(minutes=1)]
    for number, at in enumerate(times):
        content = detection(message_id=f"m-{number}", at=None)
        detect(kafka, content, timestamp=round(at.timestamp() * 1000))
    drain()
    settle(kafka, kafka.assessment_tasks_topic)
    found = {json.loads(each.value())["message_id"]: each for each in read(kafka, kafka.assessment_tasks_topic)}
    sent_at = {name: datetime.fromtimestamp(each.timestamp()[1] / 1000, UTC) for name, each in found.items()}
    assert abs(sent_at["m-0"] - times[0]) < timedelta(milliseconds=2)
    assert abs(sent_at["m-1"] - datetime.now(UTC)) < timedelta(minutes=5), "what lies ahead counts for today"
    assert abs(sent_at["m-2"] - times[2]) < timedelta(milliseconds=2)


def test_the_deadline_counts_from_the_picture_unless_that_lies_ahead(kafka: KafkaSettings) -> None:
    now = datetime.now(UTC)
    times = {"old": now - timedelta(hours=1), "ahead": now + timedelta(hours=8)}
    detect(kafka, *(detection(message_id=name, at=at) for name, at in times.items()))
    drain()
    found = {each.message_id: each for each in tasks(kafka)}
    assert found["old"].deadline == times["old"] + timedelta(seconds=120)
    assert found["ahead"].timestamp == times["ahead"]
    assert found["ahead"].deadline - now < timedelta(minutes=10)


def test_too_large_a_picture_or_a_message_is_refused(kafka: KafkaSettings) -> None:
    settings = load_settings(assessments={"max_image_bytes": 1000, "max_message_bytes": 4000})
    detect(kafka, detection(), detection(picture=noise(1200)), detection(picture=noise(6000)))
    run = drain(settings)
    assert (run.total.tasks, run.total.dead_letters) == (1, 2)
    said = [each.message for each in run.failures]
    assert any("traffic_groups[0].group_image_base64: about 1,200 bytes" in each for each in said)
    assert any("at most 4,000 are taken" in each for each in said)


def test_a_task_too_large_for_its_topic_is_a_dead_letter_and_stops_nothing(
    home: Path, kafka_settings: KafkaSettings
) -> None:
    make_topic(kafka_settings, kafka_settings.assessment_tasks_topic, max_message_bytes="700000")
    create_topics(kafka_settings, (Family.ASSESSMENTS,))
    large = detection(message_id="large", groups=3)
    for group in large["traffic_groups"][1:]:
        group["group_image_base64"] = base64.b64encode(noise(900_000)).decode()
    detect(kafka_settings, large, detection())
    run = drain()
    assert (run.total.messages, run.total.tasks, run.total.dead_letters, len(run.failures)) == (2, 2, 1, 1), (
        run.progress()
    )
    made = {each.message_id: each for each in tasks(kafka_settings)}
    assert {name: each.groups_total for name, each in made.items()} == {"large": 1, "m-1": 1}
    (letter,) = letters(kafka_settings)
    assert json.loads(letter.value()) == large, "whole: it can be replayed once the topic takes more"
    assert dict(letter.headers())["vectorize.error.class"] == b"TaskTooLargeError"


def test_what_the_rule_leaves_out_is_counted(kafka: KafkaSettings) -> None:
    settings = load_settings(assessments={"rule": {"classes": ["bus"]}})
    detect(kafka, detection(groups=2), detection(message_id="m-2", classes=["bus", "car"]))
    run = drain(settings)
    assert (run.total.tasks, run.total.left_out) == (1, {LeftOut.CLASSES: 2})
    figures = run.total.as_dict()
    assert (figures["left_out"], figures["left_out/other_classes"], figures["left_out/alike"]) == (2, 2, 0)


def test_a_standing_scene_is_not_judged_again(kafka: KafkaSettings) -> None:
    settings = load_settings(assessments={"rule": {"hash_distance": 8}})
    scene, other = photo(1, 160, 120), photo(2, 160, 120)
    pictures = {
        "first": encoded(scene, "JPEG", quality=90),
        "same": encoded(scene, "JPEG", quality=60),
        "other": encoded(other, "JPEG"),
        "damaged": b"\xff\xd8\xff no picture",
    }
    later = {name: SOME_TIME + timedelta(seconds=n) for n, name in enumerate(pictures)}
    detect(
        kafka,
        *(detection(message_id=name, at=later[name], picture=each) for name, each in pictures.items()),
        partition=0,
    )
    run = drain(settings)
    assert run.total.left_out == {LeftOut.ALIKE: 1}
    assert {each.message_id for each in tasks(kafka)} == {"first", "other", "damaged"}


@pytest.mark.parametrize(
    ("method", "number", "before"),
    [("_send_offsets", 2, True), ("_send_offsets", 3, False), ("send", 2, False)],
    ids=["before-offsets", "before-commit", "after-commit"],
)
def test_a_killed_run_makes_no_task_twice_and_loses_none(
    kafka: KafkaSettings, monkeypatch: pytest.MonkeyPatch, method: str, number: int, before: bool
) -> None:
    monkeypatch.setenv("VECTORIZE_ASSESSMENTS__BATCH_MESSAGES", "10")
    contents = [detection(message_id=f"m-{n}", groups=n % 3) for n in range(60)]
    detect(kafka, *contents, b"no JSON")
    process = Fork(drain_and_die, method, number, before)
    assert process.wait(SECONDS) == -signal.SIGKILL
    drain()
    made = Counter((each.message_id, each.group_index) for each in tasks(kafka))
    assert made == Counter((f"m-{n}", group) for n in range(60) for group in range(n % 3))
    assert len(letters(kafka)) == 1
