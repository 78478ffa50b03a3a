"""The torch engine against the reference engine; proving, measuring, refusing; packed attention; what it imports."""

import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.encoders.texts import ODD, SMALL_BATCH, passages
from tests.encoders.tiny_models import ARCHITECTURES, WIDTH, write_json
from vectorize_pipelines.encoders import forecast_load, load_encoder
from vectorize_pipelines.encoders.base import Purpose
from vectorize_pipelines.encoders.batching import TokenBatch
from vectorize_pipelines.encoders.engines import measured_folder as folder_module
from vectorize_pipelines.encoders.engines.base import WORKING_BYTES, LoadRequest
from vectorize_pipelines.encoders.engines.equality import Agreement, compare
from vectorize_pipelines.encoders.engines.registry import load_engine
from vectorize_pipelines.encoders.engines.torch import forward as torch_forward
from vectorize_pipelines.encoders.engines.torch import precision as torch_precision
from vectorize_pipelines.encoders.engines.torch.engine import BATCH_TOKENS, LIBRARY_BYTES
from vectorize_pipelines.encoders.engines.torch.forward import PackedTokens, activation_bytes, pack, packed_forward
from vectorize_pipelines.encoders.engines.torch.weights import read_weights
from vectorize_pipelines.encoders.hardware import devices
from vectorize_pipelines.encoders.hardware.devices import torch_precisions
from vectorize_pipelines.encoders.models.layout import read_layout
from vectorize_pipelines.encoders.models.network import shape
from vectorize_pipelines.encoders.models.weights import count_parameters
from vectorize_pipelines.errors import ItemError, SettingsError, UnknownModelError

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = passages(28, longest=120) + ODD


def load(model: Path | str, cache_directory: Path, engine: str = "torch", **asked: Any) -> Any:
    return load_encoder(str(model), "cpu", engine, cache_directory=cache_directory, **asked)


def agreement(model: Path, cache_directory: Path, **asked: Any) -> Agreement:
    reference = load(model, cache_directory, "sentence-transformers")
    return compare(load(model, cache_directory, **asked).encode(TEXTS), reference.encode(TEXTS))


def measurement(cache_directory: Path) -> tuple[Path, dict[str, Any]]:
    (file,) = (cache_directory / "torch").glob("*/measurement.json")
    return file, json.loads(file.read_text())


def test_architectures(tiny_model: Path, cache_directory: Path) -> None:
    expected = load(tiny_model, cache_directory, "sentence-transformers").encode(TEXTS)
    for precision in ("auto", "float32"):
        found = compare(load(tiny_model, cache_directory, precision=precision).encode(TEXTS), expected)
        assert found.equal, str(found)
        assert precision == "auto" or found.worst_cosine > 0.999999


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("bert", "cls", {"pooling": {"pooling_mode_cls_token": True}, "normalize": False}),
        ("mpnet", "max", {"pooling": {"pooling_mode_max_tokens": True}}),
        ("bert", "both", {"pooling": {"pooling_mode": ["cls", "mean"]}}),
        ("mpnet", "prompts", {"general": {"prompts": {"query": "storm before ", "document": "the harbour "}}}),
        *(
            (
                kind,
                "lower",
                {"settings": {"max_seq_length": 64, "do_lower_case": True}, "general": {"truncate_dim": 20}},
            )
            for kind in ("bert", "mpnet")
        ),
    ],
)
def test_modules(
    sentence_model: Callable[..., Path], cache_directory: Path, kind: str, name: str, settings: dict[str, Any]
) -> None:
    model = sentence_model(kind, f"torch-{name}", **settings)
    encoder, reference = load(model, cache_directory), load(model, cache_directory, "sentence-transformers")
    purposes: Sequence[Purpose] = ("document", "query")
    for purpose in purposes:
        assert compare(encoder.encode(TEXTS, purpose), reference.encode(TEXTS, purpose)).equal, purpose


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_activations(plain_model: Callable[[str], Path], tmp_path: Path, activation: str) -> None:
    model = altered(plain_model("bert"), tmp_path / "model", hidden_act=activation)
    assert agreement(model, tmp_path, precision="float32").worst_cosine > 0.999999


