"""Choosing an engine: names, devices, reasons, models that cannot be loaded, and the cache of loaded ones."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from tests.encoders.stubs import StubEncoder
from vectorize_pipelines.encoders import (
    Encoder,
    EncoderCache,
    EncoderKey,
    encoder_cache,
    engine_names,
    lease_encoder,
    load_encoder,
)
from vectorize_pipelines.encoders.engines import registry as engines_module
from vectorize_pipelines.encoders.engines.base import Engine, LoadRequest
from vectorize_pipelines.encoders.errors import EngineRefusedError
from vectorize_pipelines.encoders.hardware.devices import resolve_device
from vectorize_pipelines.errors import SettingsError, UnknownModelError


class StubEngine(Engine):
    """An engine whose models take no memory."""

    devices = frozenset({"cpu"})

    def memory_needed(self, request: LoadRequest) -> int:
        return 0


class RefusesByConfiguration(StubEngine):
    name = "by-configuration"

    def refusal(self, request: LoadRequest) -> str | None:
        return "its pooling is not covered"

    def load(self, request: LoadRequest, reason: str) -> Encoder:
        raise AssertionError("loaded although it refused")


class RefusesByMeasurement(StubEngine):
    name = "by-measurement"

    def refusal(self, request: LoadRequest) -> str | None:
        return None

    def load(self, request: LoadRequest, reason: str) -> Encoder:
        raise EngineRefusedError("its vectors were not equal")


class OnlyOnRequest(StubEngine):
    name = "only-on-request"
    devices = frozenset({"cpu", "cuda"})
    automatic = False

    def refusal(self, request: LoadRequest) -> str | None:
        return None

    def load(self, request: LoadRequest, reason: str) -> Encoder:
        return StubEncoder(reason)


class Willing(OnlyOnRequest):
    name = "willing"
    automatic = True


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of engines with stubs in it."""
    classes = (OnlyOnRequest, RefusesByConfiguration, RefusesByMeasurement, Willing)
    table = {each.name: f"{__name__}:{each.__name__}" for each in classes}
    monkeypatch.setattr(engines_module, "ENGINES", table)


@pytest.mark.usefixtures("engines")
def test_auto_takes_the_first_that_fits_and_says_why() -> None:
    choice = load_encoder("any", device="cpu")
    assert "willing" in choice.choice.reason
    assert "its pooling is not covered" in choice.choice.reason
    assert "its vectors were not equal" in choice.choice.reason


@pytest.mark.usefixtures("engines")
def test_engine_that_was_asked_for() -> None:
    assert load_encoder("any", "cpu", "only-on-request").choice.reason == "only-on-request was asked for."
    for name, why_not in (("by-configuration", "pooling"), ("by-measurement", "not equal")):
        with pytest.raises(SettingsError, match=why_not):
            load_encoder("any", "cpu", name)


def test_misspelt_engine_and_device() -> None:
    with pytest.raises(SettingsError, match="sentence-transformers") as error:
        load_encoder("any", engine="sentence_transformer")
    assert all(name in str(error.value) for name in engine_names())
    with pytest.raises(SettingsError, match="cuda:N"):
        load_encoder("any", device="gpu")
    assert resolve_device("CPU ") == "cpu"


def test_device_that_is_not_there() -> None:
    with pytest.raises(SettingsError, match="cuda:99"):
        resolve_device("cuda:99")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"\x00" * 100),
        ("model.safetensors", None),
        ("config.json", b'{"model_type": "no-such-architecture", "hidden_size": 32}'),
        ("config.json", b"not json"),
        ("tokenizer.json", b"not json"),
    ],
    ids=["weights-of-zeros", "half-the-weights", "unknown-architecture", "bad-configuration", "bad-tokenizer"],
)
def test_corrupt_model(
    plain_model: Callable[[str], Path], cache_directory: Path, tmp_path: Path, file: str, content: bytes | None
) -> None:
    for path in plain_model("bert").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(UnknownModelError, match=str(tmp_path)):
        load_encoder(str(tmp_path), device="cpu", cache_directory=cache_directory)


def key(name: str) -> EncoderKey:
    return EncoderKey(name, "auto", "cpu")


def test_cache_closes_the_least_recently_used() -> None:
    cache = EncoderCache(max_loaded=2)
    encoders = {name: StubEncoder() for name in "abc"}
    for name in ("a", "b", "a", "c"):
        with cache.lease(key(name), lambda name=name: encoders[name]) as encoder:  # type: ignore[misc]
            assert encoder is encoders[name]
    assert {name: encoder.closed for name, encoder in encoders.items()} == {"a": False, "b": True, "c": False}
    assert cache.loaded() == {key("a"): 10, key("c"): 10}
    cache.clear()
    assert all(encoder.closed for encoder in encoders.values())
    assert cache.loaded() == {}


def test_cache_never_closes_what_is_in_use() -> None:
    cache = EncoderCache(max_loaded=1)
    first, second = StubEncoder(), StubEncoder()
    with cache.lease(key("first"), lambda: first):
        with cache.lease(key("second"), lambda: second):
            assert not first.closed
        assert (first.closed, second.closed) == (False, True)
        cache.clear()
        assert not first.closed
    assert first.closed


def test_cache_loads_once_for_many_threads() -> None:
    cache = EncoderCache()
    loads: list[int] = []
    together = threading.Barrier(8)
    seen: list[Encoder] = []

    def load() -> Encoder:
        loads.append(1)
        return StubEncoder()

    def use() -> None:
        together.wait()
        with cache.lease(key("shared"), load) as encoder:
            seen.append(encoder)

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(loads) == 1
    assert len({id(encoder) for encoder in seen}) == 1
    assert not cast(StubEncoder, seen[0]).closed


def test_one_load_does_not_hold_up_another() -> None:
    cache = EncoderCache()
    other_done = threading.Event()

    def slow() -> Encoder:
        assert other_done.wait(timeout=30), "the other load waited for this one"
        return StubEncoder()

    def use_slow() -> None:
        with cache.lease(key("slow"), slow):
            pass

    thread = threading.Thread(target=use_slow)
    thread.start()
    with cache.lease(key("other"), StubEncoder):
        other_done.set()
    thread.join()
    assert set(cache.loaded()) == {key("slow"), key("other")}


def test_failed_load_is_tried_again() -> None:
    cache = EncoderCache()

    def fail() -> Encoder:
        raise UnknownModelError("no weights")

    with pytest.raises(UnknownModelError), cache.lease(key("a"), fail):
        pass
    assert cache.loaded() == {}
    with cache.lease(key("a"), StubEncoder):
        assert set(cache.loaded()) == {key("a")}


def test_cache_needs_room() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        EncoderCache(max_loaded=0)


def test_lease_of_a_real_model_keeps_it(plain_model: Callable[[str], Path], cache_directory: Path) -> None:
    model = str(plain_model("bert"))
    with lease_encoder(model, device="cpu", cache_directory=cache_directory) as first:
        assert first.encode(["a"]).shape == (1, 32)
    with lease_encoder(model, device="cpu", cache_directory=cache_directory) as second:
        assert second is first
    encoder_cache().clear()
