"""Changes of requests' states, from the results topic or the ledger, handed to `hub`. `events` starts both.

With Kafka, runs say each change on the results topic, which one thread reads for all clients, from where it ends when
the server starts. Without Kafka the ledger is asked for everything, and with it for the requests that somebody watches
in particular: a run for a single request reports to the ledger alone. It is asked by one task for all clients, and
only while somebody listens.
"""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, NamedTuple

import anyio.to_thread

from vectorize_pipelines.core.request_state import FINAL_STATES, RequestState
from vectorize_pipelines.errors import LedgerError
from vectorize_pipelines.gateway.live.following import TopicFollower
from vectorize_pipelines.gateway.live.history import Change
from vectorize_pipelines.gateway.live.hub import Hub
from vectorize_pipelines.gateway.live.order import EventOrder
from vectorize_pipelines.kafka.topics import TopicNames
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.settings import KafkaSettings
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.request_rows import RequestRow

logger = logging.getLogger(__name__)

#: How long one look into the topic waits for messages: so much later, at most, a change is seen.
_SLICE_SECONDS = 0.1

#: Between two looks into the ledger, but at least so many times as long as the last one took; and where it cannot be
#: asked.
LOOK_SECONDS = 0.5
PAUSE_FACTOR = 4
LEDGER_PAUSE_SECONDS = 5.0
#: Requests under way, and requests that have ended, that one look at the ledger reads; those submitted last.
UNDER_WAY = 20_000
ENDED = 200


class ResultsReader(TopicFollower):
    """Reads the results topic, and hands what it says to the hub."""

    def __init__(self, settings: KafkaSettings, hub: Hub, loop: asyncio.AbstractEventLoop) -> None:
        topic = TopicNames(settings.topic_prefix).results
        super().__init__(settings, topic, loop, what="changes of requests", slice_seconds=_SLICE_SECONDS)
        self._hub = hub
        self._order = EventOrder()

    def first_positions(self, ends: Mapping[int, int]) -> dict[int, int]:
        """Begin where the topic ends."""
        return dict(ends)

    def begun(self, positions: Mapping[int, int]) -> None:
        """Tell the hub."""
        self._hub.begin(self.topic, positions)

    def taken(self, messages: Sequence[Any]) -> Callable[[], None]:
        """Return what has the hub publish the changes that these messages are."""
        changes = []
        for message in messages:
            event = self._event(message)
            if event is not None and self._order.admits(event):
                changes.append(Change.of(message.partition(), message.offset(), event))
        return partial(self._hub.publish, changes)

    def _event(self, message: Any) -> ResultEvent | None:
        try:
            event = ResultEvent.from_json(message.value() or b"")
        except ValueError as error:
            logger.warning("a message of %s is passed over: %s", self.topic, error)
            return None
        if event.timestamp.tzinfo is None:
            return replace(event, timestamp=event.timestamp.replace(tzinfo=UTC))
        return event


class Known(NamedTuple):
    """The last known state of a request."""

    version: tuple[int, str, int, int]
    state: RequestState
    run_id: str | None


@dataclass(frozen=True)
class Look:
    """The requests that are under way or have ended of late, by id, as a look into the ledger found them.

    floor  what was submitted before this one may have been there without being seen; None: everything was seen
    """

    rows: Mapping[str, RequestRow]
    floor: tuple[datetime, str] | None

    @cached_property
    def known(self) -> dict[str, Known]:
        """Return what is known of each."""
        return {task_id: _known(row) for task_id, row in self.rows.items()}