def test_camembert_is_a_roberta(plain_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = altered(
        plain_model("roberta"), tmp_path / "model", model_type="camembert", architectures=["CamembertModel"]
    )
    assert agreement(model, tmp_path, precision="float32").worst_cosine > 0.999999


def altered(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of a model with other values in config.json; None removes one."""
    shutil.copytree(source, target)
    config = {**json.loads((target / "config.json").read_text()), **changes}
    write_json(target / "config.json", {name: value for name, value in config.items() if value is not None})
    return target


def test_checkpoint_of_a_model_with_a_head_in_several_files(plain_model: Callable[[str], Path], tmp_path: Path) -> None:
    """As bert-base-uncased has them: a prefix, weights of the head, gamma and beta, and an index of files."""
    from safetensors.torch import load_file, save_file

    model = altered(plain_model("bert"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    renamed = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): each
        for name, each in tensors.items()
    }
    names = sorted(renamed)
    parts = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, those in parts.items():
        save_file({name: renamed[name] for name in those}, model / file)
    write_json(
        model / "model.safetensors.index.json",
        {"weight_map": {name: file for file, those in parts.items() for name in those}},
    )
    (model / "model.safetensors").unlink()
    ours, whole = read_weights(model), read_weights(plain_model("bert"))
    layout = read_layout(model)
    batch = pack(TokenBatch([0, 1], [[5, 6, 7], [8]]), ours.padding)
    vectors = [packed_forward(layout, each, "cpu", "float32")(batch).numpy() for each in (ours, whole)]
    np.testing.assert_array_equal(vectors[0], vectors[1])


def test_bundled_model_on_passages_of_every_length(cache_directory: Path) -> None:
    """1 to 256 tokens in seven kinds of text; one alone, in a crowd, and in batches of other sizes."""
    texts = passages(28, longest=150) + ODD
    encoder = load(BUNDLED, cache_directory)
    vectors = encoder.encode(texts)
    reference = load(BUNDLED, cache_directory, "sentence-transformers", token_budget=SMALL_BATCH)
    found = compare(vectors, reference.encode(texts))
    assert found.equal, str(found)
    order = np.random.default_rng(7).permutation(len(texts))
    assert compare(encoder.encode([texts[n] for n in order]), vectors[order]).equal
    alone = list(range(0, len(texts), 4))
    assert compare(np.vstack([encoder.encode([texts[n]]) for n in alone]), vectors[alone]).equal
    large = load(BUNDLED, cache_directory, token_budget=20_000)
    assert compare(large.encode(texts), vectors).equal
    assert encoder.memory_bytes > 40 * 2**20


def varlen_reference(
    query: Any, key: Any, value: Any, starts: Any, key_starts: Any, longest: int, longest_key: int
) -> Any:
    """What `torch.nn.attention.varlen.varlen_attn` computes, text by text; it runs on CUDA alone."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    assert starts.dtype == key_starts.dtype == torch.int32
    bounds = starts.tolist()
    lengths = [end - start for start, end in itertools.pairwise(bounds)]
    assert longest == longest_key == max(lengths)
    texts = [each.split(lengths) for each in (query, key, value)]
    attended = [
        scaled_dot_product_attention(*(part.transpose(0, 1) for part in text)).transpose(0, 1)
        for text in zip(*texts, strict=True)
    ]
    return torch.cat(attended)


@pytest.mark.parametrize("kind", [each for each in ARCHITECTURES if each != "mpnet"])
def test_packed_attention_equals_padded(
    plain_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    import torch.nn.attention.varlen

    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_reference)
    weights = read_weights(plain_model(kind))
    padded = packed_forward(read_layout(plain_model(kind)), weights, "cpu", "float32")
    assert padded.attention == "padded"
    monkeypatch.setattr(torch_forward, "runs_varlen", lambda _: True)
    packed = packed_forward(read_layout(plain_model(kind)), weights, "cpu", "float32")
    assert packed.attention == "varlen"
    ids = [[5, 6, 1, 7, 0, 1, 9], [8], [11, 12, 13, 14], [1, 1]]  # padding tokens among them
    tokens = pack(TokenBatch([0, 1, 2, 3], ids), weights.padding)
    np.testing.assert_allclose(packed(tokens).numpy(), padded(tokens).numpy(), atol=1e-5)
    alone = [padded(pack(TokenBatch([0], [each]), weights.padding)).numpy() for each in ids]
    np.testing.assert_allclose(packed(tokens).numpy(), np.vstack(alone), atol=1e-5)


def test_packed_tokens() -> None:
    tokens = pack(TokenBatch([3, 0], [[5, 1, 6], [7]]), None)
    assert (tokens.texts, tokens.tokens, tokens.longest) == (2, 4, 3)
    assert tokens.ids.tolist() == [5, 1, 6, 7]
    assert tokens.positions.tolist() == [0, 1, 2, 0]
    assert tokens.places.tolist() == [0, 1, 2, 3]
    assert tokens.starts.tolist() == [0, 3, 4]
    assert pack(TokenBatch([3, 0], [[5, 1, 6], [7]]), 1).positions.tolist() == [2, 1, 3, 2]


def test_variable_length_attention_is_not_for_the_cpu(plain_model: Callable[[str], Path]) -> None:
    assert not torch_forward.runs_varlen(read_weights(plain_model("bert")))


def test_shape_type_and_empty_input(sentence_model: Callable[..., Path], cache_directory: Path) -> None:
    encoder = load(sentence_model("bert"), cache_directory)
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), WIDTH)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert encoder.encode([]).shape == (0, WIDTH)
    assert encoder.encode(["half a pair \ud800"]).shape == (1, WIDTH)
    with pytest.raises(ItemError, match="item 0 is an image"):
        encoder.encode([b"\x89PNG"])
    encoder.close()


