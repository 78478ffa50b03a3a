"""A topic's partitions: which there are, where they begin and end, and how a topic changes while it is read."""

import logging
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeAlias

from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.kafka.clients import admin, kafka_errors, retry
from vectorize_pipelines.kafka.compat import offset_spec
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

logger = logging.getLogger(__name__)

#: How often is looked whether a topic has got more partitions.
PARTITIONS_SECONDS = 20.0
#: How long a look may take while messages are read.
_LOOK_SECONDS = 5.0

#: Topic and partition.
PartitionId: TypeAlias = tuple[str, int]


class AddedPartitions:
    """The partitions that a topic gets while it is read: looked for every `PARTITIONS_SECONDS`, and read then.

    take_up  looks, reads on in those that are new, and returns their numbers; may raise `KafkaError` and
             `KafkaException`, and then nothing has changed: the next look does it
    """

    def __init__(self, topic: str, take_up: Callable[[], Collection[int]]):
        self._topic = topic
        self._take_up = take_up
        self._looked = time.monotonic()

    def look(self) -> None:
        """Look for added partitions where a look is due. Called before each reading."""
        from confluent_kafka import KafkaException

        if time.monotonic() - self._looked < PARTITIONS_SECONDS:
            return
        try:
            new = self._take_up()
        except (KafkaException, KafkaError) as error:
            logger.warning(
                "whether %s has got more partitions could not be found out; tried again in %.0f s: %s",
                self._topic,
                PARTITIONS_SECONDS,
                error,
            )
            return
        finally:
            self._looked = time.monotonic()
        if new:
            numbers = ", ".join(map(str, sorted(new)))
            logger.info("%s has got more partitions, and they are read: %s", self._topic, numbers)


class TopicReplacedError(KafkaError):
    """A topic was deleted and made again while it was read."""


class SameTopics:
    """Topics that are read, of which is looked every `PARTITIONS_SECONDS` whether they are still the same.

    One that was deleted and made again has the same name and another id. Where it is longer by now than what was read
    of the earlier one, its reader would go on in its middle, and nobody would tell.
    """

    def __init__(self, settings: KafkaSettings, topics: Collection[str]):
        """Look for the first time. Raises `KafkaError`."""
        self._settings = settings
        self._topics = sorted(topics)
        self._client = admin(settings)
        self._ids = self._asked(settings.request_seconds)
        self._looked = time.monotonic()

    def look(self) -> None:
        """Look where a look is due. Raises `TopicReplacedError`."""
        if time.monotonic() - self._looked < PARTITIONS_SECONDS:
            return
        try:
            found = self._asked(_LOOK_SECONDS)
        except KafkaError as error:  # reading says, too, that the brokers are away
            logger.warning("whether topics are still the same could not be found out: %s", error)
            return
        finally:
            self._looked = time.monotonic()
        replaced = [topic for topic, known in self._ids.items() if found[topic] != known]
        if replaced:
            raise TopicReplacedError(
                f"{', '.join(replaced)} at {self._settings.bootstrap_servers} was deleted and made again while it was "
                "read: run again, which begins where Kafka has an offset of the new topic, or at its first message. "
                "What this run committed meanwhile counts for the new topic: replay the days of what was sent there"
            )

    def _asked(self, seconds: float) -> dict[str, str]:
        from confluent_kafka import TopicCollection

        def ask() -> dict[str, str]:
            answers = self._client.describe_topics(TopicCollection(self._topics), request_timeout=seconds)
            return {name: str(answer.result().topic_id) for name, answer in answers.items()}

        settings = self._settings.model_copy(update={"request_seconds": seconds})
        return retry(settings, f"looking at {', '.join(self._topics)}", ask)


def partitions_of(
    settings: KafkaSettings, topics: list[str], client: Any = None, seconds: float | None = None
) -> list[PartitionId]:
    """Return every partition of the topics; `seconds`, by default `request_seconds`, is how long the answer may take.

    Raises `KafkaError`, also for a topic that is missing.
    """
    client = admin(settings) if client is None else client
    seconds = settings.request_seconds if seconds is None else seconds
    places: list[PartitionId] = []
    for topic in topics:
        with kafka_errors(settings, f"looking at {topic}", client):
            found = client.list_topics(topic, timeout=seconds).topics[topic]
        if found.error is not None or not found.partitions:
            raise KafkaError(
                f"the topic {topic} is missing at {settings.bootstrap_servers}; `vectorize topics create` makes it"
            )
        places += [(topic, number) for number in sorted(found.partitions)]
    return places


def existing_partitions(settings: KafkaSettings, topics: Collection[str], client: "AdminClient") -> list[PartitionId]:
    """Return every partition of those of the topics that there are.

    Raises `KafkaError`, also for a topic of which the brokers do not say whether it is there: this user may not know.
    """
    with kafka_errors(settings, "listing the topics", client):
        present = client.list_topics(timeout=settings.request_seconds).topics
    _check_gone(settings, set(topics) - present.keys(), client)
    places: list[PartitionId] = []
    for name in sorted(present.keys() & set(topics)):
        if present[name].error is not None:
            raise KafkaError(f"the topic {name} at {settings.bootstrap_servers}: {present[name].error}")
        places += [(name, number) for number in sorted(present[name].partitions)]
    return places


def _check_gone(settings: KafkaSettings, topics: Collection[str], client: "AdminClient") -> None:
    """Raise `KafkaError` unless the brokers say of each of these topics that it is unknown.

    Unlike `list_topics` of one topic, `describe_topics` never has it made.
    """
    from confluent_kafka import KafkaError as Code
    from confluent_kafka import KafkaException, TopicCollection

    if not topics:
        return
    asked = client.describe_topics(TopicCollection(sorted(topics)), request_timeout=settings.request_seconds)
    for name, answer in asked.items():
        error = answer.exception()
        unknown = isinstance(error, KafkaException) and error.args[0].code() == Code.UNKNOWN_TOPIC_OR_PART
        if not unknown:
            raise KafkaError(f"whether the topic {name} is at {settings.bootstrap_servers} is not known: {error}")


def offsets(
    settings: KafkaSettings,
    places: list[PartitionId],
    *,
    latest: bool,
    client: "AdminClient | None" = None,
    with_open: bool = False,
) -> dict[PartitionId, int]:
    """Return the first offset of each partition that is there or, with `latest`, the one after the last committed.

    `with_open` counts what lies in or behind a transaction that is still open, too. Raises `KafkaError`.
    """
    from confluent_kafka import IsolationLevel, TopicPartition

    spec = offset_spec(latest=latest)
    level = IsolationLevel.READ_UNCOMMITTED if with_open else IsolationLevel.READ_COMMITTED
    asked = {TopicPartition(*place): spec for place in places}
    client = admin(settings) if client is None else client  # the futures are never done once the client is gone

    def ask() -> dict[PartitionId, int]:
        answers = client.list_offsets(asked, isolation_level=level, request_timeout=settings.request_seconds)
        return {(each.topic, each.partition): answer.result().offset for each, answer in answers.items()}

    return retry(settings, "asking for offsets", ask)
