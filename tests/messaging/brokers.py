"""What tests do to a broker directly, as a run or another program would."""

import time
from typing import Any

from confluent_kafka.cimpl import NewTopic

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.kafka.clients import admin, produce, producer
from vectorize_pipelines.kafka.partitions import offsets, partitions_of
from vectorize_pipelines.kafka.reading import TopicReader
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging.dead_letters import DeadLetter
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import InvalidMessageError, Origin
from vectorize_pipelines.settings import KafkaSettings

#: An hour ago: what is older than its topic's retention may be deleted at any moment.
SOME_TIME_MS = time.time_ns() // 1_000_000 - 3_600_000
SETTLED_SECONDS = 60.0


def send(settings: KafkaSettings, topic: str, *messages: dict[str, Any]) -> None:
    """Messages as `Producer.produce` takes them, in a transaction."""
    sender = producer(settings, f"{settings.topic_prefix}.test")
    sender.init_transactions(30)
    sender.begin_transaction()
    for message in messages:
        produce(sender, topic, **message)
    sender.commit_transaction(30)


def read(settings: KafkaSettings, topic: str) -> list[Any]:
    """Every committed message of a topic."""
    with TopicReader(settings, topic) as reader:
        return list(reader.to_end())


def settle(settings: KafkaSettings, *topics: str) -> None:
    """Wait until readers of committed messages get all that was written to the topics.

    A transaction counts as committed a moment before its marks are written, which is what readers go by.
    """
    places = partitions_of(settings, list(topics))
    deadline = time.monotonic() + SETTLED_SECONDS
    while offsets(settings, places, latest=True) != offsets(settings, places, latest=True, with_open=True):
        assert time.monotonic() < deadline, "a transaction stays open"
        time.sleep(0.02)


def finish(settings: KafkaSettings, *task_ids: str, state: RequestState = RequestState.COMPLETED) -> None:
    """Final events, as a run sends them."""
    events = [ResultEvent(task_id, state, "texts", 1, None, "run-1") for task_id in task_ids]
    topic = TopicNames(settings.topic_prefix).results
    send(settings, topic, *({"key": event.task_id.encode(), "value": event.to_json()} for event in events))


def bury(settings: KafkaSettings, *letters: DeadLetter) -> None:
    """Dead letters, as a run sends them."""
    sender = producer(settings)
    for letter in letters:
        message = letter.to_message(TopicNames(settings.topic_prefix).dead_letter)
        produce(sender, message.topic, key=message.key, value=message.value, headers=list(message.headers))
    assert sender.flush(30) == 0


def letter(
    settings: KafkaSettings, number: int, error: Exception | None = None, value: bytes | None = b"\x00\xff{"
) -> DeadLetter:
    """The dead letter of message `number` of the text topic."""
    topic = TopicNames(settings.topic_prefix).requests(Modality.TEXT)
    origin = Origin(topic, number % 6, number, SOME_TIME_MS + number)
    headers = [("trace", b"\x01\xfe"), ("trace", b"again"), ("empty", None)]
    problem = error or InvalidMessageError("data", "must not be blank")
    return DeadLetter.of(origin, f"key-{number}".encode(), value, headers, problem, "decode", "run-1")


def make_topic(settings: KafkaSettings, topic: str, **properties: str) -> None:
    """A topic that is there already when ours are made, with properties of its own."""
    client = admin(settings)  # the futures are never done once the client is gone
    config = {name.replace("_", "."): value for name, value in properties.items()}
    for future in client.create_topics([NewTopic(topic, 1, 1, config=config)]).values():
        future.result()
