"""A Kafka producer for an event loop: each message is handed over at once, and told of when the brokers have spoken.

Called by `gateway.tasks.submitting`. One thread waits for what the brokers say, and wakes the loop once for all of it.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
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
        self._deliveries: deque[tuple[Callable[[Delivery], None], Delivery]] = deque()
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

    def produce(self, topic: str, key: bytes, value: bytes, told: Callable[[Delivery], None]) -> None:
        """Hand over a message; `told` is called once, on the loop, also where it is refused at once."""
        try:
            self._producer.produce(topic, value, key, on_delivery=partial(self._note, told))
        except BufferError:
            told(Delivery(self._queue_full))
        except self._refusal as error:
            told(Delivery(error.args[0]))

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

    def _note(self, told: Callable[[Delivery], None], error: Any, message: Any) -> None:
        """Called by librdkafka in the thread that polls."""
        if error is not None:
            self._deliveries.append((told, Delivery(error)))
            return
        offset = message.offset()
        place = UNKNOWN_OFFSET if offset is None else offset
        self._deliveries.append((told, Delivery(None, message.partition(), place, message.timestamp()[1])))

    def _wait_for_deliveries(self) -> None:
        deadline: float | None = None
        while not self._closing.is_set() or len(self._producer):
            if self._closing.is_set():
                deadline = deadline or time.monotonic() + self._seconds + 1
                if time.monotonic() > deadline:
                    break
            self._producer.poll(_POLL_SECONDS)
            if self._deliveries:
                self._loop.call_soon_threadsafe(self._tell)
        self._producer.close()

    def _tell(self) -> None:
        while self._deliveries:
            told, delivery = self._deliveries.popleft()
            told(delivery)
