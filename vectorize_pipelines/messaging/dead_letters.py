"""Messages that failed for a reason of their own, as the dead-letter topic keeps them.

A dead letter is the original message: key, value and headers, byte by byte, and in further headers why it failed. They
have the names that Kafka Connect gives them, so that tools for its dead letters understand these.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from vectorize_pipelines.errors import ItemError, KafkaError
from vectorize_pipelines.kafka.reading import TopicReader
from vectorize_pipelines.kafka.topics import Family, TopicNames, has_topic
from vectorize_pipelines.kafka.transactions import OutgoingMessage
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.messaging.replayed import ReplayedOffsets, replayed_offsets
from vectorize_pipelines.settings import KafkaSettings

CONNECT_PREFIX = "__connect.errors."
OWN_PREFIX = "vectorize."
#: How often a message has failed; a replayed message keeps it.
ATTEMPTS_HEADER = "vectorize.attempts"
CONNECTOR_NAME = "vectorize"
MAX_MESSAGE_CHARACTERS = 4000
#: Of a letter whose message does not fit into the topic: how many bytes the value has that is left out.
OMITTED_HEADER = "vectorize.omitted.bytes"
#: A key, or headers, beyond this are left out with the value.
KEPT_BYTES = 64 * 1024

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that failed, and why.

    headers      those of the message itself
    error_class  name of the error's class; `error_type` is its full name
    stage        what was being done: decode, fetch, encode, …
    run_id       the run in which it failed
    attempts     how often it has failed, this time included
    omitted_bytes   size of the value, where that was left out; None where the letter is whole
    """

    origin: Origin
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    error_class: str
    error_type: str
    error_message: str
    stage: str
    run_id: str | None
    attempts: int
    omitted_bytes: int | None = None

    @classmethod
    def of(
        cls,
        origin: Origin,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        error: Exception,
        stage: str,
        run_id: str | None,
    ) -> "DeadLetter":
        """The dead letter of a message that failed with `error`."""
        own = tuple((name, content) for name, content in headers or () if not _is_ours(name))
        kind = type(error)
        message = str(error)[:MAX_MESSAGE_CHARACTERS]
        tried = error.attempts if isinstance(error, ItemError) else 1
        full_name, attempts = f"{kind.__module__}.{kind.__qualname__}", attempts_of(headers) + tried
        return cls(origin, key, value, own, kind.__name__, full_name, message, stage, run_id, attempts)

    def shortened(self) -> "DeadLetter":
        """The letter without the value, for a message that is too large for the topic; its origin says where it lies.

        A message may be compressed, so it may well be larger than what its own topic takes.
        """
        size = sum(len(name) + len(content or b"") for name, content in self.headers)
        return replace(
            self,
            key=self.key if self.key is None or len(self.key) <= KEPT_BYTES else None,
            value=None,
            headers=self.headers if size <= KEPT_BYTES else (),
            omitted_bytes=len(self.value or b""),
        )

    def to_message(self, topic: str) -> OutgoingMessage:
        """The letter's message in a dead-letter topic, which goes there without its value where that is too large."""
        whole = self._message(topic)
        return whole if self.omitted_bytes is not None else replace(whole, shortened=self.shortened()._message(topic))

    def _message(self, topic: str) -> OutgoingMessage:
        return OutgoingMessage(topic, self.key, self.value, [*self.headers, *self.error_headers()])

    def error_headers(self) -> list[tuple[str, bytes]]:
        """The headers that say why, to stand behind the message's own."""
        texts = {
            f"{CONNECT_PREFIX}topic": self.origin.topic,
            f"{CONNECT_PREFIX}partition": str(self.origin.partition),
            f"{CONNECT_PREFIX}offset": str(self.origin.offset),
            f"{CONNECT_PREFIX}connector.name": CONNECTOR_NAME,
            f"{CONNECT_PREFIX}task.id": self.run_id or "",
            f"{CONNECT_PREFIX}stage": self.stage,
            f"{CONNECT_PREFIX}exception.class.name": self.error_type,
            f"{CONNECT_PREFIX}exception.message": self.error_message,
            ATTEMPTS_HEADER: str(self.attempts),
            "vectorize.error.class": self.error_class,
            "vectorize.timestamp": str(self.origin.timestamp_ms),
        }
        if self.omitted_bytes is not None:
            texts[OMITTED_HEADER] = str(self.omitted_bytes)
        return [(name, text.encode("utf-8", "replace")) for name, text in texts.items()]


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """A dead letter in its topic. `letter` is None for a message that no run of this project wrote there."""

    family: Family
    partition: int
    offset: int
    failed_at: datetime
    is_replayed: bool
    letter: DeadLetter | None

    @property
    def id(self) -> str:
        """The letter's name on the command line: partition and offset in the dead-letter topic.

        Those of assessments, which have a topic of their own, begin with `assessments-`.
        """
        place = f"{self.partition}-{self.offset}"
        return place if self.family is Family.REQUESTS else f"{self.family}-{place}"


