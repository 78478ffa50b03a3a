"""Risks for as long as somebody listens: results, tasks and dead letters, gathered, and handed to clients.

`LiveRisks` is a field of `Services`; `gateway.routes.risk` listens.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import Self

import anyio.to_thread

from vectorize_pipelines.gateway.risk.hub import RiskHub, RiskSubscription
from vectorize_pipelines.gateway.risk.letters import FailedTask, failed_task
from vectorize_pipelines.gateway.risk.pictures import Picture, PictureStore
from vectorize_pipelines.gateway.risk.topics import RecentMessages
from vectorize_pipelines.kafka.clients import require_servers
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage, RiskAssessmentResultMessage
from vectorize_pipelines.pipeline.assessments.gathering import GatheredDetection, Gathering
from vectorize_pipelines.settings import Settings

#: How long a client waits at most until the latest results are read. Without them it is served, too.
POSITION_SECONDS = 5.0
_POLL_SECONDS = 0.02
#: So long the topics are still read when nobody listens any more: a page that is loaded again finds everything.
LINGER_SECONDS = 60.0
#: Messages of each partition that are looked back at; a task has a picture in it, and so has its dead letter.
_RESULTS_BACK, _TASKS_BACK, _LETTERS_BACK = 1_000, 32, 32

SHUTTING_DOWN = "the server shuts down: connect again"


class RiskFeed:
    """The topics of one installation as they are read, and who listens. `close` ends it.

    Raises `KafkaNotConfiguredError`; whether the brokers answer is not waited for.
    """

    def __init__(self, settings: Settings) -> None:
        kafka, assessments = settings.kafka, settings.assessments
        require_servers(kafka)
        self.hub, self.pictures = RiskHub(), PictureStore()
        self._loop = asyncio.get_running_loop()
        self._gathering = Gathering(assessments.gather_seconds, assessments.deadline_seconds)
        self._timer: asyncio.TimerHandle | None = None
        self._results = RecentMessages(
            kafka,
            kafka.risk_results_topic,
            lambda message: RiskAssessmentResultMessage.from_json(message.value() or b""),
            self._take_results,
            back=_RESULTS_BACK,
        )
        self._tasks = RecentMessages(
            kafka,
            kafka.assessment_tasks_topic,
            lambda message: AssessmentTaskMessage.from_json(message.value() or b""),
            self._take_tasks,
            back=_TASKS_BACK,
        )
        self._letters = RecentMessages(
            kafka, kafka.assessment_dead_letter_topic, failed_task, self._take_letters, back=_LETTERS_BACK
        )
        for each in (self._results, self._tasks, self._letters):
            each.start()

    @property
    def is_receiving(self) -> bool:
        """Return whether results come, as far as is known."""
        return self._results.current.is_set() and self._results.problem is None

    async def position(self) -> None:
        """Return once the latest messages are read or, where that takes longer, after a while.

        Raises `KafkaError` where results cannot be read. Without tasks there is all but their pictures and times,
        without dead letters all but what could not be assessed.
        """
        others = (self._tasks, self._letters)
        with suppress(TimeoutError):
            async with asyncio.timeout(POSITION_SECONDS):
                while not (
                    self._results.current.is_set() and all(each.current.is_set() or each.problem for each in others)
                ):
                    if not self._results.current.is_set() and self._results.problem is not None:
                        raise self._results.problem
                    await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        """Stop reading."""
        if self._timer is not None:
            self._timer.cancel()
        for each in (self._results, self._tasks, self._letters):
            await anyio.to_thread.run_sync(each.close)

    def _take_results(self, results: Iterable[RiskAssessmentResultMessage]) -> None:
        now, looked_back = self._loop.time(), not self._results.current.is_set()
        for result in results:
            self._publish(self._gathering.add(result, now, looked_back=looked_back))
        self._set_timer()

    def _take_letters(self, failed: Iterable[FailedTask]) -> None:
        now, looked_back = self._loop.time(), not self._letters.current.is_set()
        for task, result in failed:
            self._gathering.expect(task, now)
            self._publish(self._gathering.add(result, now, looked_back=looked_back))
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
    """Opens a feed for the first who listens, and closes it a while after the last. An async context manager.

    `end` is for when the server stops, before that waits for its WebSockets.
    """

    def __init__(self, settings: Settings, linger_seconds: float = LINGER_SECONDS) -> None:
        self._settings = settings
        self._linger_seconds = linger_seconds
        self._feed: RiskFeed | None = None
        self._listeners = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self, cameras: Collection[str]) -> AsyncIterator[tuple[RiskFeed, RiskSubscription]]:
        """Listen to these cameras, to all where none is named: to the latest of each first. Raises `KafkaError`."""
        feed = self._opened()
        self._listeners += 1
        try:
            await feed.position()
            subscription = feed.hub.subscribe(cameras)
            try:
                yield feed, subscription
            finally:
                feed.hub.unsubscribe(subscription)
        finally:
            self._listeners -= 1
            if not self._listeners and self._feed is feed:
                self._timer = asyncio.get_running_loop().call_later(self._linger_seconds, self._close)

    @property
    def is_open(self) -> bool:
        """Return whether the topics are read at the moment."""
        return self._feed is not None

    def picture(self, task_id: str) -> Picture | None:
        """Return the picture of a task, as long as it is kept and somebody listens."""
        return None if self._feed is None else self._feed.pictures.get(task_id)

    def end(self) -> None:
        """End every stream; a second call does nothing."""
        if self._feed is not None:
            self._feed.hub.end(SHUTTING_DOWN)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()
        self._close()
        if self._closing:
            await asyncio.wait(self._closing)

    def _opened(self) -> RiskFeed:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._feed is None:
            self._feed = RiskFeed(self._settings)
        return self._feed

    def _close(self) -> None:
        self._timer = None
        feed, self._feed = self._feed, None
        if feed is not None:
            closing = asyncio.create_task(feed.close())
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
