"""A Kafka producer for an event loop: messages are handed over at once, and told of when the brokers have spoken.

Called by `gateway.tasks.submitting`. One thread waits for what the brokers say, and wakes the loop once for all the
messages that were handed over together: to wake it for each would take longer than to produce it.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import to_thread

from vectorize_pipelines.kafka import clients
from vectorize_pipelines.kafka.partitions import partitions_of
from vectorize_pipelines.settings import KafkaSettings

#: So long brokers may take to say whether a topic is there.
LOOK_SECONDS = 5.0
_POLL_SECONDS = 0.1
#: Offset of a message that is in the topic at a place which the brokers have not said: librdkafka sent it twice, and
#: was told only that it is there already.
UNKNOWN_OFFSET = -1


@dataclass(slots=True)
class Delivery:
    """The end of one message: in the topic, at this place, or `error`, which is a `confluent_kafka.KafkaError`."""

    error: Any | None
    partition: int = -1
    offset: int = UNKNOWN_OFFSET
    timestamp_ms: int = 0


_PENDING = Delivery(None)
#: Topic, key and value.
Message = tuple[str, bytes, bytes]


@dataclass(slots=True, eq=False)
class _HandedOver:
    """Messages that were handed over together. `left`: those that the brokers have said nothing about."""

    told: Callable[[list[Delivery]], None]
    deliveries: list[Delivery]
    left: int


class LoopProducer:
    """An idempotent producer. Every method but the constructor's own is called on the loop that it was made on.

    A message that is not confirmed within `seconds` is told with an error. One that was still to be sent is then
    dropped and never sent; one that was under way may be in the topic nevertheless, and nobody can say.
    """

    def __init__(self, settings: KafkaSettings, seconds: float):
        """Connect to nothing yet. Raises `SettingsError`."""
        from confluent_kafka import KafkaError, KafkaException

        self._settings = settings
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._queue_full = KafkaError(KafkaError._QUEUE_FULL)
        self._refusal = KafkaException
        self._known: set[str] = set()
        self._looks: dict[str, asyncio.Task[None]] = {}
        self._done: deque[_HandedOver] = deque()
        #: Messages come to their end in the polling thread, and refused ones on the loop.
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._producer = clients.producer(settings, None, **{"delivery.timeout.ms": round(seconds * 1000)})
        self._thread = threading.Thread(target=self._wait_for_deliveries, name="vectorize-deliveries", daemon=True)
        self._thread.start()

    async def check_topics(self, topics: Collection[str]) -> None:
        """Return where these topics are known to be there. Raises `KafkaError`, within `LOOK_SECONDS`.

        librdkafka itself would try to reach a missing topic until its time is up.
        """
        for topic in topics:
            if topic not in self._known:
                await asyncio.shield(self._look(topic))

    def forget_topics(self) -> None:
        """Have topics looked for again: a message failed. While no broker answers, nothing more is taken in then."""
        self._known.clear()

    def produce(self, messages: Sequence[Message], told: Callable[[list[Delivery]], None]) -> None:
        """Hand over messages; `told` is called once, on the loop, with the end of each in this order.

        Also where all of them are refused at once; never before this returns.
        """
        together = _HandedOver(told, [_PENDING] * len(messages), len(messages))
        produce, note = self._producer.produce, self._note
        for place, (topic, key, value) in enumerate(messages):
            try:
                produce(topic, value, key, on_delivery=partial(note, together, place))
            except BufferError:
                self._refused(together, place, self._queue_full)
            except self._refusal as error:
                self._refused(together, place, error.args[0])

    async def close(self) -> None:
        """Wait for what is under way, no longer than a message may take, and let go of the connections."""
        self._closing.set()
        await to_thread.run_sync(self._thread.join)
        self._tell()

    def _look(self, topic: str) -> "asyncio.Task[None]":
        """Return the look at a topic that all who ask for it meanwhile wait for."""
        task = self._looks.get(topic)
        if task is None:
            task = self._looks[topic] = self._loop.create_task(self._look_at(topic))
            task.add_done_callback(lambda _: self._looks.pop(topic))
        return task

    async def _look_at(self, topic: str) -> None:
        seconds = min(LOOK_SECONDS, self._seconds)
        await to_thread.run_sync(partitions_of, self._settings, [topic], self._producer, seconds)
        self._known.add(topic)

    def _note(self, together: _HandedOver, place: int, error: Any, message: Any) -> None:
        """Called by librdkafka in the thread that polls."""
        if error is not None:
            self._end(together, place, Delivery(error))
            return
        offset = message.offset()
        known = UNKNOWN_OFFSET if offset is None else offset
        self._end(together, place, Delivery(None, message.partition(), known, message.timestamp()[1]))

    def _refused(self, together: _HandedOver, place: int, error: Any) -> None:
        self._end(together, place, Delivery(error))
        self._loop.call_soon(self._tell)

    def _end(self, together: _HandedOver, place: int, delivery: Delivery) -> None:
        together.deliveries[place] = delivery
        with self._lock:
            together.left -= 1
            if together.left == 0:
                self._done.append(together)

    def _wait_for_deliveries(self) -> None:
        deadline: float | None = None
        while not self._closing.is_set() or len(self._producer):
            if self._closing.is_set():
                deadline = deadline or time.monotonic() + self._seconds + 1
                if time.monotonic() > deadline:
                    break
            self._producer.poll(_POLL_SECONDS)
            if self._done:
                self._loop.call_soon_threadsafe(self._tell)
        self._producer.close()

    def _tell(self) -> None:
        while self._done:
            together = self._done.popleft()
            together.told(together.deliveries)
