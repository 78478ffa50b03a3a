"""Answers that are kept: in SQLite and in Redis, for a time, by several processes, and done without where they fail."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.components import need
from tests.servers import redis
from tests.servers.packages import ensure
from vectorize_pipelines.providers import answers
from vectorize_pipelines.providers.answers import AnswerCache, RedisAnswers, SQLiteAnswers
from vectorize_pipelines.settings import Settings, load_settings


@pytest.fixture(scope="module")
def redis_server() -> Iterator[redis.Server]:
    """A Redis that the tests of this module share."""
    need(lambda: ensure(redis.PROGRAM, redis.PROGRAM))
    with redis.running("secret-of-redis") as server:
        yield server


def settings_with(home: Path, server: redis.Server | None, seconds: float = 60.0) -> Settings:
    redis_url = None if server is None else server.url
    return load_settings(home=str(home), providers={"answers_kept_seconds": seconds}, redis={"url": redis_url})


def opened(settings: Settings) -> AnswerCache:
    cache = AnswerCache.open(settings)
    assert cache is not None
    return cache


@pytest.fixture(params=["sqlite", "redis"])
def open_cache(request: pytest.FixtureRequest, home: Path) -> Callable[[float], AnswerCache]:
    """Open the cache of one installation, which keeps answers for so many seconds."""
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None
    return lambda seconds: opened(settings_with(home, server, seconds))


def test_what_one_process_put_another_one_gets(open_cache: Callable[[float], AnswerCache]) -> None:
    async def run() -> None:
        one, other = open_cache(60), open_cache(60)
        assert await other.get("shared") is None
        await one.put("shared", '{"answer": "灯塔"}')
        assert await other.get("shared") == '{"answer": "灯塔"}'
        await one.put("shared", "again")
        assert await other.get("shared") == "again"
        assert await other.get("another") is None
        for cache in (one, other):
            await cache.close()
            await cache.close()

    asyncio.run(run())


def test_an_answer_expires(open_cache: Callable[[float], AnswerCache]) -> None:
    async def run() -> None:
        cache = open_cache(0.05)
        await cache.put("key", "answer")
        async with asyncio.timeout(60):
            while await cache.get("key") is not None:
                await asyncio.sleep(0.01)
        await cache.close()

    asyncio.run(run())


def test_the_file_keeps_those_that_expire_last(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MOST_ANSWERS", 3)
    monkeypatch.setattr(answers, "_PUTS_TOGETHER", 1)
    now = 1000.0

    async def run() -> None:
        nonlocal now
        store = SQLiteAnswers(home / "answers.sqlite", 60, lambda: now)
        for n in range(5):
            now += 1
            await store.put(f"{n}", "answer")
        assert [await store.get(f"{n}") for n in range(5)] == [None, None, "answer", "answer", "answer"]
        await store.close()

    asyncio.run(run())


def test_a_damaged_file_is_made_again(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)

    async def run() -> None:
        file = home / "cache" / "answers.sqlite"
        file.parent.mkdir()
        file.write_bytes(b"no database" * 1000)
        cache = opened(settings_with(home, None))
        assert await cache.get("key") is None
        await cache.put("key", "answer")
        assert await cache.get("key") == "answer"
        await cache.close()

    asyncio.run(run())
    assert "answers.sqlite" in caplog.text


def test_a_redis_that_is_away_is_done_without_and_told_of_once(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    need(lambda: ensure(redis.PROGRAM, redis.PROGRAM))
    caplog.set_level(logging.INFO)

    async def run() -> None:
        with redis.running("secret-of-redis") as server:
            cache = opened(settings_with(home, server))
            await cache.put("key", "answer")
            server.kill()
            for _ in range(3):
                await cache.put("key", "answer")
                assert await cache.get("key") is None
            server.start()
            await cache.put("key", "answer")
            assert await cache.get("key") == "answer"
            await cache.close()

    asyncio.run(run())
    assert caplog.text.count("answers of models are not kept") == 1
    assert caplog.text.count("answers of models are kept again") == 1
    assert "secret-of-redis" not in caplog.text


def test_zero_seconds_keep_nothing(home: Path) -> None:
    assert AnswerCache.open(settings_with(home, None, 0)) is None


def test_a_redis_that_is_configured_has_them(home: Path, redis_server: redis.Server) -> None:
    async def run() -> None:
        store = RedisAnswers(settings_with(home, redis_server), 60)
        await store.put("in redis", "answer")
        cache = opened(settings_with(home, redis_server))
        assert await cache.get("in redis") == "answer"
        await store.close()
        await cache.close()

    asyncio.run(run())
