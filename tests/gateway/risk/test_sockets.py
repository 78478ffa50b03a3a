"""Risks by WebSocket, from real topics to many clients at once."""

import asyncio
import json
import random
import socket as sockets
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import urlencode

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from tests.gateway.installations import NO_DAGSTER, NOBODY, READER
from tests.gateway.risk.assessor import Assessor
from tests.gateway.running import LOOPBACK, as_caller, running, until
from tests.messaging.assessed import picture, result, taken_at, task
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.gateway.app import create_routes
from vectorize_pipelines.gateway.risk import feed
from vectorize_pipelines.gateway.risk.feed import LiveRisks
from vectorize_pipelines.gateway.risk.hub import RiskHub, StreamEndedError
from vectorize_pipelines.gateway.routes import risk
from vectorize_pipelines.messaging.messages import InvalidMessageError
from vectorize_pipelines.pipeline.assessments.gathering import Gathering
from vectorize_pipelines.pipeline.assessments.results import DECODING
from vectorize_pipelines.settings import KafkaSettings, load_settings

CAMERAS = [f"camera {number}/é" for number in range(5)]
DETECTIONS = 40
CLIENTS = 50
SECONDS = 60.0
#: So large that what nobody reads does not fit into the buffers of a connection.
SUMMARY = "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyz ", k=30_000))
PICTURE = picture((200, 30, 30))


class RefusedForTestsError(ItemError):
    """A provider refuses to judge a picture."""


