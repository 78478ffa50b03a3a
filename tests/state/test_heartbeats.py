"""Heartbeats in SQLite, PostgreSQL and Redis: who lives is listed, by the clock of the server, and nobody else."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.servers import redis
from vectorize_pipelines.errors import RedisUnavailableError
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.database import Database
from vectorize_pipelines.state.heartbeats import (
    DatabaseHeartbeats,
    Heartbeat,
    NodeStatus,
    Pulse,
    heartbeats,
    open_heartbeats,
    workers,
)
from vectorize_pipelines.state.redis_connection import open_redis
from vectorize_pipelines.state.request_rows import time_of

WORKER = NodeStatus(
    node_id="w-1",
    name="größter",
    host="north",
    queues=("text", "image"),
    models=("all-MiniLM-L6-v2",),
    memory_bytes=2**33,
    gpu="H200",
)
DAY_US = 86_400_000_000
PATIENCE = 60.0

#: Has a pulse of a tenth of a second until it is killed.
BEATING = """
import json, signal, sys
from pathlib import Path
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state.heartbeats import NodeStatus, Pulse

home, sections = json.loads(sys.argv[1])
settings = load_settings({}, home=Path(home), **sections)
with Pulse(settings, lambda: NodeStatus(node_id="killed", name="killed", host="here"), 0.1):
    signal.pause()
"""


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.postgresql),
        pytest.param("redis", marks=pytest.mark.redis),
    ]
)
def settings(request: pytest.FixtureRequest, home: Path) -> Settings:
    """An installation without a heartbeat."""
    if request.param == "redis":
        found: Settings = request.getfixturevalue("redis_settings")
        return found
    if request.param == "postgresql":
        url: str = request.getfixturevalue("new_postgresql_database")
        return load_settings({}, home=home, ledger={"url": url})
    return load_settings({}, home=home)


@pytest.fixture
def own_redis(redis_program: None) -> Iterator[redis.Server]:
    """A server that the test may stop."""
    with redis.running("hush-hush") as server:
        yield server


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def ids(settings: Settings) -> list[str]:
    return [each.node_id for each in workers(settings)]


def now_us(settings: Settings) -> int:
    with closing(open_heartbeats(settings)) as store:
        return store.now_us()


def heartbeat(node_id: str, at_us: int) -> Heartbeat:
    at = time_of(at_us)
    return Heartbeat(node_id=node_id, name="n", host="h", started=at, last_heartbeat=at)


def test_a_process_is_listed_from_entering_until_leaving(settings: Settings) -> None:
    assert workers(settings) == []
    before = time_of(now_us(settings))
    other = NodeStatus(node_id="w-2", name="another", host="south", run_id="r-1")
    with Pulse(settings, lambda: WORKER), Pulse(settings, lambda: other):
        until(lambda: len(workers(settings)) == 2)
        busy, found = workers(settings)
        assert (busy.node_id, busy.run_id, found.node_id) == ("w-2", "r-1", "w-1"), "by name"
        after = time_of(now_us(settings))
    assert {name: getattr(found, name) for name in NodeStatus.__slots__} == {
        name: getattr(WORKER, name) for name in NodeStatus.__slots__
    }
    assert before <= found.last_heartbeat <= after
    assert found.started <= found.last_heartbeat
    assert workers(settings) == []


def test_what_has_changed_is_said_at_once_and_who_started_when_stays(settings: Settings) -> None:
    status = WORKER
    with Pulse(settings, lambda: status, beat_seconds=3600) as pulse:
        until(lambda: bool(workers(settings)))
        (first,) = workers(settings)
        status = replace(WORKER, run_id="r-7")
        pulse.beat_soon()
        until(lambda: workers(settings)[0].run_id == "r-7")
        (second,) = workers(settings)
    assert second.started == first.started
    assert second.last_heartbeat > first.last_heartbeat


def test_a_killed_process_lapses(settings: Settings) -> None:
    sections = {
        "ledger": {"url": settings.ledger.url and settings.ledger.url.get_secret_value()},
        "redis": {"url": settings.redis.url and settings.redis.url.get_secret_value()},
    }
    given = json.dumps([str(settings.home), sections])
    with subprocess.Popen([sys.executable, "-c", BEATING, given], env=os.environ) as process:
        try:
            until(lambda: ids(settings) == ["killed"])
        finally:
            process.send_signal(signal.SIGKILL)
    until(lambda: ids(settings) == [])


def test_expired_heartbeats_are_not_listed_and_do_not_stay(settings: Settings) -> None:
    now = now_us(settings)
    with closing(open_heartbeats(settings)) as store:
        store.put(heartbeat("long-gone", now - 2 * DAY_US), now - 2 * DAY_US + 1000)
        store.put(heartbeat("gone", now - DAY_US // 2), now - DAY_US // 2 + 1000)
        store.put(heartbeat("alive", now), now + DAY_US)
        until(lambda: [each.node_id for each in store.living()] == ["alive"])
        store.purge()
        if isinstance(store, DatabaseHeartbeats):
            with closing(Database.open(settings)) as database, database.read() as connection:
                assert set(connection.scalars(sa.select(heartbeats.c.node_id))) == {"gone", "alive"}
        else:
            with closing(open_redis(settings)) as client:
                until(lambda: len(list(client.scan_iter())) == 2)  # the one that is alive, and the index
                assert client.zcard("{vectorize:heartbeats}:expiry") == 1
        store.remove("alive")
        store.remove("alive")
        assert store.living() == []


def test_a_heartbeat_of_a_newer_version_is_read(redis_settings: Settings) -> None:
    now = now_us(redis_settings)
    with closing(open_heartbeats(redis_settings)) as store, closing(open_redis(redis_settings)) as client:
        store.put(heartbeat("newer", now), now + DAY_US)
        content = json.loads(client.get("{vectorize:heartbeats}:newer") or b"")
        client.set("{vectorize:heartbeats}:newer", json.dumps({**content, "of a later version": [1]}))
        assert store.living() == [heartbeat("newer", now)]


def test_a_server_that_is_away_is_told_of_once_and_used_again(
    own_redis: redis.Server, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load_settings({}, home=home, redis={"url": own_redis.url})
    caplog.set_level(logging.INFO, "vectorize_pipelines.state.heartbeats")
    with Pulse(settings, lambda: WORKER, beat_seconds=0.02):
        until(lambda: bool(workers(settings)))
        own_redis.kill()
        with pytest.raises(RedisUnavailableError, match=f"Redis at 127.0.0.1:{own_redis.port} cannot be used"):
            workers(settings)
        until(lambda: len(caplog.records) == 1)
        own_redis.start()
        until(lambda: bool(workers(settings)))
        until(lambda: len(caplog.records) == 2)
        own_redis.kill()
        until(lambda: len(caplog.records) == 3)
    told, again, once_more = (record.getMessage() for record in caplog.records)
    assert told.startswith("this process is not listed among the living: its heartbeat is not written: Redis at ")
    assert again == "the heartbeat of this process is written again"
    assert once_more.startswith("this process is not listed")
    assert "hush-hush" not in caplog.text
