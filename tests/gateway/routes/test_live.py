"""Changes of state over HTTP, from the ledger and from a real results topic."""

import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.gateway.installations import NO_DAGSTER, NOBODY, READER, ended, ledger_of, new_row, served, taken_up
from tests.gateway.running import as_caller
from tests.gateway.streams import Stream, listening, stoppable
from tests.messaging.brokers import finish, send
from tests.servers import kafka
from tests.servers.dev import until
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.gateway.app import create_routes
from vectorize_pipelines.gateway.live import events as live_events
from vectorize_pipelines.gateway.live.hub import SHUTTING_DOWN, TOO_SLOW, Hub
from vectorize_pipelines.gateway.live.sources import LOOK_SECONDS, LedgerWatch
from vectorize_pipelines.gateway.services import Services
from vectorize_pipelines.kafka.clients import produce, producer
from vectorize_pipelines.kafka.topics import TopicNames, create_topics
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.settings import KafkaSettings, Settings, load_settings
from vectorize_pipelines.state.ledger import RequestLedger

PENDING, PROCESSING, COMPLETED, FAILED = "pending", "processing", "completed", "failed"


@pytest.fixture
def ledger(settings: Settings) -> Iterator[RequestLedger]:
    with ledger_of(settings) as ledger:
        yield ledger


@pytest.fixture
def client(settings: Settings, ledger: RequestLedger) -> Iterator[httpx2.Client]:
    """A client of a server without Kafka."""
    with served(settings) as client:
        yield client


@pytest.fixture
def kafka_client(topics: TopicNames, home: Path) -> Iterator[httpx2.Client]:
    """A client of a server that follows a results topic, and has found where that ends."""
    with served(load_settings()) as client:
        wait_until_followed(client)
        yield client


def wait_until_followed(client: httpx2.Client) -> None:
    """An id of the topic itself is only known once its end has been found."""

    def is_followed() -> bool:
        with listening(client, "/events", "nonsense") as stream:
            reset = stream.begun().next()
            assert reset is not None
            return ":" in reset.id

    until("the end of the results topic", is_followed)


def say(settings: KafkaSettings, *events: ResultEvent) -> None:
    """Events as a run sends them while it is under way."""
    sender = producer(settings)
    for event in events:
        produce(sender, TopicNames(settings.topic_prefix).results, key=event.task_id.encode(), value=event.to_json())
    assert sender.flush(30) == 0


# ---- one request


def test_one_request_is_followed_from_its_present_state_to_its_end(
    client: httpx2.Client, ledger: RequestLedger
) -> None:
    row = new_row("one")
    ledger.record([row])
    with listening(client, "/tasks/one/events") as stream:
        first = stream.next()
        assert first is not None
        assert first.kind == "status"
        assert first.data == {
            "task_id": "one",
            "status": "pending",
            "collection": "texts",
            "vector_count": 0,
            "error": None,
            "run_id": None,
            "timestamp": row.submitted_at.isoformat(),
            "warnings": [],
            "truncated": 0,
        }
        ledger.record([taken_up(row)])
        second = stream.next()
        assert second is not None
        assert (second.state, second.data["run_id"]) == (("one", PROCESSING), "run-1")
        ledger.record([ended(row, RequestState.FAILED)])
        (last,) = stream.rest()
        assert last.state == ("one", FAILED)
        assert last.data["error"] == {"class": "CorruptImageError", "message": "it is no image"}


def test_a_request_that_has_ended_is_told_once_and_a_browser_that_comes_back_is_told_to_stop(
    client: httpx2.Client, ledger: RequestLedger
) -> None:
    ledger.record([ended(new_row("one"))])
    with listening(client, "/tasks/one/events") as stream:
        (only,) = stream.rest()
        assert only.state == ("one", COMPLETED)
    assert client.get("/tasks/one/events", headers={"Last-Event-ID": only.id}).status_code == 204
    ledger.record([new_row("one", sent=1)])
    with listening(client, "/tasks/one/events", only.id) as stream:
        again = stream.next()
        assert again is not None
        assert again.state == ("one", PENDING)


