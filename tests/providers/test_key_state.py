"""The state that processes share: lost, damaged, away, and free of secrets."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.providers.pools import LATE, LONG, SOON, keys, pool_of
from tests.servers import redis as redis_servers
from vectorize_pipelines.errors import KeysError, NoKeyAvailableError, SettingsError
from vectorize_pipelines.providers.key_file import KeySource
from vectorize_pipelines.providers.key_pool import APIKeyPool, KeyRefused, create_key_pool_from_config
from vectorize_pipelines.providers.limits import Grant, Request, SaltChangedError, Wait, open_shared_use
from vectorize_pipelines.providers.limits.sqlite import SQLiteUse
from vectorize_pipelines.settings import Settings, load_settings
from vectorize_pipelines.state.home import key_use_file
from vectorize_pipelines.state.redis_connection import open_redis, ping_redis, redis_address

PASSWORD = "hush/hush@1"


def test_no_key_lies_in_the_file(settings: Settings) -> None:
    async def go() -> None:
        async with pool_of(settings, keys(2)) as pool:
            key = await pool.acquire_key()
            await pool.release_key(key, success=False, failure=KeyRefused(401, f"bad {key.api_key.get_secret_value()}"))

    asyncio.run(go())
    written = b"".join(path.read_bytes() for path in key_use_file(settings).parent.iterdir())
    assert b"refused it: 401 bad ***" in written
    assert b"sk-secret" not in written


def test_no_key_lies_in_redis(redis_settings: Settings) -> None:
    async def go() -> None:
        async with pool_of(redis_settings, keys(2, rpm_limit=3)) as pool:
            key = await pool.acquire_key(tokens=3)
            await pool.release_key(key, success=False, failure=KeyRefused(401, f"bad {key.api_key.get_secret_value()}"))
            await pool.acquire_key(tokens=3)

    asyncio.run(go())
    client = open_redis(redis_settings)
    names = list(client.scan_iter())
    dumped = b"".join(client.dump(name) or b"" for name in names) + repr(names).encode()
    client.close()
    assert len(names) > 5
    assert b"secret" not in dumped


def test_redis_forgets_what_counts_no_more(redis_settings: Settings) -> None:
    def names(kind: str) -> list[bytes]:
        return list(client.scan_iter(f"{{vectorize:keys}}:{kind}:*"))

    async def go() -> None:
        config = keys(1, tpm_limit=10)
        async with (
            pool_of(redis_settings, config) as pool,
            pool_of(redis_settings, config, lease_seconds=0.05) as killed,
        ):
            key = await pool.acquire_key(tokens=6)
            await killed.acquire_key(tokens=1)
            await pool.release_key(key, tokens=7)
            for kind in ("uses", "leases"):
                (name,) = names(kind)
                assert client.pttl(name) > 0
            (leases,) = names("leases")
            await asyncio.sleep(0.1)  # the loan of the one that was killed ends
            await pool.acquire_key(tokens=1, deadline_seconds=LATE)
            assert client.zcard(leases) == 1
            client.delete(*names("uses"))  # as the server does once they are too old
            await pool.acquire_key(tokens=10, deadline_seconds=LATE)

    client = open_redis(redis_settings)
    asyncio.run(go())
    client.close()


def test_a_file_that_is_removed_meanwhile_is_made_again_for_all(settings: Settings) -> None:
    async def go() -> None:
        config = keys(1, rpm_limit=3)
        async with pool_of(settings, config) as one, pool_of(settings, config) as other:
            held = [await one.acquire_key(), await other.acquire_key()]
            for path in list(key_use_file(settings).parent.iterdir()):
                path.unlink()
            held += [await pool.acquire_key(deadline_seconds=LATE) for pool in (one, other, one)]
            with pytest.raises(NoKeyAvailableError):
                await other.acquire_key(deadline_seconds=SOON)
            for key in held:
                await one.release_key(key)
            assert (await other.health_check())["a"]["in_use"] == 0

    asyncio.run(go())


class LostWhileEntering(SQLiteUse):
    """A state that is lost and begun again by somebody else twice while the keys of a file are entered."""

    times = 2

    async def enable(self, ids: Sequence[str], only: str | None = None) -> None:
        if only is not None and self.times:
            self.times -= 1
            raise SaltChangedError(bytes([self.times]) * 16)
        await super().enable(ids, only)


def test_a_state_that_is_lost_again_and_again_is_seen_by_nobody(settings: Settings) -> None:
    async def go() -> None:
        use = LostWhileEntering(key_use_file(settings), LONG)
        pool = APIKeyPool(KeySource(keys(1)), use, windows=LONG, lease_seconds=60.0)
        assert (await pool.acquire_key()).name == "a"
        assert not use.times
        await pool.close()

    asyncio.run(go())


def test_a_state_that_is_lost_as_the_file_changes_is_seen_by_nobody(
    shared: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vectorize_pipelines.providers.key_file.LOOK_SECONDS", 0.0)
    file = tmp_path / "keys.yaml"

    async def go() -> None:
        file.write_text(json.dumps(keys(1)))
        pool = create_key_pool_from_config(file, settings=shared, windows=LONG)
        await pool.acquire_key()
        await _lose(shared)
        file.write_text(json.dumps(keys(2)))
        assert {(await pool.acquire_key(deadline_seconds=LATE)).name for _ in range(2)} == {"a", "b"}
        await pool.close()

    asyncio.run(go())


@pytest.mark.parametrize("call", ["acquire_key", "disable", "enable", "health_check"])
def test_a_state_that_was_lost_is_seen_by_no_caller(shared: Settings, call: str) -> None:
    async def go() -> None:
        async with pool_of(shared, keys(1)) as pool:
            await pool.acquire_key()
            await _lose(shared)
            await getattr(pool, call)(*{"disable": ("a", "by hand"), "enable": ("a",)}.get(call, ()))
            expected = {"acquire_key": "in_use", "disable": "disabled"}.get(call, "available")
            assert (await pool.health_check())["a"]["state"] == expected

    asyncio.run(go())


async def _lose(settings: Settings) -> None:
    """Lose the state, and let somebody else begin it again, with another salt."""
    if settings.redis.url is None:
        for path in list(key_use_file(settings).parent.iterdir()):
            path.unlink()
    else:
        client = open_redis(settings)
        client.flushall()
        client.close()
    async with pool_of(settings, keys(1)) as another:
        await another.health_check()


def test_a_damaged_file_is_put_aside(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    file = key_use_file(settings)
    file.parent.mkdir()
    file.write_bytes(b"no database" * 1000)

    async def go() -> None:
        async with pool_of(settings, keys(1)) as pool:
            await pool.acquire_key(deadline_seconds=LATE)

    asyncio.run(go())
    assert "put aside" in caplog.text
    assert list(file.parent.glob("*.damaged-*"))


def test_a_redis_that_lost_everything_is_begun_again_for_all(tmp_path: Path, home: Path) -> None:
    with redis_servers.running() as server:

        async def go() -> None:
            settings = load_settings({}, tmp_path, home=home, redis={"url": server.url})
            config = keys(1, rpm_limit=3)
            async with pool_of(settings, config) as one, pool_of(settings, config) as other:
                held = [await one.acquire_key(), await other.acquire_key()]
                waiting = asyncio.create_task(one.acquire_key(deadline_seconds=LATE))
                await waiting
                server.kill()
                waiting = asyncio.create_task(one.acquire_key(deadline_seconds=LATE))
                await asyncio.sleep(SOON)
                assert not waiting.done()
                server.start()
                held.append(await waiting)
                held += [await pool.acquire_key(deadline_seconds=LATE) for pool in (other, one)]
                with pytest.raises(NoKeyAvailableError):
                    await other.acquire_key(deadline_seconds=SOON)
                for key in held:
                    await other.release_key(key)
                assert (await one.health_check())["a"]["in_use"] == 0

        asyncio.run(go())


def test_what_the_file_disables_stays_disabled_when_redis_lost_everything(tmp_path: Path, home: Path) -> None:
    config = keys(2)
    config["keys"][0]["enabled"] = False
    with redis_servers.running() as server:

        async def go() -> None:
            settings = load_settings({}, tmp_path, home=home, redis={"url": server.url})
            async with pool_of(settings, config) as pool:
                assert (await pool.acquire_key()).name == "b"
                server.empty()
                assert {(await pool.acquire_key()).name for _ in range(3)} == {"b"}
                assert (await pool.health_check())["a"]["state"] == "disabled"

        asyncio.run(go())


def test_while_redis_is_away_callers_wait_until_their_deadline(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vectorize_pipelines.providers.key_pool.RELEASE_SECONDS", 0.1)
    with redis_servers.running(password="hush-hush") as server:
        settings = load_settings({}, tmp_path, home=home, redis={"url": server.url})

        async def go() -> None:
            async with pool_of(settings, keys(1)) as pool:
                key = await pool.acquire_key()
                server.kill()
                with pytest.raises(KeysError, match=f"Redis at 127.0.0.1:{server.port} cannot be used") as error:
                    await pool.acquire_key(deadline_seconds=SOON)
                assert not isinstance(error.value, NoKeyAvailableError)
                await pool.release_key(key)
                assert "hush-hush" not in str(error.value) + caplog.text
                assert "the API key a was not given back" in caplog.text

        asyncio.run(go())


def test_a_loan_is_not_lost_with_the_answer_that_tells_of_it(shared: Settings) -> None:
    async def go() -> None:
        use = open_shared_use(shared, LONG)
        acquire = use.acquire
        lost: list[Grant | Wait] = []

        async def lose_the_first(request: Request) -> Grant | Wait:
            answer = await acquire(request)
            if lost:
                return answer
            lost.append(answer)
            raise KeysError("the connection was closed")

        use.acquire = lose_the_first  # type: ignore[method-assign]
        pool = APIKeyPool(KeySource(keys(2)), use, windows=LONG, lease_seconds=60.0)
        key = await pool.acquire_key(tokens=3, deadline_seconds=LATE)
        shown = list((await pool.health_check()).values())
        assert sum(each["in_use"] for each in shown) == sum(each["calls"] for each in shown) == 1
        assert sum(each["tokens_last_minute"] for each in shown) == 3
        await pool.release_key(key)
        assert sum(each["in_use"] for each in (await pool.health_check()).values()) == 0
        await pool.close()

    asyncio.run(go())


def test_a_wrong_password_is_said_without_it(tmp_path: Path) -> None:
    with redis_servers.running(password="right") as server:
        url = server.url.replace(":right@", ":hush%2Fhush%401@")
        settings = load_settings({}, tmp_path, redis={"url": url})
        with pytest.raises(Exception, match="cannot be used") as error:
            ping_redis(settings)
    assert "hush" not in str(error.value)


@pytest.mark.parametrize("url", [f"redis://:{PASSWORD}@host/0", "http://hush@host", "redis://", "redis://:hush@h:x/0"])
def test_an_address_that_is_none_is_said_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"redis\.url .* is no address of a Redis server") as error:
        redis_address(load_settings({}, tmp_path, redis={"url": url}))
    assert "hush" not in str(error.value)
