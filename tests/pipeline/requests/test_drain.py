"""Drain runs on a real broker: what comes of every kind of message, and when a run ends."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.pipeline.requests.installation import (
    Installation,
    MakeInstallation,
    batch_request,
    check_finished,
    text_request,
)
from tests.servers.web import answer, serving
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.encoders import describe_model
from vectorize_pipelines.kafka.clients import admin, producer
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.messaging import cancellations as control
from vectorize_pipelines.pipeline.requests import runs as request_runs
from vectorize_pipelines.pipeline.requests.report import TopicReport
from vectorize_pipelines.pipeline.writing import DirectWriter, written


def reasons(installation: Installation) -> Counter[str]:
    """The error classes in the dead letters."""
    return Counter(dict(letter.headers())["vectorize.error.class"].decode() for letter in installation.letters())


def test_texts_batches_and_what_came_without_an_id(installation: Installation) -> None:
    installation.send(
        text_request("one", "a boat", metadata={"tenant": "x"}),
        batch_request("many", ["the sea", {"task_type": "text_vectorization", "data": "wind"}, "rain"]),
        text_request(None, "without an id"),
        partition=0,
    )
    stream = installation.drain()
    place = f"{installation.names.requests(installation.modality)}/0/2"
    assert installation.texts() == {
        ("one", 0): "a boat",
        ("many", 0): "the sea",
        ("many", 1): "wind",
        ("many", 2): "rain",
        (place, 0): "without an id",
    }
    assert installation.rows()["one", 0]["metadata"] == '{"tenant": "x"}'
    assert installation.final_events() == {"one": ["completed"], "many": ["completed"], place: ["completed"]}
    row = installation.ledger()["many"]
    assert (row.state, row.items, row.vectors, row.run_id) == (RequestState.COMPLETED, 3, 3, "run-1")
    assert stream.figures()["messages"] == 3
    check_finished(installation, stored=5)


def test_models_and_collections_mixed_in_one_topic(
    make_installation: MakeInstallation, plain_model: Path, tmp_path: Path
) -> None:
    installation = make_installation(kafka={"allowed_models": ["*"]}, uris={"allowed_roots": [str(plain_model.parent)]})
    other = str(plain_model)
    spec = describe_model(other)
    installation.store.ensure_collection("taken", spec)
    installation.send(
        text_request("default", "a boat"),
        text_request("named", "a boat", collection="boats"),
        text_request("model", "a boat", model_name=other),
        text_request("both", "a boat", collection="mine", model_name=other),
        text_request("of-collection", "a boat", collection="taken"),
        text_request("mismatch", "a boat", collection="taken", model_name=installation.settings.models.text),
        text_request("unknown", "a boat", model_name="no/such-model"),
        text_request("odd", "a boat", model_name="a" * 300),
        text_request("user", "a boat", model_name="~nobody-of-this-name/model"),
        text_request("after", "the sea"),
    )
    stream = installation.drain()
    assert set(installation.texts()) == {("default", 0), ("after", 0)}
    assert set(installation.texts("boats")) == {("named", 0)}
    assert set(installation.texts(f"texts-{plain_model.name}")) == {("model", 0)}
    assert set(installation.texts("mine")) == {("both", 0)}
    assert set(installation.texts("taken")) == {("of-collection", 0)}
    assert reasons(installation) == {"UnusableCollectionError": 1, "UnusableModelError": 3}
    failed = {name for name, states in installation.final_events().items() if states == ["failed"]}
    assert failed == {"mismatch", "unknown", "odd", "user"}
    assert stream.figures()["dead_letters"] == 4
    assert "model_name" in (installation.ledger()["unknown"].error_message or "")
    check_finished(installation, stored=2)


@pytest.mark.parametrize("allowed", [[], ["someone/theirs"]], ids=["by default", "listed"])
def test_only_models_that_are_allowed_can_be_named(
    allowed: list[str], make_installation: MakeInstallation, plain_model: Path
) -> None:
    installation = make_installation(kafka={"allowed_models": allowed})
    default = installation.settings.models.text
    installation.send(
        text_request("theirs", "a boat", model_name=str(plain_model)),
        text_request("ours", "a boat", model_name=default),
        text_request("nobody's", "a boat"),
    )
    installation.drain()
    assert installation.final_events() == {"theirs": ["failed"], "ours": ["completed"], "nobody's": ["completed"]}
    assert "VECTORIZE_KAFKA__ALLOWED_MODELS" in (installation.ledger()["theirs"].error_message or "")
    check_finished(installation, stored=2)


def test_a_model_that_cannot_be_loaded_fails_the_requests_that_name_it(
    make_installation: MakeInstallation, plain_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vectorize_pipelines.errors import UnknownModelError

    installation = make_installation(kafka={"allowed_models": [str(plain_model)]})
    lease = installation.lease

    def refusing(model: str, dimension: int | None) -> Any:
        if model == str(plain_model):
            raise UnknownModelError(f"{model} has no weights")
        return lease(model, dimension)

    monkeypatch.setattr(installation, "lease", refusing)
    installation.send(text_request("bad", "a boat", model_name=str(plain_model)), text_request("good", "a boat"))
    installation.drain()
    assert reasons(installation) == {"UnusableModelError": 1}
    assert installation.final_events() == {"bad": ["failed"], "good": ["completed"]}
    check_finished(installation, stored=1)


def test_only_poison_fails_no_run(installation: Installation) -> None:
    installation.send(b"no request", key=b"a key", headers=[("trace", b"\xff")])
    installation.send(b"\xff\xfe", None)
    installation.send({"task_id": "told", "task_type": "text_vectorization", "data": " "})
    stream = installation.drain()
    letters = {letter.value(): letter for letter in installation.letters()}
    assert len(letters) == 4
    letter = letters[b"no request"]
    headers = dict(letter.headers())
    assert (letter.key(), headers["trace"]) == (b"a key", b"\xff")
    assert headers["__connect.errors.topic"].decode() == installation.names.requests(installation.modality)
    assert installation.final_events() == {"a key": ["failed"], "told": ["failed"]}
    assert installation.ledger()["told"].state is RequestState.FAILED
    assert installation.ledger()["told"].error_message == "data: must not be blank"
    assert stream.figures()["dead_letters"] == 4
    assert not installation.outstanding()
    assert not installation.drain().figures()["messages"]


def test_a_request_is_stored_as_a_whole_or_not_at_all(installation: Installation) -> None:
    installation.send(batch_request("a", ["a boat", "the sea"]), partition=0)
    installation.drain()
    installation.send(batch_request("a", ["wind", 7]), batch_request("b", ["rain", ""]), partition=0)
    installation.drain()
    assert installation.texts() == {("a", 0): "a boat", ("a", 1): "the sea"}
    assert installation.final_events() == {"a": ["completed", "failed"], "b": ["failed"]}
    check_finished(installation, stored=2)


def test_duplicates_are_answered_twice_and_stored_once(installation: Installation) -> None:
    installation.send(*[text_request("a", "a boat")] * 3, partition=0)
    installation.drain()
    installation.send(text_request("a", "a boat"), priority=True)
    installation.drain()
    assert installation.final_events() == {"a": ["completed"] * 4}
    assert all(event["vector_count"] == 1 for event in installation.events() if event["status"] == "completed")
    check_finished(installation, stored=1)


def test_batches_shrink_and_tombstones_delete_everywhere(installation: Installation) -> None:
    installation.send(batch_request("a", ["a boat", "the sea", "wind"]), partition=0)
    installation.send(text_request("b", "rain"), text_request("b", "rain", collection="other"), partition=1)
    installation.drain()
    assert len(installation.texts()) == 4
    installation.send(batch_request("a", ["the sea"]), partition=0)
    installation.send(None, key=b"b", partition=1)
    installation.send(None, key=b"never-there", partition=2)
    stream = installation.drain()
    assert installation.texts() == {("a", 0): "the sea"}
    assert not installation.texts("other")
    assert stream.totals.sum().deleted == 4
    assert stream.figures()["tombstones"] == 2
    check_finished(installation, stored=1)


def test_priority_overtakes_a_backlog_and_nothing_starves(make_installation: MakeInstallation) -> None:
    """The backlog is read while requests of priority keep coming; some of it is done all the same."""
    order: list[str] = []
    installation = make_installation(kafka={"drain": {"ageing_seconds": 5.0, "batch_messages": 500}})
    installation.on_encode = lambda texts: order.extend(texts)
    installation.send(*[text_request(f"n{n}", f"normal {n}") for n in range(10_000)])
    installation.send(*[text_request(f"p{n}", f"priority {n}") for n in range(50)], priority=True)
    more = iter(range(50, 100_000))
    with installation.open_drain() as stream:
        after_a_turn = 0
        for _ in written(DirectWriter(installation.settings, installation.store), stream):
            after_a_turn += any(text.startswith("normal") for text in order[-500:])
            if after_a_turn < 5:
                installation.send(
                    *[text_request(f"p{n}", f"priority {n}") for _, n in zip(range(20), more, strict=False)],
                    priority=True,
                )
    first = [text.split()[0] for text in order]
    assert first.index("normal") >= 50, "the priority lane is drained first"
    last_priority = len(first) - 1 - first[::-1].index("priority")
    assert "normal" in first[:last_priority], "the normal lane had its turns before the priority lane was empty"
    assert first.count("normal") == 10_000
    check_finished(installation, stored=10_000 + next(more))


def test_cancelled_before_during_and_after(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    client = producer(installation.settings.kafka)
    reports: list[TopicReport] = []

    def reporting(*arguments: Any, **options: Any) -> TopicReport:
        reports.append(TopicReport(*arguments, **options))
        return reports[-1]

    monkeypatch.setattr(request_runs, "TopicReport", reporting)

    def cancel(*names: str) -> None:
        for name in names:
            control.cancel(client, installation.names, name)
        assert client.flush(10) == 0

    def during(texts: Sequence[Any]) -> None:
        """Encoding takes until the run has heard of the cancellation."""
        if "during" in texts:
            cancel("during")
            work: Any = SimpleNamespace(
                request=SimpleNamespace(task_id="during", origin=SimpleNamespace(timestamp_ms=0))
            )
            deadline = time.monotonic() + 20
            while not reports[-1].cancelled(work):
                assert time.monotonic() < deadline
                reports[-1].refresh()
                time.sleep(0.01)

    installation.on_encode = during
    installation.send(
        text_request("before", "before"), text_request("during", "during"), text_request("after", "after")
    )
    cancel("before")
    installation.drain()
    cancel("after")
    installation.drain()
    assert installation.texts() == {("after", 0): "after"}
    expected = {"before": ["cancelled"], "during": ["cancelled"], "after": ["completed"]}
    assert installation.final_events() == expected
    installation.replay()
    assert installation.texts() == {("after", 0): "after"}
    assert {name: [row.state.value] for name, row in installation.ledger().items()} == expected
    time.sleep(0.002)  # a message of the cancellation's own millisecond is cancelled, too
    installation.send(text_request("before", "again"))
    installation.drain()
    assert installation.texts()["before", 0] == "again"
    check_finished(installation, stored=2)


def test_messages_that_the_broker_deleted_unread_are_counted(installation: Installation) -> None:
    from confluent_kafka import TopicPartition

    installation.send(text_request("first", "a boat"), partition=0)
    installation.drain()
    installation.send(*[text_request(f"t{n}", "a boat") for n in range(10)], partition=0)
    topic = installation.names.requests(installation.modality)
    client = admin(installation.settings.kafka)
    client.delete_records([TopicPartition(topic, 0, 8)])[TopicPartition(topic, 0)].result(30)
    stream = installation.drain()
    assert stream.figures()["lost_unread"] == 7
    check_finished(installation, stored=4)


def test_a_topic_that_was_made_anew_is_read_from_its_beginning(installation: Installation) -> None:
    topic = installation.names.requests(installation.modality)
    installation.send(*[text_request(f"t{n}", "a boat") for n in range(5)], partition=0)
    installation.drain()
    client = admin(installation.settings.kafka)
    client.delete_topics([topic])[topic].result(30)
    deadline = time.monotonic() + 20
    while topic in client.list_topics(timeout=10).topics:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    create_topics(installation.settings.kafka)
    installation.send(text_request("new", "the sea"), partition=0)
    installation.drain()
    assert ("new", 0) in installation.texts()
    assert not installation.outstanding()


def test_transactions_leave_no_lag_and_what_was_aborted_is_not_there(installation: Installation) -> None:
    topic = installation.names.requests(installation.modality)
    client = producer(installation.settings.kafka, f"{installation.names.prefix}.sender")
    installation.send(text_request("plain", "a boat"), partition=1)
    client.init_transactions(30)
    for number, commits in enumerate((True, True, False)):
        client.begin_transaction()
        for n in range(3):
            value = json.dumps(text_request(f"t{number}-{n}", "a boat")).encode()
            client.produce(topic, value, partition=0)
        if commits:
            client.commit_transaction(30)
        else:
            client.flush(30)
            client.abort_transaction(30)
    installation.drain()
    check_finished(installation, stored=7)
    assert not any(name.startswith("t2") for name, _ in installation.texts())
    installation.replay()
    check_finished(installation, stored=7)


def test_a_replay_does_not_wait_for_an_open_transaction(installation: Installation) -> None:
    topic = installation.names.requests(installation.modality)
    installation.send(text_request("plain", "a boat"), partition=0)
    client = producer(installation.settings.kafka, f"{installation.names.prefix}.sender")
    client.init_transactions(30)
    client.begin_transaction()
    client.produce(topic, json.dumps(text_request("open", "the sea")).encode(), partition=0)
    client.flush(30)
    installation.replay()
    assert installation.texts() == {("plain", 0): "a boat"}
    client.commit_transaction(30)
    installation.replay()
    assert len(installation.texts()) == 2


def test_callbacks_are_posted_once_the_outcome_is_told(make_installation: MakeInstallation) -> None:
    bodies: list[dict[str, Any]] = []

    def take(handler: Any) -> None:
        bodies.append(json.loads(handler.rfile.read(int(handler.headers["Content-Length"]))))
        answer(handler)

    installation = make_installation(callbacks={"allow_private": True})
    with serving(take) as web:
        installation.send(
            text_request("good", "a boat", callback_url=web.url("/good")),
            text_request("bad", "a boat", model_name="no/such-model", callback_url=web.url("/bad")),
            text_request("quiet", "a boat"),
        )
        installation.drain()
        deadline = time.monotonic() + 20
        while len(bodies) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert {body["task_id"]: body["status"] for body in bodies} == {"good": "completed", "bad": "failed"}
    assert sorted(web.asked) == ["/bad", "/good"]
    check_finished(installation, stored=2)
