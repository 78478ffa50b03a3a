"""`DetectionKafkaProducer`: hands what a detector sees to Kafka, without ever holding up its loop."""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from vectorize_pipelines.kafka.clients import produce, producer
from vectorize_pipelines.kafka.topics import Family, compression_of
from vectorize_pipelines.messaging.detections import DetectionResultMessage
from vectorize_pipelines.messaging.messages import InvalidMessageError
from vectorize_pipelines.settings import Settings, load_settings

if TYPE_CHECKING:
    from confluent_kafka import Producer

logger = logging.getLogger(__name__)

#: What the client of Kafka holds: too little for it to fall behind, and so little that the rest can still be dropped.
SENDING_MESSAGES = 64
SENDING_BYTES = 8 * 2**20
#: How long the thread waits for news of what is being sent; where the brokers answer, it comes within milliseconds.
POLL_SECONDS = 0.05
#: How long it waits after an error that was not expected, before it tries again.
RETRY_SECONDS = 1.0
#: Something of the same kind is not logged again within so many seconds.
QUIET_SECONDS = 60.0


@dataclass(slots=True)
class DetectionCounts:
    """What became of detections.

    sent     confirmed by the brokers
    dropped  the oldest of a full buffer, those larger than all of it, what was left at the end, and what came after it
    refused  no valid detections
    failed   refused by the brokers, or not confirmed by them in time (`kafka.request_seconds`)
    """

    sent: int = 0
    dropped: int = 0
    refused: int = 0
    failed: int = 0


class _Waiting(NamedTuple):
    key: bytes
    value: bytes
    timestamp_ms: int


