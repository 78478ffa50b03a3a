"""The embedding cache in one file and in Redis: what both promise, and what each does where it fails."""

import json
import multiprocessing
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from tests.servers import redis
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state import home as home_module
from vectorize_pipelines.state.embedding_cache import (
    EmbeddingCache,
    EmbeddingCacheError,
    EmbeddingCacheFullError,
    EmbeddingCacheUnavailableError,
    Vector,
    open_embedding_cache,
)
from vectorize_pipelines.state.embedding_cache import redis as redis_cache
from vectorize_pipelines.state.embedding_cache.redis import PREFIX, RedisEmbeddingCache
from vectorize_pipelines.state.embedding_cache.sqlite import SQLiteEmbeddingCache
from vectorize_pipelines.state.redis_connection import open_redis

LIMIT = 2**20
DAY_MS = 86_400_000
PATIENCE = 60.0


def vector(seed: int, dimension: int = 384) -> Vector:
    return np.random.default_rng(seed).normal(size=dimension).astype(np.float32)


def key(number: int) -> bytes:
    return number.to_bytes(16)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is too slow on a busy machine; where one is to be, the test says so."""
    monkeypatch.setattr(redis_cache, "ANSWER_SECONDS", PATIENCE)
    monkeypatch.setattr(redis_cache, "CALL_SECONDS", PATIENCE)


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def settings(request: pytest.FixtureRequest, home: Path) -> Settings:
    """An installation whose cache is empty."""
    if request.param == "redis":
        found: Settings = request.getfixturevalue("redis_settings")
        return found
    return load_settings({}, home=home)


@pytest.fixture
def own_redis(redis_program: None) -> Iterator[redis.Server]:
    """A server that the test may stop."""
    with redis.running("hush-hush") as server:
        yield server


@pytest.fixture
def own_settings(own_redis: redis.Server, home: Path) -> Settings:
    return load_settings({}, home=home, redis={"url": own_redis.url})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "embeddings.sqlite"


def assert_has(cache: EmbeddingCache, *numbers: int, model: str = "model") -> None:
    found = cache.get(model, [key(number) for number in numbers])
    assert sorted(found) == [key(number) for number in sorted(numbers)]
    assert all(np.array_equal(each, vector(int.from_bytes(which))) for which, each in found.items())


# ---- what both promise


def test_it_lies_where_the_settings_say(settings: Settings) -> None:
    with closing(open_embedding_cache(settings)) as cache:
        cache.put("model", {key(1): vector(1)})
        assert isinstance(cache, SQLiteEmbeddingCache if settings.redis.url is None else RedisEmbeddingCache)
    assert home_module.embedding_cache(settings).exists() is (settings.redis.url is None)


def test_what_one_put_another_one_gets_bit_by_bit(settings: Settings) -> None:
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38], dtype=np.float32)
    with closing(open_embedding_cache(settings)) as one, closing(open_embedding_cache(settings)) as other:
        assert other.get("model", [key(1)]) == {}
        one.put("model", {key(1): vector(1), key(2): special, key(3): np.zeros(0, np.float32)})
        found = other.get("model", [key(3), key(2), key(1), key(4)])
        assert {which: each.tobytes() for which, each in found.items()} == {
            key(1): vector(1).tobytes(),
            key(2): special.tobytes(),
            key(3): b"",
        }
        assert {each.dtype for each in found.values()} == {np.dtype(np.float32)}
        found[key(1)][0] = 7  # it is the caller's own
        one.put("model", {key(1): vector(5)})
        assert np.array_equal(other.get("model", [key(1)])[key(1)], vector(5))


def test_nothing_is_put_and_asked_for(settings: Settings) -> None:
    with closing(open_embedding_cache(settings)) as cache:
        cache.put("model", {})
        assert cache.get("model", []) == {}
        cache.close()


def test_a_cache_of_another_model_is_never_used(settings: Settings) -> None:
    with closing(open_embedding_cache(settings)) as cache:
        cache.put("one", {key(1): vector(1)})
        assert cache.get("other", [key(1)]) == {}
        cache.put("other \ud800", {key(1): vector(2)})
        assert np.array_equal(cache.get("one", [key(1)])[key(1)], vector(1))
        assert np.array_equal(cache.get("other \ud800", [key(1)])[key(1)], vector(2))


def test_more_than_one_command_takes(settings: Settings) -> None:
    with closing(open_embedding_cache(settings)) as cache:
        cache.put("model", {key(number): vector(number, 8) for number in range(1100)})
        found = cache.get("model", [key(number) for number in range(1500)])
        assert len(found) == 1100
        assert all(np.array_equal(each, vector(int.from_bytes(which), 8)) for which, each in found.items())


def damage(settings: Settings) -> None:
    """Exchange bytes of the vector of `key(0)`, put the value of `key(1)` under `key(2)`, and cut that of `key(3)`."""
    if settings.redis.url is None:
        with closing(sqlite3.connect(home_module.embedding_cache(settings))) as file, file:
            file.execute("update vectors set vector = zeroblob(length(vector)) where id = 1")
            file.execute("update vectors set vector = (select vector from vectors where id = 2) where id = 3")
            file.execute("update vectors set vector = substr(vector, 1, 3) where id = 4")
        return
    with closing(open_redis(settings)) as client:
        names = {int.from_bytes(name[-16:]): name for name in client.scan_iter(PREFIX + b"*")}
        client.set(names[0], bytes(len(client.get(names[0]) or b"")))
        client.set(names[2], client.get(names[1]) or b"")
        client.set(names[3], (client.get(names[3]) or b"")[:3])


def test_a_vector_whose_bytes_were_damaged_is_not_there(settings: Settings) -> None:
    with closing(open_embedding_cache(settings)) as cache:
        cache.put("model", {key(number): vector(number) for number in range(5)})
    damage(settings)
    with closing(open_embedding_cache(settings)) as cache:
        assert sorted(cache.get("model", [key(number) for number in range(5)])) == [key(1), key(4)]


def _puts_and_gets(sections: str, name: int) -> None:
    with closing(open_embedding_cache(load_settings({}, **json.loads(sections)))) as cache:
        for number in range(40):
            cache.put("model", {key(each): vector(each) for each in (number, 1000 * name + number)})
            assert_has(cache, *range(number + 1))


def test_several_processes_use_it(settings: Settings) -> None:
    url = settings.redis.url and settings.redis.url.get_secret_value()
    sections = json.dumps({"home": str(settings.home), "redis": {"url": url}})
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_puts_and_gets, args=(sections, name)) for name in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    with closing(open_embedding_cache(settings)) as cache:
        assert_has(cache, *[1000 * name + number for name in (1, 2) for number in range(40)])


# ---- the file


@pytest.mark.parametrize("dimension", [64, 384, 3072])
def test_the_file_stays_below_its_limit_and_the_oldest_go_first(file: Path, dimension: int) -> None:
    time = 0.0
    cache = SQLiteEmbeddingCache(file, LIMIT, now=lambda: time)
    cache.put("model", {key(0): vector(0, dimension)})
    together = LIMIT // (40 * dimension)
    number = 0
    for batch in range(60):
        time += 7200
        assert key(0) in cache.get("model", [key(0)]), "what is used stays"
        new = range(batch * together + 1, (batch + 1) * together + 1)
        cache.put("model", {key(n): vector(n, dimension) for n in new})
        number = new[-1]
        assert file.stat().st_size <= LIMIT
    there = [n for n in range(1, number + 1) if cache.get("model", [key(n)])]
    assert there == list(range(there[0], number + 1)), "those that are left are the latest"
    assert there[0] > 1
    assert len(there) * dimension * 4 > LIMIT / 3
    cache.close()
    smaller = SQLiteEmbeddingCache(file, LIMIT // 2, now=lambda: time)
    smaller.put("model", {key(10**6): vector(0, dimension)})
    smaller.close()
    assert file.stat().st_size <= LIMIT // 2


# ---- Redis


def test_a_vector_goes_so_many_days_after_its_last_use(redis_settings: Settings) -> None:
    settings = load_settings(home=redis_settings.home, cache={"unused_days": 8})
    with closing(open_embedding_cache(settings)) as cache, closing(open_redis(settings)) as client:
        cache.put("model", {key(number): vector(number) for number in range(3)})
        names = {int.from_bytes(name[-16:]): name for name in client.scan_iter(PREFIX + b"*")}
        assert all(7.9 * DAY_MS < client.pttl(name) <= 8 * DAY_MS for name in names.values())
        client.pexpire(names[1], 7 * DAY_MS)
        client.pexpire(names[2], 3 * DAY_MS)
        assert_has(cache, 1, 2)
        assert 6.9 * DAY_MS < client.pttl(names[1]) <= 7 * DAY_MS, "not at each look"
        assert 7.9 * DAY_MS < client.pttl(names[2]) <= 8 * DAY_MS
        client.pexpire(names[2], 1)
        until(lambda: not client.exists(names[2]))
        assert cache.get("model", [key(2)]) == {}


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)


def test_a_redis_that_is_killed_and_started_again(own_redis: redis.Server, own_settings: Settings) -> None:
    with closing(open_embedding_cache(own_settings)) as cache:
        cache.put("model", {key(1): vector(1)})
        own_redis.kill()
        away = f"^Redis at 127.0.0.1:{own_redis.port} cannot be used: (?!.*hush)"
        for _ in range(2):
            with pytest.raises(EmbeddingCacheUnavailableError, match=away):
                cache.get("model", [key(1)])
            with pytest.raises(EmbeddingCacheUnavailableError, match=away):
                cache.put("model", {key(2): vector(2)})
        own_redis.start()
        assert cache.get("model", [key(1)]) == {}, "it has forgotten everything, and its script"
        cache.put("model", {key(2): vector(2)})
        assert_has(cache, 2)


def test_a_redis_that_does_not_answer_is_not_waited_for(
    own_redis: redis.Server, own_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(open_embedding_cache(own_settings)) as patient:
        patient.put("model", {key(number): vector(number) for number in range(3)})
        monkeypatch.setattr(redis_cache, "ANSWER_SECONDS", 0.2)
        with closing(open_embedding_cache(own_settings)) as cache:
            with own_redis.stalled():
                with pytest.raises(EmbeddingCacheUnavailableError, match=r"cannot be used: .*[Tt]imeout"):
                    cache.get("model", [key(1)])
                with pytest.raises(EmbeddingCacheUnavailableError, match=r"cannot be used: .*[Tt]imeout"):
                    cache.put("model", {key(1): vector(9)})
            # Answers that come later are those of connections that were given up.
            assert_has(patient, 0, 1, 2)
            until(lambda: has_all(cache, 0, 1, 2))


def has_all(cache: EmbeddingCache, *numbers: int) -> bool:
    """Return False where the cache does not answer in time."""
    try:
        assert_has(cache, *numbers)
    except EmbeddingCacheUnavailableError:
        return False
    return True


def test_a_redis_that_is_slow_is_sent_nothing_more(redis_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = range(3 * redis_cache.KEYS_TOGETHER)
    with closing(open_embedding_cache(redis_settings)) as cache:
        monkeypatch.setattr(redis_cache, "CALL_SECONDS", -1.0)
        with pytest.raises(EmbeddingCacheUnavailableError, match=r"is too slow: 0\.\d s for 0 vectors"):
            cache.get("model", [key(number) for number in numbers])
        with pytest.raises(EmbeddingCacheUnavailableError, match="is too slow"):
            cache.put("model", {key(number): vector(number) for number in numbers})


def configure(settings: Settings, **options: str) -> None:
    with closing(open_redis(settings)) as client:
        for name, value in options.items():
            client.config_set(name.replace("_", "-"), value)


def test_a_redis_that_evicts_nothing_is_not_filled(own_settings: Settings) -> None:
    small = load_settings({}, home=own_settings.home, redis=own_settings.redis, cache={"max_bytes": 2**21})
    with closing(open_embedding_cache(small)) as cache:
        with pytest.raises(EmbeddingCacheFullError, match=r"evicts nothing by itself.* exceeds 2,097,152: give it a"):
            fill(cache, 2**24)
        assert_has(cache, 0)
    configure(own_settings, maxmemory=f"{2**23}")
    with closing(open_embedding_cache(own_settings)) as cache:
        with pytest.raises(EmbeddingCacheFullError, match=r"exceeds 6,710,886"):
            fill(cache, 2**25)
        assert_has(cache, 0)
    with closing(open_redis(own_settings)) as client:
        assert client.set("of somebody else", "who has room")


def fill(cache: EmbeddingCache, bytes_: int) -> None:
    """Put so many bytes of vectors."""
    together, dimension = 50, 384
    for start in range(0, bytes_ // (4 * dimension), together):
        cache.put("model", {key(number): vector(number) for number in range(start, start + together)})


def test_a_redis_that_evicts_makes_room_by_itself(own_settings: Settings) -> None:
    with closing(open_redis(own_settings)) as client, closing(open_embedding_cache(own_settings)) as cache:
        client.set("of somebody else", "stays")
        configure(own_settings, maxmemory=f"{2**23}", maxmemory_policy="volatile-lru")
        fill(cache, 2**24)
        assert client.get("of somebody else") == b"stays"
        assert client.info("stats")["evicted_keys"] > 0
        assert 1000 < client.dbsize() < 2**24 // (4 * 384)


def test_a_redis_that_is_full_keeps_nothing_and_is_still_asked(own_settings: Settings) -> None:
    """Full of what has no expiry, so that the policy finds nothing to evict."""
    with closing(open_redis(own_settings)) as client, closing(open_embedding_cache(own_settings)) as cache:
        cache.put("model", {key(1): vector(1)})
        # The limit lies below what is in use, but nothing that is there may go.
        client.persist(next(client.scan_iter(PREFIX + b"*")))
        client.config_set("maxmemory-policy", "volatile-lru")
        client.config_set("maxmemory", 2**18)
        with pytest.raises(EmbeddingCacheFullError, match="is full and finds nothing to evict: raise its maxmemory"):
            cache.put("model", {key(2): vector(2)})
        assert key(1) in cache.get("model", [key(1)])
        client.config_set("maxmemory", 0)
        cache.put("model", {key(2): vector(2)})
        assert key(2) in cache.get("model", [key(2)])


@pytest.mark.parametrize("url", ["redis://:hush-hush@", "http://localhost:6379"])
def test_a_bad_address_is_told(home: Path, url: str) -> None:
    with pytest.raises(EmbeddingCacheError, match=r"VECTORIZE_REDIS__URL.* is no address") as caught:
        open_embedding_cache(load_settings({}, home=home, redis={"url": url}))
    assert type(caught.value) is EmbeddingCacheError
    assert "hush" not in str(caught.value)


def test_a_user_who_may_not_write_fails_no_run(own_redis: redis.Server, own_settings: Settings) -> None:
    with closing(open_redis(own_settings)) as client:
        client.acl_setuser("reader", enabled=True, passwords=["+secret"], commands=["+@all", "-set"], keys=["*"])
    url = own_redis.url.replace(":hush-hush", "reader:secret")
    with closing(open_embedding_cache(load_settings({}, home=own_settings.home, redis={"url": url}))) as cache:
        with pytest.raises(EmbeddingCacheUnavailableError, match="no permissions"):
            cache.put("model", {key(1): vector(1)})
        assert cache.get("model", [key(1)]) == {}
