"""Messages that kill the process of a run, or fail it in a way that nobody foresaw, stop no topic."""

import json
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.killer_run import KILLING, RAISING, RUN_SECONDS, encode, end_once_paused, run
from tests.forks import Fork
from tests.pipeline.requests.chaos import child_specification
from tests.pipeline.requests.installation import (
    SECONDS,
    Installation,
    MakeInstallation,
    batch_request,
    check_finished,
    install,
    text_request,
)
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.kafka.clients import producer
from vectorize_pipelines.kafka.sources import DrainSource, Polled
from vectorize_pipelines.kafka.topics import create_topics
from vectorize_pipelines.messaging.messages import decode
from vectorize_pipelines.messaging.replay import replay
from vectorize_pipelines.pipeline.requests import decoding
from vectorize_pipelines.settings import KafkaSettings
from vectorize_pipelines.state.attempts import RunAttempts

GOOD = 500
#: Several units' worth.
BATCH = 100
#: One with others, and two alone.
DEATHS = 3


@pytest.fixture
def make_installation(tmp_path: Path, kafka_settings: KafkaSettings) -> MakeInstallation:
    """Makes the test's installation with a tree of settings laid over."""
    servers, prefix = kafka_settings.bootstrap_servers, kafka_settings.topic_prefix
    assert servers is not None
    return partial(install, tmp_path / "home", servers, prefix)


def start(installation: Installation, **further: Any) -> Fork:
    """A run in a process of its own, which the messages may kill."""
    return Fork(run, child_specification(installation, **further), err=installation.settings.home / "child.log")


def run_until_done(installation: Installation, most: int, **further: Any) -> int:
    """Starts runs until one comes to its end; gives how many died before. They may be `most` at most."""
    for deaths in range(most + 1):
        status = start(installation, **further).wait(RUN_SECONDS)
        if status == 0:
            return deaths
        log = (installation.settings.home / "child.log").read_text(errors="replace")
        assert status == -signal.SIGKILL, f"a run ended with {status}: {log[-3000:]}"
    pytest.fail(f"the topic is stopped: {most + 1} runs died of it")


def headers_of(letter: Any) -> dict[str, str]:
    return {name: (value or b"").decode() for name, value in letter.headers()}


def check_killers(installation: Installation, killers: dict[str, bytes], good: int) -> None:
    """Every good message has its row, each killer is in the dead letters once, as it was sent, with its reason."""
    letters = installation.letters()
    assert Counter(letter.key().decode() for letter in letters) == Counter(dict.fromkeys(killers, 1))
    for letter in letters:
        headers = headers_of(letter)
        assert headers["vectorize.error.class"] == "KilledRunsError"
        assert headers["vectorize.attempts"] == "2"
        assert letter.value() == killers[letter.key().decode()]
        assert "alone in hand" in headers["__connect.errors.exception.message"]
        assert "dead-letters replay" in headers["__connect.errors.exception.message"]
    final = installation.final_events()
    assert {name: states for name, states in final.items() if states != ["completed"]} == {
        name: ["failed"] for name in killers
    }
    assert len(final) == good + len(killers)
    check_finished(installation, stored=good)


def send_around(installation: Installation, killers: dict[str, str], good: int = GOOD) -> dict[str, bytes]:
    """Good messages, with the killers evenly among them; gives the killers' values."""
    values: dict[str, bytes] = {}
    between = good // (len(killers) + 1)
    number = 0
    for name, text in killers.items():
        installation.send(*(text_request(f"good-{n}", f"a boat {n}") for n in range(number, number + between)))
        number += between
        request = text_request(name, text)
        values[name] = json.dumps(request).encode()
        installation.send(request)
    installation.send(*(text_request(f"good-{n}", f"a boat {n}") for n in range(number, good)))
    return values


@pytest.mark.timeout(900)
def test_killers_are_set_aside(make_installation: MakeInstallation) -> None:
    installation = make_installation(kafka={"drain": {"batch_messages": BATCH}})
    values = send_around(installation, {"killer": KILLING})
    batch = batch_request("batch", ["fine", f"{KILLING} in a batch"])
    values["batch"] = json.dumps(batch).encode()
    installation.send(batch)
    deaths = run_until_done(installation, DEATHS * len(values))
    assert 2 * len(values) < deaths <= DEATHS * len(values)
    check_killers(installation, values, GOOD)


