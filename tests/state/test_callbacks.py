"""Callbacks, against a real server, from a table on SQLite and on PostgreSQL."""

import hashlib
import hmac
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tests.servers.web import Web, answer, serving
from vectorize_pipelines.core.request_state import RequestState
from vectorize_pipelines.messaging.callbacks import (
    DELIVERY_HEADER,
    SIGNATURE_HEADER,
    CallbackDelivery,
    CallbackSender,
    Deliveries,
    callback_row,
    signature,
)
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.settings import PROJECT_ROOT, CallbackSettings, Settings
from vectorize_pipelines.state.callbacks import CallbackOutbox, CallbackRow, CallbackState, CallbackStatus
from vectorize_pipelines.state.database import Database

SECRET = "s3cret of the tests"


@dataclass
class Receiver:
    """A server that notes what it is told, and what it should answer next, in turn; 200 after that."""

    answers: list[int] = field(default_factory=list)
    received: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    wait: threading.Event | None = None
    web: Web = field(default_factory=lambda: Web(0))

    def __call__(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers["Content-Length"]))
        self.received.append((handler.path, dict(handler.headers), body))
        if self.wait is not None:
            self.wait.wait(30)
        answer(handler, self.answers.pop(0) if self.answers else 200, b"thanks", **self.headers)

    @property
    def paths(self) -> list[str]:
        return [path for path, _, _ in self.received]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    with serving(one) as one.web:
        yield one


class Clock:
    """Seconds since 1970, as the test says."""

    def __init__(self) -> None:
        self.time = 1_800_000_000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Outbox(CallbackOutbox):
    """The table, with the sender of what is in it."""

    def __init__(self, database: Database, settings: CallbackSettings, clock: Clock) -> None:
        super().__init__(database, clock)
        self.sender = CallbackSender(self, settings, clock)

    def deliver_due(self, stop: threading.Event | None = None) -> Deliveries:
        return self.sender.deliver_due(stop)


MakeOutbox = Callable[..., Outbox]


@pytest.fixture
def make_outbox(installation: Settings, clock: Clock) -> Iterator[MakeOutbox]:
    """Makes outboxes on one table; private addresses are allowed, since the receiver is on this machine."""
    made: list[Outbox] = []

    def make(**settings: Any) -> Outbox:
        chosen = CallbackSettings.model_validate({"allow_private": True, "secret": SECRET, **settings})
        made.append(Outbox(Database.open(installation), chosen, clock))
        return made[-1]

    yield make
    for each in made:
        each.close()


def row(url: str, task_id: str = "täsk 1", offset: int = 0) -> CallbackRow:
    event = ResultEvent(task_id, RequestState.COMPLETED, "texts", 3, None, "run", datetime(2026, 1, 1, tzinfo=UTC))
    return callback_row(url, event, Origin("vectorize.text", 1, offset, 0))


def test_a_callback_is_the_event_and_is_signed(make_outbox: MakeOutbox, receiver: Receiver, clock: Clock) -> None:
    outbox = make_outbox()
    outbox.enqueue([row(receiver.web.url("/hook?token=abc"))])
    assert outbox.due() == 1
    assert outbox.deliver_due() == Deliveries(delivered=1)
    ((path, headers, body),) = receiver.received
    assert path == "/hook?token=abc"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body)["task_id"] == "täsk 1"
    assert ResultEvent.from_json(body).to_json().decode() == row("").body
    stamp, given = headers[SIGNATURE_HEADER].split(",")
    assert stamp == f"t={int(clock.time)}"
    expected = hmac.new(SECRET.encode(), f"{int(clock.time)}.".encode() + body, hashlib.sha256).hexdigest()
    assert given == f"v1={expected}"
    assert outbox.status("täsk 1") == CallbackStatus(CallbackState.DELIVERED, 1, None)
    assert outbox.due() == 0
    assert outbox.deliver_due() == Deliveries()


def test_the_documented_way_to_verify_a_signature() -> None:
    page = (PROJECT_ROOT / "docs" / "operations.md").read_text()
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    now, body = int(datetime.now(UTC).timestamp()), '{"a": "ü"}'.encode()
    genuine = names["is_genuine"]
    assert genuine(SECRET, signature(SECRET, now, body), body)
    assert not genuine(SECRET, signature(SECRET, now, body), body + b" ")
    assert not genuine(SECRET, signature("another", now, body), body)
    assert not genuine(SECRET, signature(SECRET, now - 400, body), body)


def test_without_a_secret_nothing_is_signed(make_outbox: MakeOutbox, receiver: Receiver) -> None:
    outbox = make_outbox(secret=None)
    outbox.enqueue([row(receiver.web.url())])
    outbox.deliver_due()
    assert SIGNATURE_HEADER not in receiver.received[0][1]


