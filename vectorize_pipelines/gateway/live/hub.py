"""Hands each change to every client that listens. None waits for another: one that is too slow is let go of.

Everything here belongs to the thread of the event loop: `live.sources` publish, `gateway.routes.live` subscribe.
"""

import asyncio
from collections.abc import Collection, Iterable, Mapping

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.live import frames
from vectorize_pipelines.gateway.live.history import KEPT, Change, History, Position
from vectorize_pipelines.messaging.events import ResultEvent

TOO_SLOW = "this client takes changes too slowly: connect again, with the id of the last event"
SHUTTING_DOWN = "the server shuts down: connect again"


class StreamEndedError(Exception):
    """A stream ends; the message is for its client."""


class Subscription:
    """The changes that wait for one client, bounded in number. `Hub.subscribe` makes it, `Hub.unsubscribe` ends it.

    task_id  the one request whose changes it gets; None: all that are in one of `states` (none given: in any)
    unsure   the stream has begun before the source has a place: it is told once that it may have missed something
    """

    def __init__(self, task_id: str | None, states: Collection[RequestState], most: int) -> None:
        self.task_id = task_id
        self.states = frozenset(states)
        self.unsure = False
        self._most = most
        self._waiting: list[tuple[ResultEvent | None, bytes]] = []
        self._woken = asyncio.Event()
        self._ended: str | None = None

    def put(self, event: ResultEvent | None, frame: bytes) -> None:
        """Have the client get a change or, without an event, something else. Never waits."""
        if len(self._waiting) >= self._most:
            self.end(TOO_SLOW)
        elif self._ended is None:
            self._waiting.append((event, frame))
            self._woken.set()

    def end(self, reason: str) -> None:
        """End the stream, now: what waits is not sent any more."""
        self._ended = self._ended or reason
        self._waiting.clear()
        self._woken.set()

    def forget(self) -> None:
        """Drop what waits."""
        self._waiting.clear()
        self._woken.clear()

    async def take(self, seconds: float) -> list[tuple[ResultEvent | None, bytes]]:
        """Return what waits, nothing where nothing has come for so many seconds. Raises `StreamEndedError`."""
        if not self._waiting and self._ended is None:
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                return []
        if self._ended is not None:
            raise StreamEndedError(self._ended)
        taken, self._waiting = self._waiting, []
        self._woken.clear()
        return taken


class Hub:
    """The clients that listen, and the changes of late: `kept` of them, and as many may wait for one client."""

    def __init__(self, kept: int = KEPT) -> None:
        self._most_waiting = kept
        self._history = History(kept)
        self._everything: set[Subscription] = set()
        self._of_task: dict[str, set[Subscription]] = {}
        self._ended: str | None = None
        #: Set while the source has a place, from which on it misses nothing.
        self.positioned = asyncio.Event()
        #: Set while somebody listens.
        self.listened_to = asyncio.Event()

    @property
    def everything_is_wanted(self) -> bool:
        """Return whether somebody listens to the changes of all requests."""
        return bool(self._everything)

    @property
    def watched(self) -> set[str]:
        """The requests that somebody listens to in particular."""
        return set(self._of_task)

    @property
    def position(self) -> str:
        """The place after the newest change, as the id of an event has it."""
        return str(self._history.position)

    def subscribe(self, task_id: str | None = None, states: Collection[RequestState] = ()) -> Subscription:
        """Return what gets all changes from now on."""
        subscription = Subscription(task_id, states, self._most_waiting)
        if self._ended is not None:
            subscription.end(self._ended)
        if task_id is None:
            self._everything.add(subscription)
        else:
            self._of_task.setdefault(task_id, set()).add(subscription)
        self.listened_to.set()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Forget it; a second call does nothing."""
        self._everything.discard(subscription)
        if subscription.task_id in self._of_task:
            others = self._of_task[subscription.task_id]
            others.discard(subscription)
            if not others:
                del self._of_task[subscription.task_id]
        if not self._everything and not self._of_task:
            self.listened_to.clear()

    def missed(self, last_id: str, states: Collection[RequestState]) -> list[bytes] | None:
        """Return the changes after the event with this id; None where not all of them are known any more."""
        position = Position.parse(last_id)
        entries = None if position is None or not self.positioned.is_set() else self._history.after(position)
        if entries is None:
            return None
        wanted = (entry for entry in entries if not states or entry.change.event.status in states)
        return [frames.encoded_status(entry.change.data, entry.position) for entry in wanted]

    def begin(self, epoch: str, offsets: Mapping[int, int]) -> None:
        """Note the place from which the source misses nothing; listeners may have missed something, and are told."""
        self._history.begin(epoch, offsets)
        self.positioned.set()
        for subscription in self._everything:
            if subscription.unsure:
                subscription.put(None, frames.reset(self.position))
                subscription.unsure = False

    def suspend(self) -> None:
        """The source looks no further until it calls `begin`: nobody can go on from an earlier place."""
        self.positioned.clear()

    def publish(self, changes: Iterable[Change]) -> None:
        """Hand on changes to all whom they concern, and keep them for those who come back."""
        for change in changes:
            event, entry = change.event, self._history.append(change)
            frame = frames.encoded_status(change.data, entry.position)
            for subscription in self._everything:
                if not subscription.states or event.status in subscription.states:
                    subscription.put(event, frame)
            self.tell([event])

    def tell(self, events: Iterable[ResultEvent]) -> None:
        """Hand on events to those alone who listen to these requests in particular."""
        for event in events:
            for subscription in self._of_task.get(event.task_id, ()):
                subscription.put(event, b"")

    def end(self, reason: str = SHUTTING_DOWN) -> None:
        """End every stream, and each that begins later; a second call does nothing."""
        self._ended = self._ended or reason
        for subscription in self._everything.union(*self._of_task.values()):
            subscription.end(self._ended)