class LedgerWatch:
    """Looks into the ledger while somebody listens, and hands what has changed to the hub.

    everything  also what nobody watches in particular: where the ledger is all that tells of changes
    """

    def __init__(self, ledger: RequestLedger, hub: Hub, *, everything: bool) -> None:
        self._ledger = ledger
        self._hub = hub
        self._everything = everything
        #: The last look at everything; None: there was none since somebody listens to it.
        self._last: Look | None = None
        self._offset = 0
        self._watched: dict[str, Known] = {}
        self._failed = False

    async def run(self) -> None:
        """Look until the task is cancelled."""
        while True:
            self._let_go()
            await self._hub.listened_to.wait()
            began = time.monotonic()
            try:
                await self._look_at_watched()
                await self._look_at_everything()
            except LedgerError as error:
                if not self._failed:
                    logger.warning("changes of requests do not come at the moment, and are looked up later: %s", error)
                self._failed = True
            except Exception:
                logger.exception("looking up changes of requests failed, and is tried again")
                self._failed = True
            else:
                self._failed = False
            pause = max(LOOK_SECONDS, PAUSE_FACTOR * (time.monotonic() - began))
            await asyncio.sleep(LEDGER_PAUSE_SECONDS if self._failed else pause)

    def _let_go(self) -> None:
        """Forget the last look where nobody listens: what is missed from now on could not be told."""
        if self._last is not None and not self._hub.everything_is_wanted:
            self._last = None
            self._hub.suspend()

    async def _look_at_watched(self) -> None:
        """Tell what has changed of watched requests; whoever begins to watch one reads its present state itself."""
        watched = self._hub.watched
        if not watched:
            return
        rows = await anyio.to_thread.run_sync(self._ledger.get_many, watched, abandon_on_cancel=True)
        seen = {task_id: _known(row) for task_id, row in rows.items()}
        self._hub.tell(event_of(row) for task_id, row in rows.items() if self._watched.get(task_id) != seen[task_id])
        self._watched = seen

    async def _look_at_everything(self) -> None:
        if not self._everything or not self._hub.everything_is_wanted:
            return
        last = self._last
        look, changed = await anyio.to_thread.run_sync(_look_again, self._ledger, last, abandon_on_cancel=True)
        if last is None:
            self._offset = 0
            self._hub.begin(f"ledger-{uuid.uuid4().hex}", {0: 0})
        else:
            self._hub.publish([Change.of(0, self._offset + place, event_of(row)) for place, row in enumerate(changed)])
            self._offset += len(changed)
        self._last = look


def look_into(ledger: RequestLedger, last: Look | None) -> Look:
    """Return the requests under way or ended of late, with what became of those that were under way at the last look.

    Blocks. Raises `LedgerError`.
    """
    under_way = ledger.page(set(RequestState) - FINAL_STATES, UNDER_WAY).rows
    ended = ledger.page(FINAL_STATES, ENDED).rows
    floors = [
        min(map(_submitted, rows)) for rows, most in ((under_way, UNDER_WAY), (ended, ENDED)) if len(rows) == most
    ]
    # One that ends between the two queries is in both, and has ended.
    rows = {row.request_id: row for row in (*under_way, *ended)}
    before = {} if last is None else last.rows
    left = {task_id for task_id, row in before.items() if not row.state.is_final} - rows.keys()
    return Look(rows | ledger.get_many(left), max(floors, default=None))


def changes(last: Look, look: Look) -> list[RequestRow]:
    """Return the requests of which a look says something new, in the order in which it came to be."""

    def is_new(row: RequestRow) -> bool:
        before = last.known.get(row.request_id)
        if before is None:
            return last.floor is None or _submitted(row) > last.floor
        return before != look.known[row.request_id]

    return sorted(filter(is_new, look.rows.values()), key=_changed_at)


def _look_again(ledger: RequestLedger, last: Look | None) -> tuple[Look, list[RequestRow]]:
    """Look, and compare with the last look: with thousands of requests that takes too long for the event loop."""
    look = look_into(ledger, last)
    return look, [] if last is None else changes(last, look)


def event_of(row: RequestRow) -> ResultEvent:
    """Return the event that says a request's state as the ledger has it."""
    error = None if row.error_class is None else {"class": row.error_class, "message": row.error_message or ""}
    return ResultEvent(
        row.request_id,
        row.state,
        row.collection,
        row.vectors,
        error,
        row.run_id,
        _changed_at(row),
        row.warnings,
        row.truncated,
    )


def _submitted(row: RequestRow) -> tuple[datetime, str]:
    """The order of pages."""
    return row.submitted_at, row.request_id


def _changed_at(row: RequestRow) -> datetime:
    return row.finished_at or row.started_at or row.submitted_at


def _known(row: RequestRow) -> Known:
    return Known(row.version, row.state, row.run_id)
