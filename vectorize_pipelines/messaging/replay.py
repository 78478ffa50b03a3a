"""Sending dead letters back to where they came from, each once, whenever it is killed."""

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from vectorize_pipelines.kafka.clients import consumer, kafka_errors, produce, producer
from vectorize_pipelines.kafka.partitions import partitions_of
from vectorize_pipelines.kafka.reading import TopicReader
from vectorize_pipelines.kafka.topics import Family, oldest_kept
from vectorize_pipelines.messaging.dead_letters import (
    ATTEMPTS_HEADER,
    StoredLetter,
    dead_letter_topics,
    matches,
    stored_letter,
)
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.messaging.replayed import ReplayedOffsets, replay_group, replayed_offsets
from vectorize_pipelines.settings import KafkaSettings

BATCH_LETTERS = 500
#: So long a replayed letter may wait in its topic, or a quarter of what the topic keeps, where that is less.
DRAIN_MARGIN_MS = 24 * 3600 * 1000


@dataclass(slots=True)
class ReplayCounts:
    """The figures of a replay.

    topics    letters by the topic that they went to
    left_out  outstanding letters that were not asked for
    expired   letters older than what their topic keeps: sent there they might be deleted before they are read
    foreign   messages of the topic that no run of this project wrote, which nothing replays
    omitted   letters without their value, which did not fit: sent back they would delete what their key names
    """

    replayed: int = 0
    left_out: int = 0
    expired: int = 0
    foreign: int = 0
    omitted: int = 0
    topics: dict[str, int] = field(default_factory=dict)

    def add(self, other: "ReplayCounts") -> None:
        """Add the figures of another topic's letters."""
        self.replayed += other.replayed
        self.left_out += other.left_out
        self.expired += other.expired
        self.foreign += other.foreign
        self.omitted += other.omitted
        for topic, number in other.topics.items():
            self.topics[topic] = self.topics.get(topic, 0) + number


def replay(
    settings: KafkaSettings, *, reason: str | None = None, ids: Iterable[str] = (), limit: int | None = None
) -> ReplayCounts:
    """Send outstanding dead letters back to their topics: key, value, headers and timestamp as they were.

    In transactions of up to 500 with the group's offsets, so that a letter is replayed once, whenever this is killed;
    a replay that is begun while another runs fences that one. `reason` is an error's class, `ids` name single letters.
    Those of requests come first, then those of assessments. Raises `KafkaError`.
    """
    wanted, counts = frozenset(ids), ReplayCounts()
    for family, topic in dead_letter_topics(settings).items():
        left = None if limit is None else limit - counts.replayed
        counts.add(_Replay(settings, family, topic, reason, wanted, left).run())
    return counts


class _Replay:
    """The replay of one topic's letters."""

    def __init__(
        self,
        settings: KafkaSettings,
        family: Family,
        topic: str,
        reason: str | None,
        ids: frozenset[str],
        limit: int | None,
    ) -> None:
        self._settings = settings
        self._family, self._topic = family, topic
        self._reason, self._ids, self._limit = reason, ids, limit
        self._counts = ReplayCounts()
        self._batch: list[StoredLetter] = []
        #: Of each partition in the pass so far: what is there and not replayed, and where the pass stands.
        self._skipped: dict[int, set[int]] = {}
        self._ends: dict[int, int] = {}
        self._oldest: dict[str, int] = {}

    def run(self) -> ReplayCounts:
        sender = producer(self._settings, replay_group(self._settings))
        with kafka_errors(self._settings, "beginning a replay"):
            # Fences an earlier replay and ends its transaction: only after that the offsets say what it did.
            sender.init_transactions(self._settings.request_seconds)
        group = consumer(self._settings, replay_group(self._settings))
        try:
            replayed = replayed_offsets(self._settings, self._topic, group)
            starts = {partition: offsets.below for partition, offsets in replayed.items()}
            with TopicReader(self._settings, self._topic, starts) as reader:
                for message in reader.to_end():
                    self._consider(stored_letter(message, self._family, replayed))
                    if len(self._batch) >= BATCH_LETTERS:
                        self._send(sender, group, replayed)
            self._send(sender, group, replayed)
        finally:
            group.close()
        return self._counts

    def _consider(self, stored: StoredLetter) -> None:
        partition, offset = stored.partition, stored.offset
        self._ends[partition] = offset + 1
        if stored.is_replayed:
            return
        if stored.letter is None:
            self._counts.foreign += 1
            return
        full = self._limit is not None and self._counts.replayed + len(self._batch) >= self._limit
        if full or not matches(stored, self._reason, self._ids):
            self._counts.left_out += 1
        elif stored.letter.omitted_bytes is not None:
            self._counts.omitted += 1
        elif self._is_expired(stored.letter.origin):
            self._counts.expired += 1
        else:
            self._batch.append(stored)
            return
        self._skipped.setdefault(partition, set()).add(offset)

    def _is_expired(self, origin: Origin) -> bool:
        if origin.topic not in self._oldest:
            partitions_of(self._settings, [origin.topic])  # says so where it is missing
            oldest = oldest_kept(self._settings, origin.topic)
            margin = min(DRAIN_MARGIN_MS, (time.time_ns() // 1_000_000 - oldest) // 4)
            self._oldest[origin.topic] = oldest + margin
        return origin.timestamp_ms < self._oldest[origin.topic]

    def _send(self, sender: Producer, group: Consumer, replayed: dict[int, ReplayedOffsets]) -> None:
        if not self._batch:
            return
        positions = self._positions(replayed)
        timeout = self._settings.request_seconds
        with kafka_errors(self._settings, "replaying dead letters"):
            sender.begin_transaction()
            try:
                for stored in self._batch:
                    _produce(sender, stored)
                sender.send_offsets_to_transaction(positions, group.consumer_group_metadata(), timeout)
                sender.commit_transaction(timeout)
            except KafkaException:
                # Left open, it would keep readers of these topics waiting until it times out.
                with suppress(KafkaException):
                    sender.abort_transaction(timeout)
                raise
        self._count()

    def _positions(self, replayed: dict[int, ReplayedOffsets]) -> list[TopicPartition]:
        """The offsets to be committed with the batch."""
        positions = []
        for partition in sorted({stored.partition for stored in self._batch}):
            done = [stored.offset for stored in self._batch if stored.partition == partition]
            replayed[partition].add(done, self._skipped.get(partition, ()), self._ends[partition])
            offset, metadata = replayed[partition].below, replayed[partition].encode()
            positions.append(TopicPartition(self._topic, partition, offset, metadata))
        return positions

    def _count(self) -> None:
        for stored in self._batch:
            if stored.letter is not None:
                topic = stored.letter.origin.topic
                self._counts.topics[topic] = self._counts.topics.get(topic, 0) + 1
        self._counts.replayed += len(self._batch)
        self._batch.clear()


def _produce(sender: Producer, stored: StoredLetter) -> None:
    letter = stored.letter
    if letter is None:
        return
    headers = [*letter.headers, (ATTEMPTS_HEADER, str(letter.attempts).encode())]
    origin = letter.origin
    produce(sender, origin.topic, key=letter.key, value=letter.value, headers=headers, timestamp=origin.timestamp_ms)