def test_a_request_whose_id_has_slashes_is_followed(client: httpx2.Client, ledger: RequestLedger) -> None:
    ledger.record([ended(new_row("vectorize.text/3/17"))])
    with listening(client, "/tasks/vectorize.text/3/17/events") as stream:
        assert [event.state for event in stream.rest()] == [("vectorize.text/3/17", COMPLETED)]


def test_a_state_that_nothing_has_told_of_is_found_in_a_while(
    client: httpx2.Client, ledger: RequestLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LedgerWatch, "_look_at_watched", never)
    monkeypatch.setattr("vectorize_pipelines.gateway.routes.live.HEARTBEAT_SECONDS", 0.1)
    row = new_row("one")
    ledger.record([row])
    with listening(client, "/tasks/one/events") as stream:
        assert stream.next() is not None
        ledger.record([ended(row)])
        assert [event.state for event in stream.rest()] == [("one", COMPLETED)]
        assert "still here" in stream.comments


async def never(watch: LedgerWatch) -> None:
    """A look that finds nothing."""


def test_a_request_that_nobody_knows_is_not_found(client: httpx2.Client) -> None:
    answer = client.get("/tasks/nobody's/events")
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert "nobody's" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["/events", "/tasks/one/events"])
def test_a_token_without_the_scope_gets_no_stream(settings: Settings, path: str) -> None:
    with served(settings, NOBODY) as client:
        answer = client.get(path)
        assert answer.status_code == 403
        assert answer.headers["content-type"] == "application/problem+json"


# ---- all requests, without Kafka


@pytest.mark.slow
def test_all_changes_are_told_in_their_order(client: httpx2.Client, ledger: RequestLedger) -> None:
    ledger.record([ended(new_row("before"))])
    row = new_row("one")
    with listening(client, "/events") as stream:
        stream.begun()
        for each in (row, taken_up(row), ended(row)):
            ledger.record([each])
            event = stream.next()
            assert event is not None
            assert event.state == ("one", each.state.value)


def test_only_the_states_that_were_asked_for_are_told(client: httpx2.Client, ledger: RequestLedger) -> None:
    with listening(client, "/events?status=failed&status=cancelled") as stream:
        stream.begun()
        ledger.record([ended(new_row("good")), ended(new_row("bad"), RequestState.FAILED)])
        event = stream.next()
        assert event is not None
        assert event.state == ("bad", FAILED)


def test_a_state_that_there_is_none_of_is_refused_by_name(client: httpx2.Client) -> None:
    answer = client.get("/events?status=done")
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] == "status[0]"


def test_a_client_that_comes_back_gets_what_it_has_missed(client: httpx2.Client, ledger: RequestLedger) -> None:
    with listening(client, "/events") as steady:  # the ledger is looked into as long as somebody listens
        steady.begun()
        with listening(client, "/events") as first:
            first.begun()
            ledger.record([ended(new_row("one"))])
            seen = first.next()
            assert seen is not None
        ledger.record([ended(new_row("two"))])
        assert [event.state for event in steady.several(2)] == [("one", COMPLETED), ("two", COMPLETED)]
        with listening(client, "/events", seen.id) as second:
            missed = second.next()
            assert missed is not None
            assert (missed.kind, missed.state) == ("status", ("two", COMPLETED))


@pytest.mark.parametrize("last_id", ["nonsense", "ledger-0/0:0", "é", "x" * 3000])
def test_a_client_with_an_id_that_is_not_known_is_told_to_load_again(
    client: httpx2.Client, ledger: RequestLedger, last_id: str
) -> None:
    headers = {b"Last-Event-ID": last_id.encode()}
    with client.stream("GET", "/events", headers=headers) as response:
        stream = Stream(response).begun()
        event = stream.next()
        assert event is not None
        assert event.kind == "reset"
        ledger.record([ended(new_row("one"))])
        event = stream.next()
        assert event is not None
        assert event.state == ("one", COMPLETED)


@pytest.mark.slow
def test_what_happened_while_nobody_listened_is_not_gone_on_from(client: httpx2.Client, ledger: RequestLedger) -> None:
    with listening(client, "/events") as stream:
        stream.begun()
        ledger.record([ended(new_row("one"))])
        seen = stream.next()
        assert seen is not None

    def event_after() -> str:
        time.sleep(2 * LOOK_SECONDS)  # or the next look finds somebody who listens again
        with listening(client, "/events", seen.id) as stream:
            ledger.record([ended(new_row(datetime.now(UTC).isoformat()))])
            event = stream.begun().next()
            assert event is not None
            return event.kind

    until("a place that is not known any more", lambda: event_after() == "reset")


