"""Runs over detections, opened: draining the topic, replaying days. Called by the asset `assessment_tasks`."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, date, datetime
from functools import partial

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.kafka.followed import DETECTIONS, followed_topic
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.sources import DrainSource, ReplaySource
from vectorize_pipelines.kafka.topics import Family, compression_of, create_topics, largest_message
from vectorize_pipelines.kafka.transactions import OutgoingMessage, TransactionalProducer
from vectorize_pipelines.messaging.dead_letters import DeadLetter
from vectorize_pipelines.messaging.messages import origin_of
from vectorize_pipelines.pipeline.assessments.choosing import Choosing
from vectorize_pipelines.pipeline.assessments.drain_request import DrainRequest
from vectorize_pipelines.pipeline.assessments.task_batches import TaskBatches
from vectorize_pipelines.pipeline.assessments.task_run import TaskRun
from vectorize_pipelines.pipeline.stop_policy import AT_THE_END
from vectorize_pipelines.settings import KafkaSettings, Settings
from vectorize_pipelines.state.cameras import Cameras

#: In which stage a message failed, as its dead letter says it.
DECODING = "decode"


def open_task_drain(settings: Settings, request: DrainRequest) -> TaskRun:
    """Return the run over what lies behind the committed offsets of a shard, and what arrives while it goes on.

    It fences an earlier run of the same shard. Raises `KafkaError` and `LedgerError`, and `SettingsError` where Kafka
    is not configured.
    """
    kafka = settings.kafka
    # Says soon that nobody answers: a transaction would be waited for until an outage is over.
    create_topics(kafka, (Family.ASSESSMENTS,))
    with ExitStack() as resources:
        # First of all: what the earlier run left open has to be settled before its offsets are read.
        producer = _producer(kafka, str(request.shard), resources)
        source = DrainSource(kafka, followed_topic(kafka, DETECTIONS), request.shard)
        resources.callback(source.close)
        outbox = _Outbox(producer, source.group_metadata(), kafka.assessment_dead_letter_topic, request.run_id)
        policy = request.stop_policy(kafka.drain)
        choosing = _choosing(settings, resources)
        largest = largest_message(kafka, kafka.assessment_tasks_topic)
        batches = TaskBatches(settings, source, choosing, outbox.letter, policy, partial(_days, settings), largest)
        note_seen = _cameras(settings, resources).note
        return TaskRun(batches, outbox.send, note_seen, lambda: source.lost, resources.pop_all())


def open_task_replay(settings: Settings, run_id: str, window: tuple[date, date]) -> TaskRun:
    """Return the run over the detections whose time lies in the days, first and last included.

    It makes the same tasks again, with deadlines that count from now; commits no offset and writes no dead letter.
    Raises as `open_task_drain`.
    """
    kafka = settings.kafka
    create_topics(kafka, (Family.ASSESSMENTS,))
    with ExitStack() as resources:
        producer = _producer(kafka, f"replay.{run_id}", resources)
        source = ReplaySource(kafka, followed_topic(kafka, DETECTIONS), window, settings.partitions.start)
        resources.callback(source.close)
        at_its_start = _days(settings)  # what lies in the future belongs to the window's last day, also after midnight
        choosing = _choosing(settings, resources)
        largest = largest_message(kafka, kafka.assessment_tasks_topic)
        batches = TaskBatches(
            settings, source, choosing, _no_letter, AT_THE_END, lambda: at_its_start, largest, is_replay=True
        )
        note_seen = _cameras(settings, resources).note
        return TaskRun(batches, partial(_send_again, producer), note_seen, lambda: source.lost, resources.pop_all())


class _Outbox:
    """Where a drain run's messages go: tasks and dead letters, with the offsets of what they come from."""

    def __init__(self, producer: TransactionalProducer, group_metadata: object, dead_letters: str, run_id: str):
        self._producer = producer
        self._group_metadata = group_metadata
        self._dead_letters = dead_letters
        self._run_id = run_id

    def send(self, messages: Sequence[OutgoingMessage], positions: Mapping[PartitionId, int]) -> None:
        """Send everything and commit the offsets, or nothing of it. Raises `KafkaError`."""
        self._producer.send(messages, positions, self._group_metadata)

    def letter(self, message: ReceivedMessage, error: ItemError) -> OutgoingMessage:
        """Return the dead letter of a message that is no detection."""
        place = origin_of(message)
        letter = DeadLetter.of(place, message.key(), message.value(), message.headers(), error, DECODING, self._run_id)
        return letter.to_message(self._dead_letters)


def _send_again(
    producer: TransactionalProducer, messages: Sequence[OutgoingMessage], positions: Mapping[PartitionId, int]
) -> None:
    """Send the tasks of a replay, which commits no offset."""
    if messages:
        producer.send(messages, {}, None)


def _no_letter(message: ReceivedMessage, error: ItemError) -> None:
    """A replay answers nobody: the letter of what it cannot read was written when that was drained."""


def _choosing(settings: Settings, resources: ExitStack) -> Choosing:
    choosing = Choosing(settings)
    resources.callback(choosing.close)
    return choosing


def _cameras(settings: Settings, resources: ExitStack) -> Cameras:
    cameras = Cameras.open(settings)
    resources.callback(cameras.close)
    return cameras


def _producer(kafka: KafkaSettings, name: str, resources: ExitStack) -> TransactionalProducer:
    producer = TransactionalProducer(kafka, f"{DETECTIONS}.{name}", **compression_of(kafka, Family.ASSESSMENTS))
    resources.callback(producer.close)
    return producer


def _days(settings: Settings) -> Days:
    return Days(settings.partitions.start, datetime.now(UTC).date())
