"""`vectorize drain detections`, and what the other commands for Kafka say of detections."""

import json

from tests.commands import Vectorize
from tests.messaging.brokers import read, send, settle
from tests.messaging.detections import detection
from vectorize_pipelines.kafka.topics import Family, create_topics
from vectorize_pipelines.settings import KafkaSettings


def test_detections_are_drained_once_and_dead_letters_replayed(
    vectorize_here: Vectorize, kafka_settings: KafkaSettings
) -> None:
    create_topics(kafka_settings, tuple(Family))
    contents = [detection(message_id=f"m-{n}", groups=2) for n in range(3)]
    values = [*(json.dumps(each).encode() for each in contents), b"no JSON"]
    send(kafka_settings, kafka_settings.detections_topic, *({"value": value, "partition": 0} for value in values))
    settle(kafka_settings, kafka_settings.detections_topic)
    waiting = vectorize_here("lag", "detections", "--json").json
    assert waiting["lag"] == 5, "four messages, and the mark of their transaction"

    done = vectorize_here("drain", "detections", "--once", "--json")
    assert done.code == 6, done.err
    expected = {"topic": "detections", "status": "succeeded", "messages": 4, "tasks": 6, "left_out": 0, "lag": 0}
    assert expected.items() <= done.json.items()
    assert (done.json["dead_letters"], done.json["shard"], done.json["errors"]) == (1, "0/1", [])
    assert [each["error"] for each in done.json["failures"]] == ["InvalidMessageError"]
    (figures,) = done.json["by_day"].values()
    assert (figures["messages"], figures["left_out/alike"]) == (4, 0)
    settle(kafka_settings, kafka_settings.assessment_tasks_topic, kafka_settings.assessment_dead_letter_topic)
    assert len(read(kafka_settings, kafka_settings.assessment_tasks_topic)) == 6

    (letter,) = vectorize_here("dead-letters", "list", "--json").json
    assert letter["id"].startswith("assessments-")
    assert (letter["topic"], letter["stage"]) == (kafka_settings.detections_topic, "decode")
    shown = vectorize_here("dead-letters", "show", letter["id"], "--json").json
    assert shown["value"] == "no JSON"
    assert vectorize_here("dead-letters", "replay", "--id", letter["id"], "--json").json["replayed"] == 1
    assert vectorize_here("dead-letters", "list", "--json").json == []
    settle(kafka_settings, kafka_settings.detections_topic)
    again = vectorize_here("drain", "detections", "--once")
    assert again.code == 6
    assert again.out.startswith("detections: 1 messages, 0 tasks, 0 left out, 1 dead letters")
    settle(kafka_settings, kafka_settings.assessment_dead_letter_topic)
    (letter,) = vectorize_here("dead-letters", "list", "--json").json
    assert letter["attempts"] == 2


def test_without_kafka_a_run_says_what_is_missing(vectorize_here: Vectorize) -> None:
    done = vectorize_here("drain", "detections", "--once", "--json")
    assert done.code != 0
    assert "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS" in done.err
