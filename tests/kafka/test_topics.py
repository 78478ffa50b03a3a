"""Topics on a real broker: made once, as the configuration file says, and held against it."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import KafkaError, KafkaNotConfiguredError, SettingsError
from vectorize_pipelines.kafka.config_file import RESERVED
from vectorize_pipelines.kafka.followed import followed_topic
from vectorize_pipelines.kafka.topics import (
    Family,
    TopicNames,
    check_topics,
    compression_of,
    create_topics,
    describe_topics,
)
from vectorize_pipelines.settings import PROJECT_ROOT, KafkaSettings

ROLES = ("text.priority", "text", "image.priority", "image", "document.priority", "document")
ALL_ROLES = (*ROLES, "results", "control", "dead-letter")


def test_topics_are_made_once_and_are_as_the_file_says(
    kafka_settings: KafkaSettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "vectorize_pipelines")
    missing = check_topics(kafka_settings)
    assert len(missing) == len(ALL_ROLES)
    assert "is missing; `vectorize topics create` makes it" in missing[0]
    created = create_topics(kafka_settings)
    assert sorted(created) == sorted(f"{kafka_settings.topic_prefix}.{role}" for role in ALL_ROLES)
    assert f"made the topics {', '.join(created)}" in caplog.messages
    assert check_topics(kafka_settings) == []
    assert create_topics(kafka_settings) == []
    states = {
        state.name.removeprefix(kafka_settings.topic_prefix + "."): state for state in describe_topics(kafka_settings)
    }
    assert {states[role].partitions for role in ROLES} == {6}
    assert states["control"].config["cleanup.policy"] == "compact"
    assert states["text"].config["retention.ms"] == str(30 * 24 * 3600 * 1000)


def test_what_differs_is_said_in_words(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    create_topics(kafka_settings)
    text = (PROJECT_ROOT / "config" / "kafka.yaml").read_text()
    other = tmp_path / "kafka.yaml"
    other.write_text(text.replace("partitions: 6", "partitions: 3").replace("2592000000", "-1"))
    problems = check_topics(kafka_settings.model_copy(update={"config_file": other}))
    name = f"{kafka_settings.topic_prefix}.text"
    assert f"{name} has 6 partitions, the configuration says 3" in problems
    assert f"{name} has retention.ms=2592000000, the configuration says -1" in problems


def test_topics_of_assessments_are_made_when_wanted_and_missed_when_some_are_there(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    create_topics(kafka_settings)
    assert check_topics(kafka_settings) == [], "an installation need not assess anything"
    made = create_topics(kafka_settings, (Family.ASSESSMENTS,))
    assert made == [followed_topic(kafka_settings, "detections").topic, *made[1:]]
    states = {state.name: state for state in describe_topics(kafka_settings) if state.name in made}
    assert [states[name].partitions for name in made] == [16, 32, 16, 6]
    assert [states[name].config["retention.ms"] for name in made[:3]] == ["3600000", "7200000", "86400000"]
    assert {state.config["compression.type"] for state in states.values()} == {"snappy"}
    assert check_topics(kafka_settings) == []
    assert compression_of(kafka_settings, Family.ASSESSMENTS) == {"compression.type": "snappy"}
    assert compression_of(kafka_settings, Family.REQUESTS) == {}
    renamed = kafka_settings.model_copy(update={"risk_results_topic": f"{kafka_settings.topic_prefix}.absent"})
    (problem,) = check_topics(renamed)
    assert problem.startswith(f"{renamed.risk_results_topic} is missing")


def test_what_runs_follow() -> None:
    settings = KafkaSettings(topic_prefix="p", detections_topic="seen")
    assert followed_topic(settings, "text").lanes == ("p.text.priority", "p.text")
    assert followed_topic(settings, "detections").lanes == ("seen",)
    assert followed_topic(settings, "assessments").topic == "assessment-tasks-topic"
    with pytest.raises(SettingsError, match="no run follows 'results'; there are text, image, document, detections"):
        followed_topic(settings, "results")
    with pytest.raises(ValidationError, match="must differ: seen stands there twice"):
        KafkaSettings(detections_topic="seen", risk_results_topic="seen")


def test_a_topic_that_the_cluster_refuses_is_named(kafka_settings: KafkaSettings, tmp_path: Path) -> None:
    other = tmp_path / "kafka.yaml"
    other.write_text("topics: {defaults: {partitions: 1, replication: 1}, results: {config: {no.such.property: 1}}}")
    with pytest.raises(KafkaError, match=r"\.results failed at .*no\.such\.property"):
        create_topics(kafka_settings.model_copy(update={"config_file": other}))


def test_lanes() -> None:
    names = TopicNames("p")
    assert names.lanes(Modality.TEXT) == ("p.text.priority", "p.text")
    assert [names.lane(Modality.IMAGE, priority) for priority in (0, 1, 9)] == ["p.image", *["p.image.priority"] * 2]


def test_no_cluster() -> None:
    with pytest.raises(KafkaNotConfiguredError, match="VECTORIZE_KAFKA__BOOTSTRAP_SERVERS"):
        create_topics(KafkaSettings())
    with pytest.raises(KafkaError, match=r"listing the topics failed at 127\.0\.0\.1:1"):
        check_topics(KafkaSettings(bootstrap_servers="127.0.0.1:1", request_seconds=0.5))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("topics: {tekst: {partitions: 3}}", "topics.tekst"),
        ("topics: {text: {partitions: 0}}", "topics.text.partitions"),
        ("- a", "must hold a tree"),
        ("a: [", "as YAML"),
        ("producer: {ssl.key.password: '${NO_SUCH_VARIABLE}'}", r"\$\{NO_SUCH_VARIABLE\}"),
        *((f"consumer: {{{name}: x}}", name) for name in sorted(RESERVED)),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "kafka.yaml"
    file.write_text(content)
    with pytest.raises(SettingsError, match=said):
        check_topics(KafkaSettings(bootstrap_servers="127.0.0.1:1", config_file=file))
