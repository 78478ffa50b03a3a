"""Requests taken in over HTTP with a real broker: what is answered, what lies in the topics, what the ledger says."""

import base64
import json
import os
import sqlite3
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.gateway.serving import served, text
from tests.gateway.streams import Stream
from tests.messaging.brokers import make_topic, read
from tests.messaging.drawn_messages import encoded, json_values, messages
from tests.servers.dagster import until
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.door.auth import Scope
from vectorize_pipelines.gateway.tasks import noting, submitting
from vectorize_pipelines.kafka import clients
from vectorize_pipelines.kafka.topics import TopicNames, create_topics
from vectorize_pipelines.messaging.cancellations import Cancellations
from vectorize_pipelines.messaging.messages import InvalidMessageError, Origin, Request, decode, origin_of
from vectorize_pipelines.messaging.outgoing import modality_of
from vectorize_pipelines.settings import KafkaSettings, load_settings
from vectorize_pipelines.state.database import database_url
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow

JSON = {"content-type": "application/json"}
#: Of a valid request, where there is neither a broker nor Dagster.
ACCEPTED = 503
IMAGE = {"task_type": "image_vectorization", "data": "https://example.com/a.png"}
DOCUMENT = {"task_type": "document_vectorization", "data": {"content": "# A title", "content_type": "text/markdown"}}


@pytest.fixture
def http(home: Path, topics: TopicNames) -> Iterator[httpx2.Client]:
    """A client of a server with topics of its own."""
    with served(load_settings()) as client:
        yield client


