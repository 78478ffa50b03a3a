"""What a model is going to take, and what happens where that is not there: others go, or it is refused."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.encoders.stubs import StubEncoder
from vectorize_pipelines import encoders as encoders_module
from vectorize_pipelines.encoders import (
    Encoder,
    EncoderCache,
    EncoderKey,
    encoder_cache,
    forecast_load,
    lease_encoder,
    load_encoder,
)
from vectorize_pipelines.encoders import cache as cache_module
from vectorize_pipelines.encoders.engines.base import WORKING_BYTES, LoadRequest
from vectorize_pipelines.encoders.engines.registry import load_engine
from vectorize_pipelines.encoders.models.weights import count_parameters
from vectorize_pipelines.errors import ModelTooLargeError, UnknownModelError

pytestmark = pytest.mark.slow

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
PARAMETERS = 22_713_216 + 512  # the weights, and the positions that are kept with them
MEBIBYTE = 2**20


def test_parameters_are_counted_from_the_heads_of_the_files(tmp_path: Path, plain_model: Callable[[str], Path]) -> None:
    import torch
    from safetensors.torch import load_file

    engine = load_engine("sentence-transformers")
    request = LoadRequest(BUNDLED, "cpu", tmp_path)
    assert count_parameters(engine.weight_files(request)) == PARAMETERS
    weights = plain_model("bert") / "model.safetensors"
    tensors = load_file(weights)
    total = sum(tensor.numel() for tensor in tensors.values())
    assert count_parameters([weights]) == total
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    assert count_parameters([tmp_path / "pytorch_model.bin"]) == pytest.approx(total, rel=0.3)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(UnknownModelError, match=r"model\.safetensors"):
        count_parameters([tmp_path / "model.safetensors"])


def test_a_reduced_precision_takes_half(tmp_path: Path) -> None:
    engine = load_engine("sentence-transformers")
    needed = {
        precision: engine.memory_needed(LoadRequest(BUNDLED, "cpu", tmp_path, precision=precision))
        for precision in ("auto", "float32", "bfloat16", "float16")
    }
    assert needed["auto"] == needed["float32"] == 4 * PARAMETERS + WORKING_BYTES
    assert needed["bfloat16"] == needed["float16"] == 2 * PARAMETERS + WORKING_BYTES


def test_making_an_export_takes_more_than_loading_it(plain_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = str(plain_model("bert"))
    before = forecast_load(model, "cpu", "openvino", cache_directory=tmp_path)
    assert before[0].precision == ""
    assert "makes it ready and measures it" in before[0].reason
    loaded = load_encoder(model, "cpu", "openvino", cache_directory=tmp_path)
    after = forecast_load(model, "cpu", "openvino", cache_directory=tmp_path)
    assert after[1] < before[1]
    assert after[0].precision == loaded.choice.precision
    assert "mean cosine" in after[0].reason


class Sized(StubEncoder):
    """An encoder of a size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    @property
    def memory_bytes(self) -> int:
        return self._size


