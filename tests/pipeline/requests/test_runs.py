"""Drain runs on a real broker: when a run ends, and several runs of one topic."""

import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.pipeline.requests.installation import (
    Installation,
    MakeInstallation,
    check_finished,
    clock_of_yesterday,
    text_request,
)
from vectorize_pipelines.core.shards import Shard
from vectorize_pipelines.errors import LedgerError, StoreError
from vectorize_pipelines.kafka.transactions import FencedError
from vectorize_pipelines.messaging.callbacks import CallbackDelivery
from vectorize_pipelines.pipeline import stop_policy
from vectorize_pipelines.pipeline.requests import runs as request_runs
from vectorize_pipelines.pipeline.requests import stream as request_stream
from vectorize_pipelines.pipeline.writing import DirectWriter, written


def test_empty_topics_end_at_once(installation: Installation) -> None:
    assert installation.drain().figures()["messages"] == 0
    assert installation.replay().figures()["messages"] == 0
    assert not installation.outstanding()
    assert not installation.events()


@pytest.mark.parametrize("failing", ["CallbackDelivery", "DrainSource"])
def test_a_run_that_cannot_be_opened_leaves_nothing_open(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Whichever of the two threads fails that open its parts."""
    names = ("OutcomeProducer", "RequestLedger", "Cancellations", "EventProducer", "DrainSource")
    opened: list[str] = []
    closed: list[str] = []

    def watch(name: str) -> None:
        kind = getattr(request_runs, name)
        init, close = kind.__init__, kind.close

        def opening(self: Any, *arguments: Any, **options: Any) -> None:
            init(self, *arguments, **options)
            opened.append(name)

        def closing(self: Any) -> None:
            close(self)
            closed.append(name)

        monkeypatch.setattr(kind, "__init__", opening)
        monkeypatch.setattr(kind, "close", closing)

    def fails(*_: object) -> None:
        raise LedgerError("the database is away")

    for name in names:
        watch(name)
    if failing == "CallbackDelivery":
        monkeypatch.setattr(CallbackDelivery, "open", fails)
    else:
        monkeypatch.setattr(request_runs, failing, fails)
    with pytest.raises(LedgerError, match="the database is away"):
        installation.open_drain()
    assert sorted(opened) == sorted(set(names) - {failing})
    assert sorted(closed) == sorted(opened)


def test_a_run_follows_the_topic_until_it_is_idle(make_installation: MakeInstallation) -> None:
    installation = make_installation(kafka={"drain": {"idle_seconds": 10.0}})
    sent = 0
    installation.send(text_request("t0", "a boat"))
    with installation.open_drain(once=False) as stream:
        for _ in written(DirectWriter(installation.settings, installation.store), stream):
            if sent < 3:
                sent += 1
                installation.send(text_request(f"t{sent}", "a boat"))
    assert "nothing came for 10 s" in stream.progress()
    check_finished(installation, stored=4)


def test_a_run_ends_with_its_day(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_policy, "_end_of_today", lambda: datetime.now(UTC) + timedelta(seconds=1))
    installation.send(text_request("t", "a boat"))
    stream = installation.drain(once=False)
    assert "the day has ended" in stream.progress()
    check_finished(installation, stored=1)


def test_a_run_that_takes_only_what_waits_takes_all_of_it_though_its_day_ends(
    make_installation: MakeInstallation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation = make_installation(kafka={"drain": {"batch_messages": 100}})
    monkeypatch.setattr(stop_policy, "_end_of_today", lambda: datetime.now(UTC))
    monkeypatch.setattr(request_stream, "LOOK_SECONDS", 0)
    installation.send(*[text_request(f"t{n}", f"text {n}") for n in range(300)])
    stream = installation.drain(once=True)
    assert "nothing was left" in stream.progress()
    check_finished(installation, stored=300)


def test_what_comes_after_midnight_is_of_the_new_day(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC)
    installation.send(text_request("t", "a boat"), at=now)
    with monkeypatch.context() as before_midnight:
        before_midnight.setattr(request_runs, "datetime", clock_of_yesterday())
        stream = installation.open_drain()
    with stream:
        for _ in written(DirectWriter(installation.settings, installation.store), stream):
            pass
    assert installation.rows()["t", 0]["partition"] == now.date().isoformat()
    assert stream.touched == {now.date().isoformat()}


def test_a_run_ends_when_it_is_told_to(installation: Installation) -> None:
    told = threading.Event()
    installation.send(text_request("t", "a boat"))
    with installation.open_drain(once=False, should_stop=lambda: "told so" if told.is_set() else None) as stream:
        for _ in written(DirectWriter(installation.settings, installation.store), stream):
            told.set()
    assert "told so" in stream.progress()
    check_finished(installation, stored=1)


def test_two_runs_on_different_shards_share_the_work(installation: Installation) -> None:
    installation.send(*[text_request(f"t{n}", f"text {n}") for n in range(600)])
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            streams.append(installation.drain(shard=Shard(index, 2)))
        except BaseException as error:  # noqa: BLE001 (shown by the test's thread)
            errors.append(error)

    streams: list[Any] = []
    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    assert sum(stream.figures()["messages"] for stream in streams) == 600
    assert all(stream.figures()["messages"] for stream in streams)
    assert installation.final_events() == {f"t{n}": ["completed"] for n in range(600)}
    check_finished(installation, stored=600)


def test_a_second_run_of_a_shard_ends_the_first(installation: Installation) -> None:
    installation.send(*[text_request(f"t{n}", f"text {n}") for n in range(300)])
    with installation.open_drain() as first:
        batches = written(DirectWriter(installation.settings, installation.store), first)
        next(batches)
        second = installation.drain()
        with pytest.raises(FencedError, match="another run"):
            for _ in batches:
                pass
    assert second.figures()["messages"] < 300
    assert installation.final_events() == {f"t{n}": ["completed"] for n in range(300)}
    check_finished(installation, stored=300)


def test_a_store_that_refuses_fails_the_run_and_loses_nothing(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    installation.send(*[text_request(f"t{n}", f"text {n}") for n in range(300)], b"no request")
    upsert = installation.store.upsert
    calls = 0

    def failing(name: str, records: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise StoreError("the store is away")
        return upsert(name, records)

    monkeypatch.setattr(installation.store, "upsert", failing)
    with pytest.raises(StoreError, match="the store is away"):
        installation.drain()
    told = installation.final_events()
    assert 0 < len(told) < 300
    monkeypatch.setattr(installation.store, "upsert", upsert)
    installation.drain()
    assert installation.final_events() == {f"t{n}": ["completed"] for n in range(300)}
    assert len(installation.letters()) == 1
    check_finished(installation, stored=300)
