"""Reads a topic of assessments from a little before its end. `risk.feed` has one for each of the topics."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from vectorize_pipelines.gateway.live.following import TopicFollower
from vectorize_pipelines.kafka.partitions import offsets
from vectorize_pipelines.messaging.messages import InvalidMessageError
from vectorize_pipelines.settings import KafkaSettings

logger = logging.getLogger(__name__)

#: How long one look into a topic waits for messages: so much later, at most, one is seen.
_SLICE_SECONDS = 0.02
#: Messages that were older at the start are passed over.
LOOK_BACK_SECONDS = 600.0

Content = TypeVar("Content")


class RecentMessages(TopicFollower, Generic[Content]):
    """The messages of a topic, from at most `back` of each partition before its end.

    read     returns what is in a message, None where it is to be passed over; may raise `InvalidMessageError`
    hand_on  called on the event loop, with what is in messages, in their order
    """

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        read: Callable[[Any], Content | None],
        hand_on: Callable[[list[Content]], None],
        *,
        back: int,
    ) -> None:
        super().__init__(
            settings, topic, asyncio.get_running_loop(), what=f"messages of {topic}", slice_seconds=_SLICE_SECONDS
        )
        self._content_of, self._back = read, back
        self._hand_on = hand_on
        #: Set once it has handed on all that was there at the start.
        self.current = asyncio.Event()
        self._oldest_ms = 0.0

    def first_positions(self, ends: Mapping[int, int]) -> dict[int, int]:
        """Begin so many messages before the end, as far as they are still there."""
        self._oldest_ms = (time.time() - LOOK_BACK_SECONDS) * 1000
        firsts = offsets(self.settings, [(self.topic, number) for number in ends], latest=False)
        return {number: max(firsts[self.topic, number], end - self._back) for number, end in ends.items()}

    def begun(self, positions: Mapping[int, int]) -> None:
        """Do nothing: no client goes on from a position."""

    def caught_up(self) -> None:
        """Say so."""
        self.current.set()

    def taken(self, messages: Sequence[Any]) -> Callable[[], None]:
        """Return what hands on what is in these messages; those that cannot be read are logged and passed over."""
        return partial(self._hand_on, list(self._contents(messages)))

    def _contents(self, messages: Sequence[Any]) -> Iterator[Content]:
        for message in messages:
            if message.timestamp()[1] < self._oldest_ms:
                continue
            try:
                content = self._content_of(message)
            except InvalidMessageError as error:
                logger.warning("a message of %s is passed over: %s", self.topic, error)
                continue
            if content is not None:
                yield content