class Memory:
    """A device's memory, from which what is open takes its part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
        self.size = size
        self.made: list[Sized] = []
        monkeypatch.setattr(cache_module, "free_memory", lambda device: self.free)

    @property
    def free(self) -> int:
        return self.size - sum(each.memory_bytes for each in self.made if not each.closed)

    def load(self, cache: EncoderCache, name: str, size: int, device: str = "cpu") -> Sized:
        key = EncoderKey(name, "auto", device)

        def load() -> Encoder:
            cache.make_room(key, name, size)
            self.made.append(Sized(size))
            return self.made[-1]

        with cache.lease(key, load) as encoder:
            assert isinstance(encoder, Sized)
            return encoder


def test_idle_models_give_way_least_recently_used_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory, cache = Memory(monkeypatch, 100 * MEBIBYTE), EncoderCache(max_loaded=9)
    a, b, c = (memory.load(cache, name, 30 * MEBIBYTE) for name in "abc")
    memory.load(cache, "a", 30 * MEBIBYTE)
    with caplog.at_level(logging.INFO, "vectorize_pipelines"):
        memory.load(cache, "d", 35 * MEBIBYTE)
    assert [each.closed for each in (a, b, c)] == [False, True, False]
    unloaded = [message for message in caplog.messages if message.startswith("unloaded")]
    assert unloaded == ["unloaded b on cpu: 30 MiB freed"]
    memory.load(cache, "e", 90 * MEBIBYTE)
    assert list(cache.loaded()) == [EncoderKey("e", "auto", "cpu")]


def test_what_does_not_fit_is_refused_before_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, cache = Memory(monkeypatch, 100 * MEBIBYTE), EncoderCache()
    idle = memory.load(cache, "idle", 30 * MEBIBYTE)
    with pytest.raises(ModelTooLargeError, match=r"huge takes about 200 MiB on cpu .* there are 100 MiB; .* smaller"):
        memory.load(cache, "huge", 200 * MEBIBYTE)
    assert idle.closed
    assert len(memory.made) == 1
    assert cache.loaded() == {}
    assert not memory.load(cache, "small", 10 * MEBIBYTE).closed


def test_models_in_use_are_never_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, cache = Memory(monkeypatch, 100 * MEBIBYTE), EncoderCache()
    used = Sized(60 * MEBIBYTE)
    memory.made.append(used)
    with cache.lease(EncoderKey("used", "auto", "cpu"), lambda: used):
        with pytest.raises(ModelTooLargeError, match=r"50 MiB on cpu .* there are 40 MiB"):
            memory.load(cache, "more", 50 * MEBIBYTE)
        assert not used.closed
    assert not memory.load(cache, "more", 50 * MEBIBYTE).closed
    assert used.closed


def test_the_limit_counts_all_models_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, cache = Memory(monkeypatch, 1000 * MEBIBYTE), EncoderCache(memory_bytes=100 * MEBIBYTE)
    first = memory.load(cache, "first", 60 * MEBIBYTE)
    assert not memory.load(cache, "elsewhere", 90 * MEBIBYTE, "cuda").closed
    assert not first.closed
    memory.load(cache, "second", 60 * MEBIBYTE)
    assert first.closed
    with pytest.raises(ModelTooLargeError, match=r"encoder\.memory_bytes leaves 100 MiB; raise encoder\.memory_bytes"):
        memory.load(cache, "third", 101 * MEBIBYTE)


def test_a_load_in_progress_has_its_memory_already(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, cache = Memory(monkeypatch, 100 * MEBIBYTE), EncoderCache()
    key = EncoderKey("slow", "auto", "cpu")

    def slow() -> Encoder:
        cache.make_room(key, "slow", 70 * MEBIBYTE)
        with pytest.raises(ModelTooLargeError, match="there are 30 MiB"):
            memory.load(cache, "meanwhile", 40 * MEBIBYTE)
        return Sized(70 * MEBIBYTE)

    with cache.lease(key, slow):
        assert list(cache.loaded()) == [key]


def test_limits_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, cache = Memory(monkeypatch, 100 * MEBIBYTE), EncoderCache()
    a, b = memory.load(cache, "a", 1), memory.load(cache, "b", 1)
    cache.limit(1, None)
    assert not memory.load(cache, "b", 1).closed
    assert (a.closed, b.closed) == (True, False)


def test_a_real_model_without_room(
    plain_model: Callable[[str], Path], cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = str(plain_model("bert"))
    for module in (encoders_module, cache_module):
        monkeypatch.setattr(module, "free_memory", lambda device: 100 * MEBIBYTE)
    with pytest.raises(ModelTooLargeError, match="there are 100 MiB"):
        load_encoder(model, "cpu", cache_directory=cache_directory)
    with (
        pytest.raises(ModelTooLargeError, match=f"{model} takes about"),
        lease_encoder(model, "cpu", cache_directory=cache_directory),
    ):
        pass
    assert encoder_cache().loaded() == {}


def test_what_decides_a_load_decides_what_is_shared(plain_model: Callable[[str], Path], cache_directory: Path) -> None:
    model, cache = str(plain_model("bert")), cache_directory
    with lease_encoder(model, "cpu", cache_directory=cache) as plain:
        with lease_encoder(model, "cpu", cache_directory=cache) as same:
            assert same is plain
        with lease_encoder(model, "cpu", precision="float32", cache_directory=cache) as exact:
            assert exact is not plain
        with lease_encoder(model, "cpu", token_budget=64, cache_directory=cache) as small:
            assert small is not plain
    encoder_cache().clear()