def test_a_message_has_one_callback(make_outbox: MakeOutbox, receiver: Receiver) -> None:
    """Promised twice, before and after it was delivered; another message of the same request has its own."""
    outbox = make_outbox()
    for _ in range(2):
        outbox.enqueue([row(receiver.web.url("/one"))])
    outbox.deliver_due()
    outbox.enqueue([row(receiver.web.url("/one")), row(receiver.web.url("/two"), offset=1)])
    outbox.enqueue([])
    outbox.deliver_due()
    assert receiver.paths == ["/one", "/two"]
    first, second = (headers[DELIVERY_HEADER] for _, headers, _ in receiver.received)
    assert first != second


def test_failures_are_tried_again_with_growing_pauses(
    make_outbox: MakeOutbox, receiver: Receiver, clock: Clock
) -> None:
    outbox = make_outbox(attempts=4)
    receiver.answers = [500, 404, 302]
    outbox.enqueue([row(receiver.web.url())])
    for attempts, pause, reason in ((1, 10, "500"), (2, 30, "404"), (3, 90, "302; redirects are not followed")):
        assert outbox.deliver_due() == Deliveries(postponed=1)
        assert outbox.status("täsk 1") == CallbackStatus(
            CallbackState.WAITING, attempts, f"the server answered {reason}"
        )
        clock.time += pause - 1
        assert outbox.deliver_due() == Deliveries()
        clock.time += 1
    assert outbox.deliver_due() == Deliveries(delivered=1)
    assert outbox.status("täsk 1") == CallbackStatus(CallbackState.DELIVERED, 4, None)
    assert len({headers[DELIVERY_HEADER] for _, headers, _ in receiver.received}) == 1
    assert len({headers[SIGNATURE_HEADER] for _, headers, _ in receiver.received}) == 4


def test_it_is_given_up_after_so_many_attempts(
    make_outbox: MakeOutbox, receiver: Receiver, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    outbox = make_outbox(attempts=3)
    receiver.answers = [500] * 9
    outbox.enqueue([row(receiver.web.url("/hook?token=abc"))])
    with caplog.at_level(logging.DEBUG):
        for _ in range(5):
            outbox.deliver_due()
            clock.time += 3600
    assert len(receiver.received) == 3
    assert outbox.status("täsk 1") == CallbackStatus(CallbackState.FAILED, 3, "the server answered 500")
    assert "request täsk 1 is given up after attempt 3: the server answered 500" in caplog.text
    assert "s3cret" not in caplog.text
    assert "token" not in caplog.text


def test_a_receiver_that_is_gone_is_left_alone(make_outbox: MakeOutbox, receiver: Receiver) -> None:
    outbox = make_outbox()
    receiver.answers = [410]
    outbox.enqueue([row(receiver.web.url())])
    assert outbox.deliver_due() == Deliveries(given_up=1)


@pytest.mark.parametrize(
    ("asked", "pause"), [("120", 120), ("1", 10), ("999999", 3600), ("Wed, 21 Oct", 10), ("٣", 10)]
)
def test_a_receiver_may_ask_for_a_longer_pause(
    make_outbox: MakeOutbox, receiver: Receiver, clock: Clock, asked: str, pause: int
) -> None:
    outbox = make_outbox()
    receiver.answers = [429]
    receiver.headers = {"retry_after": asked}
    outbox.enqueue([row(receiver.web.url())])
    outbox.deliver_due()
    clock.time += pause - 1
    assert outbox.due() == 0
    clock.time += 1
    assert outbox.due() == 1


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1:{port}/", "http://localhost:{port}/", "http://[::ffff:127.0.0.1]:{port}/", "http://10.0.0.1/"],
)
def test_private_addresses_are_refused_unless_allowed(make_outbox: MakeOutbox, receiver: Receiver, url: str) -> None:
    outbox = make_outbox(allow_private=False)
    outbox.enqueue([row(url.format(port=receiver.web.port))])
    assert outbox.deliver_due() == Deliveries(given_up=1)
    status = outbox.status("täsk 1")
    assert status is not None
    assert status.error is not None
    assert "private" in status.error
    assert "VECTORIZE_CALLBACKS__ALLOW_PRIVATE=true" in status.error
    assert receiver.received == []


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://x/", "nonsense", "http://u:p4ss@h/", "http://169.254.169.254/"]
)
def test_addresses_that_are_none(make_outbox: MakeOutbox, url: str) -> None:
    outbox = make_outbox()
    outbox.enqueue([row(url)])
    assert outbox.deliver_due() == Deliveries(given_up=1)
    assert "p4ss" not in str(outbox.status("täsk 1"))


