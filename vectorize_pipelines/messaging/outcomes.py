"""Sends result events, dead letters and offsets in one Kafka transaction (`OutcomeProducer`), or events alone.

Called by `pipeline.requests.report` once the store and the ledger have what the messages asked for.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vectorize_pipelines.kafka.clients import produce, producer
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.kafka.transactions import OutgoingMessage, TransactionalProducer
from vectorize_pipelines.messaging.dead_letters import DeadLetter
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.settings import KafkaSettings

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Outcomes:
    """The contents of one transaction.

    positions  (topic, partition) -> the next offset to read
    """

    events: Sequence[ResultEvent] = ()
    dead_letters: Sequence[DeadLetter] = ()
    positions: Mapping[PartitionId, int] = field(default_factory=dict)


class OutcomeProducer:
    """The producer of outcomes for one shard of one modality's topics. Used by one thread."""

    def __init__(self, settings: KafkaSettings, shard_name: str):
        """Fence the shard's earlier producers and end what they left open. Raises `KafkaError`."""
        self._names = TopicNames(settings.topic_prefix)
        self._producer = TransactionalProducer(settings, shard_name)

    def send(self, outcomes: Outcomes, group_metadata: object) -> None:
        """Everything, or nothing. Raises `FencedError`, and `KafkaError` where the brokers stay away.

        A dead letter that is too large for its topic goes there without its value: no message stops a topic.
        """
        messages = [OutgoingMessage(self._names.results, event_key(each), each.to_json()) for each in outcomes.events]
        messages += [letter.to_message(self._names.dead_letter) for letter in outcomes.dead_letters]
        self._producer.send(messages, outcomes.positions, group_metadata)

    def close(self) -> None:
        """End the connection; a transaction that is open is aborted by the broker."""
        self._producer.close()


class EventProducer:
    """The producer of events of what is under way, which need not wait for a transaction. Used by one thread.

    Such an event may come twice, or be missing where the brokers were away: what counts is the final one.
    """

    def __init__(self, settings: KafkaSettings):
        """Raises `KafkaNotConfiguredError`."""
        self._settings = settings
        self._topic = TopicNames(settings.topic_prefix).results
        self._producer = producer(settings)
        self._lost = 0

    def send(self, events: Sequence[ResultEvent]) -> None:
        """Return once they are queued."""
        for event in events:
            produce(
                self._producer,
                self._topic,
                key=event_key(event),
                value=event.to_json(),
                on_delivery=self._delivered,
            )
        self._producer.poll(0)

    def close(self) -> None:
        """Wait until what was queued is sent, or has failed."""
        self._producer.flush(self._settings.request_seconds)
        if self._lost:
            logger.warning("%d events of requests under way could not be sent", self._lost)

    def _delivered(self, error: object, message: object) -> None:
        self._lost += error is not None


def event_key(event: ResultEvent) -> bytes:
    """The key of an event's message."""
    return event.task_id.encode("utf-8", "replace")
