"""Handing changes to many clients."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.live.history import Change
from vectorize_pipelines.gateway.live.hub import SHUTTING_DOWN, TOO_SLOW, Hub, StreamEndedError, Subscription
from vectorize_pipelines.messaging.events import ResultEvent

NOW = datetime(2026, 3, 1, tzinfo=UTC)
KEPT = 4


@dataclass(frozen=True)
class Client:
    """What a client listens to, and whether it takes what comes."""

    task_id: str | None
    states: frozenset[RequestState]
    is_fast: bool

    def wants(self, event: ResultEvent) -> bool:
        if self.task_id is not None:
            return event.task_id == self.task_id
        return not self.states or event.status in self.states


EVENTS = st.builds(ResultEvent, st.sampled_from("abc"), st.sampled_from(RequestState), timestamp=st.just(NOW))
CLIENTS = st.builds(
    Client, st.sampled_from([None, None, "a", "b"]), st.frozensets(st.sampled_from(RequestState)), st.booleans()
)


def change(offset: int, event: ResultEvent) -> Change:
    return Change.of(0, offset, event)


async def taken(subscription: Subscription) -> list[ResultEvent | None]:
    return [event for event, _ in await subscription.take(0)]


@given(st.lists(CLIENTS, max_size=5), st.lists(EVENTS, max_size=10))
def test_each_client_gets_what_it_wants_in_order_and_one_that_is_too_slow_is_let_go_of(
    clients: list[Client], events: list[ResultEvent]
) -> None:
    async def scenario() -> None:
        hub = Hub(kept=KEPT)
        hub.begin("test", {0: 0})
        subscriptions = [hub.subscribe(client.task_id, client.states) for client in clients]
        got: list[list[ResultEvent | None]] = [[] for _ in clients]
        for offset, event in enumerate(events):
            hub.publish([change(offset, event)])
            for client, subscription, so_far in zip(clients, subscriptions, got, strict=True):
                if client.is_fast:
                    so_far += await taken(subscription)
        for client, subscription, so_far in zip(clients, subscriptions, got, strict=True):
            wanted = [event for event in events if client.wants(event)]
            if client.is_fast or len(wanted) <= KEPT:
                assert so_far + await taken(subscription) == wanted
            else:
                with pytest.raises(StreamEndedError, match=TOO_SLOW):
                    await subscription.take(0)

    asyncio.run(scenario())


def test_one_who_has_left_gets_nothing_and_is_not_waited_for() -> None:
    async def scenario() -> None:
        hub = Hub()
        first, second, watcher = hub.subscribe(), hub.subscribe(), hub.subscribe("a")
        assert hub.watched == {"a"}
        hub.unsubscribe(first)
        hub.publish([change(0, ResultEvent("a", RequestState.COMPLETED, timestamp=NOW))])
        assert await taken(first) == []
        assert len(await taken(second)) == len(await taken(watcher)) == 1
        hub.unsubscribe(watcher)
        hub.unsubscribe(watcher)
        assert hub.watched == set()
        assert hub.listened_to.is_set()
        hub.unsubscribe(second)
        assert not hub.listened_to.is_set()

    asyncio.run(scenario())


def test_who_waits_is_woken_by_a_change_and_by_the_end() -> None:
    async def scenario() -> None:
        hub = Hub()
        subscription = hub.subscribe()
        waiting = asyncio.create_task(subscription.take(60))
        await asyncio.sleep(0)
        hub.publish([change(0, ResultEvent("a", RequestState.COMPLETED, timestamp=NOW))])
        assert len(await waiting) == 1
        waiting = asyncio.create_task(subscription.take(60))
        await asyncio.sleep(0)
        hub.end()
        with pytest.raises(StreamEndedError, match=SHUTTING_DOWN):
            await waiting
        with pytest.raises(StreamEndedError, match=SHUTTING_DOWN):
            await hub.subscribe().take(60)

    asyncio.run(scenario())


def test_what_was_missed_is_told_until_the_source_looks_no_further() -> None:
    async def scenario() -> None:
        hub = Hub()
        hub.begin("first", {0: 0})
        place = hub.position
        hub.publish(
            change(offset, ResultEvent("a", state, timestamp=NOW))
            for offset, state in enumerate((RequestState.PROCESSING, RequestState.COMPLETED))
        )
        assert [b"processing" in frame for frame in hub.missed(place, ()) or []] == [True, False]
        assert len(hub.missed(place, {RequestState.COMPLETED}) or []) == 1
        assert hub.missed("nonsense", ()) is None
        hub.suspend()
        assert hub.missed(place, ()) is None
        hub.begin("second", {0: 0})
        assert hub.missed(place, ()) is None
        assert hub.missed(hub.position, ()) == []

    asyncio.run(scenario())
