"""A run over detections: read, chosen by the rule, and sent on as tasks, in one transaction with the offsets.

    MessageSource ──▶ decode ──▶ Rule ──tasks, dead letters, offsets──▶ one Kafka transaction

`task_runs` makes it. Killed anywhere, it has sent all of a transaction or nothing of it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Protocol, Self

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.sources import MessageSource, Polled
from vectorize_pipelines.kafka.transactions import OutgoingMessage
from vectorize_pipelines.pipeline.assessments.choosing import Choosing
from vectorize_pipelines.pipeline.assessments.task_figures import DayFigures
from vectorize_pipelines.pipeline.assessments.tasks import Detection, decode, tasks_of, time_of
from vectorize_pipelines.pipeline.progress import PROGRESS_INTERVAL_SECONDS
from vectorize_pipelines.pipeline.stop_policy import StopPolicy
from vectorize_pipelines.pipeline.totals import Failure
from vectorize_pipelines.settings import Settings

logger = logging.getLogger(__name__)

#: How often is looked whether the run is to end.
LOOK_SECONDS = 1.0
#: Messages are read in portions of so many: between two of them is looked how many bytes there are.
PORTION_MESSAGES = 16
#: A run that goes on for a day may meet any number; all of them are in the dead letters.
FAILURES_KEPT = 1000


#: A smaller task fits into any topic.
LARGE_BYTES = 512 * 2**10


class TaskTooLargeError(ItemError):
    """A task of a detection does not fit into its topic."""


class Sink(Protocol):
    """Where a run's messages go."""

    def send(self, messages: Sequence[OutgoingMessage], positions: Mapping[PartitionId, int]) -> None:
        """Send everything and commit the offsets, or nothing of it. Raises `KafkaError`."""

    def letter(self, message: ReceivedMessage, error: ItemError) -> Sequence[OutgoingMessage]:
        """Return what is to be sent of a message that is no detection."""


class TaskRun:
    """One run over detections. A context manager, which closes what it was given.

    days      figures by day, in UTC
    failures  the first messages that are no detections
    """

    def __init__(
        self,
        settings: Settings,
        source: MessageSource,
        sink: Sink,
        stop_policy: StopPolicy,
        partitions: Callable[[], Days],
        resources: ExitStack,
    ):
        """`partitions`: asked before messages are dealt with: a run may go on past midnight."""
        self._settings = settings.assessments
        self._tasks_topic = settings.kafka.assessment_tasks_topic
        self._source = source
        self._sink = sink
        self._stop_policy = stop_policy
        self._partitions = partitions
        self._resources = resources
        self._choosing = Choosing(settings)
        resources.callback(self._choosing.close)
        self._begun = time.monotonic()
        self._lag = 0
        self.days: dict[str, DayFigures] = {}
        self.failures: list[Failure] = []

    def run(self) -> None:
        """Deal with detections until the run is to end. Raises `KafkaError`; what was not sent is a later run's."""
        last_message = last_look = shown = time.monotonic()
        while True:
            polled = self._read()
            now = time.monotonic()
            if polled.messages:
                last_message = now
            if polled.messages or polled.positions:
                self._deal_with(polled)
            if now - last_look >= LOOK_SECONDS or not polled.messages:
                last_look = now
                self._lag = self._source.lag()
                at_end = self._stop_policy.reason_at_end(now - last_message) if self._source.at_end() else None
                why_ended = at_end or self._stop_policy.reason(self._begun)
                if why_ended:
                    break
                if now - shown >= PROGRESS_INTERVAL_SECONDS:
                    shown = now
                    logger.info("%s", self.progress())
        logger.info("%s; ended: %s", self.progress(), why_ended)

    def _read(self) -> Polled:
        """Read what is there, up to so many messages and, but for a portion, so many bytes as the settings say."""
        messages: list[ReceivedMessage] = []
        positions: dict[PartitionId, int] = {}
        size = 0
        while size < self._settings.batch_bytes and len(messages) < self._settings.batch_messages:
            most = min(PORTION_MESSAGES, self._settings.batch_messages - len(messages))
            polled = self._source.poll(most)
            messages += polled.messages
            positions.update(polled.positions)
            size += sum(len(message.value() or b"") for message in polled.messages)
            if len(polled.messages) < most:
                break
        return Polled(messages, positions)

    def _deal_with(self, polled: Polled) -> None:
        """Send the tasks of some messages; only then do they count."""
        days, figures, failures = self._partitions(), dict[str, DayFigures](), list[Failure]()
        outgoing: list[OutgoingMessage] = []
        detections: list[tuple[Detection, DayFigures]] = []
        for message in polled.messages:
            day = days.of(time_of(message))
            counted = figures.setdefault(day, DayFigures())
            counted.messages += 1
            try:
                detections.append((decode(message, self._settings), counted))
            except ItemError as error:
                counted.dead_letters += 1
                failures.append(Failure(_place_of(message), day, type(error).__name__, str(error)))
                outgoing += self._sink.letter(message, error)
        outgoing += self._tasks(detections)
        self._sink.send(outgoing, polled.positions)
        for day, counted in figures.items():
            self.days.setdefault(day, DayFigures()).add(counted)
        self.failures += failures[: FAILURES_KEPT - len(self.failures)]

    def _tasks(self, detections: Sequence[tuple[Detection, DayFigures]]) -> Iterator[OutgoingMessage]:
        choices = self._choosing.choose([detection for detection, _ in detections])
        for (detection, counted), choice in zip(detections, choices, strict=True):
            counted.tasks += len(choice.groups)
            counted.left_out += choice.left_out
            key = detection.content.camera_id.encode()
            for task in tasks_of(detection, choice.groups, self._settings.deadline_seconds):
                value = task.to_json()
                instead = None if len(value) < LARGE_BYTES else self._refusal(detection.message)
                yield OutgoingMessage(self._tasks_topic, key, value, shortened=instead)

    def _refusal(self, message: ReceivedMessage) -> OutgoingMessage | None:
        """Return the dead letter that goes out in the place of a task which does not fit into its topic."""
        error = TaskTooLargeError(f"a task of it is too large for {self._tasks_topic}: see its max.message.bytes")
        return next((letter.shortened for letter in self._sink.letter(message, error)), None)

    @property
    def total(self) -> DayFigures:
        """Return the figures of all days together."""
        total = DayFigures()
        for each in self.days.values():
            total.add(each)
        return total

    def figures(self) -> Mapping[str, int | float]:
        """Return figures of the run as a whole, beside those of its days."""
        seconds = max(time.monotonic() - self._begun, 1e-9)
        return {
            "messages_per_second": round(self.total.messages / seconds, 1),
            "lost_unread": sum(lost.messages for lost in self._source.lost),
            "lag": self._lag,
        }

    def losses(self) -> Sequence[str]:
        """Return the places of what the broker had deleted before it was read, for people."""
        return [str(lost) for lost in self._source.lost]

    def progress(self) -> str:
        """Describe how far the run is."""
        total, figures = self.total, self.figures()
        return (
            f"{total.messages} detections ({figures['messages_per_second']} a second), {total.tasks} tasks, "
            f"{total.left_out.total()} groups left out, {total.dead_letters} dead letters; about {figures['lag']} "
            "waiting"
        )

    def close(self) -> None:
        """Release everything; a second call does nothing."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _place_of(message: ReceivedMessage) -> str:
    return f"{message.topic()}/{message.partition()}/{message.offset()}"