def test_streams_end_when_the_server_stops(settings: Settings, ledger: RequestLedger) -> None:
    ledger.record([new_row("one")])
    ending = ExitStack()

    @asynccontextmanager
    async def beside(services: Services) -> AsyncIterator[None]:
        ending.callback(services.live.end)
        yield

    app = as_caller(create_routes(settings, NO_DAGSTER, beside=beside), READER)
    with (
        stoppable(app, ending.close) as server,
        httpx2.Client(base_url=server.url, timeout=60) as client,
        listening(client, "/events") as everything,
        listening(client, "/tasks/one/events") as one,
    ):
        everything.begun()
        assert one.next() is not None
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        for stream in (everything, one):
            assert stream.rest() == []
            assert stream.comments[-1] == SHUTTING_DOWN
        stopping.join(60)
        assert not stopping.is_alive()


# ---- the results topic


def test_events_of_the_results_topic_are_told_from_the_start_of_the_server_on(
    topics: TopicNames, kafka_settings: KafkaSettings, home: Path
) -> None:
    finish(kafka_settings, "before")
    with served(load_settings()) as client:
        wait_until_followed(client)
        with listening(client, "/events") as stream:
            stream.begun()
            finish(kafka_settings, "one")
            event = stream.next()
            assert event is not None
            assert event.state == ("one", COMPLETED)
            assert event.data["run_id"] == "run-1"


def test_a_client_goes_on_from_any_event_whatever_partition_it_is_of(
    kafka_client: httpx2.Client, kafka_settings: KafkaSettings
) -> None:
    names = [f"request-{number}" for number in range(30)]
    with listening(kafka_client, "/events") as stream:
        stream.begun()
        finish(kafka_settings, *names)
        events = stream.several(len(names))
        assert sorted(event.data["task_id"] for event in events) == sorted(names)
    for number in (0, 13, 28):
        with listening(kafka_client, "/events", events[number].id) as stream:
            stream.begun()
            assert stream.several(len(events) - number - 1) == events[number + 1 :]


def test_what_is_no_event_is_passed_over(kafka_client: httpx2.Client, kafka_settings: KafkaSettings) -> None:
    topic = TopicNames(kafka_settings.topic_prefix).results
    naive = b'{"task_id": "naive", "status": "completed", "timestamp": "2026-03-01T12:00:00"}'
    with listening(kafka_client, "/events") as stream:
        stream.begun()
        send(kafka_settings, topic, *({"key": b"one", "value": value} for value in (None, b"", b"{}", b"\xff", naive)))
        event = stream.next()
        assert event is not None
        assert event.state == ("naive", COMPLETED)
        assert event.data["timestamp"] == "2026-03-01T12:00:00+00:00"


def test_an_event_of_what_is_under_way_that_comes_late_is_not_told(
    kafka_client: httpx2.Client, kafka_settings: KafkaSettings
) -> None:
    now = datetime.now(UTC)
    late = ResultEvent("one", RequestState.PROCESSING, "texts", run_id="run-1", timestamp=now - timedelta(seconds=1))
    final = ResultEvent("one", RequestState.COMPLETED, "texts", run_id="run-1", timestamp=now)
    again = ResultEvent("one", RequestState.PROCESSING, "texts", run_id="run-2", timestamp=now + timedelta(seconds=1))
    with listening(kafka_client, "/events") as stream:
        stream.begun()
        say(kafka_settings, final, late, final, again)
        told = stream.several(2)
        assert [(event.state, event.data["run_id"]) for event in told] == [
            (("one", COMPLETED), "run-1"),
            (("one", PROCESSING), "run-2"),
        ]


