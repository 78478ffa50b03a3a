"""Taking requests in: into their topics, or without Kafka into runs of their own, and into the ledger as pending.

Called by the routes of `routes.tasks`. A request is accepted once the brokers have confirmed its message, or Dagster
its run; it is answered once it stands in the ledger, too. Killed at any moment, the server has answered nothing that
is not in the topic.

    messaging.outgoing.prepare ─▶ LoopProducer ─▶ brokers ─▶ PendingNotes, all that wait in one transaction ─▶ answer
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, TypeVar

from anyio import CapacityLimiter, to_thread

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.errors import KafkaNotConfiguredError
from vectorize_pipelines.gateway.dagster.client import DagsterClient
from vectorize_pipelines.gateway.problems import FieldProblem, Problem, invalid_fields
from vectorize_pipelines.gateway.tasks.estimates import Estimates
from vectorize_pipelines.gateway.tasks.launching import MOST_RUNS, RequestRuns
from vectorize_pipelines.gateway.tasks.noting import PendingNotes, pending_row
from vectorize_pipelines.gateway.tasks.producing import Delivery, LoopProducer
from vectorize_pipelines.gateway.tasks.refusals import NotAccepted, refusal
from vectorize_pipelines.kafka import clients
from vectorize_pipelines.kafka.config_file import read_config
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging.cancellations import cancellation
from vectorize_pipelines.messaging.messages import Origin, TaskType
from vectorize_pipelines.messaging.outgoing import OutgoingRequest
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow

#: Requests, and bytes of them, that wait for the brokers and the ledger; with more, a caller is told to come later.
MOST_WAITING = 20_000
MOST_WAITING_BYTES = 256 * 2**20
Told = TypeVar("Told")

#: What librdkafka takes where nothing is configured, and about what a message has beside key and value.
_MAX_MESSAGE_BYTES = 1_000_000
_FRAME_BYTES = 64


@dataclass(slots=True, eq=False)
class _Call:
    """The requests of one call on their way. `done`: the outcome of each is known, and those accepted are noted."""

    requests: Sequence[OutgoingRequest]
    done: "asyncio.Future[None]"
    size: int
    outcomes: list[RequestRow | Any] = field(default_factory=list)


class Submissions:
    """Everything that takes requests in. An async context manager; its methods are called on one event loop."""

    def __init__(
        self,
        settings: Settings,
        ledger: RequestLedger,
        dagster: DagsterClient,
        seconds_behind_all: Callable[[Modality, TaskType], Awaitable[float | None]],
    ):
        """`seconds_behind_all` is how long a new request takes, see `Estimates`."""
        self._settings = settings
        self._seconds_behind_all = seconds_behind_all
        self._ledger = ledger
        self._names = TopicNames(settings.kafka.topic_prefix)
        self._runs = RequestRuns(dagster)
        self._producer: LoopProducer | None = None
        self._max_message_bytes = _MAX_MESSAGE_BYTES
        self._replaced: set[asyncio.Task[None]] = set()
        self._notes: PendingNotes
        self.estimates: Estimates
        self._waiting = self._waiting_bytes = 0
        #: One large body at a time is taken apart, in a thread: it takes many times its size, and two would take turns.
        self.parsing = CapacityLimiter(1)

    async def __aenter__(self) -> Self:
        """Ask nothing of brokers or Dagster yet. Raises `SettingsError` where the Kafka client refuses the settings."""
        if self._settings.kafka.bootstrap_servers is not None:
            self._producer = self._new_producer()
        self._notes = PendingNotes(self._ledger)
        self.estimates = Estimates(self._seconds_behind_all)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Bring what is under way to its end: confirmed or given up, and noted."""
        if self._producer is not None:
            await self._producer.close()
        if self._replaced:
            await asyncio.wait(self._replaced)
        await self._notes.close()
        await self.estimates.close()

    async def submit(self, requests: Sequence[OutgoingRequest]) -> list[RequestRow]:
        """Accept requests, all of them, and return their rows in this order.

        Raises `Problem` where that is not so, which says what is certain of each; `KafkaError` and `LedgerError` before
        anything was sent.
        """
        self._notes.check()
        if self._producer is None:
            outcomes = await self._launch(requests)
        else:
            outcomes = await self._send(self._producer, requests)
        rows = [each for each in outcomes if isinstance(each, RequestRow)]
        if len(rows) < len(outcomes):
            raise refusal([each.request.task_id for each in requests], outcomes)
        return rows

    async def cancel(self, row: RequestRow) -> str:
        """Cancel a request, and return `cancelled`, or `cancelling` where it will be as far as it has not been done.

        Raises `Problem` where it is too late, `KafkaError` and `DagsterUnavailableError`.
        """
        if not row.topic and row.run_id is not None:
            told = await self._runs.terminate(row.request_id, row.run_id)
            if told == RequestState.CANCELLED.value and row.started_at is None:
                # A run that was still queued notes nothing, and the sensor for it may have no daemon to run in.
                await self._noted([replace(row, state=RequestState.CANCELLED, finished_at=datetime.now(UTC))])
            return told
        producer = self._producer
        if producer is None:
            raise KafkaNotConfiguredError(
                f"request {row.request_id!r} came by Kafka, and no cluster is configured any more: "
                "VECTORIZE_KAFKA__BOOTSTRAP_SERVERS names it"
            )
        await producer.check_topics([self._names.control])
        key, value = cancellation(row.request_id, row.timestamp_ms)
        delivered: asyncio.Future[Sequence[Delivery]] = asyncio.get_running_loop().create_future()
        producer.produce([(self._names.control, key, value)], partial(_resolve, delivered))
        (delivery,) = await delivered
        if delivery.error is not None:
            self._failed(producer, delivery.error)
            raise clients.kafka_error(self._settings.kafka, "cancelling", delivery.error)
        # Whoever drains notes it, once it has found that there is something left to cancel.
        return "cancelling"

    async def find(self, task_id: str) -> RequestRow | None:
        """Return what is known of a request, also of one that is accepted and that the ledger does not have yet.

        Raises `LedgerError`.
        """
        return self._notes.find(task_id) or await to_thread.run_sync(self._ledger.get, task_id)

    async def _launch(self, requests: Sequence[OutgoingRequest]) -> Sequence[RequestRow | NotAccepted]:
        if len(requests) > MOST_RUNS:
            problem = (
                f"has {len(requests):,} entries, and without Kafka each becomes a run of its own: send {MOST_RUNS} "
                "at a time, or one batch_vectorization of many texts"
            )
            raise invalid_fields([FieldProblem(field="tasks", problem=problem)])
        outcomes = await self._runs.launch(requests)
        await self._noted([each for each in outcomes if isinstance(each, RequestRow)])
        return outcomes

    async def _noted(self, rows: Sequence[RequestRow]) -> None:
        """Return once the rows are noted, or when that takes too long to wait for."""
        if rows:
            noted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._notes.add(rows, partial(_resolve, noted, None))
            await noted

    async def _send(
        self, producer: LoopProducer, requests: Sequence[OutgoingRequest]
    ) -> Sequence[RequestRow | NotAccepted]:
        self._check_sizes(requests)
        await producer.check_topics({each.topic for each in requests})
        call = self._begin(requests)
        messages = [(each.topic, each.key, each.value) for each in requests]
        producer.produce(messages, partial(self._told, producer, call))
        await call.done
        return [
            each if isinstance(each, RequestRow) else self._not_accepted(requests[place].topic, each)
            for place, each in enumerate(call.outcomes)
        ]

    def _begin(self, requests: Sequence[OutgoingRequest]) -> _Call:
        """Make room for requests. Raises `Problem`, unless they are the only ones."""
        size = sum(len(each.value) for each in requests)
        number = self._waiting + len(requests)
        if self._waiting and (number > MOST_WAITING or self._waiting_bytes + size > MOST_WAITING_BYTES):
            raise Problem(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"{self._waiting:,} requests wait for the brokers already; nothing was accepted",
                headers={"Retry-After": "1"},
            )
        self._waiting, self._waiting_bytes = number, self._waiting_bytes + size
        done = asyncio.get_running_loop().create_future()
        return _Call(requests, done, size)

    def _told(self, producer: LoopProducer, call: _Call, deliveries: Sequence[Delivery]) -> None:
        """The brokers have confirmed the requests of a call, or given up those that they have not."""
        for request, delivery in zip(call.requests, deliveries, strict=True):
            if delivery.error is not None:
                call.outcomes.append(delivery.error)
                self._failed(producer, delivery.error)
                continue
            place = Origin(request.topic, delivery.partition, delivery.offset, delivery.timestamp_ms)
            call.outcomes.append(pending_row(request, place))
        rows = [each for each in call.outcomes if isinstance(each, RequestRow)]
        if rows:
            self._notes.add(rows, partial(self._end, call))
        else:
            self._end(call)

    def _end(self, call: _Call) -> None:
        self._waiting -= len(call.requests)
        self._waiting_bytes -= call.size
        _resolve(call.done, None)

    def _failed(self, producer: LoopProducer, error: Any) -> None:
        from confluent_kafka import KafkaError as Codes

        if error.code() in (Codes.MSG_SIZE_TOO_LARGE, Codes._QUEUE_FULL):
            return
        producer.forget_topics()
        # librdkafka sends nothing any more with one that has met an error of this kind.
        if (error.fatal() or error.code() == Codes._FATAL) and producer is self._producer:
            self._producer = self._new_producer()
            closing = asyncio.get_running_loop().create_task(producer.close())
            self._replaced.add(closing)
            closing.add_done_callback(self._replaced.discard)

    def _not_accepted(self, topic: str, error: Any) -> NotAccepted:
        from confluent_kafka import KafkaError as Codes

        kafka, code = self._settings.kafka, error.code()
        reason = str(clients.kafka_error(kafka, "sending", error))
        if code == Codes.MSG_SIZE_TOO_LARGE:
            reason = f"the message is larger than the topic {topic} takes (max.message.bytes): give content by its URI"
            return NotAccepted(reason, status=HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        if code == Codes._QUEUE_FULL:
            return NotAccepted("too many requests wait for the brokers", status=HTTPStatus.TOO_MANY_REQUESTS)
        if code in (Codes._UNKNOWN_TOPIC, Codes.UNKNOWN_TOPIC_OR_PART, Codes._UNKNOWN_PARTITION):
            return NotAccepted(
                f"the topic {topic} is missing at {kafka.bootstrap_servers}; `vectorize topics create` makes it"
            )
        return NotAccepted(reason, certain=code in (Codes.TOPIC_AUTHORIZATION_FAILED, Codes._FATAL))

    def _check_sizes(self, requests: Sequence[OutgoingRequest]) -> None:
        """Refuse what the producer would refuse in the middle of the others."""
        for place, each in enumerate(requests):
            size = len(each.key) + len(each.value) + _FRAME_BYTES
            if size > self._max_message_bytes:
                what = f"tasks[{place}]" if len(requests) > 1 else "the request"
                raise Problem(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"{what} is a message of {size:,} bytes, and the producer takes {self._max_message_bytes:,} "
                    "(message.max.bytes in kafka.config_file): give content by its URI; nothing was accepted",
                )

    def _new_producer(self) -> LoopProducer:
        kafka = self._settings.kafka
        configured = read_config(kafka.config_file).producer
        self._max_message_bytes = int(configured.get("message.max.bytes", _MAX_MESSAGE_BYTES))
        # A message has come to its end before its HTTP request is out of time, or it could be delivered unanswered.
        seconds = min(kafka.request_seconds, self._settings.gateway.request_seconds / 2)
        if "delivery.timeout.ms" in configured:
            seconds = min(seconds, int(configured["delivery.timeout.ms"]) / 1000)
        return LoopProducer(kafka, seconds)


def _resolve(told: "asyncio.Future[Told]", result: Told) -> None:
    # A caller who has gone does not wait any more.
    if not told.done():
        told.set_result(result)
