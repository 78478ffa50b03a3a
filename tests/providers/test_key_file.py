"""The file of keys: what it may hold, and that changes of it count without a restart."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests.providers.pools import LATE, SOON, keys, pool_of
from vectorize_pipelines.core.installation import default_file
from vectorize_pipelines.errors import NoKeyAvailableError, SettingsError
from vectorize_pipelines.providers.key_file import KeyConfig, KeySource, parse_keys, read_keys
from vectorize_pipelines.providers.key_pool import KeyRefused
from vectorize_pipelines.settings import Settings, load_settings

MARK = "sk-hush-hush"


def write(file: Path, content: Any) -> None:
    """Write a file of keys, as an editor does: in one step, with a time of its own."""
    beside = file.with_suffix(".new")
    beside.write_text(yaml.safe_dump(content))
    beside.replace(file)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "api_keys.yaml"
    monkeypatch.setenv("VECTORIZE_PROVIDERS__KEYS_FILE", str(path))
    return path


def test_the_form_that_users_have_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASHSCOPE_1", MARK)
    path = tmp_path / "keys.yaml"
    path.write_text(
        "strategy: least_loaded\nmax_retry_per_key: 2\ndefault_cooldown: 30\nkeys:\n"
        "  - {api_key: '${DASHSCOPE_1}', name: one, qps_limit: 5, rpm_limit: 100, priority: 1}\n"
        "  - {api_key: sk-2, tpm_limit: 1000, provider: other, models: [m], max_concurrency: 3, enabled: false}\n"
    )
    config = read_keys(path)
    first, second = config.keys
    assert (config.strategy, config.max_retry_per_key, config.default_cooldown) == ("least_loaded", 2, 30)
    assert (first.name, first.api_key.get_secret_value(), first.qps_limit, first.rpm_limit) == ("one", MARK, 5, 100)
    assert (second.name, second.provider, second.models, second.enabled) == ("key-2", "other", ("m",), False)
    assert MARK not in repr(config)


def test_the_file_that_the_package_brings_knows_no_key() -> None:
    assert read_keys(default_file("api_keys.yaml")) == KeyConfig()


def test_a_file_that_is_absent_knows_no_key(tmp_path: Path) -> None:
    assert read_keys(tmp_path / "none.yaml").keys == ()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"keys": [{"name": "a"}]}, "keys.0.api_key: Field required"),
        ({"keys": [{"api_key": MARK, "qps": 3}]}, "keys.0.qps: Extra inputs are not permitted"),
        ({"keys": [{"api_key": MARK, "qps_limit": 0}]}, "keys.0.qps_limit: Input should be greater"),
        ({"keys": [{"api_key": f"{MARK}\n"}]}, "no header can carry"),
        ({"keys": [{"api_key": ""}]}, "is empty"),
        ({"keys": [{"api_key": f"{MARK}-${{ABSENT_KEY}}"}]}, "refers to ${ABSENT_KEY}"),
        ({"keys": [{"api_key": MARK, "name": "a"}, {"api_key": f"{MARK}2", "name": "a"}]}, "two keys have the name a"),
        ({"keys": [{"api_key": MARK, "name": "a"}, {"api_key": MARK, "name": "b"}]}, "a and b are the same key"),
        ({"keys": [MARK]}, "keys.0: Input should be"),
        ({"keys": {"a": MARK}}, "must hold `keys:` with a list"),
        ([MARK], "must hold `keys:` with a list"),
        ({"strategy": MARK}, "strategy: Input should be 'round_robin'"),
    ],
)
def test_what_is_wrong_is_named_without_a_key(content: Any, said: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_keys("keys.yaml", content)
    assert "keys.yaml" in str(error.value)
    assert said in str(error.value)
    assert MARK not in str(error.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
ENTRIES = st.dictionaries(st.sampled_from(["api_key", "name", "qps_limit", "models", "provider", "enabled"]), VALUES)


@given(st.fixed_dictionaries({}, optional={"keys": st.lists(ENTRIES | VALUES), "strategy": VALUES}) | VALUES)
def test_any_content_is_read_or_refused(content: Any) -> None:
    try:
        config = parse_keys("keys.yaml", content)
    except SettingsError:
        return
    assert len({key.name for key in config.keys}) == len(config.keys)


@pytest.mark.slow
def test_keys_that_are_added_and_removed_count_without_a_restart(file: Path, settings: Settings) -> None:
    async def go() -> None:
        write(file, keys(1, max_concurrency=1))
        async with pool_of(load_settings(), None) as pool:
            held = await pool.acquire_key()
            waiting = asyncio.create_task(pool.acquire_key(deadline_seconds=LATE))
            await asyncio.sleep(SOON)
            assert not waiting.done()
            write(file, keys(2, max_concurrency=1))
            assert (await waiting).name == "b"
            write(file, {})
            async with asyncio.timeout(LATE):
                while await pool.health_check():
                    await asyncio.sleep(0.05)
            with pytest.raises(NoKeyAvailableError, match="has no API key"):
                await pool.acquire_key(deadline_seconds=LATE)
            await pool.release_key(held)  # of a key that is gone

    asyncio.run(go())


@pytest.mark.slow
def test_a_key_that_the_file_enables_again_counts(file: Path, shared: Settings) -> None:
    async def go() -> None:
        write(file, keys(2))
        async with pool_of(load_settings(), None) as pool, pool_of(load_settings(), None) as other:
            both = {key.name: key for key in (await pool.acquire_key(), await pool.acquire_key())}
            await pool.release_key(both["a"], success=False, failure=KeyRefused(401))
            changed = keys(2)
            changed["keys"][0]["enabled"] = False
            write(file, changed)
            while (await other.health_check())["a"]["disabled_reason"] != "disabled in the file of keys":
                await asyncio.sleep(0.05)
            write(file, keys(2))
            while (await other.health_check())["a"]["state"] == "disabled":
                await asyncio.sleep(0.05)
            assert {(await pool.acquire_key()).name for _ in range(2)} == {"a", "b"}

    asyncio.run(go())


def test_a_file_that_becomes_wrong_changes_nothing(
    file: Path, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> None:
        write(file, keys(1))
        async with pool_of(load_settings(), None) as pool:
            await pool.release_key(await pool.acquire_key())
            file.write_text(f"keys: [{{api_key: {MARK}")
            while "remain as they were" not in caplog.text:
                assert (await pool.acquire_key()).name == "a"
                await asyncio.sleep(0.05)

    asyncio.run(go())
    assert caplog.text.count("remain as they were") == 1
    assert MARK not in caplog.text


@pytest.mark.parametrize("content", [None, "", "keys: []"])
def test_a_file_that_has_no_key_for_a_moment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr("vectorize_pipelines.providers.key_file.LOOK_SECONDS", 0.0)
    file = tmp_path / "keys.yaml"
    write(file, keys(1))
    source = KeySource(file)
    for _ in range(2):
        file.unlink()
        if content is not None:
            file.write_text(content)
        assert [key.name for key in source.current().keys] == ["a"]
        write(file, keys(2))
        assert [key.name for key in source.current().keys] == ["a", "b"]
        write(file, keys(1))
        assert [key.name for key in source.current().keys] == ["a"]
    file.unlink()
    assert source.current().keys
    assert not source.current().keys


def test_a_file_that_cannot_be_read_is_said_at_once(file: Path, settings: Settings) -> None:
    file.write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="not UTF-8"):
        asyncio.run(_open())


async def _open() -> None:
    async with pool_of(load_settings(), None):
        assert os.environ["VECTORIZE_PROVIDERS__KEYS_FILE"]
