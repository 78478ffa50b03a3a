"""The topics: their names, making them as `config/kafka.yaml` says, and holding the cluster against it."""

import logging
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import KafkaError, SettingsError
from vectorize_pipelines.kafka.clients import admin, kafka_error, kafka_errors
from vectorize_pipelines.kafka.compat import broker_resource, new_topic, topic_resource
from vectorize_pipelines.kafka.config_file import TopicConfig, TopicConfigs, read_config
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

logger = logging.getLogger(__name__)

#: A request of a higher priority goes to the priority lane.
NORMAL_PRIORITY = 0
#: A broker's log.retention.hours, where nobody has changed it.
DEFAULT_RETENTION_MS = 7 * 24 * 3600 * 1000
#: The client's own message.max.bytes, where the configuration file has none.
CLIENT_MESSAGE_BYTES = 1_000_000
#: What a message takes beside its key and value, headers left out: both ends count the batch around it, too.
FRAME_BYTES = 1_000


class Family(StrEnum):
    """The topics that belong together: an installation may use one family and not have the other."""

    REQUESTS = "requests"
    ASSESSMENTS = "assessments"


@dataclass(frozen=True, slots=True)
class TopicNames:
    """The name of every topic of requests; those of assessments are settings."""

    prefix: str

    def requests(self, modality: Modality) -> str:
        """Requests of no particular priority."""
        return f"{self.prefix}.{modality.value}"

    def priority(self, modality: Modality) -> str:
        """Requests that are drained first."""
        return f"{self.requests(modality)}.priority"

    def lanes(self, modality: Modality) -> tuple[str, str]:
        """The priority lane and the normal one, in the order in which they are drained."""
        return self.priority(modality), self.requests(modality)

    def lane(self, modality: Modality, priority: int) -> str:
        """The topic for requests of this priority."""
        return self.priority(modality) if priority > NORMAL_PRIORITY else self.requests(modality)

    @property
    def results(self) -> str:
        """The topic of what became of each request."""
        return f"{self.prefix}.results"

    @property
    def control(self) -> str:
        """Cancellations."""
        return f"{self.prefix}.control"

    @property
    def dead_letter(self) -> str:
        """Messages that failed for a reason of their own."""
        return f"{self.prefix}.dead-letter"


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """One topic as it ought to be."""

    name: str
    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class TopicState:
    """One topic as it ought to be and as it is. `problems` says in words what differs, and is empty for `ok`."""

    name: str
    status: Literal["ok", "missing", "different"]
    partitions: int
    replication: int
    config: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def planned_topics(settings: KafkaSettings, families: Collection[Family] = tuple(Family)) -> list[TopicPlan]:
    """Every topic of the families as the configuration file wants it. Raises `SettingsError`."""
    topics = read_config(settings.config_file).topics
    wanted: list[tuple[str, TopicConfig]] = []
    if Family.REQUESTS in families:
        wanted += _topics_of_requests(settings, topics)
    if Family.ASSESSMENTS in families:
        wanted += _topics_of_assessments(settings, topics)
    return [_plan(name, config, topics.defaults) for name, config in wanted]


def _topics_of_requests(settings: KafkaSettings, topics: TopicConfigs) -> Iterator[tuple[str, TopicConfig]]:
    names = TopicNames(settings.topic_prefix)
    for modality in Modality:
        config: TopicConfig = getattr(topics, modality.value)
        yield from ((lane, config) for lane in names.lanes(modality))
    yield names.results, topics.results
    yield names.control, topics.control
    yield names.dead_letter, topics.dead_letter


def _topics_of_assessments(settings: KafkaSettings, topics: TopicConfigs) -> Iterator[tuple[str, TopicConfig]]:
    yield settings.detections_topic, topics.detections
    yield settings.assessment_tasks_topic, topics.assessment_tasks
    yield settings.risk_results_topic, topics.risk_results
    yield settings.assessment_dead_letter_topic, topics.assessment_dead_letter