def test_several_threads_share_an_encoder(sentence_model: Callable[..., Path], cache_directory: Path) -> None:
    encoder = load(sentence_model("bert"), cache_directory)
    expected = encoder.encode(TEXTS)
    results: list[bool] = []

    def encode() -> None:
        results.extend(compare(encoder.encode(TEXTS), expected).equal for _ in range(5))

    threads = [threading.Thread(target=encode) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 20


SAME = Agreement(1.0, 1.0, 0.0)
OFF = Agreement(0.97, 0.9, 0.0)
NEARLY = Agreement(0.99995, 0.99, 0.0)


@pytest.fixture
def measured_as(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes `compare` find what is given, in this order, on a chip that computes both reduced precisions fast."""

    def prepare(*agreements: Agreement) -> None:
        found = iter(agreements)
        monkeypatch.setattr(torch_precision, "torch_precisions", lambda _: ("bfloat16", "float16", "float32"))
        monkeypatch.setattr(torch_precision, "compare", lambda *_: next(found))

    return prepare


@pytest.mark.parametrize("reduced", [SAME, NEARLY, OFF])
def test_reduced_precision_only_where_it_was_measured_equal(
    plain_model: Callable[[str], Path], unmeasured_bert: Path, measured_as: Callable[..., None], reduced: Agreement
) -> None:
    measured_as(reduced, reduced, SAME)
    choice = load(plain_model("bert"), unmeasured_bert).choice
    assert choice.precision == ("bfloat16" if reduced.equal else "float32")
    assert str(reduced) in choice.reason
    assert ("float16 is not equal" in choice.reason) == (not reduced.equal)
    _, kept = measurement(unmeasured_bert)
    (parts,) = kept.values()
    assert parts["text"]["bfloat16"] == asdict(reduced)
    assert set(parts["text"]) == ({"bfloat16"} if reduced.equal else {"bfloat16", "float16", "float32"})


def test_precision_that_was_asked_for_and_is_not_equal(
    plain_model: Callable[[str], Path], unmeasured_bert: Path, measured_as: Callable[..., None]
) -> None:
    measured_as(OFF)
    for _ in range(2):  # the second time from what was kept
        with pytest.raises(SettingsError, match=r"in float16.*\(float16: mean cosine 0\.97.*precision auto takes what"):
            load(plain_model("bert"), unmeasured_bert, precision="float16")
    with pytest.raises(SettingsError, match=r"float16: mean cosine 0\.97"):
        forecast_load(str(plain_model("bert")), "cpu", "torch", precision="float16", cache_directory=unmeasured_bert)


def test_measured_once_and_again_on_another_chip(
    plain_model: Callable[[str], Path],
    unmeasured_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured_as: Callable[..., None],
) -> None:
    measured_as(NEARLY, NEARLY, SAME, SAME)
    monkeypatch.setattr(torch_precision, "_write_reference", lambda *_: pytest.fail("made the reference again"))
    for _ in range(2):
        assert load(plain_model("bert"), unmeasured_bert).choice.precision == "float32"
    monkeypatch.setattr(folder_module, "device_identity", lambda _: "another chip")
    assert load(plain_model("bert"), unmeasured_bert).choice.precision == "bfloat16"
    assert len(measurement(unmeasured_bert)[1]) == 2


def test_precision_that_was_not_measured_yet_is_measured_alone(
    plain_model: Callable[[str], Path], unmeasured_bert: Path, measured_as: Callable[..., None]
) -> None:
    measured_as(SAME, SAME, SAME)
    assert load(plain_model("bert"), unmeasured_bert, precision="float32").choice.precision == "float32"
    assert load(plain_model("bert"), unmeasured_bert, precision="float16").choice.precision == "float16"
    assert load(plain_model("bert"), unmeasured_bert).choice.precision == "bfloat16"
    (parts,) = measurement(unmeasured_bert)[1].values()
    assert list(parts["text"]) == ["float32", "float16", "bfloat16"]


def test_damaged_measurement_is_made_anew(plain_model: Callable[[str], Path], exported_bert: Path) -> None:
    choice = load(plain_model("bert"), exported_bert).choice
    file, _ = measurement(exported_bert)
    file.write_text("{")
    assert load(plain_model("bert"), exported_bert).choice == choice


def test_model_that_is_not_reproduced_is_refused_and_remembered(
    plain_model: Callable[[str], Path], unmeasured_bert: Path, measured_as: Callable[..., None]
) -> None:
    measured_as(OFF, OFF, OFF)
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"not equal to the model's own .*float32: mean cosine 0\.97"):
            load(plain_model("bert"), unmeasured_bert)


def test_forward_pass_with_a_fault_is_refused(
    plain_model: Callable[[str], Path], unmeasured_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof sees what a wrong count of positions does."""
    whole = PackedTokens.positions
    monkeypatch.setattr(PackedTokens, "positions", property(lambda self: whole.__get__(self) * 0))
    with pytest.raises(SettingsError, match="not equal to the model's own"):
        load(plain_model("bert"), unmeasured_bert)


def test_precisions_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def capable_of(*capability: int) -> tuple[str, ...]:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        return torch_precisions("cuda:1")

    assert [capable_of(*each) for each in ((9, 0), (8, 6), (7, 5), (6, 1))] == [
        ("bfloat16", "float16", "float32"),
        ("bfloat16", "float16", "float32"),
        ("float16", "float32"),
        ("float32",),
    ]
    assert torch_precisions("mps") == ("float16", "float32")
    for flags, expected in (({"avx512_bf16"}, ("bfloat16", "float32")), ({"avx2"}, ("float32",))):
        monkeypatch.setattr(devices, "cpu_flags", lambda flags=flags: frozenset(flags))
        assert torch_precisions("cpu") == expected


def test_memory_needed(
    plain_model: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured_as: Callable[..., None],
) -> None:
    """The weights in the precision that is used, what they are made from, and the largest batch."""
    engine, model = load_engine("torch"), str(plain_model("bert"))
    parameters = count_parameters([Path(model) / "model.safetensors"])

    def weights(device: str, precision: str = "auto", width: int = 4, libraries: int = LIBRARY_BYTES) -> int:
        request = LoadRequest(model, device, tmp_path, precision=precision, token_budget=1000)
        return engine.memory_needed(request) - activation_bytes(shape(Path(model)), 1000, width) - libraries

    monkeypatch.setattr(folder_module, "device_identity", lambda device: "a chip")
    first = [weights(device, libraries=WORKING_BYTES) for device in ("cpu", "mps")]
    assert first == [8 * parameters, 4 * parameters]
    measured_as(SAME, SAME)
    load(model, tmp_path, precision="float32")
    assert (weights("cpu"), weights("mps")) == (4 * parameters, 4 * parameters)
    load(model, tmp_path, precision="bfloat16")
    assert (weights("cpu", width=2), weights("mps", width=2)) == (6 * parameters, 2 * parameters)
    assert (weights("cpu", "float32"), weights("mps", "float32")) == (4 * parameters, 4 * parameters)
    request = LoadRequest(model, "cpu", tmp_path)
    larger = LoadRequest(model, "cpu", tmp_path, token_budget=10 * BATCH_TOKENS["cpu"])
    assert engine.memory_needed(larger) > engine.memory_needed(request)


def test_what_was_measured_is_forecast(plain_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = str(plain_model("bert"))
    before, _ = forecast_load(model, "cpu", "torch", cache_directory=tmp_path)
    assert (before.precision, "makes it ready and measures it" in before.reason) == ("", True)
    choice = load(model, tmp_path).choice
    after, _ = forecast_load(model, "cpu", "torch", cache_directory=tmp_path)
    assert after.precision == choice.precision
    assert "Measured on this machine: text in" in after.reason


def test_auto_takes_it_where_openvino_cannot(
    plain_model: Callable[[str], Path], exported_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vectorize_pipelines.encoders.engines.openvino.engine import OpenVinoEngine

    monkeypatch.setattr(OpenVinoEngine, "refusal", lambda *_: "it was told to")
    choice = load(plain_model("bert"), exported_bert, "auto").choice
    assert (choice.engine, choice.device) == ("torch", "cpu")
    assert "openvino was passed over: it was told to" in choice.reason
    assert "mean cosine" in choice.reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "albert"}, "architecture albert"),
        ({"hidden_act": "gelu_10"}, "activation gelu_10"),
        ({"position_embedding_type": "relative_key"}, "relative_key positions"),
        ({"is_decoder": True}, "decoders"),
    ],
)
def test_configurations_that_are_not_covered(
    plain_model: Callable[[str], Path], tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    model = altered(plain_model("bert"), tmp_path / "model", **changes)
    refusal = load_engine("torch").refusal(LoadRequest(str(model), "cpu", tmp_path))
    assert reason in str(refusal)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("weighted", {"pooling": {"pooling_mode": "weightedmean"}}, "weightedmean pooling"),
        ("none", {"pooling": None}, "not Transformer, Normalize"),
        (
            "without",
            {
                "pooling": {"pooling_mode_mean_tokens": True, "include_prompt": False},
                "general": {"prompts": {"query": "a "}},
            },
            "leaves the prompt out",
        ),
    ],
)
def test_modules_that_are_not_covered(
    sentence_model: Callable[..., Path], tmp_path: Path, name: str, settings: dict[str, Any], reason: str
) -> None:
    model = sentence_model("bert", f"torch-refused-{name}", **settings)
    refusal = load_engine("torch").refusal(LoadRequest(str(model), "cpu", tmp_path))
    assert reason in str(refusal)


