"""Texts of requests that are longer than their model takes: cut where that is asked for, else it is told."""

import json
from typing import Any

import pytest

from tests.commands import Vectorize
from tests.messaging.brokers import read
from tests.messaging.requests_in_kafka import rows, send, text
from vectorize_pipelines.encoders import load_token_counter
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL, KafkaSettings

pytestmark = pytest.mark.slow

#: A model that takes 256 tokens.
WORDS = 600
LONG = " ".join(f"harbour{n % 7} lies by the sea" for n in range(WORDS // 5))
SHORT = "a boat at sea"


def _completed(settings: KafkaSettings) -> dict[str, dict[str, Any]]:
    events = [json.loads(message.value()) for message in read(settings, TopicNames(settings.topic_prefix).results)]
    return {event["task_id"]: event for event in events if event["status"] == "completed"}


def test_what_a_model_does_not_take_is_told_or_cut(vectorize_here: Vectorize, kafka_settings: KafkaSettings) -> None:
    long, short = load_token_counter(DEFAULT_TEXT_MODEL)([LONG, SHORT])
    assert (long.seen, short.cut) == (256, 0)
    assert long.cut > WORDS - 256
    batch = {"task_id": "batch", "task_type": "batch_vectorization", "data": [SHORT, LONG]}
    whole = [text("whole", LONG, metadata={"tenant": "x"}), text("short", SHORT, chunk=True), batch]
    send(kafka_settings, [*whole, text("cut", LONG, chunk=True, metadata={"tenant": "x"})])
    done = vectorize_here("drain", "text", "--once", "--json")
    assert done.code == 0, "what is left out of a text is told to who sent it"
    figures = [done.json[name] for name in ("incomplete", "truncated", "dead_letters", "documents")]
    assert figures == [2, 2 * long.cut, 0, 4]
    assert {notice["source"] for notice in done.json["notices"]} == {"whole", "batch"}
    what = f"{long.cut:,} of {256 + long.cut:,} tokens are left out, since the model takes 256"
    assert f"omitted: whole: {what}; send it with chunk: true" in done.err

    events = _completed(kafka_settings)
    (warning,) = events["whole"]["warnings"]
    assert (events["whole"]["truncated"], warning["kind"], warning["what"]) == (long.cut, "omitted", what)
    assert [each["what"] for each in events["batch"]["warnings"]] == [f"data[1]: {what}"]
    for task_id in ("cut", "short"):
        assert (events[task_id]["truncated"], events[task_id]["warnings"]) == (0, [])

    stored = {(row["source_id"], row["item_index"]): row for row in rows("texts")}
    cut = [row for (source_id, _), row in sorted(stored.items()) if source_id == "cut"]
    assert len(cut) == events["cut"]["vector_count"] > 2
    assert [row["item_index"] for row in cut] == list(range(len(cut)))
    assert set(LONG.split()) == {word for row in cut for word in row["text"].split()}
    assert "chunker=" in cut[0]["model"]
    assert "chunker=" not in stored["short", 0]["model"]
    assert json.loads(stored["whole", 0]["metadata"]) == {"tenant": "x", "omitted": [what]}
    assert [json.loads(stored["batch", n]["metadata"]) for n in range(2)] == [{}, {"omitted": [what]}]

    found = vectorize_here("status", "whole", "--json").json
    assert (found["truncated"], found["tokens"], found["warnings"]) == (long.cut, 256, [warning])
    assert what in vectorize_here("status", "whole").out
    assert vectorize_here("status", "short", "--json").json["tokens"] == short.seen


def test_it_is_told_of_texts_that_have_their_vectors_too(
    vectorize_here: Vectorize, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (long,) = load_token_counter(DEFAULT_TEXT_MODEL)([LONG])
    send(kafka_settings, [text("one", LONG), text("one", LONG)])
    assert vectorize_here("drain", "text", "--once", "--json").json["encoded"] == 1
    send(kafka_settings, [text("one", LONG), text("two", LONG)])
    again = vectorize_here("drain", "text", "--once", "--json").json
    assert (again["encoded"], again["truncated"]) == (0, 2 * long.cut), "stored, and in the embedding cache"
    messages = read(kafka_settings, TopicNames(kafka_settings.topic_prefix).results)
    events = [json.loads(message.value()) for message in messages]
    assert [each["truncated"] for each in events if each["status"] == "completed"] == [long.cut] * 4

    monkeypatch.setenv("VECTORIZE_DOCUMENTS__CHUNK_LONG_TEXTS", "true")
    send(kafka_settings, [text("by-setting", LONG), text("not-this", LONG, chunk=False)])
    assert vectorize_here("drain", "text", "--once", "--json").json["truncated"] == long.cut
    events_by_id = _completed(kafka_settings)
    assert events_by_id["by-setting"]["vector_count"] > 2
    assert events_by_id["not-this"]["vector_count"] == 1