def compression_of(settings: KafkaSettings, family: Family) -> dict[str, str]:
    """Return the property by which a producer compresses as the topics of a family do; none where they do not agree.

    Brokers would compress again whatever is compressed otherwise. Raises `SettingsError`.
    """
    codecs = {plan.config.get("compression.type") for plan in planned_topics(settings, (family,))} - {None, "producer"}
    codec = codecs.pop() if len(codecs) == 1 else None
    return {} if codec is None else {"compression.type": "none" if codec == "uncompressed" else codec}


def create_topics(settings: KafkaSettings, families: Collection[Family] = (Family.REQUESTS,)) -> list[str]:
    """Make the topics of the families that are missing and return their names; what is there is left as it is.

    Any number of processes may call it at once. Raises `KafkaError` naming the topics that could not be made.
    """
    from confluent_kafka import KafkaError as Code
    from confluent_kafka import KafkaException

    client, plans = admin(settings), planned_topics(settings, families)
    present = _partition_counts(settings, client)
    missing = [plan for plan in plans if plan.name not in present]
    if not missing:
        return []
    made = client.create_topics(
        [new_topic(plan.name, plan.partitions, plan.replication, plan.config) for plan in missing],
        operation_timeout=settings.request_seconds,
        request_timeout=settings.request_seconds,
    )
    created, failures = [], []
    for name, future in made.items():
        try:
            future.result()
            created.append(name)
        except KafkaException as error:
            if error.args[0].code() != Code.TOPIC_ALREADY_EXISTS:
                failures.append(str(kafka_error(settings, f"creating the topic {name}", error)))
    if created:
        logger.info("made the topics %s", ", ".join(created))
    if failures:
        raise KafkaError("; ".join(failures))
    _wait_until_seen(settings, client, missing)
    return created


def _wait_until_seen(settings: KafkaSettings, client: "AdminClient", plans: list[TopicPlan]) -> None:
    """Brokers learn of a new topic a moment after it was confirmed."""
    deadline = time.monotonic() + settings.request_seconds
    while not {plan.name for plan in plans} <= _partition_counts(settings, client).keys():
        if time.monotonic() > deadline:
            names = ", ".join(plan.name for plan in plans)
            raise KafkaError(f"{names}: made, but not seen by {settings.bootstrap_servers} within the time limit")
        time.sleep(0.05)


def describe_topics(settings: KafkaSettings) -> list[TopicState]:
    """Every topic as it is, held against the configuration file. Raises `KafkaError`, `SettingsError`."""
    client, plans = admin(settings), planned_topics(settings)
    present = _partition_counts(settings, client)
    resources = [topic_resource(plan.name) for plan in plans if plan.name in present]
    configs: dict[str, dict[str, str]] = {}
    if resources:
        with kafka_errors(settings, "describing the topics"):
            answers = client.describe_configs(resources, request_timeout=settings.request_seconds)
            for resource, future in answers.items():
                configs[resource.name] = {name: entry.value for name, entry in future.result().items()}
    return [_state(plan, present.get(plan.name), configs.get(plan.name, {})) for plan in plans]


def check_topics(settings: KafkaSettings) -> list[str]:
    """Return the topics' problems, in words; none where all is as it should be. Raises `KafkaError`.

    That the topics of assessments are missing, all of them, is none: an installation need not assess anything.
    """
    states = describe_topics(settings)
    optional = {plan.name for plan in planned_topics(settings, (Family.ASSESSMENTS,))}
    if all(state.status == "missing" for state in states if state.name in optional):
        states = [state for state in states if state.name not in optional]
    return [f"{state.name} {problem}" for state in states for problem in state.problems]


