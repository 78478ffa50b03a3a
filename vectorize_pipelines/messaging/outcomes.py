"""The outcomes of messages, told to Kafka: results, dead letters and offsets in one transaction.

Called by `pipeline.requests.report` once the store and the ledger have what the messages asked for.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any

from vectorize_pipelines.core.retrying import retry
from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.kafka.clients import kafka_error, produce, producer
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging.dead_letters import DeadLetter, produce_dead_letter
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.settings import KafkaSettings

logger = logging.getLogger(__name__)

#: How long a transaction is tried again while brokers are away, and the pause between two tries.
OUTAGE_SECONDS = 300.0
PAUSE_SECONDS = 0.2


class FencedError(KafkaError):
    """Another run has taken over this run's part of the topic; what it had not acknowledged is that run's work now."""


@dataclass(slots=True)
class Outcomes:
    """The contents of one transaction.

    positions  (topic, partition) -> the next offset to read
    """

    events: Sequence[ResultEvent] = ()
    dead_letters: Sequence[DeadLetter] = ()
    positions: Mapping[tuple[str, int], int] = field(default_factory=dict)


class OutcomeProducer:
    """The producer of outcomes for one shard of one modality's topics. Used by one thread.

    Its transactional id is the shard's: making another one of the same shard fences this one, whose transactions then
    raise `FencedError`. So a run that was stalled cannot acknowledge what its successor has taken over.
    """

    def __init__(self, settings: KafkaSettings, shard_name: str):
        """Fence the shard's earlier producers and end what they left open. Raises `KafkaError`."""
        self._settings = settings
        self._seconds = settings.request_seconds
        self._names = TopicNames(settings.topic_prefix)
        self._producer = producer(settings, f"{settings.topic_prefix}.{shard_name}")
        #: Places in `Outcomes.dead_letters` of those that the topic refused as too large, of the outcomes in hand.
        self._too_large: set[int] = set()
        self._retry("taking over the shard", lambda: self._producer.init_transactions(self._seconds))

    def send(self, outcomes: Outcomes, group_metadata: object) -> None:
        """Everything, or nothing. Raises `FencedError`, and `KafkaError` where the brokers stay away.

        A dead letter that is too large for its topic goes there without its value: no message stops a topic.
        """
        self._too_large.clear()
        commit = partial(self._commit, outcomes, group_metadata)
        try:
            retry(commit, repeat(PAUSE_SECONDS), lambda e: isinstance(e, _AbortedError), seconds=OUTAGE_SECONDS)
        except _AbortedError:
            raise KafkaError(
                f"the results could not be committed for {OUTAGE_SECONDS:.0f} s: see whether the brokers at "
                f"{self._settings.bootstrap_servers} have their transaction coordinator"
            ) from None

    def close(self) -> None:
        """End the connection; a transaction that is open is aborted by the broker."""
        from confluent_kafka import KafkaException

        with suppress(KafkaException):  # fenced: the call that found it out has said so
            self._producer.flush(0)

    def _commit(self, outcomes: Outcomes, group_metadata: object) -> None:
        """Commit all of it in a transaction. Raises `_AbortedError` where that was aborted and can be tried again."""
        from confluent_kafka import KafkaException

        try:
            self._retry("beginning a transaction", self._producer.begin_transaction)
            self._produce(outcomes)
            self._send_offsets(outcomes.positions, group_metadata)
            self._retry("committing a transaction", lambda: self._producer.commit_transaction(self._seconds))
        except KafkaException as error:
            if not error.args[0].txn_requires_abort():
                raise self._failure("writing the results", error) from None
            logger.warning("a transaction was aborted and is tried again: %s", error.args[0].str())
            self._retry("aborting a transaction", lambda: self._producer.abort_transaction(self._seconds))
            raise _AbortedError from None

    def _produce(self, outcomes: Outcomes) -> None:
        for event in outcomes.events:
            produce(self._producer, self._names.results, key=event_key(event), value=event.to_json())
        for place, letter in enumerate(outcomes.dead_letters):
            self._bury(place, letter)

    def _bury(self, place: int, letter: DeadLetter) -> None:
        """Both ends refuse what is too large: the client at once, by its own limit, the broker when it gets it."""
        from confluent_kafka import KafkaException

        bury = partial(produce_dead_letter, self._producer, self._names)
        if place not in self._too_large:
            try:
                return bury(letter, on_delivery=partial(self._buried, place))
            except KafkaException as error:
                if not _is_too_large(error.args[0]):
                    raise
        logger.warning("a dead letter is too large for %s and goes there without its value", self._names.dead_letter)
        return bury(letter.shortened())

    def _buried(self, place: int, error: object, message: object) -> None:
        if error is not None and _is_too_large(error):
            self._too_large.add(place)

    def _send_offsets(self, positions: Mapping[tuple[str, int], int], group_metadata: object) -> None:
        from confluent_kafka import TopicPartition

        if positions:
            offsets = [TopicPartition(*place, offset) for place, offset in positions.items()]
            self._retry(
                "committing offsets",
                lambda: self._producer.send_offsets_to_transaction(offsets, group_metadata, self._seconds),
            )

    def _retry(self, doing: str, call: Callable[[], object]) -> None:
        """Call again while that may help. Raises `KafkaException` where the transaction has to be aborted first."""
        from confluent_kafka import KafkaException

        try:
            retry(call, repeat(PAUSE_SECONDS), _is_retriable, seconds=OUTAGE_SECONDS)
        except KafkaException as error:
            if error.args[0].txn_requires_abort():
                raise
            raise self._failure(doing, error) from None

    def _failure(self, doing: str, error: Exception) -> KafkaError:
        from confluent_kafka import KafkaError as Codes

        if error.args[0].code() == Codes._FATAL:
            error = self._reason_of_fatal(error)
        if error.args[0].code() in (Codes._FENCED, Codes.PRODUCER_FENCED, Codes.INVALID_PRODUCER_EPOCH):
            return FencedError("another run has taken over this part of the topic: this one ends, and loses nothing")
        return kafka_error(self._settings, doing, error)

    def _reason_of_fatal(self, error: Exception) -> Exception:
        """Producing says only that there was a fatal error before; calls of a transaction say which."""
        from confluent_kafka import KafkaException

        try:
            self._producer.abort_transaction(self._seconds)
        except KafkaException as reason:
            return reason
        return error


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


class _AbortedError(Exception):
    """A transaction was aborted, as brokers demanded."""


def _is_retriable(error: Exception) -> bool:
    from confluent_kafka import KafkaException

    if not isinstance(error, KafkaException):
        return False
    return bool(error.args[0].retriable()) and not error.args[0].txn_requires_abort()


def _is_too_large(error: Any) -> bool:
    from confluent_kafka import KafkaError as Codes

    return bool(error.code() == Codes.MSG_SIZE_TOO_LARGE)
