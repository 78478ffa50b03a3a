"""The commands for Kafka against a real broker, where runs are played by the test."""

import json
import threading
from pathlib import Path

import pytest

from tests.commands import Vectorize
from tests.messaging.brokers import bury, finish, letter, read
from vectorize_pipelines.cli.doctor import check_kafka
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging.messages import Origin, Request, decode
from vectorize_pipelines.settings import KafkaSettings, load_settings

REQUEST_KEYS = {
    "task_id",
    "status",
    "collection",
    "vector_count",
    "error",
    "run_id",
    "timestamp",
    "warnings",
    "truncated",
}
LETTER_KEYS = {
    *("id", "failed_at", "replayed", "key", "error_class", "error_message", "stage", "attempts", "run_id"),
    *("topic", "partition", "offset", "timestamp_ms", "omitted_bytes"),
}


def _requests(settings: KafkaSettings, topic: str, modality: Modality = Modality.TEXT) -> list[Request]:
    found = [decode(each.value(), each.key(), Origin("", 0, 0, 0), modality) for each in read(settings, topic)]
    return [each for each in found if isinstance(each, Request)]


def test_topics_are_made_listed_and_checked(vectorize_here: Vectorize, kafka_settings: KafkaSettings) -> None:
    missing = vectorize_here("topics", "check", "--json")
    assert (missing.code, missing.json["ok"], len(missing.json["problems"])) == (1, False, 9)
    assert [finding.status for finding in check_kafka(load_settings())] == ["error"]
    made = vectorize_here("topics", "create", "--json").json
    assert len(made["created"]) == len(made["topics"]) == 13
    assert vectorize_here("topics", "create").err == "all topics are there\n"
    checked = vectorize_here("topics", "check", "--json")
    assert (checked.code, checked.json) == (0, {"ok": True, "problems": [], "warnings": []})
    listed = vectorize_here("topics", "list", "--json").json
    assert {state["status"] for state in listed} == {"ok"}
    assert set(listed[0]) == {"name", "status", "partitions", "replication", "config", "problems"}
    assert "6 partitions  1 replicas" in vectorize_here("topics", "list").out
    assert [finding.status for finding in check_kafka(load_settings())] == ["ok"]


def test_texts_are_submitted_from_everywhere(
    vectorize_here: Vectorize, kafka_settings: KafkaSettings, topics: TopicNames, tmp_path: Path
) -> None:
    one = vectorize_here(
        *("submit", "ein Text", "--id", "t-1", "--collection", "notes", "--model", "m", "--priority", "3"),
        *("--metadata", "tenant=a", "--metadata", "x=y=z", "--callback-url", "https://example.com/done", "--json"),
    )
    assert [set(row) for row in one.json] == [REQUEST_KEYS]
    assert (one.json[0]["task_id"], one.json[0]["status"]) == ("t-1", "pending")
    (request,) = _requests(kafka_settings, topics.priority(Modality.TEXT))
    assert (request.collection, request.model_name, request.priority) == ("notes", "m", 3)
    assert (request.metadata, request.callback_url) == ({"tenant": "a", "x": "y=z"}, "https://example.com/done")
    lines = tmp_path / "lines.txt"
    lines.write_text("first\n\n  second\r\nthird")
    assert len(vectorize_here("submit", "--file", lines).out.split()) == 3
    batch = vectorize_here("submit", "--file", lines, "--batch", "--json").json
    whole = tmp_path / "requests.jsonl"
    whole.write_text(json.dumps({"task_type": "text_vectorization", "data": "whole", "task_id": "w"}) + "\n")
    assert vectorize_here("submit", "--file", whole, "--collection", "notes").out == "w\n"
    found = {request.task_id: request for request in _requests(kafka_settings, topics.requests(Modality.TEXT))}
    singles = [each for each in found.values() if len(each.items) == 1]
    assert {each.items[0].content for each in singles} == {"first", "  second", "third", "whole"}
    assert [item.content for item in found[batch[0]["task_id"]].items] == ["first", "  second", "third"]
    assert found["w"].collection == "notes"


def test_lines_of_stdin_and_uris(
    vectorize: Vectorize, vectorize_here: Vectorize, kafka_settings: KafkaSettings, topics: TopicNames
) -> None:
    assert len(vectorize("submit", stdin="one\ntwo\n").out.split()) == 2
    vectorize_here("submit", "--image", "https://example.com/a.png", "--image", "https://example.com/b.png", "--batch")
    vectorize_here("submit", "--document", "https://example.com/a.pdf", "--document", "https://example.com/b.pdf")
    assert len(_requests(kafka_settings, topics.requests(Modality.TEXT))) == 2
    (images,) = _requests(kafka_settings, topics.requests(Modality.IMAGE), Modality.IMAGE)
    assert [item.content for item in images.items] == ["https://example.com/a.png", "https://example.com/b.png"]
    assert len(_requests(kafka_settings, topics.requests(Modality.DOCUMENT), Modality.DOCUMENT)) == 2
    lag = vectorize_here("lag", "--json").json
    assert (lag["group"], lag["lag"], len(lag["partitions"])) == (kafka_settings.topic_prefix, 5, 36)
    assert set(lag["partitions"][0]) == {"topic", "partition", "committed", "low", "high", "lag"}
    (image,) = vectorize_here("lag", "image").out.splitlines()[1:]
    assert image.split()[:2] == [topics.requests(Modality.IMAGE), "1"]


