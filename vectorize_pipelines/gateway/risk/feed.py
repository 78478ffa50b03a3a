"""Risks for as long as somebody listens: results and tasks from their topics, gathered, and handed to clients.

`LiveRisks` is a field of `Services`; `gateway.routes.risk` listens.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import anyio.to_thread

from vectorize_pipelines.gateway.risk.hub import RiskHub, RiskSubscription
from vectorize_pipelines.gateway.risk.pictures import Picture, PictureStore
from vectorize_pipelines.gateway.risk.topics import RecentMessages
from vectorize_pipelines.kafka.clients import require_servers
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage
from vectorize_pipelines.pipeline.assessments.gathering import GatheredDetection, Gathering
from vectorize_pipelines.settings import Settings

logger = logging.getLogger(__name__)

#: How long a client waits at most until the latest results are read. Without them it is served, too.
POSITION_SECONDS = 5.0
#: So long the topics are still read when nobody listens any more: a page that is loaded again finds everything.
LINGER_SECONDS = 60.0
#: Messages of each partition that are looked back at; a task has a picture in it.
_RESULTS_BACK, _TASKS_BACK = 1_000, 32

SHUTTING_DOWN = "the server shuts down: connect again"


class RiskFeed:
    """The topics of one installation as they are read, and who listens. `close` ends it.

    Raises `KafkaNotConfiguredError`; whether the brokers answer is not waited for.
    """

    def __init__(self, settings: Settings) -> None:
        kafka, assessments = settings.kafka, settings.assessments
        require_servers(kafka)
        self.hub, self.pictures = RiskHub(), PictureStore()
        #: Set once the latest results are read.
        self.current = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._gathering = Gathering(assessments.gather_seconds, assessments.deadline_seconds)
        self._timer: asyncio.TimerHandle | None = None
        self._results = RecentMessages(
            kafka,
            kafka.risk_results_topic,
            RiskAssessmentResultMessage,
            self._take_results,
            self.current.set,
            back=_RESULTS_BACK,
        )
        self._tasks = RecentMessages(
            kafka, kafka.assessment_tasks_topic, AssessmentTaskMessage, self._take_tasks, back=_TASKS_BACK
        )
        for each in (self._results, self._tasks):
            each.start()

    @property
    def is_receiving(self) -> bool:
        """Return whether results come, as far as is known."""
        return self.current.is_set() and self._results.problem is None

    async def position(self) -> None:
        """Return once the latest results are read or, where that takes longer, after a while. Raises `KafkaError`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(POSITION_SECONDS):
                await self.current.wait()
        if self._results.problem is not None:
            raise self._results.problem

    async def close(self) -> None:
        """Stop reading."""
        if self._timer is not None:
            self._timer.cancel()
        for each in (self._results, self._tasks):
            await anyio.to_thread.run_sync(each.close)

    def _take_results(self, results: Iterable[RiskAssessmentResultMessage]) -> None:
        now = self._loop.time()
        for result in results:
            self._publish(self._gathering.add(result, now))
        self._set_timer()

    def _take_tasks(self, tasks: Iterable[AssessmentTaskMessage]) -> None:
        now = self._loop.time()
        for task in tasks:
            self._gathering.expect(task, now)
            if task.group.group_image_base64:
                self.pictures.put(task.task_id, task.group.group_image_base64)
        self._set_timer()

    def _pass_time(self) -> None:
        self._timer = None
        self._publish(self._gathering.pass_time(self._loop.time()))
        self._set_timer()

    def _set_timer(self) -> None:
        due = self._gathering.next_due
        if self._timer is not None:
            if due is not None and self._timer.when() <= due:
                return
            self._timer.cancel()
        self._timer = None if due is None else self._loop.call_at(due, self._pass_time)

    def _publish(self, detections: Iterable[GatheredDetection]) -> None:
        for detection in detections:
            if self.hub.publish(detection):
                self.pictures.show(detection.camera_id, [group.task_id for group in detection.groups])


class LiveRisks:
    """Opens the feed for the first who listens, and closes it a while after the last. An async context manager."""

    def __init__(self, settings: Settings, linger_seconds: float = LINGER_SECONDS) -> None:
        self._settings = settings
        self._linger_seconds = linger_seconds
        self._feed: RiskFeed | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._closed: set[asyncio.Task[None]] = set()
        self._ended = False

    @asynccontextmanager
    async def listening(self, cameras: Collection[str]) -> AsyncIterator[tuple[RiskFeed, RiskSubscription]]:
        """Listen to these cameras, to all where none is named, from their latest detections on. Raises `KafkaError`."""
        ...