class DetectionKafkaProducer:
    """Detections by Kafka. A context manager, for any number of threads.

        with DetectionKafkaProducer("localhost:9092") as producer:
            for picture in camera:
                producer.send_detection_result(detect(picture))

    What is sent waits in a buffer, from which a thread of its own feeds Kafka. While the brokers are away, or slower
    than the camera, the newest detections are kept: nobody wants to hear of the oldest. Each process makes its own.
    """

    def __init__(
        self,
        bootstrap_servers: str | None = None,
        topic: str | None = None,
        *,
        enabled: bool | None = None,
        max_messages: int = 1000,
        max_bytes: int = 64 * 2**20,
        settings: Settings | None = None,
    ) -> None:
        """Connect to nothing yet.

        bootstrap_servers, topic  None: those of the settings
        enabled                   False: nothing is ever sent; None: as `assessments.send_detections` says
        max_messages, max_bytes   bounds of the buffer
        settings                  None: those of the environment, for security and properties of the client

        Raises `KafkaNotConfiguredError` and `SettingsError`, unless nothing is to be sent.
        """
        settings = settings or load_settings()
        given = {"bootstrap_servers": bootstrap_servers, "detections_topic": topic}
        changed = {name: value for name, value in given.items() if value is not None}
        self._kafka = settings.kafka.model_copy(update=changed)
        self._enabled = settings.assessments.send_detections if enabled is None else enabled
        self._max_messages, self._max_bytes = max_messages, max_bytes
        self._buffer: deque[_Waiting] = deque()
        self._bytes = 0
        self._sending = self._sending_bytes = 0
        self._counts = DetectionCounts()
        self._logged: dict[str, float] = {}
        self._changed = threading.Condition()
        self._ends_at: float | None = None
        self._thread: threading.Thread | None = None
        self._client: Producer | None = None
        if self._enabled:
            self._client = self._connect()
            self._thread = threading.Thread(target=self._feed, name="vectorize-detections", daemon=True)
            self._thread.start()

    @property
    def counts(self) -> DetectionCounts:
        """What has become of detections so far."""
        with self._changed:
            return replace(self._counts)

    def send_detection_result(self, payload: DetectionResultMessage | Mapping[str, Any]) -> bool:
        """Put a detection into the buffer, and return at once whether it was taken.

        payload  a message, or a dict as `DetectionResultMessage.from_dict` takes it

        Nothing is raised: what is refused or dropped is counted and, once in a while, logged.
        """
        if not self._enabled:
            return False
        try:
            message = _message(payload)
        except InvalidMessageError as error:
            with self._changed:
                self._counts.refused += 1
                self._log("refused", "a detection was refused: %s", error)
            return False
        return self._put(_Waiting(message.camera_id.encode(), message.to_json(), time.time_ns() // 1_000_000))

    def _put(self, waiting: _Waiting) -> bool:
        with self._changed:
            if self._ends_at is not None:
                self._counts.dropped += 1
                self._log("closed", "a detection was dropped: the producer is closed")
                return False
            if len(waiting.value) > self._max_bytes:
                self._drop(1)
                return False
            self._buffer.append(waiting)
            self._bytes += len(waiting.value)
            dropped = 0
            while len(self._buffer) > self._max_messages or self._bytes > self._max_bytes:
                self._bytes -= len(self._buffer.popleft().value)
                dropped += 1
            if dropped:
                self._drop(dropped)
            self._changed.notify()
            return True

    def _drop(self, count: int) -> None:
        self._counts.dropped += count
        self._log("dropped", "%d detections have been dropped: the buffer was full", self._counts.dropped)

    def close(self, timeout: float = 10.0) -> None:
        """Send what the buffer holds, for at most so many seconds; the rest is dropped. A second call does nothing."""
        with self._changed:
            if self._ends_at is None:
                self._ends_at = time.monotonic() + timeout
                self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # The thread

    def _feed(self) -> None:
        try:
            while self._has_work():
                try:
                    self._send_next()
                except Exception as error:  # noqa: BLE001 -- without the thread nothing would ever be sent again
                    with self._changed:
                        self._log("broken", "detections are not sent at the moment, which is tried again: %s", error)
                    self._pause()
            self._leave_client()
        finally:
            with self._changed:
                self._counts.dropped += len(self._buffer)
                self._buffer.clear()

    def _has_work(self) -> bool:
        """Wait until there is something to do; return whether there is, rather than the end."""
        with self._changed:
            while not self._buffer and not self._sending and self._ends_at is None:
                self._changed.wait()
            return not self._is_over()

    def _send_next(self) -> None:
        """Hand the next detection to the client, which is made anew where there is none, and hear what it says."""
        if self._client is None:
            self._client = self._connect()
        with self._changed:
            waiting = self._next()
        if waiting is None:
            self._client.poll(POLL_SECONDS)
        elif self._hand_over(self._client, waiting):
            self._client.poll(0)
        else:
            self._leave_client()

    def _pause(self) -> None:
        with self._changed:
            if self._ends_at is None:
                self._changed.wait_for(lambda: self._ends_at is not None, RETRY_SECONDS)
                return
        time.sleep(POLL_SECONDS)

    def _is_over(self) -> bool:
        if self._ends_at is None:
            return False
        return time.monotonic() >= self._ends_at or not (self._buffer or self._sending)

    def _next(self) -> _Waiting | None:
        """Return what is to be sent next, which counts as being sent; None where the client has enough to do."""
        if not self._buffer or self._sending >= SENDING_MESSAGES or self._sending_bytes >= SENDING_BYTES:
            return None
        waiting = self._buffer.popleft()
        self._bytes -= len(waiting.value)
        self._sending += 1
        self._sending_bytes += len(waiting.value)
        return waiting

    def _hand_over(self, client: "Producer", waiting: _Waiting) -> bool:
        """Return whether the client is still of use: one that met a fatal error sends nothing any more."""
        from confluent_kafka import KafkaException

        size = len(waiting.value)

        def delivered(error: Any, message: object) -> None:
            self._note_sent(size, error)

        try:
            produce(
                client,
                self._kafka.detections_topic,
                value=waiting.value,
                key=waiting.key,
                timestamp=waiting.timestamp_ms,
                on_delivery=delivered,
            )
        except KafkaException as error:
            self._note_sent(size, error.args[0])
            return not error.args[0].fatal()
        except Exception as error:
            self._note_sent(size, error)
            raise
        return True

    def _note_sent(self, size: int, error: Any) -> None:
        with self._changed:
            self._sending -= 1
            self._sending_bytes -= size
            if error is None:
                self._counts.sent += 1
            else:
                self._counts.failed += 1
                self._log("failed", "a detection was not sent to %s: %s", self._kafka.detections_topic, error)

    def _leave_client(self) -> None:
        """Give the client up, with what it has not sent."""
        client, self._client = self._client, None
        if client is not None:
            client.purge()
            client.flush(1)
        with self._changed:
            self._counts.failed += self._sending
            self._sending = self._sending_bytes = 0

    def _connect(self) -> "Producer":
        return producer(self._kafka, **compression_of(self._kafka, Family.ASSESSMENTS))

    def _log(self, kind: str, message: str, *arguments: object) -> None:
        now = time.monotonic()
        if now - self._logged.get(kind, -QUIET_SECONDS) >= QUIET_SECONDS:
            self._logged[kind] = now
            logger.warning(message, *arguments)


def _message(payload: DetectionResultMessage | Mapping[str, Any]) -> DetectionResultMessage:
    return payload if isinstance(payload, DetectionResultMessage) else DetectionResultMessage.from_dict(payload)