@pytest.mark.parametrize(
    ("state", "timeout", "code"), [(RequestState.COMPLETED, 30, 0), (RequestState.FAILED, 30, 6), (None, 0.2, 1)]
)
def test_waiting(
    vectorize_here: Vectorize,
    kafka_settings: KafkaSettings,
    topics: TopicNames,
    state: RequestState | None,
    timeout: float,
    code: int,
) -> None:
    def run() -> None:
        while not read(kafka_settings, topics.requests(Modality.TEXT)):
            pass
        if state is not None:
            finish(kafka_settings, "t-1", state=state)

    worker = threading.Thread(target=run)
    worker.start()
    done = vectorize_here("submit", "a text", "--id", "t-1", "--wait", "--timeout", timeout, "--json")
    worker.join()
    assert done.code == code, done.err
    (row,) = done.json
    assert (set(row), row["status"]) == (REQUEST_KEYS, state or "pending")


def test_cancel(vectorize_here: Vectorize, kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    assert vectorize_here("cancel", "a", "b", "--json").json == {"cancelled": ["a", "b"]}
    assert {message.key() for message in read(kafka_settings, topics.control)} == {b"a", b"b"}


def test_dead_letters(vectorize_here: Vectorize, kafka_settings: KafkaSettings, topics: TopicNames) -> None:
    bury(kafka_settings, letter(kafka_settings, 1), letter(kafka_settings, 2, ValueError("is\nbad"), value=b"{}"))
    listed = vectorize_here("dead-letters", "list", "--json").json
    assert [set(row) for row in listed] == [LETTER_KEYS] * 2
    assert vectorize_here("dead-letters", "list", "--reason", "ValueError", "--json").json == [
        row for row in listed if row["error_class"] == "ValueError"
    ]
    first = next(row for row in listed if row["key"] == "key-1")
    shown = vectorize_here("dead-letters", "show", first["id"], "--json").json
    assert set(shown) == LETTER_KEYS | {"value", "value_base64", "headers"}
    assert (shown["value"], shown["value_base64"]) == (None, "AP97")
    assert shown["headers"][1] == {"name": "trace", "text": "again", "base64": None}
    assert "must not be blank" in vectorize_here("dead-letters", "show", first["id"]).out
    assert vectorize_here("dead-letters", "show", "0-99").code == 1
    replayed = vectorize_here("dead-letters", "replay", "--reason", "ValueError", "--json").json
    assert replayed == {
        **{"replayed": 1, "left_out": 1, "expired": 0, "omitted": 0, "foreign": 0},
        "topics": {topics.requests(Modality.TEXT): 1},
    }
    unknown = vectorize_here("dead-letters", "replay", "--id", "0-99")
    assert (unknown.code, unknown.out) == (1, "replayed 0, left out 1\n")
    assert "no dead letter that waits has such an id" in unknown.err
    assert "replayed 1, left out 0" in vectorize_here("dead-letters", "replay", "--id", first["id"]).out
    assert vectorize_here("dead-letters", "list").err == "no dead letters\n"
    assert len(vectorize_here("dead-letters", "list", "--all", "--json").json) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("submit", "x", "--collection", "No Such Name"), 2, "collection: must match"),
        (("submit", "x", "--metadata", "novalue"), 2, "NAME=VALUE"),
        (("submit", "x", "--image", "https://example.com/a.png"), 2, "only one of TEXT and --image"),
        (("submit", "x", "--priority", "urgent"), 2, "priority: must be"),
        (("submit",), 2, "nothing to submit"),
        (("submit", "x"), 7, "is missing"),
        (("lag",), 7, "`vectorize topics create`"),
        (("dead-letters", "replay"), 7, "is there: `vectorize topics create` makes them"),
    ],
)
def test_errors(
    vectorize_here: Vectorize, kafka_settings: KafkaSettings, arguments: tuple[str, ...], code: int, said: str
) -> None:
    done = vectorize_here(*arguments, stdin="")
    assert (done.code, done.out) == (code, "")
    assert said in done.err


def test_no_cluster_and_one_that_is_away(vectorize_here: Vectorize, monkeypatch: pytest.MonkeyPatch) -> None:
    done = vectorize_here("submit", "x")
    assert done.code == 2
    assert "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS" in done.err
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("VECTORIZE_KAFKA__REQUEST_SECONDS", "0.5")
    done = vectorize_here("submit", "x")
    assert (done.code, done.out) == (7, "")
    assert "127.0.0.1:1" in done.err


def test_a_request_that_no_run_has_taken_up_is_pending(vectorize_here: Vectorize, topics: TopicNames) -> None:
    for n in range(3):
        assert vectorize_here("submit", f"text number {n}").code == 0
    (submitted,) = vectorize_here("submit", "the sea", "--collection", "notes", "--json").json
    found = vectorize_here("status", submitted["task_id"], "--json").json
    assert (found["task_id"], found["status"], found["progress"]) == (submitted["task_id"], "pending", 0.0)
    assert (found["topic"], found["collection"], found["estimated_seconds"]) == (
        topics.requests(Modality.TEXT),
        "notes",
        None,
    )
    assert vectorize_here("status", "nobody", "--json").code == 8
