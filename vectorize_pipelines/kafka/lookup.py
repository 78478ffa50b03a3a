"""Single messages, read once more by their places: for a run that had no room for what it read of them before."""

import time
from collections.abc import Collection, Mapping
from typing import cast

from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.kafka.clients import consumer, kafka_errors
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.settings import KafkaSettings

#: Messages of one poll, and how long it waits for the first, in seconds.
_MESSAGES = 500
_WAIT_SECONDS = 0.25
#: What the client reads ahead, in KiB: it is read for a few messages.
_AHEAD_KIB = 8 * 1024


class MessageLookup:
    """Reads messages by topic, partition and offset. Used by one thread, and closed by it."""

    def __init__(self, settings: KafkaSettings):
        """Connect. Raises `KafkaNotConfiguredError` and `SettingsError`."""
        self._settings = settings
        properties = {"enable.partition.eof": True, "queued.max.messages.kbytes": _AHEAD_KIB}
        self._consumer = consumer(settings, f"{settings.group}.reader", **properties)

    def find(self, wanted: Mapping[PartitionId, Collection[int]]) -> list[ReceivedMessage]:
        """Return the messages at these offsets; those that the brokers have deleted are missing.

        Raises `KafkaError`, also where nothing comes for `kafka.request_seconds`.
        """
        from confluent_kafka import KafkaError as Codes
        from confluent_kafka import KafkaException, TopicPartition

        last = {place: max(offsets) for place, offsets in wanted.items()}
        found: list[ReceivedMessage] = []
        heard = time.monotonic()
        with kafka_errors(self._settings, "reading messages once more"):
            self._consumer.assign([TopicPartition(*place, min(offsets)) for place, offsets in wanted.items()])
            while last:
                for given in self._consumer.consume(_MESSAGES, timeout=_WAIT_SECONDS):
                    heard, error = time.monotonic(), given.error()
                    message = cast("ReceivedMessage", given)
                    place, offset = (message.topic(), message.partition()), message.offset()
                    if error is not None and error.code() != Codes._PARTITION_EOF:
                        raise KafkaException(error)
                    if error is None and offset in wanted[place]:
                        found.append(message)
                    if place in last and (error is not None or offset >= last[place]):
                        del last[place]
                if time.monotonic() - heard > self._settings.request_seconds:
                    raise KafkaError(
                        f"{', '.join(topic for topic, _ in last)}: nothing came when it was read once more"
                    )
            self._consumer.unassign()
        return found

    def close(self) -> None:
        """Leave the brokers."""
        self._consumer.close()