@pytest.fixture(scope="module")
def unconnected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of a server that can send nothing: what it would accept is answered with `ACCEPTED`."""
    with served(load_settings(home=tmp_path_factory.mktemp("home"))) as client:
        yield client


@pytest.fixture
def ledger(home: Path) -> Iterator[RequestLedger]:
    with closing(RequestLedger.open(load_settings())) as opened:
        yield opened


def lying(settings: KafkaSettings, topic: str) -> dict[str, tuple[Origin, bytes]]:
    """Key -> place and value of each message of a topic, of which each key has one."""
    found = [(message.key().decode(), (origin_of(message), message.value())) for message in read(settings, topic)]
    assert len(dict(found)) == len(found)
    return dict(found)


def number_of_pending(ledger: RequestLedger) -> int:
    return len(ledger.page([RequestState.PENDING], 20_000).rows)


def noted(ledger: RequestLedger, task_id: str) -> RequestRow:
    row = ledger.get(task_id)
    assert row is not None
    return row


def test_an_accepted_request_lies_in_its_topic_and_is_known(
    http: httpx2.Client, kafka_settings: KafkaSettings, topics: TopicNames, ledger: RequestLedger
) -> None:
    sent = text(
        "ein Text — 灯塔", task_id="t-1", collection="notes", model_name="m", metadata={"tenant": "a", "x": 1.5}
    )
    answer = http.post("/tasks/submit", json=sent)
    assert answer.status_code == 200
    ((origin, value),) = lying(kafka_settings, topics.requests(Modality.TEXT)).values()
    assert json.loads(value) == sent
    row = noted(ledger, "t-1")
    assert (row.topic, row.partition, row.offset, row.timestamp_ms) == (
        *(origin.topic, origin.partition, origin.offset, origin.timestamp_ms),
    )
    assert (row.state, row.modality, row.collection, row.items) == (RequestState.PENDING, Modality.TEXT, "notes", 1)
    assert answer.json() == {
        "task_id": "t-1",
        "status": "pending",
        "created_at": row.submitted_at.isoformat(),
        "estimated_processing_time": None,
    }
    assert datetime.fromisoformat(answer.json()["created_at"]).timestamp() * 1000 == origin.timestamp_ms


def test_each_request_goes_to_the_lane_of_its_modality_and_priority(
    http: httpx2.Client, kafka_settings: KafkaSettings, topics: TopicNames
) -> None:
    images = {"task_type": "batch_vectorization", "data": [IMAGE, IMAGE], "priority": "low"}
    sent = [text(), text(priority="high"), {**IMAGE, "priority": 2}, images, DOCUMENT]
    ids = [http.post("/tasks/submit", json=each).json()["task_id"] for each in sent]
    assert len({uuid.UUID(each) for each in ids}) == len(ids)
    lanes = [
        topics.requests(Modality.TEXT),
        topics.priority(Modality.TEXT),
        topics.priority(Modality.IMAGE),
        topics.requests(Modality.IMAGE),
        topics.requests(Modality.DOCUMENT),
    ]
    assert [list(lying(kafka_settings, lane)) for lane in lanes] == [[each] for each in ids]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_batch_is_answered_in_its_order(
    http: httpx2.Client, kafka_settings: KafkaSettings, topics: TopicNames, ledger: RequestLedger, wrapped: bool
) -> None:
    requests = [text(f"text {n}", task_id=f"t-{n}", priority=n % 3) for n in range(100)]
    requests.insert(50, text("without an id"))
    answer = http.post("/tasks/batch", json={"tasks": requests} if wrapped else requests)
    assert answer.status_code == 200
    content = answer.json()
    ids = [each["task_id"] for each in content["tasks"]]
    unnamed = ids.pop(50)
    assert (ids, content["total"]) == ([f"t-{n}" for n in range(100)], 101)
    assert {each["status"] for each in content["tasks"]} == {"pending"}
    found = {
        key: json.loads(value)["data"]
        for lane in topics.lanes(Modality.TEXT)
        for key, (_, value) in lying(kafka_settings, lane).items()
    }
    assert found == {f"t-{n}": f"text {n}" for n in range(100)} | {unnamed: "without an id"}
    assert number_of_pending(ledger) == 101


def test_the_largest_batch(http: httpx2.Client, ledger: RequestLedger) -> None:
    answer = http.post("/tasks/batch", json=[text(f"text {n}") for n in range(10_000)])
    assert (answer.status_code, answer.json()["total"]) == (200, 10_000)
    assert number_of_pending(ledger) == 10_000
    answer = http.post("/tasks/batch", json=[text(f"text {n}") for n in range(10_001)])
    assert answer.status_code == 422
    assert answer.json()["errors"] == [{"field": "tasks", "problem": "must have 1 to 10,000 entries, not 10,001"}]
    assert number_of_pending(ledger) == 10_000


def test_all_of_a_batch_are_checked_before_the_first_is_sent(
    http: httpx2.Client, kafka_settings: KafkaSettings, topics: TopicNames, ledger: RequestLedger
) -> None:
    requests = [
        text(task_id="same"),
        text(priority="urgent"),
        "a text",
        text(task_id="same"),
        {"task_type": "batch_vectorization", "data": ["a", " "]},
        text(unknown=1),
        text(callback_url="nowhere"),
    ]
    answer = http.post("/tasks/batch", json=requests)
    assert answer.status_code == 422
    errors = {each["field"]: each["problem"] for each in answer.json()["errors"]}
    assert list(errors) == [
        "tasks[1].priority",
        "tasks[2]",
        "tasks[3].task_id",
        "tasks[4].data[1]",
        "tasks[5].unknown",
        "tasks[6].callback_url",
    ]
    assert errors["tasks[3].task_id"] == "is that of tasks[0], too"
    assert "and 3 more" in answer.json()["detail"]
    assert not lying(kafka_settings, topics.requests(Modality.TEXT))
    assert number_of_pending(ledger) == 0


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "empty"),
        (b" ", "no valid JSON"),
        (b"{", "no valid JSON"),
        (b'{"task_type": "text_vectorization", "data": "\xff"}', "no valid JSON"),
        ("﻿{}".encode("utf-16"), "no valid JSON"),
        (b'{"a":' * 100_000, "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"9" * 100_000, "no valid JSON"),
        (b"null", "JSON object"),
        (b'"a text"', "JSON object"),
        (b"[]", "JSON object"),
        (b"{}", "task_type: is missing"),
        (encoded(text(unknown=1)), "unknown: is not a field"),
        (encoded(text(priority=10**30)), "priority: must be"),
        (encoded(text(metadata={"a": float("nan")})), "metadata.a: must be a finite number"),
        (b'{"task_type":"text_vectorization","data":"x","metadata":{"a":1e999}}', "metadata.a: must be a finite"),
        (encoded(text(task_id="")), "task_id: must have"),
        (encoded(text(task_id=5)), "task_id: "),
        (encoded(text(task_id="a\nb")), "task_id: must be printable"),
    ],
    ids=lambda value: value if isinstance(value, str) else "body",
)
def test_a_body_that_is_no_request(unconnected: httpx2.Client, body: bytes, said: str) -> None:
    answer = unconnected.post("/tasks/submit", content=body, headers=JSON)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "tasks: must have 1 to 10,000 entries, not 0"),
        ({"tasks": []}, "tasks: must have"),
        ({"tasks": [text()], "more": 1}, "tasks: must be a list"),
        ({"tasks": {}}, "tasks: must be a list"),
        (text(), "tasks: must be a list"),
        (None, "tasks: must be a list"),
    ],
)
def test_a_body_that_is_no_batch(unconnected: httpx2.Client, content: Any, said: str) -> None:
    answer = unconnected.post("/tasks/batch", content=encoded(content), headers=JSON)
    assert (answer.status_code, said in answer.json()["detail"]) == (422, True), answer.text


@pytest.mark.parametrize("path", ["/tasks/submit", "/tasks/batch"])
@pytest.mark.parametrize(
    "kind",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "text/plain; application/json", "application/x"],
)
def test_only_json_is_taken(unconnected: httpx2.Client, path: str, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert unconnected.post(path, content=encoded(text()), headers=headers).status_code == 415
    one = encoded(text() if path.endswith("submit") else [text()])
    taken = unconnected.post(path, content=one, headers={"content-type": "Application/JSON; charset=utf-8"})
    assert taken.status_code == ACCEPTED


def refusal(value: bytes) -> InvalidMessageError | None:
    """The reason for which whoever drains refuses a message on the topic that its types belong to."""
    try:
        request = decode(value, None, Origin("topic", 0, 0, 0), modality_of(json.loads(value)))
    except InvalidMessageError as error:
        return error
    assert isinstance(request, Request)
    return None


def test_exactly_what_a_drain_takes_is_accepted(http: httpx2.Client) -> None:
    @hypothesis_settings(max_examples=100)
    @given(messages(), st.none() | json_values | st.just(float("nan")) | st.just(10**40), st.data())
    def check(drawn: tuple[Modality, dict[str, Any]], other: Any, data: st.DataObject) -> None:
        _, message = drawn
        if other is not None:
            message[data.draw(st.sampled_from([*message, "no_such_field"]))] = other
        error = refusal(encoded(message))
        answer = http.post("/tasks/submit", content=encoded(message), headers=JSON)
        if error is None:
            assert answer.status_code == 200, answer.text
            assert message.get("task_id") in (None, answer.json()["task_id"])
            return
        assert answer.status_code == 422
        assert [each["field"] for each in answer.json().get("errors", [])] == ([error.field] if error.field else [])

    check()


def test_any_bytes_are_refused_or_would_be_accepted(unconnected: httpx2.Client) -> None:
    @given(st.binary() | st.text().map(str.encode), st.sampled_from(["/tasks/submit", "/tasks/batch"]))
    def check(body: bytes, path: str) -> None:
        assert unconnected.post(path, content=body, headers=JSON).status_code == 422

    @given(messages(), st.data())
    def check_mutated(drawn: tuple[Modality, dict[str, Any]], data: st.DataObject) -> None:
        body = bytearray(encoded([drawn[1]]))
        for place in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=4)):
            body[place] = data.draw(st.integers(0, 255))
        assert unconnected.post("/tasks/batch", content=bytes(body), headers=JSON).status_code in (ACCEPTED, 422)

    check()
    check_mutated()


def test_the_same_id_again_is_a_newer_version(
    http: httpx2.Client, kafka_settings: KafkaSettings, topics: TopicNames, ledger: RequestLedger
) -> None:
    for data in ("first", "second"):
        assert http.post("/tasks/submit", json=text(data, task_id="t")).json()["task_id"] == "t"
    found = read(kafka_settings, topics.requests(Modality.TEXT))
    assert [json.loads(message.value())["data"] for message in found] == ["first", "second"]
    assert noted(ledger, "t").offset == origin_of(found[1]).offset


def test_a_request_that_has_begun_before_it_was_noted_stays_so(
    http: httpx2.Client, ledger: RequestLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = RequestLedger.record

    def late(self: RequestLedger, rows: list[RequestRow]) -> None:
        record(ledger, [replace(row, state=RequestState.PROCESSING, run_id="run") for row in rows])
        record(self, rows)

    monkeypatch.setattr(RequestLedger, "record", late)
    assert http.post("/tasks/submit", json=text(task_id="t")).status_code == 200
    assert (noted(ledger, "t").state, noted(ledger, "t").run_id) == (RequestState.PROCESSING, "run")


def test_topics_that_are_missing_are_told_with_their_remedy(home: Path, kafka_settings: KafkaSettings) -> None:
    with served(load_settings()) as http:
        for path, content in (("/tasks/submit", text()), ("/tasks/batch", [text()])):
            answer = http.post(path, json=content)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert "`vectorize topics create`" in answer.json()["detail"]
        create_topics(kafka_settings)
        assert http.post("/tasks/submit", json=text()).status_code == 200


@pytest.mark.slow
def test_brokers_that_are_away(home: Path, monkeypatch: pytest.MonkeyPatch, ledger: RequestLedger) -> None:
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("VECTORIZE_KAFKA__REQUEST_SECONDS", "0.5")
    with served(load_settings()) as http:
        for _ in range(2):
            answer = http.post("/tasks/submit", json=text(task_id="t"))
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
            assert "127.0.0.1:1" in answer.json()["detail"]
            assert "tasks" not in answer.json()
    assert ledger.get("t") is None


def test_who_may_only_read_submits_and_cancels_nothing(home: Path, topics: TopicNames) -> None:
    with served(load_settings(), scope=Scope.READ) as http:
        assert http.post("/tasks/submit", json=text()).status_code == 403
        assert http.post("/tasks/batch", json=[text()]).status_code == 403
        answer = http.delete("/tasks/t")
        assert (answer.status_code, "submit" in answer.json()["detail"]) == (403, True)


@pytest.mark.parametrize("task_id", ["t-1", "vectorize.text/3/14", "größer 灯塔?#%"])
def test_cancelling(http: httpx2.Client, kafka_settings: KafkaSettings, ledger: RequestLedger, task_id: str) -> None:
    path = f"/tasks/{quote(task_id)}"
    assert http.delete(path).status_code == 404
    assert http.post("/tasks/submit", json=text(task_id=task_id)).status_code == 200
    row = noted(ledger, task_id)
    answer = http.delete(path)
    assert (answer.status_code, answer.json()) == (200, {"task_id": task_id, "status": "cancelling"})
    with closing(Cancellations(kafka_settings)) as cancellations:
        cancellations.refresh()
        assert cancellations.cancelled(task_id, row.timestamp_ms)
    for state in (RequestState.COMPLETED, RequestState.CANCELLED, RequestState.FAILED):
        ledger.record([replace(row, state=state, finished_at=datetime.now(UTC))])
        answer = http.delete(path)
        assert (answer.status_code, answer.json()["task_status"]) == (409, state.value)
        assert state.value in answer.json()["detail"]


def test_what_is_cancelled_may_have_the_time_of_a_clock_that_is_ahead(
    http: httpx2.Client, kafka_settings: KafkaSettings, ledger: RequestLedger
) -> None:
    http.post("/tasks/submit", json=text(task_id="t"))
    row = noted(ledger, "t")
    later = row.timestamp_ms + 3_600_000
    ledger.record([replace(row, timestamp_ms=later)])
    assert http.delete("/tasks/t").status_code == 200
    with closing(Cancellations(kafka_settings)) as cancellations:
        cancellations.refresh()
        assert cancellations.cancelled("t", later)
        assert not cancellations.cancelled("t", later + 1)


def test_a_message_that_is_too_large(home: Path, kafka_settings: KafkaSettings, ledger: RequestLedger) -> None:
    names = TopicNames(kafka_settings.topic_prefix)
    make_topic(kafka_settings, names.requests(Modality.TEXT), max_message_bytes="2000")
    create_topics(kafka_settings)
    incompressible = base64.b64encode(os.urandom(4000)).decode()
    with served(load_settings()) as http:
        answer = http.post("/tasks/submit", json=text(incompressible, task_id="topic"))
        assert (answer.status_code, "max.message.bytes" in answer.json()["detail"]) == (413, True)
        answer = http.post("/tasks/batch", json=[text(task_id="good"), text("x" * 12_000_000, task_id="producer")])
        assert (answer.status_code, "tasks[1]" in answer.json()["detail"]) == (413, True)
        assert not lying(kafka_settings, names.requests(Modality.TEXT))
        assert http.post("/tasks/submit", json=text(task_id="next")).status_code == 200
    assert [ledger.get(each) is None for each in ("topic", "good", "producer", "next")] == [True, True, True, False]


def test_estimates_follow_from_what_was_done(home: Path, topics: TopicNames, ledger: RequestLedger) -> None:
    began = datetime.now(UTC) - timedelta(hours=1)
    done = [
        RequestRow(
            request_id=f"done-{n}",
            state=RequestState.COMPLETED,
            modality=Modality.TEXT,
            submitted_at=began,
            started_at=began + timedelta(seconds=2 * n),
            finished_at=began + timedelta(seconds=2 * n + 2),
            topic="t",
            partition=0,
            offset=n,
            timestamp_ms=n,
        )
        for n in range(10)
    ]
    ledger.record(done)
    with served(load_settings()) as http:

        def estimate() -> float | None:
            seconds: float | None = http.post("/tasks/submit", json=text()).json()["estimated_processing_time"]
            return seconds

        found = until("an estimate", estimate)
        assert found >= 2.0  # at half a request a second
        assert http.post("/tasks/submit", json=IMAGE).json()["estimated_processing_time"] is None


def test_a_ledger_that_is_locked(
    http: httpx2.Client,
    kafka_settings: KafkaSettings,
    topics: TopicNames,
    ledger: RequestLedger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(noting, "PATIENCE_SECONDS", 0.2)
    file = database_url(load_settings()).database
    assert file is not None
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("begin immediate")
        # It is in the topic: an error would have it sent again.
        assert http.post("/tasks/submit", json=text(task_id="first")).status_code == 200
        assert ledger.get("first") is None
        assert http.get("/tasks/first").json()["status"] == "pending"
        with http.stream("GET", "/tasks/first/events") as answer:
            event = Stream(answer).next()
        assert event is not None
        assert event.state == ("first", "pending")
        assert http.delete("/tasks/first").json()["status"] == "cancelling"
        refused = http.post("/tasks/batch", json=[text(task_id="second")])
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "nothing was accepted" in refused.json()["detail"]
        other.execute("rollback")
    until("notes", lambda: ledger.get("first"))
    until("another request", lambda: http.post("/tasks/submit", json=text(task_id="third")).status_code == 200)
    assert noted(ledger, "third").state is RequestState.PENDING
    assert lying(kafka_settings, topics.requests(Modality.TEXT)).keys() == {"first", "third"}


def test_more_than_can_wait_is_told_to_come_later(
    http: httpx2.Client,
    kafka_settings: KafkaSettings,
    topics: TopicNames,
    ledger: RequestLedger,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submitting, "MOST_WAITING", 10)
    file = database_url(load_settings()).database
    assert file is not None
    batch = [text() for _ in range(11)]
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("begin immediate")
        with ThreadPoolExecutor(1) as client:
            first = client.submit(http.post, "/tasks/submit", json=text(task_id="first"))
            until("a request that waits", lambda: lying(kafka_settings, topics.requests(Modality.TEXT)))
            answer = http.post("/tasks/batch", json=batch)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
            other.execute("rollback")
            assert first.result().status_code == 200
    # One that is the only one always has room.
    assert http.post("/tasks/batch", json=batch).status_code == 200
    assert number_of_pending(ledger) == 12


def test_a_producer_that_has_failed_for_good_is_replaced(
    home: Path, topics: TopicNames, kafka_settings: KafkaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failed:
        """A producer that has met an error after which librdkafka sends nothing any more."""

        def __init__(self, real: Any):
            self.real = real

        def produce(self, *arguments: object, **options: object) -> None:
            raise KafkaException(KafkaError(KafkaError._FATAL, "sequence lost", fatal=True))

        def __len__(self) -> int:
            return len(self.real)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    make, made = clients.producer, list[Any]()

    def first_fails(*arguments: Any, **options: Any) -> Any:
        real = make(*arguments, **options)
        made.append(real if made else Failed(real))
        return made[-1]

    monkeypatch.setattr(clients, "producer", first_fails)
    with served(load_settings()) as http:
        answer = http.post("/tasks/submit", json=text(task_id="refused"))
        assert (answer.status_code, "nothing was accepted" in answer.json()["detail"]) == (503, True)
        assert http.post("/tasks/submit", json=text(task_id="accepted")).status_code == 200
    assert len(made) == 2
    assert lying(kafka_settings, topics.requests(Modality.TEXT)).keys() == {"accepted"}


def test_openapi_has_the_bodies_and_the_answers(http: httpx2.Client) -> None:
    http.event_hooks = {"response": []}
    paths = http.get("/openapi.json").json()["paths"]
    body = paths["/tasks/submit"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["required"]) == {"task_type", "data"}
    assert {"task_id", "priority", "metadata", "callback_url"} < body["properties"].keys()
    batch = paths["/tasks/batch"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert [kind["type"] for kind in batch["anyOf"]] == ["array", "object"]
    for path, method in (("/tasks/submit", "post"), ("/tasks/batch", "post"), ("/tasks/{task_id}", "delete")):
        route = paths[path][method]
        assert "$ref" in route["responses"]["200"]["content"]["application/json"]["schema"]
        for status, answer in route["responses"].items():
            assert status == "200" or "$ref" in answer or list(answer["content"]) == ["application/problem+json"]
