"""Messages and committed offsets in one transaction: what a run did with what it read, told once or not at all.

Called by the runs of every followed topic once what they did is kept elsewhere.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.core.retrying import retry
from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.kafka.clients import kafka_error, produce, producer
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import TopicPartition

logger = logging.getLogger(__name__)

#: How long a transaction is tried again while brokers are away, and the pause between two tries.
OUTAGE_SECONDS = 300.0
PAUSE_SECONDS = 0.2
_NO_NOTES: Mapping[PartitionId, str] = MappingProxyType({})


class FencedError(KafkaError):
    """Another run has taken over this run's part of the topic; what it had not acknowledged is that run's work now."""


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message for a topic.

    shortened     goes there in its place where the topic refuses it as too large; None: that is an error of the run
    timestamp_ms  its time, in milliseconds since 1970; None: that of its sending
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()
    shortened: "OutgoingMessage | None" = None
    timestamp_ms: int | None = None


class TransactionalProducer:
    """The producer of one shard of one followed topic. Used by one thread.

    Its transactional id is the shard's: making another one of the same shard fences this one, whose transactions then
    raise `FencedError`. So a run that was stalled cannot acknowledge what its successor has taken over.
    """

    def __init__(self, settings: KafkaSettings, shard_name: str, **properties: Any):
        """Fence the shard's earlier producers and end what they left open. Raises `KafkaError`.

        shard_name  such as `text.0/4`
        properties  of librdkafka, for this producer alone
        """
        self._settings = settings
        self._seconds = settings.request_seconds
        self._producer = producer(settings, f"{settings.topic_prefix}.{shard_name}", **properties)
        #: Places of the messages in hand that their topic refused as too large.
        self._too_large: set[int] = set()
        self._connect()
        self._retry("taking over the shard", lambda: self._producer.init_transactions(self._seconds))

    def _connect(self) -> None:
        """Wait for a connection: a client without one looks for its coordinator again only after half a second."""
        from confluent_kafka import KafkaException

        with suppress(KafkaException):  # what follows waits longer, and says what is wrong
            self._producer.list_topics(timeout=self._seconds)

    def send(
        self,
        messages: Sequence[OutgoingMessage],
        positions: Mapping[PartitionId, int],
        group_metadata: object,
        notes: Mapping[PartitionId, str] = _NO_NOTES,
    ) -> None:
        """Send everything and commit the offsets, or nothing of it.

        positions       (topic, partition) -> the next offset to read
        group_metadata  `Consumer.consumer_group_metadata()` of the group whose offsets these are
        notes           (topic, partition) -> what is kept with its offset, as Kafka's metadata of it

        Raises `FencedError`, and `KafkaError` where the brokers stay away.
        """
        self._too_large.clear()
        commit = partial(self._commit, messages, _offsets(positions, notes), group_metadata)
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

    def _commit(
        self, messages: Sequence[OutgoingMessage], offsets: "list[TopicPartition]", group_metadata: object
    ) -> None:
        """Commit all of it in a transaction. Raises `_AbortedError` where that was aborted and can be tried again."""
        from confluent_kafka import KafkaException

        try:
            self._retry("beginning a transaction", self._producer.begin_transaction)
            for place, message in enumerate(messages):
                self._produce(place, message)
            self._send_offsets(offsets, group_metadata)
            self._retry("committing a transaction", lambda: self._producer.commit_transaction(self._seconds))
        except KafkaException as error:
            if not error.args[0].txn_requires_abort():
                raise self._failure("writing the results", error) from None
            self._retry("aborting a transaction", lambda: self._producer.abort_transaction(self._seconds))
            if _is_of_metadata(error):
                raise self._failure("committing offsets with what is kept with them", error) from None
            logger.warning("a transaction was aborted and is tried again: %s", error.args[0].str())
            raise _AbortedError from None

    def _produce(self, place: int, message: OutgoingMessage) -> None:
        """Both ends refuse what is too large: the client at once, by its own limit, the broker when it gets it."""
        from confluent_kafka import KafkaException

        if message.shortened is None:
            return self._hand_over(message)
        if place not in self._too_large:
            try:
                return self._hand_over(message, on_delivery=partial(self._delivered, place))
            except KafkaException as error:
                if not _is_too_large(error.args[0]):
                    raise
        logger.warning("a message is too large for %s and goes there shortened", message.topic)
        return self._hand_over(message.shortened)

    def _hand_over(self, message: OutgoingMessage, **further: Any) -> None:
        if message.headers:
            further["headers"] = list(message.headers)
        if message.timestamp_ms is not None:
            further["timestamp"] = message.timestamp_ms
        produce(self._producer, message.topic, key=message.key, value=message.value, **further)

    def _delivered(self, place: int, error: object, message: object) -> None:
        if error is not None and _is_too_large(error):
            self._too_large.add(place)

    def _send_offsets(self, offsets: "list[TopicPartition]", group_metadata: object) -> None:
        if offsets:
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


def _offsets(positions: Mapping[PartitionId, int], notes: Mapping[PartitionId, str]) -> "list[TopicPartition]":
    from confluent_kafka import TopicPartition

    return [TopicPartition(*place, offset, metadata=notes.get(place, "")) for place, offset in positions.items()]


class _AbortedError(Exception):
    """A transaction was aborted, as brokers demanded."""


def _is_retriable(error: Exception) -> bool:
    from confluent_kafka import KafkaException

    if not isinstance(error, KafkaException):
        return False
    return bool(error.args[0].retriable()) and not error.args[0].txn_requires_abort()


def _is_of_metadata(error: Exception) -> bool:
    """Return whether the notes of an offset are larger than `offset.metadata.max.bytes`: trying again does not help."""
    from confluent_kafka import KafkaError as Codes

    return bool(error.args[0].code() == Codes.OFFSET_METADATA_TOO_LARGE)


def _is_too_large(error: Any) -> bool:
    from confluent_kafka import KafkaError as Codes

    return bool(error.code() == Codes.MSG_SIZE_TOO_LARGE)