@pytest.mark.timeout(900)
def test_a_killer_that_is_the_only_message_and_is_sent_back_once_the_defect_is_mended(
    make_installation: MakeInstallation,
) -> None:
    installation = make_installation()
    installation.send(text_request("killer", KILLING))
    assert run_until_done(installation, DEATHS) == DEATHS
    check_killers(installation, {"killer": json.dumps(text_request("killer", KILLING)).encode()}, 0)
    assert installation.ledger()["killer"].error_class == "KilledRunsError"
    assert replay(installation.settings.kafka, reason="KilledRunsError").replayed == 1
    installation.drain()
    assert installation.texts() == {("killer", 0): KILLING}
    assert installation.final_events() == {"killer": ["failed", "completed"]}


@pytest.mark.timeout(900)
def test_two_shards_with_a_killer_each(make_installation: MakeInstallation) -> None:
    installation = make_installation(kafka={"drain": {"batch_messages": 50}})
    values: dict[str, bytes] = {}
    for partition in range(2):
        installation.send(
            *(text_request(f"good-{partition}-{n}", f"a boat {n}") for n in range(200)), partition=partition
        )
        request = text_request(f"killer-{partition}", f"{KILLING} {partition}")
        values[f"killer-{partition}"] = json.dumps(request).encode()
        installation.send(request, partition=partition)
        installation.send(text_request(f"last-{partition}", "the last"), partition=partition)
    with ThreadPoolExecutor(2) as threads:
        deaths = threads.map(lambda shard: run_until_done(installation, DEATHS, shard=shard), ("0/2", "1/2"))
        assert list(deaths) == [DEATHS, DEATHS]
    check_killers(installation, values, 402)


@pytest.mark.timeout(900)
def test_a_replay_is_not_stopped_either_and_leaves_out_what_was_set_aside(make_installation: MakeInstallation) -> None:
    installation = make_installation(kafka={"drain": {"batch_messages": 50}})
    values = send_around(installation, {"killer": KILLING}, 200)
    assert run_until_done(installation, DEATHS, replay=True) == DEATHS
    assert installation.store.count("texts") == 200
    assert not installation.read(installation.names.dead_letter)
    installation.drain()  # which knows what the replays died of, and tells of it
    check_killers(installation, values, 200)
    stream = installation.replay()
    assert [(failure.source_id, failure.error_class) for failure in stream.failures] == [("killer", "KilledRunsError")]


@pytest.mark.timeout(900)
def test_runs_that_are_killed_or_told_to_end_from_outside_set_nothing_aside(
    make_installation: MakeInstallation,
) -> None:
    installation = make_installation(kafka={"drain": {"batch_messages": 50}})
    installation.send(*(text_request(f"good-{n}", f"a boat {n}") for n in range(300)))
    for number in range(4):
        child = start(installation, pause=True)
        end_once_paused(child, installation.settings.home, signal.SIGTERM if number == 0 else signal.SIGKILL)
        died = "died" in (installation.settings.home / "child.log").read_text(errors="replace")
        assert died == (number > 1), "a run that ended in order left nothing to be told"
    installation.drain()
    assert not installation.letters()
    check_finished(installation, stored=300)


def failing_drains(installation: Installation, error: type[Exception], most: int) -> int:
    """Drains until it comes to its end; gives how often it failed before."""
    for failures in range(most + 1):
        try:
            installation.drain()
        except error:
            continue
        return failures
    pytest.fail(f"the topic is stopped: {most + 1} runs failed of it")


def test_errors_that_nobody_foresaw_count_as_deaths(make_installation: MakeInstallation) -> None:
    installation = make_installation(kafka={"drain": {"batch_messages": BATCH}})
    values = send_around(installation, {"one": RAISING, "two": f"{RAISING} again"})
    installation.on_encode = encode
    # Each may fail one more run, which had stored nothing before.
    most = 2 * (DEATHS + 1)
    assert failing_drains(installation, ValueError, most) <= most
    check_killers(installation, values, GOOD)
    messages = [headers_of(letter)["__connect.errors.exception.message"] for letter in installation.letters()]
    assert all("encoding: ValueError: an index out of range" in message for message in messages)