def test_weights_that_are_no_safetensors_are_left_to_others(plain_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = altered(plain_model("bert"), tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    refusal = load_engine("torch").refusal(LoadRequest(str(model), "cpu", tmp_path))
    assert "it reads safetensors" in str(refusal)


def test_weights_that_are_damaged_or_incomplete(plain_model: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = altered(plain_model("bert"), tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    whole = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").unlink()  # not written over: the tensors are mapped from it
    (model / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UnknownModelError, match="cannot be loaded"):
        load(model, tmp_path / "cache")
    del tensors["encoder.layer.1.intermediate.dense.weight"]
    save_file(tensors, model / "model.safetensors")
    with pytest.raises(SettingsError, match=r"lack 'encoder\.layer\.1\.inter"):
        load(model, tmp_path / "cache")


def test_unwritable_cache_directory_leaves_the_model_to_others(
    plain_model: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(SettingsError, match="cannot be kept"):
        load(plain_model("bert"), tmp_path / "file")


BARE = """
import importlib.abc, sys
from pathlib import Path

class Missing(importlib.abc.MetaPathFinder):
    names = {missing!r}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"no module named {{name}} here", name=name)

sys.meta_path.insert(0, Missing())
from vectorize_pipelines.encoders import load_encoder
encoder = load_encoder({model!r}, "cpu", "torch", cache_directory=Path({cache!r}))
assert encoder.encode(["a", "text"]).shape == (2, {width})
print(sorted({{"transformers", "torch"}} & set(sys.modules)))
"""

#: What a machine with torch, sentence-transformers, tokenizers, safetensors and numpy need not have.
MISSING = ("dagster", "openvino", "open_clip", "lancedb", "sqlalchemy")
#: transformers looks for these, and takes an import that fails for a fault.
MISSING_WITHOUT_TRANSFORMERS = (
    *MISSING,
    "sentence_transformers",
    "transformers",
    "huggingface_hub",
    "pandas",
    "pyarrow",
    "pydantic",
)


def test_bare_machine_and_a_second_process_without_transformers(
    plain_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model = str(plain_model("bert"))

    def imported(missing: tuple[str, ...]) -> str:
        script = BARE.format(missing=missing, model=model, cache=str(tmp_path), width=WIDTH)
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.strip()

    assert imported(MISSING) == "['torch', 'transformers']"
    assert imported(MISSING_WITHOUT_TRANSFORMERS) == "['torch']"