def test_a_server_that_is_away_or_does_not_answer(make_outbox: MakeOutbox, receiver: Receiver) -> None:
    outbox = make_outbox(timeout_seconds=0.2)
    receiver.wait = threading.Event()
    outbox.enqueue([row("http://127.0.0.1:9/"), row(receiver.web.url(), "slow", 1)])
    assert outbox.deliver_due() == Deliveries(postponed=2)
    receiver.wait.set()
    away, slow = outbox.status("täsk 1"), outbox.status("slow")
    assert away is not None
    assert away.error is not None
    assert "refused" in away.error
    assert slow == CallbackStatus(CallbackState.WAITING, 1, "did not answer in full within 0.2 s")


def test_what_one_process_has_in_hand_another_leaves_alone(
    make_outbox: MakeOutbox, receiver: Receiver, clock: Clock
) -> None:
    receiver.wait = threading.Event()
    outbox, other = make_outbox(), make_outbox()
    outbox.enqueue([row(receiver.web.url())])
    thread = threading.Thread(target=outbox.deliver_due)
    thread.start()
    while not receiver.received:
        thread.join(0.01)
    assert other.deliver_due() == Deliveries()
    receiver.wait.set()
    thread.join()
    clock.time += 3600
    assert other.deliver_due() == Deliveries()
    assert len(receiver.received) == 1


def test_a_callback_outlives_a_killed_process(
    make_outbox: MakeOutbox, installation: Settings, receiver: Receiver, clock: Clock
) -> None:
    """Killed while it waits for the answer: it may have arrived, so it is posted again."""
    outbox = make_outbox()
    clock.time = datetime.now(UTC).timestamp()
    outbox.enqueue([row(receiver.web.url())])
    receiver.wait = threading.Event()
    code = "import sys; from tests.state.processes import deliver; deliver(*sys.argv[1:])"
    url = installation.ledger.url.get_secret_value() if installation.ledger.url else ""
    arguments = [sys.executable, "-c", code, str(installation.home), url]
    process = subprocess.Popen(arguments)
    while not receiver.received and process.poll() is None:
        threading.Event().wait(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    receiver.wait.set()
    assert outbox.deliver_due() == Deliveries(), "it is still that process's, as far as anybody knows"
    clock.time += 120
    assert outbox.deliver_due() == Deliveries(delivered=1)
    assert outbox.status("täsk 1") == CallbackStatus(CallbackState.DELIVERED, 1, None)
    first, second = (headers[DELIVERY_HEADER] for _, headers, _ in receiver.received)
    assert first == second


def test_many_are_posted_side_by_side(make_outbox: MakeOutbox, receiver: Receiver) -> None:
    outbox = make_outbox()
    outbox.enqueue([row(receiver.web.url(f"/{n}"), f"{n}", n) for n in range(40)])
    assert outbox.deliver_due() == Deliveries(delivered=40)
    assert sorted(receiver.paths) == sorted(f"/{n}" for n in range(40))


def test_stopping_finishes_what_is_in_hand(make_outbox: MakeOutbox, receiver: Receiver) -> None:
    outbox = make_outbox()
    stop = threading.Event()
    stop.set()
    outbox.enqueue([row(receiver.web.url())])
    assert outbox.deliver_due(stop) == Deliveries()
    assert outbox.due() == 1


def test_a_run_delivers_beside_its_work(make_outbox: MakeOutbox, receiver: Receiver) -> None:
    delivery = CallbackDelivery(make_outbox().sender)
    delivery.enqueue([row(receiver.web.url("/first"))])
    assert receiver.received == []
    delivery.deliver_soon()
    while not receiver.received:
        threading.Event().wait(0.01)
    delivery.enqueue([row(receiver.web.url("/last"), offset=1)])
    delivery.deliver_soon()
    delivery.close()
    assert receiver.paths == ["/first", "/last"]
    assert delivery.total == Deliveries(delivered=2)


def test_a_run_without_callbacks_has_no_thread(make_outbox: MakeOutbox) -> None:
    before = threading.active_count()
    CallbackDelivery(make_outbox().sender).close()
    assert threading.active_count() == before


def test_purge_forgets_what_is_over(make_outbox: MakeOutbox, receiver: Receiver, clock: Clock) -> None:
    outbox = make_outbox()
    receiver.answers = [200, 410, 500]
    for n in range(3):
        outbox.enqueue([row(receiver.web.url(), f"{n}", n)])
        outbox.deliver_due()
    moment = datetime.fromtimestamp(clock.time, UTC)
    assert outbox.purge(moment) == 0
    assert outbox.purge(moment + timedelta(seconds=1)) == 2
    assert outbox.status("0") is None
    assert outbox.status("2") is not None