def attempts_of(headers: Headers | None) -> int:
    """Return how often a message has failed before, by its headers; 0 for one that never has."""
    text = dict(headers or ()).get(ATTEMPTS_HEADER) or b""
    return int(text) if text.isdigit() and len(text) < 10 else 0


def read_dead_letters(
    settings: KafkaSettings,
    *,
    reason: str | None = None,
    ids: Iterable[str] = (),
    include_replayed: bool = False,
) -> Iterator[StoredLetter]:
    """The dead letters up to the topics' ends: those of requests, then those of assessments; each as they come.

    `reason` is an error's class; without `ids` all letters are taken. Raises `KafkaError`.
    """
    wanted = frozenset(ids)
    for family, topic in dead_letter_topics(settings).items():
        replayed = replayed_offsets(settings, topic)
        with TopicReader(settings, topic) as reader:
            for message in reader.to_end():
                stored = stored_letter(message, family, replayed)
                if (include_replayed or not stored.is_replayed) and matches(stored, reason, wanted):
                    yield stored


def dead_letter_topics(settings: KafkaSettings) -> dict[Family, str]:
    """Return those of the dead-letter topics that are there.

    An installation may have those of one family only. Raises `KafkaError`, also where there is none at all.
    """
    planned = {
        Family.REQUESTS: TopicNames(settings.topic_prefix).dead_letter,
        Family.ASSESSMENTS: settings.assessment_dead_letter_topic,
    }
    present = {family: topic for family, topic in planned.items() if has_topic(settings, topic)}
    if not present:
        raise KafkaError(
            f"neither {' nor '.join(planned.values())} is there: `vectorize topics create` makes them, as does a run"
        )
    return present


def matches(stored: StoredLetter, reason: str | None, ids: frozenset[str]) -> bool:
    """Return whether a letter has this error class, where one is given, and one of these ids, where some are."""
    if ids and stored.id not in ids:
        return False
    return reason is None or (stored.letter is not None and stored.letter.error_class == reason)


def stored_letter(message: Any, family: Family, replayed: dict[int, ReplayedOffsets]) -> StoredLetter:
    """The dead letter in a message of the family's topic."""
    partition, offset = message.partition(), message.offset()
    failed_at = datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC)
    letter = _letter(message)
    is_replayed = letter is not None and partition in replayed and offset in replayed[partition]
    return StoredLetter(family, partition, offset, failed_at, is_replayed, letter)


def _letter(message: Any) -> DeadLetter | None:
    headers: Headers = message.headers() or ()
    texts = {name: (content or b"").decode("utf-8", "replace") for name, content in headers if _is_ours(name)}
    try:
        origin = Origin(
            texts[f"{CONNECT_PREFIX}topic"],
            int(texts[f"{CONNECT_PREFIX}partition"]),
            int(texts[f"{CONNECT_PREFIX}offset"]),
            int(texts["vectorize.timestamp"]),
        )
    except (KeyError, ValueError):
        return None
    return DeadLetter(
        origin,
        message.key(),
        message.value(),
        tuple((name, content) for name, content in headers if not _is_ours(name)),
        texts.get("vectorize.error.class", ""),
        texts.get(f"{CONNECT_PREFIX}exception.class.name", ""),
        texts.get(f"{CONNECT_PREFIX}exception.message", ""),
        texts.get(f"{CONNECT_PREFIX}stage", ""),
        texts.get(f"{CONNECT_PREFIX}task.id") or None,
        attempts_of(headers),
        int(texts[OMITTED_HEADER]) if texts.get(OMITTED_HEADER, "").isdecimal() else None,
    )


def _is_ours(name: str) -> bool:
    return name.startswith((CONNECT_PREFIX, OWN_PREFIX))
