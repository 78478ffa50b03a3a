"""Handing detections to clients that take them, and to those that do not."""

import asyncio
import json
from typing import Any

import pytest

from tests.messaging.assessed import result, taken_at
from vectorize_pipelines.gateway.risk.hub import RiskHub, RiskSubscription, StreamEndedError
from vectorize_pipelines.pipeline.assessments.gathering import GatheredDetection

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def detection(camera: str, number: int, *, is_late: bool = False) -> GatheredDetection:
    return GatheredDetection(
        camera, f"{camera}/{number}", taken_at(number), (result(camera, number),), 1, (), is_late=is_late
    )


async def taken(subscription: RiskSubscription) -> list[dict[str, Any]]:
    """Everything that waits for a client."""
    found = []
    while (text := await subscription.next(0)) is not None:
        found.append(json.loads(text))
    return found


def short(messages: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(each["type"], each.get("message_id", each.get("detections"))) for each in messages]


async def test_a_slow_client_is_skipped_ahead_and_told_so() -> None:
    hub = RiskHub(most_waiting=3)
    slow, quick = hub.subscribe(), hub.subscribe(["north"])
    for number in range(3):
        hub.publish(detection("north", number))
    assert short(await taken(quick)) == [("detection", f"north/{number}") for number in range(3)]
    hub.publish(detection("south", 9))
    hub.publish(detection("north", 4))
    assert short(await taken(slow)) == [("skipped", 5), ("state", "south/9"), ("state", "north/4")]
    assert short(await taken(quick)) == [("detection", "north/4")]
    hub.publish(detection("south", 10))
    assert short(await taken(slow)) == [("detection", "south/10")]


async def test_what_waits_for_a_client_is_bounded_in_bytes() -> None:
    size = len(await taken_as_text())
    hub = RiskHub(most_bytes=3 * size)
    slow = hub.subscribe()
    for number in range(3):
        hub.publish(detection("north", number))
    assert short([json.loads(await slow.next(0) or "")]) == [("detection", "north/0")], "which leaves room for another"
    hub.publish(detection("north", 3))
    hub.publish(detection("north", 4))
    assert short(await taken(slow)) == [("skipped", 4), ("state", "north/4")]
    for number in range(5, 8):
        hub.publish(detection("north", number))
    assert short(await taken(slow)) == [("detection", f"north/{number}") for number in range(5, 8)]
    narrow = RiskHub(most_bytes=1)
    client = narrow.subscribe()
    narrow.publish(detection("north", 1))
    assert short(await taken(client)) == [("detection", "north/1")], "a single one may wait in any case"


async def taken_as_text() -> str:
    """The message of one detection."""
    hub = RiskHub()
    client = hub.subscribe()
    hub.publish(detection("north", 1))
    return await client.next(0) or ""


async def test_a_state_is_made_once_for_all_clients() -> None:
    hub = RiskHub()
    hub.publish(detection("north", 1))
    first, second = [await hub.subscribe().next(0) for _ in range(2)]
    assert first is second is hub.states([])[0]


async def test_a_late_detection_is_told_and_is_not_the_latest() -> None:
    hub = RiskHub()
    client = hub.subscribe()
    assert hub.publish(detection("north", 2))
    assert not hub.publish(detection("north", 1, is_late=True))
    told = await taken(client)
    assert short(told) == [("detection", "north/2"), ("detection", "north/1")]
    assert [each["late"] for each in told] == [False, True]
    assert short(await taken(hub.subscribe())) == [("state", "north/2")]
    assert hub.publish(detection("south", 1, is_late=True)), "of a camera that was forgotten it is the latest"


async def test_an_earlier_detection_does_not_take_the_place_of_a_later_one() -> None:
    hub = RiskHub()
    assert hub.publish(detection("north", 2))
    assert not hub.publish(detection("north", 1))
    assert short(await taken(hub.subscribe())) == [("state", "north/2")]


async def test_the_cameras_that_were_heard_of_last_are_kept() -> None:
    hub = RiskHub(most_cameras=2)
    for camera in ("north", "south", "north", "west"):
        hub.publish(detection(camera, 1))
    assert short(await taken(hub.subscribe())) == [("state", "north/1"), ("state", "west/1")]
    assert short(await taken(hub.subscribe(["south", "west"]))) == [("state", "west/1")]


async def test_who_has_gone_gets_nothing_and_all_are_let_go_of_at_the_end() -> None:
    hub = RiskHub()
    gone, there = hub.subscribe(["north", "south"]), hub.subscribe(["north"])
    hub.unsubscribe(gone)
    hub.unsubscribe(gone)
    hub.publish(detection("north", 1))
    assert await taken(gone) == []
    assert short(await taken(there)) == [("detection", "north/1")]
    hub.end("the server shuts down")
    for each in (there, hub.subscribe()):
        with pytest.raises(StreamEndedError, match="shuts down"):
            await taken(each)


async def test_a_client_that_waits_is_woken() -> None:
    hub = RiskHub()
    waiting = asyncio.create_task(hub.subscribe().next(60))
    await asyncio.sleep(0)
    hub.publish(detection("north", 1))
    assert json.loads(await waiting or "")["message_id"] == "north/1"
