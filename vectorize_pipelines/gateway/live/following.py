"""Reading a topic on and on, for what the server tells its clients. `live.sources` and `risk.topics` follow with it."""

import asyncio
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vectorize_pipelines.core.retrying import growing_pauses
from vectorize_pipelines.errors import VectorizeError
from vectorize_pipelines.kafka.partitions import offsets, partitions_of
from vectorize_pipelines.kafka.reading import TopicReader
from vectorize_pipelines.settings import KafkaSettings

logger = logging.getLogger(__name__)

#: Limit for a request to the brokers: the reader asks again, and a server that ends does not wait long.
_REQUEST_SECONDS = 5.0
_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 5.0
#: How long the end of the server waits for the thread to close its connections.
_CLOSE_SECONDS = 2.0


class TopicFollower(ABC):
    """Reads a topic in a thread of its own, and hands what it says to the event loop.

    Brokers may be away, also at the start: it tries again, and goes on from where it was.

    what           its messages, as the log calls them
    slice_seconds  how long one look into the topic waits for messages: so much later, at most, one is seen
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        loop: asyncio.AbstractEventLoop,
        *,
        what: str,
        slice_seconds: float,
    ) -> None:
        seconds = min(settings.request_seconds, _REQUEST_SECONDS)
        self.settings = settings.model_copy(update={"request_seconds": seconds})
        self.topic = topic
        #: Why nothing can be read at the moment; None while it can.
        self.problem: VectorizeError | None = None
        self._loop = loop
        self._what = what
        self._slice_seconds = slice_seconds
        self._closing = threading.Event()
        #: Partition -> offset of the next message; None until the topic's end has been found.
        self._positions: dict[int, int] | None = None
        #: Partition -> offset that is to be read until everything is that was there at the start.
        self._behind: Mapping[int, int] = {}
        self._thread = threading.Thread(target=self._run, name=f"{topic}-reader", daemon=True)

    @abstractmethod
    def first_positions(self, ends: Mapping[int, int]) -> dict[int, int]:
        """Return where to begin, for each partition of these ends. Called in the thread. May raise `KafkaError`."""

    @abstractmethod
    def begun(self, positions: Mapping[int, int]) -> None:
        """Note the positions from which no message is missed. Called on the event loop, once."""

    @abstractmethod
    def taken(self, messages: Sequence[Any]) -> Callable[[], None]:
        """Read messages, in the thread, and return what hands them on, which is called on the event loop."""

    def caught_up(self) -> None:  # noqa: B027 -- few want to know
        """Everything is read that was in the topic at the start. Called on the event loop, once."""

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """Stop reading. Blocks until the connections are closed, though not for long where brokers are silent."""
        self._closing.set()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        pauses = growing_pauses(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        while not self._closing.is_set():
            before = self._positions
            try:
                self._read()
            except VectorizeError as error:
                self.problem = error
                logger.warning("%s do not come at the moment, and are read later: %s", self._what, error)
            except Exception:
                logger.exception("reading %s failed, and is tried again", self.topic)
            if self._positions != before:  # it went well for a while
                pauses = growing_pauses(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
            self._closing.wait(next(pauses))

    def _read(self) -> None:
        """Read until the server ends. Raises `KafkaError`, also where the topic is missing."""
        if self._positions is None:
            self._find_start()
        with TopicReader(self.settings, self.topic, self._positions) as reader:
            self.problem = None
            while not self._closing.is_set():
                messages = reader.available(self._slice_seconds)
                if messages:
                    self._take(messages)
                if self._behind and reader.at_end:
                    self._catch_up(self._behind)

    def _find_start(self) -> None:
        found = offsets(self.settings, partitions_of(self.settings, [self.topic]), latest=True)
        ends = {number: offset for (_, number), offset in found.items()}
        positions = self.first_positions(ends)
        self._call(lambda: self.begun(positions))
        self._positions = positions
        self._behind = {number: end for number, end in ends.items() if positions[number] < end}
        if not self._behind:
            self._call(self.caught_up)

    def _take(self, messages: Sequence[Any]) -> None:
        positions = dict(self._positions or {})
        for message in messages:
            positions[message.partition()] = message.offset() + 1
        self._call(self.taken(messages))
        self._positions = positions
        if self._behind:
            # Behind a transaction's last message lies its end, which is no message.
            self._catch_up({number: end for number, end in self._behind.items() if positions[number] >= end - 1})

    def _catch_up(self, numbers: Mapping[int, int]) -> None:
        """These partitions are read as far as they reached at the start."""
        self._behind = {number: end for number, end in self._behind.items() if number not in numbers}
        if not self._behind:
            self._call(self.caught_up)

    def _call(self, function: Callable[[], None]) -> None:
        """Have the event loop call a function, and wait until it has: who reads faster than it hands on piles up."""
        done = threading.Event()

        def call() -> None:
            try:
                function()
            finally:
                done.set()

        if self._closing.is_set():
            return
        self._loop.call_soon_threadsafe(call)
        while not done.wait(_CLOSE_SECONDS) and not self._closing.is_set():
            logger.warning("the server is too busy to hand on %s", self._what)