def test_a_request_sent_again_is_not_ended_by_the_event_of_the_one_before(
    kafka_client: httpx2.Client, kafka_settings: KafkaSettings, ledger: RequestLedger
) -> None:
    row = new_row("one", sent=1)
    ledger.record([row])
    with listening(kafka_client, "/tasks/one/events") as stream:
        first = stream.next()
        assert first is not None
        assert first.state == ("one", PENDING)
        finish(kafka_settings, "one", state=RequestState.FAILED)  # of the message before, noted before this one was
        say(kafka_settings, ResultEvent("one", RequestState.PROCESSING, run_id="run-2"))
        second = stream.next()
        assert second is not None
        assert second.state == ("one", PROCESSING)
        ledger.record([ended(row)])
        finish(kafka_settings, "one")
        assert [event.state for event in stream.rest()] == [("one", COMPLETED)]


def test_a_run_that_reports_to_the_ledger_alone_is_followed_with_kafka_too(
    kafka_client: httpx2.Client, ledger: RequestLedger
) -> None:
    row = new_row("one")
    ledger.record([row])
    with listening(kafka_client, "/tasks/one/events") as stream:
        assert stream.next() is not None
        ledger.record([ended(row)])
        assert [event.state for event in stream.rest()] == [("one", COMPLETED)]


def test_a_client_that_reads_nothing_is_let_go_of_and_holds_nobody_up(
    topics: TopicNames, kafka_settings: KafkaSettings, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_events, "Hub", partial(Hub, kept=1000))
    # More than is kept for a client and what lies on the way to it hold together.
    number, message = 7_000, "x" * 2000
    events = [
        ResultEvent(f"request-{each}", RequestState.FAILED, error={"class": "E", "message": message})
        for each in range(number)
    ]
    with served(load_settings()) as client:
        wait_until_followed(client)
        with raw_stream(client, "/events") as idle, listening(client, "/events") as stream:
            stream.begun()
            for start in range(0, number, 500):
                say(kafka_settings, *events[start : start + 500])
                assert len(stream.several(len(events[start : start + 500]))) == 500
            received = b""
            while piece := idle.recv(2**20):
                received = (received + piece)[-len(TOO_SLOW) - 100 :]
            assert TOO_SLOW.encode() in received


class raw_stream:  # noqa: N801 -- used as a function
    """A connection whose client has asked, and reads only when the test does."""

    def __init__(self, client: httpx2.Client, path: str) -> None:
        url = client.base_url
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(60)
        self._socket.connect((url.host, url.port))
        self._socket.sendall(f"GET {path} HTTP/1.1\r\nHost: {url.host}\r\nConnection: close\r\n\r\n".encode())
        assert self._socket.recv(15) == b"HTTP/1.1 200 OK"

    def __enter__(self) -> socket.socket:
        return self._socket

    def __exit__(self, *exception: object) -> None:
        self._socket.close()


# ---- brokers that are away


@pytest.fixture
def own_kafka(kafka_program: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> kafka.Server:
    """A broker of the test's own, not started, in the environment."""
    server = kafka.Server(tmp_path / "kafka")
    monkeypatch.setenv("VECTORIZE_KAFKA__BOOTSTRAP_SERVERS", server.bootstrap_servers)
    return server


def test_brokers_that_come_late_stand_still_and_die(own_kafka: kafka.Server) -> None:
    settings = load_settings()
    with served(settings) as client, listening(client, "/events") as stream:
        stream.begun()
        with own_kafka:
            create_topics(settings.kafka)
            event = stream.next()
            assert event is not None
            assert event.kind == "reset"  # it may have missed something
            tells(settings, stream, "one")
            while_they_stand_still(own_kafka, client)
            tells(settings, stream, "two")
            own_kafka.kill()
            assert client.get("/livez").status_code == 200
            own_kafka.start()
            tells(settings, stream, "three", "four")
            tells(settings, stream, "five")


def tells(settings: Settings, stream: Stream, *task_ids: str) -> None:
    """Requests end, and the stream says so next: it has missed none before, and told none twice."""
    finish(settings.kafka, *task_ids)
    assert {event.state for event in stream.several(len(task_ids))} == {(each, COMPLETED) for each in task_ids}


def while_they_stand_still(brokers: kafka.Server, client: httpx2.Client) -> None:
    """No other request is held up."""
    with brokers.standing_still():
        assert client.get("/livez").status_code == 200
        with listening(client, "/events") as another:
            another.begun()
