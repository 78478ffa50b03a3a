"""The Python client against a real broker; a run's final events are sent by the test."""

import json
import threading
from contextlib import closing

import pytest

from tests.messaging.brokers import finish, read, send
from vectorize_pipelines.client import VectorizeClient
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import KafkaError, SettingsError
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging.cancellations import Cancellations
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import InvalidMessageError, Origin, Request, TaskType, decode
from vectorize_pipelines.settings import KafkaSettings


@pytest.fixture
def client(kafka_settings: KafkaSettings, topics: TopicNames) -> VectorizeClient:
    return VectorizeClient(str(kafka_settings.bootstrap_servers), kafka_settings.topic_prefix)


def _requests(settings: KafkaSettings, topic: str, modality: Modality) -> dict[str, Request]:
    found = {}
    for message in read(settings, topic):
        request = decode(message.value(), message.key(), Origin("t", 0, 0, 0), modality)
        assert isinstance(request, Request)
        assert message.key().decode() == request.task_id
        found[request.task_id] = request
    return found


def test_what_is_submitted_lies_in_its_topic(
    client: VectorizeClient, kafka_settings: KafkaSettings, topics: TopicNames
) -> None:
    text = client.submit("ein Text", task_id="t-1", collection="notes", metadata={"tenant": "a"}, model_name="m")
    urgent = client.submit("soon", priority="high", callback_url="https://example.com/done")
    batch = client.submit(["one", "two"])
    images = client.submit([{"task_type": TaskType.IMAGE, "data": "https://example.com/a.png"}])
    image = client.submit("https://example.com/b.png", task_type=TaskType.IMAGE, priority=2)
    document = client.submit({"content": "# Title", "content_type": "text/markdown"})
    documents = client.submit(["https://example.com/a.pdf"], modality=Modality.DOCUMENT)
    with pytest.raises(InvalidMessageError, match="collection"):
        client.submit("x", collection="Not A Name")
    with pytest.raises(InvalidMessageError, match="JSON"):
        client.submit("x", metadata={"at": object()})
    normal = _requests(kafka_settings, topics.requests(Modality.TEXT), Modality.TEXT)
    assert normal.keys() == {text, batch}
    assert (normal[text].collection, normal[text].model_name, normal[text].metadata) == ("notes", "m", {"tenant": "a"})
    assert [item.content for item in normal[batch].items] == ["one", "two"]
    (priority,) = _requests(kafka_settings, topics.priority(Modality.TEXT), Modality.TEXT).values()
    assert (priority.task_id, priority.callback_url) == (urgent, "https://example.com/done")
    assert _requests(kafka_settings, topics.requests(Modality.IMAGE), Modality.IMAGE).keys() == {images}
    assert _requests(kafka_settings, topics.priority(Modality.IMAGE), Modality.IMAGE).keys() == {image}
    found = _requests(kafka_settings, topics.requests(Modality.DOCUMENT), Modality.DOCUMENT)
    assert found.keys() == {document, documents}


def test_waiting_for_what_was_submitted(client: VectorizeClient, kafka_settings: KafkaSettings) -> None:
    finish(kafka_settings, "again", state=RequestState.FAILED)  # of an earlier message of that id
    task_ids = client.submit_many([f"text {number}" for number in range(500)])
    again = client.submit("a better text", task_id="again")
    worker = threading.Thread(target=finish, args=(kafka_settings, *task_ids[:499], again))
    worker.start()
    events = client.wait(task_ids[:499])
    worker.join()
    assert events.keys() == set(task_ids[:499])
    assert client.wait(again).status is RequestState.COMPLETED
    assert client.wait(task_ids[0]).status is RequestState.COMPLETED  # a second time: from the topic's beginning
    with pytest.raises(TimeoutError, match=task_ids[499]):
        client.wait(task_ids[499], timeout=0.2)
    client.close()


def test_waiting_for_what_another_submitted(client: VectorizeClient, kafka_settings: KafkaSettings) -> None:
    assert client.status("theirs") is None
    finish(kafka_settings, "theirs", state=RequestState.FAILED)
    finish(kafka_settings, "theirs")
    pending = ResultEvent("theirs", RequestState.PROCESSING)
    results = TopicNames(kafka_settings.topic_prefix).results
    send(kafka_settings, results, {"key": b"theirs", "value": pending.to_json()}, {"value": b"no event"})
    assert client.wait("theirs").status is RequestState.COMPLETED
    status = client.status("theirs")
    assert status is not None
    assert status.status is RequestState.PROCESSING


def test_cancelling(client: VectorizeClient, kafka_settings: KafkaSettings) -> None:
    task_id = client.submit("a text")
    client.cancel(task_id)
    with closing(Cancellations(kafka_settings)) as cancellations:
        cancellations.refresh()
        (message,) = read(kafka_settings, TopicNames(kafka_settings.topic_prefix).requests(Modality.TEXT))
        assert cancellations.cancelled(task_id, message.timestamp()[1])


def test_what_is_not_confirmed_is_an_error(kafka_settings: KafkaSettings) -> None:
    with pytest.raises(KafkaError, match=r"the topic .*\.text is missing"), _client(kafka_settings) as client:
        client.submit("x")
    away = KafkaSettings(bootstrap_servers="127.0.0.1:1", request_seconds=0.5)
    with pytest.raises(KafkaError, match=r"127\.0\.0\.1:1"), _client(away) as client:
        client.submit("x")
    with pytest.raises(SettingsError, match="topic_prefix"):
        VectorizeClient("localhost:9092", "no such prefix")
    with pytest.raises(SettingsError, match="needs sasl_mechanism"):
        VectorizeClient("localhost:9092", security_protocol="SASL_SSL")


def _client(settings: KafkaSettings) -> VectorizeClient:
    return VectorizeClient.from_settings(settings)


def test_events_come_through_whole() -> None:
    event = ResultEvent("ä", RequestState.FAILED, "c", 3, {"class": "E", "message": "m"}, "run")
    event.warnings, event.truncated = ({"kind": "omitted", "what": "ä", "remedy": "b"},), 7
    assert ResultEvent.from_json(event.to_json()) == event
    content = json.loads(event.to_json())
    names = ["task_id", "status", "collection", "vector_count", "error", "run_id", "timestamp"]
    assert list(content) == [*names, "warnings", "truncated"]
    assert ResultEvent.from_json(json.dumps({name: content[name] for name in names}).encode()).warnings == ()
    later = json.dumps({**content, "a_new_field": 1}).encode()
    assert ResultEvent.from_json(later) == event
    with pytest.raises(ValueError, match="no result event"):
        ResultEvent.from_json(b"{}")