def test_a_message_that_the_decoder_fails_of(
    make_installation: MakeInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = make_installation()
    values = send_around(installation, {"deep": "RAISE-DECODE"}, 100)

    def failing(value: bytes | None, *further: Any) -> Any:
        if value is not None and b"RAISE-DECODE" in value:
            raise RecursionError("too deep")
        return decode(value, *further)

    monkeypatch.setattr(decoding, "decode", failing)
    assert failing_drains(installation, RecursionError, DEATHS) == DEATHS
    check_killers(installation, values, 100)


@pytest.mark.parametrize("error", [StoreError, RuntimeError])
def test_what_the_store_fails_of_is_narrowed_down(
    make_installation: MakeInstallation, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    installation = make_installation(kafka={"drain": {"batch_messages": BATCH}})
    values = send_around(installation, {"refused": "RAISE-WRITE"}, 300)
    upsert = installation.store.upsert

    def failing(collection: str, records: Any) -> Any:
        if "RAISE-WRITE" in records["text"].to_pylist():
            raise error("it cannot be written")
        return upsert(collection, records)

    monkeypatch.setattr(installation.store, "upsert", failing)
    # All that was in hand, 64 messages, eight, one, and the same one again; those before it may have been acknowledged.
    assert failing_drains(installation, error, 6) >= DEATHS
    check_killers(installation, values, 300)


def test_a_store_that_refuses_everything_sets_nothing_aside(
    make_installation: MakeInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = make_installation()
    installation.send(*(text_request(f"good-{n}", f"a boat {n}") for n in range(20)))

    def refuse(*_: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(installation.store, "upsert", refuse)
        for _ in range(8):
            with pytest.raises(StoreError):
                installation.drain()
    installation.drain()
    assert not installation.letters()
    check_finished(installation, stored=20)


def test_a_device_that_fails_every_message_sets_nothing_aside(make_installation: MakeInstallation) -> None:
    installation = make_installation()
    installation.send(*(text_request(f"good-{n}", f"a boat {n}") for n in range(20)))

    def fail(_: object) -> None:
        raise RuntimeError("CUDA error: the device is gone")

    installation.on_encode = fail
    for _ in range(8):
        with pytest.raises(RuntimeError):
            installation.drain()
    installation.on_encode = None
    installation.drain()
    assert not installation.letters()
    check_finished(installation, stored=20)


def test_an_error_of_the_only_message_counts_once_another_one_has_been_stored(
    make_installation: MakeInstallation,
) -> None:
    installation = make_installation()
    installation.on_encode = encode
    installation.send(text_request("wrong", RAISING), partition=0)
    for _ in range(4):
        with pytest.raises(ValueError, match="an index out of range"):
            installation.drain()
    assert not installation.letters()
    installation.send(text_request("good", "a boat"), partition=0)
    assert failing_drains(installation, ValueError, 2) == 2
    check_killers(installation, {"wrong": json.dumps(text_request("wrong", RAISING)).encode()}, 1)


def test_an_end_behind_suspects_that_is_no_message_is_committed(
    make_installation: MakeInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the messages lies the mark of the transaction that wrote them: a poll tells of it without any message."""
    installation = make_installation()
    create_topics(installation.settings.kafka)
    sender = producer(installation.settings.kafka, f"{installation.names.results}-sender")
    sender.init_transactions(SECONDS)
    sender.begin_transaction()
    for n in range(3):
        value = json.dumps(text_request(f"good-{n}", f"a boat {n}")).encode()
        sender.produce(installation.names.requests(Modality.TEXT), value, f"good-{n}".encode(), partition=0)
    sender.commit_transaction(SECONDS)
    here = (installation.names.requests(Modality.TEXT), 0)
    with closing(RunAttempts.open(installation.settings, "drain", "earlier")) as attempts:
        attempts.begin({here: 0}, {})
        attempts.note_read({here: 4}, noted=True)
        attempts.ending(ValueError("with all of it in hand"), proven=True)
    poll, at_end = DrainSource.poll, DrainSource.at_end

    def separately(self: DrainSource, most: int) -> Polled:
        """The messages first, and where reading stands behind the mark by a poll of its own."""
        waiting = self.__dict__.pop("waiting", None)
        if waiting is not None:
            return Polled((), waiting)
        polled = poll(self, most)
        if polled.messages and polled.positions.get(here) == 4:
            self.__dict__["waiting"] = polled.positions
            return Polled(polled.messages, {**polled.positions, here: 3})
        return polled

    monkeypatch.setattr(DrainSource, "poll", separately)
    monkeypatch.setattr(DrainSource, "at_end", lambda self: "waiting" not in self.__dict__ and at_end(self))
    installation.drain()
    check_finished(installation, stored=3)
    with closing(RunAttempts.open(installation.settings, "drain", "later")) as attempts:
        attempts.begin({here: 4}, {})
        assert not attempts.is_near()
