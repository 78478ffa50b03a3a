"""Waiting for what becomes of requests, from the results topic."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

from vectorize_pipelines.kafka.partitions import offsets, partitions_of
from vectorize_pipelines.kafka.reading import TopicReader
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.settings import KafkaSettings

log = logging.getLogger(__name__)

_SLICE_SECONDS = 0.1


class ResultWaiter:
    """Final events of requests that are expected: `expect` before they are sent, `wait` afterwards.

    It remembers an event only for what is expected, until somebody has waited for it. Nothing is read before the first
    `wait`. Not for several threads at once.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._topic = TopicNames(settings.topic_prefix).results
        self._starts: dict[int, int] | None = None
        self._reader: TopicReader | None = None
        self._expected: dict[str, ResultEvent | None] = {}

    def expect(self, task_ids: Iterable[str]) -> None:
        """Count events of these from now on; older ones do not count. Raises `KafkaError`."""
        if self._starts is None:
            places = partitions_of(self._settings, [self._topic])
            ends = offsets(self._settings, places, latest=True)
            self._starts = {partition: end for (_, partition), end in ends.items()}
        self._expected.update(dict.fromkeys(task_ids))

    def is_expected(self, task_id: str) -> bool:
        """Return whether `expect` was called for it, and nobody has been given its event."""
        return task_id in self._expected

    def wait(self, task_ids: Iterable[str], timeout: float) -> dict[str, ResultEvent]:
        """Return the final events of expected requests that have come within `timeout` seconds, by their ids.

        Raises `KafkaError`.
        """
        wanted = [task_id for task_id in dict.fromkeys(task_ids) if task_id in self._expected]
        waiting = {task_id for task_id in wanted if self._expected[task_id] is None}
        deadline = time.monotonic() + timeout
        if self._reader is None and waiting:
            self._reader = TopicReader(self._settings, self._topic, self._starts)
        while waiting and self._reader is not None:
            left = deadline - time.monotonic()
            for event in _events(self._reader.available(max(0.0, min(left, _SLICE_SECONDS)))):
                if event.task_id in self._expected and event.status.is_final:
                    self._expected[event.task_id] = event
                    waiting.discard(event.task_id)
            if left <= 0:
                break
        found: dict[str, ResultEvent] = {}
        for task_id in wanted:
            final = self._expected[task_id]
            if final is not None:
                found[task_id] = final
                del self._expected[task_id]
        return found

    def close(self) -> None:
        """Let go of the connections."""
        if self._reader is not None:
            self._reader.close()


def latest_events(
    settings: KafkaSettings, task_ids: Iterable[str], *, final: bool = False, timeout: float = 0.0
) -> dict[str, ResultEvent]:
    """Return the newest event of each request that the topic still has, or of the final ones the newest.

    Reads the whole topic. With a timeout, it then goes on for so many seconds until each has one. Raises `KafkaError`.
    """
    wanted, latest = set(task_ids), dict[str, ResultEvent]()
    deadline = time.monotonic() + timeout

    def take(messages: Iterable[Any]) -> None:
        for event in _events(messages):
            if event.task_id in wanted and (event.status.is_final or not final):
                latest[event.task_id] = event

    with TopicReader(settings, TopicNames(settings.topic_prefix).results) as reader:
        take(reader.to_end())
        while wanted - latest.keys() and (left := deadline - time.monotonic()) > 0:
            take(reader.available(min(left, _SLICE_SECONDS)))
    return latest


def _events(messages: Iterable[Any]) -> Iterator[ResultEvent]:
    for message in messages:
        try:
            yield ResultEvent.from_json(message.value() or b"")
        except ValueError as error:
            log.warning("a message of the results topic is passed over: %s", error)