@pytest.fixture
def url(assessor: Assessor, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of the installation, which waits as long as it takes for what is to come first."""
    monkeypatch.setenv("VECTORIZE_ASSESSMENTS__GATHER_SECONDS", str(SECONDS))
    monkeypatch.setattr(feed, "Gathering", partial(Gathering, order_seconds=SECONDS))
    with running(as_caller(create_routes(load_settings(), NO_DAGSTER), READER)) as url:
        yield url


def socket(url: str, *cameras: str, **options: Any) -> connect:
    address = f"{url.replace('http', 'ws', 1)}/ws/risk?{urlencode([('camera_id', each) for each in cameras])}"
    return connect(address, proxy=None, **options)


async def said(connection: ClientConnection) -> dict[str, Any]:
    """The next thing that the server says."""
    async with asyncio.timeout(SECONDS):
        message: dict[str, Any] = json.loads(await connection.recv())
        return message


@dataclass
class Client:
    """One that takes detections until it has got `last` of each of its cameras."""

    cameras: list[str]
    got: list[dict[str, Any]] = field(default_factory=list)

    async def follow(self, connection: ClientConnection, last: str) -> None:
        left = {f"{camera}/{last}" for camera in self.cameras}
        while left:
            self.got.append(await said(connection))
            left.discard(self.got[-1].get("message_id"))

    async def follow_until(self, connection: ClientConnection, kind: str) -> None:
        """Take what comes until one of a kind has come."""
        while not self.got or self.got[-1]["type"] != kind:
            self.got.append(await said(connection))


def day_of(camera: str, chance: random.Random) -> tuple[list[Any], list[Any]]:
    """The tasks of a camera in the order of its detections, and results that come as models like, some twice."""
    sizes = [chance.randint(1, 3) for _ in range(DETECTIONS)]
    groups = [(detection, group, size) for detection, size in enumerate(sizes) for group in range(size)]
    tasks = [task(camera, *each, image=PICTURE) for each in groups]
    results = [result(camera, *each, summary=SUMMARY) for each in groups for _ in range(chance.choice((1, 1, 2)))]
    return tasks, [each for _, each in sorted(enumerate(results), key=lambda pair: pair[0] + chance.random() * 12)]


def test_fifty_clients_of_which_five_are_slow_or_gone(url: str, assessor: Assessor) -> None:
    chance = random.Random(7)
    days = [day_of(camera, chance) for camera in CAMERAS]
    results = [each for several in zip(*(day[1] for day in days), strict=False) for each in several]
    results += [each for day in days for each in day[1] if each not in results]
    clients = [Client([CAMERAS[number % 5]] if number % 10 else CAMERAS) for number in range(CLIENTS)]
    slow, gone = clients[:3], clients[3:5]

    async def follow_all() -> None:
        # Their buffers are small, and what comes is not compressed: the server has to wait for those that do not read.
        connections = [await socket(url, *set_of(each), compression=None, max_queue=1) for each in clients]
        await asyncio.to_thread(assessor.send_tasks, *(each for day in days for each in day[0]))
        await until_taken(url, days[-1][0][-1].task_id)
        sending = asyncio.create_task(send_in_parts(assessor, results))
        for connection in connections[3:5]:
            await said(connection)
            connection.transport.abort()
        quick = zip(clients[5:], connections[5:], strict=True)
        last = str(DETECTIONS - 1)
        await asyncio.gather(*(client.follow(connection, last) for client, connection in quick), sending)
        await asyncio.gather(*(client.follow(each, last) for client, each in zip(slow, connections[:3], strict=True)))
        # Nothing comes after the last but what is sent now.
        await asyncio.to_thread(assessor.send_results, *(result(camera, 1_000) for camera in CAMERAS))
        for client, connection in zip(clients, connections, strict=True):
            if client not in gone:
                await client.follow(connection, "1000")
                await connection.close()

    asyncio.run(follow_all())
    for client in clients:
        if client in gone:
            continue
        assert {each["type"] for each in client.got} == {"detection"}
        for camera in client.cameras:
            detections = [each for each in client.got if each["camera_id"] == camera]
            numbers = [*range(DETECTIONS), 1_000]
            assert [each["message_id"] for each in detections] == [f"{camera}/{number}" for number in numbers]
            assert all(each["complete"] and not each["late"] for each in detections)
            assert [each["timestamp"] for each in detections[:-1]] == [taken_at(n).isoformat() for n in numbers[:-1]]
        assert {each["camera_id"] for each in client.got} == set(client.cameras)


def test_slow_clients_are_skipped_ahead_and_nobody_else_notices(
    assessor: Assessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the times that an installation has: nothing here may have to be waited for."""
    rounds, last = 24, 1_000
    monkeypatch.setattr(feed, "RiskHub", partial(RiskHub, most_bytes=2 * 2**20))
    quick = [Client(CAMERAS), Client(CAMERAS), *(Client([camera]) for camera in CAMERAS)]
    slow = [Client(CAMERAS), Client(CAMERAS)]

    def detections(number: int) -> list[Any]:
        text = SUMMARY * 2  # twice, by five cameras: too little in one round for who takes it, too much in all
        return [result(camera, number, group, 2, summary=text) for camera in CAMERAS for group in range(2)]

    async def follow_all(url: str) -> None:
        connections = [await socket(url, *set_of(each)) for each in quick]
        unread = [await socket(url, sock=small(url), compression=None, max_queue=1, ping_interval=None) for _ in slow]
        tasks = [
            task(camera, n, group, 2, image=PICTURE) for n in range(rounds) for camera in CAMERAS for group in range(2)
        ]
        await asyncio.to_thread(assessor.send_tasks, *tasks)
        await until_taken(url, tasks[-1].task_id)
        for number in [*range(rounds), last]:
            if number == last:
                skipped = [
                    each.follow_until(connection, "skipped") for each, connection in zip(slow, unread, strict=True)
                ]
                await asyncio.gather(*skipped)
            await asyncio.to_thread(assessor.send_results, *detections(number))
            followed = [*zip(quick, connections, strict=True)]
            if number == last:
                followed += zip(slow, unread, strict=True)
            await asyncio.gather(*(each.follow(connection, str(number)) for each, connection in followed))
        for connection in [*connections, *unread]:
            await connection.close()

    with running(as_caller(create_routes(load_settings(), NO_DAGSTER), READER)) as url:
        asyncio.run(follow_all(url))
    everything = [*range(rounds), last]
    for client in quick:
        assert {(each["type"], each["complete"], each["late"]) for each in client.got} == {("detection", True, False)}
        for camera in client.cameras:
            told = [each["message_id"] for each in client.got if each["camera_id"] == camera]
            assert told == [f"{camera}/{number}" for number in everything]
    for client in slow:
        types = [each["type"] for each in client.got]
        at = types.index("skipped")
        assert types[at + 1 : at + 1 + len(CAMERAS)] == ["state"] * len(CAMERAS)
        states = {each["message_id"] for each in client.got[at + 1 : at + 1 + len(CAMERAS)]}
        assert states == {f"{camera}/{rounds - 1}" for camera in CAMERAS}
        assert types.count("detection") + client.got[at]["detections"] == len(everything) * len(CAMERAS)
        assert types.count("skipped") == 1


def small(url: str) -> sockets.socket:
    """A connection whose own end takes hardly anything that is not read."""
    connection = sockets.socket()
    connection.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
    connection.connect((LOOPBACK, int(url.rpartition(":")[2])))
    return connection


def set_of(client: Client) -> list[str]:
    """The cameras that a client names: none where it wants all."""
    return [] if client.cameras == CAMERAS else client.cameras


async def send_in_parts(assessor: Assessor, results: list[Any]) -> None:
    for start in range(0, len(results), 100):
        await asyncio.to_thread(assessor.send_results, *results[start : start + 100])


async def until_taken(url: str, task_id: str) -> None:
    """Wait until the server has read a task."""
    async with httpx2.AsyncClient(base_url=url, timeout=SECONDS) as client:
        while (await client.get("/risk/picture", params={"task_id": task_id})).status_code != 200:
            await asyncio.sleep(0.02)


def test_a_client_gets_the_latest_of_each_camera_first(url: str, assessor: Assessor) -> None:
    assessor.send_tasks(task("north", 1), task("north", 2), task("south", 5))
    assessor.send_results(result("north", 1), result("north", 2), result("south", 5))

    async def listen() -> None:
        async with socket(url, "north") as connection:
            state = await said(connection)
            assert (state["type"], state["message_id"]) == ("state", "north/2")
            await asyncio.to_thread(assessor.send_results, result("south", 6), result("north", 3))
            detection = await said(connection)
            assert (detection["type"], detection["message_id"]) == ("detection", "north/3")
        async with socket(url) as connection:
            assert {(await said(connection))["message_id"] for _ in CAMERAS[:2]} == {"north/3", "south/6"}

    asyncio.run(listen())


def test_a_detection_in_whose_midst_reading_begins_is_not_told(
    assessor: Assessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_ASSESSMENTS__GATHER_SECONDS", "0.05")
    cut = [result("north", 1, group, 2, risk_level="critical") for group in range(2)]
    further = [result("south", number) for number in range(feed._RESULTS_BACK - 3)]
    assessor.send_results(*cut, *further, result("north", 2))
    with running(as_caller(create_routes(load_settings(), NO_DAGSTER), READER)) as url:

        async def listen() -> list[dict[str, Any]]:
            async with socket(url, "north") as connection:
                state = await said(connection)
                # Nobody waits for longer for the one that was cut off than for this one, which came after it.
                await asyncio.to_thread(assessor.send_results, result("north", 3, 0, 2))
                return [state, await said(connection)]

        told = asyncio.run(listen())
        latest = httpx2.get(f"{url}/risk/cameras", params={"camera_id": "north"}, timeout=SECONDS).json()["cameras"]
    assert [each["message_id"] for each in told] == ["north/2", "north/3"]
    assert [each["message_id"] for each in latest] == ["north/3"]


def test_what_is_told_of_a_detection(url: str, assessor: Assessor) -> None:
    failed = {"error": {"class": "InvalidAnswerError", "message": "no JSON"}, "risk_level": None, "risk_score": None}
    results = [result("north", 1, 0, 2, **failed), result("north", 1, 3, 2, risk_level="high", risk_score=0.5)]

    async def listen() -> None:
        async with socket(url) as connection:
            await asyncio.to_thread(assessor.send_results, *results)
            assert await said(connection) == {
                "type": "detection",
                "camera_id": "north",
                "message_id": "north/1",
                "timestamp": results[0].timestamp.isoformat(),
                "complete": True,
                "risk_level": "high",
                "risk_score": 0.5,
                "groups_total": 2,
                "groups": [each.to_dict() for each in results],
                "missing": [],
                "late": False,
            }

    asyncio.run(listen())


def test_groups_whose_tasks_are_dead_letters_have_an_error_and_count(url: str, assessor: Assessor) -> None:
    refused = RefusedForTestsError("the provider judges no such picture")
    assessor.bury(task("north", 1), refused)

    async def listen() -> list[dict[str, Any]]:
        async with socket(url) as connection:
            state = await said(connection)
            await asyncio.to_thread(assessor.bury, task("south", 1, 0, 2), InvalidMessageError("", "none"), DECODING)
            await asyncio.to_thread(assessor.bury, task("south", 1, 0, 2), refused)
            await asyncio.to_thread(assessor.send_results, result("south", 1, 1, 2))
            return [state, await said(connection)]

    told = asyncio.run(listen())
    assert [each["message_id"] for each in told] == ["north/1", "south/1"]
    assert [each["risk_level"] for each in told] == [None, "low"]
    for each in told:
        assert (each["complete"], each["missing"], each["timestamp"]) == (True, [], taken_at(1).isoformat())
        error = {"class": "RefusedForTestsError", "message": "the provider judges no such picture"}
        assert each["groups"][0]["error"] == error


def test_groups_that_do_not_come_in_time_are_named(assessor: Assessor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VECTORIZE_ASSESSMENTS__GATHER_SECONDS", "0.05")
    with running(as_caller(create_routes(load_settings(), NO_DAGSTER), READER)) as url:

        async def listen() -> dict[str, Any]:
            async with socket(url) as connection:
                tasks = [task("north", 1, group, 3, image=PICTURE) for group in range(3)]
                await asyncio.to_thread(assessor.send_tasks, *tasks)
                await until_taken(url, tasks[-1].task_id)
                await asyncio.to_thread(assessor.send_results, result("north", 1, 1, 3))
                return await said(connection)

        told = asyncio.run(listen())
    assert (told["complete"], told["missing"], told["groups_total"]) == (False, [0, 2], 3)


def test_what_is_no_result_is_passed_over(url: str, assessor: Assessor) -> None:
    topic = assessor.settings.risk_results_topic

    async def listen() -> dict[str, Any]:
        async with socket(url) as connection:
            await asyncio.to_thread(assessor.send, topic, [("north", b"{"), ("north", None), ("north", b"[]")])
            await asyncio.to_thread(assessor.send_results, result("north", 1))
            return await said(connection)

    assert asyncio.run(listen())["message_id"] == "north/1"


def test_a_silent_server_says_that_it_is_there(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(risk, "HEARTBEAT_SECONDS", 0.02)

    async def listen() -> list[dict[str, Any]]:
        async with socket(url) as connection:
            await connection.send("whatever a client says is passed over")
            return [await said(connection) for _ in range(3)]

    assert asyncio.run(listen()) == [{"type": "alive", "receiving": True}] * 3


def test_the_same_for_who_asks_once(url: str, assessor: Assessor) -> None:
    assessor.send_results(result("north", 1), result("south", 2))
    with httpx2.Client(base_url=url, timeout=SECONDS) as client:
        everything = client.get("/risk/cameras").json()["cameras"]
        assert {each["message_id"] for each in everything} == {"north/1", "south/2"}
        (south,) = client.get("/risk/cameras", params={"camera_id": "south"}).json()["cameras"]
        assert (south["type"], south["message_id"]) == ("state", "south/2")
        assert client.get("/risk/cameras", params={"camera_id": "west"}).json() == {"cameras": []}


def test_pictures_are_there_as_long_as_somebody_listens(url: str, assessor: Assessor) -> None:
    assessor.send_tasks(task("north", 1, image=PICTURE), task("north", 2, image=b"<svg onload='alert(1)'/>"))

    async def look() -> None:
        async with httpx2.AsyncClient(base_url=url, timeout=SECONDS) as client:
            assert (await client.get("/risk/picture", params={"task_id": "north/1/0"})).status_code == 404
            async with socket(url):
                await until_taken(url, "north/1/0")
                found = await client.get("/risk/picture", params={"task_id": "north/1/0"})
                assert found.content == PICTURE
                assert found.headers["content-type"] == "image/jpeg"
                assert found.headers["cache-control"] == "private, max-age=3600, immutable"
                refused = await client.get("/risk/picture", params={"task_id": "north/2/0"})
                assert refused.status_code == 404
                assert refused.headers["content-type"] == "application/problem+json"

    asyncio.run(look())


def refusal(url: str) -> tuple[int, str]:
    """The answer to a client that gets no WebSocket."""

    async def ask() -> tuple[int, str]:
        with pytest.raises(InvalidStatus) as refused:
            await socket(url)
        return refused.value.response.status_code, json.loads(refused.value.response.body or b"")["detail"]

    return asyncio.run(ask())


def test_nobody_listens_without_the_scope_or_without_topics(
    kafka_settings: KafkaSettings, home: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTORIZE_KAFKA__RISK_RESULTS_TOPIC", f"{kafka_settings.topic_prefix}-missing")
    with running(as_caller(create_routes(load_settings(), NO_DAGSTER), NOBODY)) as url:
        assert refusal(url) == (403, "the token 'nobody' lacks the scope read")
    with running(as_caller(create_routes(load_settings(), NO_DAGSTER), READER)) as url:
        until(lambda: "vectorize topics create" in refusal(url)[1])
    monkeypatch.delenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS")
    with running(as_caller(create_routes(load_settings(), NO_DAGSTER), READER)) as url:
        status, detail = refusal(url)
        assert (status, "no Kafka cluster is configured" in detail) == (503, True)


def test_topics_are_read_while_somebody_listens(assessor: Assessor) -> None:
    async def come_and_go() -> None:
        async with LiveRisks(load_settings(), linger_seconds=0.01) as risks:
            async with risks.listening([]) as (first, _), risks.listening(["north"]) as (second, _):
                assert first is second
            async with asyncio.timeout(SECONDS):
                while risks.is_open:
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(assessor.send_results, result("north", 1))
            async with risks.listening([]) as (third, subscription):
                assert third is not first
                assert json.loads(await subscription.next(SECONDS) or "")["message_id"] == "north/1"
                risks.end()
                with pytest.raises(StreamEndedError):
                    await subscription.next(SECONDS)

    asyncio.run(come_and_go())
