"""`VectorizeClient`: submit requests, wait for them, ask for their status, cancel them."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

from pydantic import ValidationError

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import KafkaError, SettingsError
from vectorize_pipelines.kafka import clients
from vectorize_pipelines.kafka.partitions import partitions_of
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging import cancellations
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import TaskType
from vectorize_pipelines.messaging.outgoing import OutgoingRequest, prepare
from vectorize_pipelines.messaging.results import ResultWaiter, latest_events
from vectorize_pipelines.settings import KafkaSettings

if TYPE_CHECKING:
    from confluent_kafka import Producer


class VectorizeClient:
    """Requests by Kafka. A context manager; not for several threads at once.

        with VectorizeClient("localhost:9092") as client:
            task_id = client.submit("a text", collection="notes")
            print(client.wait(task_id, timeout=60).status)

    `settings` are those of the section `kafka` (`security_protocol`, `sasl_username`, …). A request is checked before
    it is sent, and `submit` returns when the brokers have confirmed it. What is submitted is remembered until it has
    been waited for; a client that never waits gives `track=False`.
    """

    def __init__(
        self, bootstrap_servers: str, topic_prefix: str = "vectorize", *, track: bool = True, **settings: Any
    ) -> None:
        """Connect to nothing yet. Raises `SettingsError`."""
        try:
            kafka = KafkaSettings(bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, **settings)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False)
            raise SettingsError("; ".join(f"{'.'.join(map(str, p['loc']))} {p['msg']}" for p in problems)) from None
        self._open(kafka, track)

    @classmethod
    def from_settings(cls, settings: KafkaSettings, *, track: bool = True) -> Self:
        """A client of the cluster that the settings name. Raises `KafkaNotConfiguredError`."""
        client = cls.__new__(cls)
        client._open(settings, track)
        return client

    def _open(self, settings: KafkaSettings, track: bool) -> None:
        self._settings = settings
        self._names = TopicNames(settings.topic_prefix)
        self._results = ResultWaiter(settings)
        self._track = track
        self._known_topics: set[str] = set()
        self._producer: Producer = clients.producer(settings)

    def submit(
        self,
        data: str | Sequence[Any] | Mapping[str, Any],
        *,
        task_type: str | None = None,
        modality: Modality | None = None,
        **fields: Any,
    ) -> str:
        """Submit one request and return its `task_id`.

        data       a text; a list of texts, which is a batch; or a whole request with `task_type` and `data`
        task_type  `image_vectorization`, … where `data` is no text
        modality   whose topic a batch goes to; without it, that of its entries' task types, or that of texts
        fields     `task_id`, `collection`, `model_name`, `priority`, `batch_size`, `metadata`, `callback_url`,
                   `chunk`

        Raises `InvalidMessageError` before anything is sent, and `KafkaError` where the brokers do not confirm it.
        """
        return self.submit_many([_request(data, task_type, fields)], modality=modality)[0]

    def submit_many(
        self, requests: Iterable[str | Sequence[Any] | Mapping[str, Any]], *, modality: Modality | None = None
    ) -> list[str]:
        """Submit any number of requests, each as `submit` takes its `data`, and return their ids in this order.

        All are checked before the first is sent. Raises as `submit` does.
        """
        return self._send([self._prepare(_request(data, None, {}), modality) for data in requests])

    @overload
    def wait(self, task_ids: str, timeout: float = 60.0) -> ResultEvent: ...  # type: ignore[overload-overlap]
    @overload
    def wait(self, task_ids: Sequence[str], timeout: float = 60.0) -> dict[str, ResultEvent]: ...
    def wait(self, task_ids: str | Sequence[str], timeout: float = 60.0) -> ResultEvent | dict[str, ResultEvent]:
        """The final event of each request: for one id its event, for several a dict of those that came in time.

        For a request that this client submitted, events after that count; for another, the newest that the results
        topic has, which is read from its beginning. Raises `TimeoutError` for a single id, and `KafkaError`.
        """
        wanted = [task_ids] if isinstance(task_ids, str) else list(task_ids)
        deadline = time.monotonic() + timeout
        own = [task_id for task_id in wanted if self._results.is_expected(task_id)]
        events = self._results.wait(own, timeout) if own else {}
        others = set(wanted) - set(own)
        if others:
            left = max(0.0, deadline - time.monotonic())
            events |= latest_events(self._settings, others, final=True, timeout=left)
        if not isinstance(task_ids, str):
            return events
        if task_ids not in events:
            raise TimeoutError(f"no final event of {task_ids} within {timeout:g} seconds")
        return events[task_ids]

    def status(self, task_id: str) -> ResultEvent | None:
        """The newest event of a request, or None where the results topic has none. Reads that topic from its beginning.

        Raises `KafkaError`.
        """
        return latest_events(self._settings, [task_id]).get(task_id)

    def cancel(self, task_id: str) -> None:
        """Cancel what was submitted under this id up to now, as far as it has not been done. Raises `KafkaError`."""
        self._check_topic(self._names.control)
        failures: list[Any] = []
        with clients.kafka_errors(self._settings, "cancelling"):
            cancellations.cancel(self._producer, self._names, task_id, on_delivery=_keep_errors(failures))
        self._flush(1, failures)

    def close(self) -> None:
        """Let go of the connections."""
        self._results.close()
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _prepare(self, request: Mapping[str, Any], modality: Modality | None) -> OutgoingRequest:
        # In Python an id may be given as any value, and an empty one is none.
        task_id = request.get("task_id")
        return prepare(self._settings, {**request, "task_id": str(task_id) if task_id else None}, modality)

    def _send(self, requests: list[OutgoingRequest]) -> list[str]:
        for topic in {each.topic for each in requests}:
            self._check_topic(topic)
        task_ids = [each.request.task_id for each in requests]
        if self._track and requests:
            self._results.expect(task_ids)
        failures: list[Any] = []
        delivered = _keep_errors(failures)
        with clients.kafka_errors(self._settings, "sending"):
            for each in requests:
                clients.produce(self._producer, each.topic, key=each.key, value=each.value, on_delivery=delivered)
                self._producer.poll(0)
        self._flush(len(requests), failures)
        return task_ids

    def _flush(self, sent: int, failures: list[Any]) -> None:
        # A little longer than a delivery may take, so that its own error is what is reported.
        unconfirmed = self._producer.flush(self._settings.request_seconds + 5) + len(failures)
        if failures:
            reason = clients.kafka_error(self._settings, "sending", failures[0])
            raise KafkaError(f"{unconfirmed} of {sent} messages were not confirmed: {reason}")
        if unconfirmed:
            raise KafkaError(
                f"{unconfirmed} of {sent} messages were not confirmed by {self._settings.bootstrap_servers}"
            )

    def _check_topic(self, topic: str) -> None:
        """A missing topic is said at once; the producer would try until its time limit."""
        if topic not in self._known_topics:
            partitions_of(self._settings, [topic], self._producer)
            self._known_topics.add(topic)


def _keep_errors(failures: list[Any]) -> Callable[[Any, Any], None]:
    def delivered(error: Any, message: Any) -> None:
        if error is not None:
            failures.append(error)

    return delivered


def _request(data: Any, task_type: str | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(data, Mapping) and "task_type" in data and task_type is None:
        return {**data, **fields}
    kind = task_type or (TaskType.TEXT if isinstance(data, str) else TaskType.BATCH)
    if isinstance(data, Mapping) and task_type is None:
        kind = TaskType.DOCUMENT
    return {"task_type": str(kind), "data": data, **fields}
