"""Detections, read and made into what is to be sent of them: some messages at a time."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vectorize_pipelines.core.days import Days
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.kafka.partitions import PartitionId
from vectorize_pipelines.kafka.received import ReceivedMessage
from vectorize_pipelines.kafka.sources import MessageSource, Polled
from vectorize_pipelines.kafka.transactions import OutgoingMessage
from vectorize_pipelines.messaging.detections import TrafficGroup
from vectorize_pipelines.pipeline.assessments.choosing import Choosing
from vectorize_pipelines.pipeline.assessments.rule import Choice
from vectorize_pipelines.pipeline.assessments.task_figures import DayFigures
from vectorize_pipelines.pipeline.assessments.tasks import Detection, decode, tasks_of, time_of
from vectorize_pipelines.pipeline.stop_policy import StopPolicy
from vectorize_pipelines.pipeline.totals import Failure
from vectorize_pipelines.settings import Settings

#: How often is looked whether the run is to end.
LOOK_SECONDS = 1.0
#: Messages are read in portions of so many: between two of them is looked how many bytes there are.
PORTION_MESSAGES = 16


class TaskTooLargeError(ItemError):
    """A task of a detection does not fit into its topic."""


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """What is sent of some consecutive detections, and where reading stands after them.

    days  figures by day, in UTC
    seen  camera -> when its latest detection was sent, whether or not anything becomes of that
    """

    messages: Sequence[OutgoingMessage]
    positions: Mapping[PartitionId, int]
    days: Mapping[str, DayFigures]
    failures: Sequence[Failure]
    seen: Mapping[str, datetime]


class TaskBatches:
    """The batches of one run. Used by one thread, but for its figures.

    letter        returns what is sent of a message that is no detection, if anything
    partitions    asked for each batch: a run may go on past midnight
    largest_task  bytes of key and value that the topic of tasks takes
    is_replay     deadlines count from when tasks are made, not from their pictures
    lag           about how many messages are left
    why_ended     empty until the run is to end
    """

    def __init__(
        self,
        settings: Settings,
        source: MessageSource,
        choosing: Choosing,
        letter: Callable[[ReceivedMessage, ItemError], OutgoingMessage | None],
        stop_policy: StopPolicy,
        partitions: Callable[[], Days],
        largest_task: int,
        *,
        is_replay: bool = False,
    ):
        self._settings = settings.assessments
        self._tasks_topic = settings.kafka.assessment_tasks_topic
        self._source = source
        self._choosing = choosing
        self._letter = letter
        self._stop_policy = stop_policy
        self._partitions = partitions
        self._largest_task = largest_task
        self._is_replay = is_replay
        self.lag = 0
        self.why_ended = ""

    def read(self) -> Generator[TaskBatch, None, None]:
        """Yield batches until the run is to end. Raises `KafkaError`."""
        begun = last_message = last_look = time.monotonic()
        while not self.why_ended:
            polled = self._poll()
            now = time.monotonic()
            if polled.messages:
                last_message = now
            if polled.messages or polled.positions:
                yield self._batch(polled)
            if now - last_look >= LOOK_SECONDS or not polled.messages:
                last_look = now
                self.lag = self._source.lag()
                at_end = self._stop_policy.reason_at_end(now - last_message) if self._source.at_end() else None
                self.why_ended = at_end or self._stop_policy.reason(begun) or ""

    def _poll(self) -> Polled:
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

    def _batch(self, polled: Polled) -> TaskBatch:
        partitions, days, failures = self._partitions(), dict[str, DayFigures](), list[Failure]()
        outgoing: list[OutgoingMessage] = []
        detections: list[tuple[Detection, DayFigures]] = []
        for message in polled.messages:
            day = partitions.of(time_of(message))
            figures = days.setdefault(day, DayFigures())
            figures.messages += 1
            try:
                detections.append((decode(message, self._settings), figures))
            except ItemError as error:
                figures.dead_letters += 1
                failures.append(Failure(_place_of(message), day, type(error).__name__, str(error)))
                letter = self._letter(message, error)
                outgoing += [] if letter is None else [letter]
        for detection, figures, choice in self._chosen(detections):
            tasks, refused = self._tasks(detection, choice.groups)
            outgoing += tasks
            figures.tasks += len(tasks)
            figures.left_out += choice.left_out
            if refused is not None:
                figures.dead_letters += 1
                day = partitions.of(detection.sent_at)
                failures.append(Failure(_place_of(detection.message), day, type(refused).__name__, str(refused)))
                letter = self._letter(detection.message, refused)
                outgoing += [] if letter is None else [letter]
        return TaskBatch(outgoing, polled.positions, days, failures, _seen(detection for detection, _ in detections))

    def _chosen(
        self, detections: Sequence[tuple[Detection, DayFigures]]
    ) -> Iterator[tuple[Detection, DayFigures, Choice]]:
        choices = self._choosing.choose([detection for detection, _ in detections])
        for (detection, figures), choice in zip(detections, choices, strict=True):
            yield detection, figures, choice

    def _tasks(
        self, detection: Detection, groups: Sequence[TrafficGroup]
    ) -> tuple[list[OutgoingMessage], TaskTooLargeError | None]:
        """Return the tasks of a detection's groups, and why some of them are missing, if any are."""
        key = detection.content.camera_id.encode()
        since = datetime.now(UTC) if self._is_replay else detection.seen_at
        deadline = since + timedelta(seconds=self._settings.deadline_seconds)
        most = self._largest_task - len(key)
        values = [task.to_json() for task in tasks_of(detection, groups, deadline)]
        fitting = [group for group, value in zip(groups, values, strict=True) if len(value) <= most]
        refused = None
        if len(fitting) < len(groups):
            # Made again: the others say how many there are.
            values = [task.to_json() for task in tasks_of(detection, fitting, deadline)]
            refused = TaskTooLargeError(
                f"{len(groups) - len(fitting)} of {len(groups)} tasks of it are too large for {self._tasks_topic}, "
                f"which takes {most:,} bytes: see its max.message.bytes"
            )
        # Its row then has the detection's day. A topic may refuse what lies in the future.
        timestamp_ms = round(min(detection.sent_at, datetime.now(UTC)).timestamp() * 1000)
        return [OutgoingMessage(self._tasks_topic, key, each, timestamp_ms=timestamp_ms) for each in values], refused


def _seen(detections: Iterable[Detection]) -> dict[str, datetime]:
    seen: dict[str, datetime] = {}
    now = datetime.now(UTC)  # a clock that is ahead does not hide for longer that its camera is silent
    for each in detections:
        camera_id, at = each.content.camera_id, min(each.sent_at, now)
        seen[camera_id] = max(at, seen.get(camera_id, at))
    return seen


def _place_of(message: ReceivedMessage) -> str:
    return f"{message.topic()}/{message.partition()}/{message.offset()}"