def check_offset_retention(settings: KafkaSettings) -> list[str]:
    """Return a warning where the cluster forgets offsets sooner than the messages go; an empty list where it does not.

    A group that has been idle for longer than the broker's `offsets.retention.minutes` begins anew: requests would be
    drained once more, dead letters offered once more. Raises `KafkaError`.
    """
    longest = max(int(plan.config.get("retention.ms", DEFAULT_RETENTION_MS)) for plan in planned_topics(settings))
    client = admin(settings)
    with kafka_errors(settings, "describing a broker", client):
        broker = min(client.list_topics(timeout=settings.request_seconds).brokers)
        resource = broker_resource(broker)
        answer = client.describe_configs([resource], request_timeout=settings.request_seconds)[resource].result()
    minutes = int(answer["offsets.retention.minutes"].value)
    if minutes * 60_000 >= longest:
        return []
    return [
        f"the brokers forget the offsets of a group that is idle for {minutes} minutes (offsets.retention.minutes), "
        f"and keep messages for {longest // 60_000}: set it to at least that, or an idle group takes messages once more"
    ]


def oldest_kept(settings: KafkaSettings, topic: str) -> int:
    """Messages of an earlier time than this, in milliseconds since 1970, may be deleted at once.

    Raises `KafkaError`.
    """
    config = _config_of(settings, topic)
    retention = int(config["retention.ms"].value)
    deletes = "delete" in config["cleanup.policy"].value
    return time.time_ns() // 1_000_000 - retention if deletes and retention >= 0 else 0


def largest_message(settings: KafkaSettings, topic: str) -> int:
    """Return how many bytes of key and value the topic and this client take, where nothing can be compressed.

    Raises `KafkaError`, and `SettingsError` for the configuration file of Kafka.
    """
    of_topic = int(_config_of(settings, topic)["max.message.bytes"].value)
    of_client = int(read_config(settings.config_file).producer.get("message.max.bytes", CLIENT_MESSAGE_BYTES))
    return min(of_topic, of_client) - FRAME_BYTES


def _config_of(settings: KafkaSettings, topic: str) -> Any:
    resource, client = topic_resource(topic), admin(settings)
    with kafka_errors(settings, f"describing the topic {topic}"):
        return client.describe_configs([resource], request_timeout=settings.request_seconds)[resource].result()


def has_topic(settings: KafkaSettings, topic: str) -> bool:
    """Return whether the cluster shows this user the topic. Raises `KafkaError`."""
    return topic in _partition_counts(settings, admin(settings))


def _partition_counts(settings: KafkaSettings, client: "AdminClient") -> dict[str, tuple[int, int]]:
    """Partitions and replicas of every topic of the cluster."""
    with kafka_errors(settings, "listing the topics", client):
        topics = client.list_topics(timeout=settings.request_seconds).topics
    return {
        name: (len(topic.partitions), min((len(each.replicas) for each in topic.partitions.values()), default=0))
        for name, topic in topics.items()
        if topic.error is None
    }


def _plan(name: str, config: TopicConfig, defaults: TopicConfig) -> TopicPlan:
    merged = {**defaults.config, **config.config}
    partitions, replication = config.partitions or defaults.partitions, config.replication or defaults.replication
    if partitions is None or replication is None:
        raise SettingsError(
            f"kafka.config_file says neither for {name} nor in defaults how many partitions and replicas"
        )
    return TopicPlan(name, partitions, replication, {key: _value(value) for key, value in merged.items()})


def _value(value: str | int | float | bool) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _state(plan: TopicPlan, present: tuple[int, int] | None, config: Mapping[str, str]) -> TopicState:
    if present is None:
        problem = "is missing; `vectorize topics create` makes it"
        return TopicState(plan.name, "missing", 0, 0, problems=(problem,))
    problems = tuple(_differences(plan, *present, config))
    actual = {name: config.get(name, "") for name in plan.config}
    return TopicState(plan.name, "different" if problems else "ok", *present, actual, problems)


def _differences(plan: TopicPlan, partitions: int, replication: int, config: Mapping[str, str]) -> Iterator[str]:
    if partitions != plan.partitions:
        yield f"has {partitions} partitions, the configuration says {plan.partitions}"
    if replication != plan.replication:
        yield f"has {replication} replicas, the configuration says {plan.replication}"
    for name, wanted in plan.config.items():
        if config.get(name) != wanted:
            yield f"has {name}={config.get(name)}, the configuration says {wanted}"
