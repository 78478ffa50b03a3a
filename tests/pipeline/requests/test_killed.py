"""Runs that are killed, cut off from the broker, stalled or doubled: nothing is lost and nothing is there twice."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.requests.chaos import kill_runs, portion_settings, start_child, wait_for
from tests.pipeline.requests.child import FENCED
from tests.pipeline.requests.installation import MakeInstallation, install
from tests.pipeline.requests.traffic import Traffic
from tests.servers import kafka
from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.pipeline.writing import DirectWriter, written

KILLS = 5
MESSAGES = 4_000
REFUSALS = 3


def check_all(traffic: Traffic) -> None:
    """Everything is there, each once."""
    checks = traffic.check()
    assert all(check.is_right for check in checks), "\n" + "\n".join(map(str, checks))


def test_killed_runs_lose_nothing_and_double_nothing(make_installation: MakeInstallation) -> None:
    installation = make_installation(kafka=portion_settings(KILLS, MESSAGES))
    kills, checks = kill_runs(installation, KILLS, seed=0, messages=MESSAGES)
    assert sum(kills.values()) == KILLS
    assert all(check.is_right for check in checks), "\n" + "\n".join(map(str, checks))


@pytest.fixture
def own_server(kafka_program: None, tmp_path: Path) -> Iterator[kafka.Server]:
    """A broker that the test may end."""
    with kafka.Server(tmp_path / "kafka") as server:
        yield server


def test_the_broker_restarts_during_a_run(own_server: kafka.Server, tmp_path: Path) -> None:
    installation = install(
        tmp_path / "home", own_server.bootstrap_servers, "restarts", kafka={"drain": {"batch_messages": 100}}
    )
    traffic = Traffic(installation, 1)
    traffic.send(1000)
    starting = threading.Timer(0.5, own_server.start)
    with installation.open_drain() as stream:
        for number, _ in enumerate(written(DirectWriter(installation.settings, installation.store), stream)):
            if number == 3:
                own_server.kill()
                starting.start()
    starting.join()
    check_all(traffic)


def test_a_store_that_refuses_for_a_while(make_installation: MakeInstallation, monkeypatch: pytest.MonkeyPatch) -> None:
    installation = make_installation(kafka={"drain": {"batch_messages": 100}})
    traffic = Traffic(installation, 2)
    traffic.send(1000)
    upsert = installation.store.upsert
    calls = failures = 0

    def sometimes(name: str, records: Any) -> Any:
        nonlocal calls
        calls += 1
        if 4 <= calls < 4 + REFUSALS:
            raise StoreError("the store is away")
        return upsert(name, records)

    monkeypatch.setattr(installation.store, "upsert", sometimes)
    while True:
        try:
            installation.drain()
            break
        except StoreError:
            failures += 1
    assert failures == REFUSALS
    check_all(traffic)


@pytest.mark.parametrize("moment", [("commit", "after", 3), ("upsert", "before", 3)])
def test_a_run_that_stalls_past_its_transaction_and_comes_back_after_its_successor(
    make_installation: MakeInstallation, moment: tuple[str, str, int]
) -> None:
    installation = make_installation(kafka={"drain": {"batch_messages": 100, "transaction_timeout_seconds": 2}})
    traffic = Traffic(installation, 3)
    traffic.send(600)
    stalled = start_child(installation, pause_at=moment, pause_seconds=1)
    successor = None
    try:
        wait_for(installation.settings.home / "paused", stalled)
        os.kill(stalled.pid, signal.SIGSTOP)
        time.sleep(3)  # the transaction's time is over by the broker's clock
        successor = start_child(installation)
        if moment[0] == "upsert":  # the stalled run holds the collection's lock
            with pytest.raises(subprocess.TimeoutExpired):
                successor.wait(6)
        else:
            assert successor.wait(60) == 0
            check_all(traffic)
        os.kill(stalled.pid, signal.SIGCONT)
        assert stalled.wait(60) == FENCED
        assert successor.wait(60) == 0
    finally:
        for child in filter(None, (stalled, successor)):
            child.kill()
            child.wait()
    check_all(traffic)


def test_two_runs_are_forced_onto_one_shard(make_installation: MakeInstallation) -> None:
    installation = make_installation(kafka={"drain": {"batch_messages": 100}})
    traffic = Traffic(installation, 4)
    traffic.send(1500)
    children = [start_child(installation, pause_at=("upsert", "before", 2), pause_seconds=0.5) for _ in range(2)]
    try:
        statuses = sorted(child.wait(120) for child in children)
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert statuses == [0, FENCED]
    check_all(traffic)
