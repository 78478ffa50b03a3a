"""Where sentence-transformers, or torch too, is not installed: exports made from the weights, held against numpy."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.encoders.texts import ODD, SMALL_BATCH, passages
from tests.encoders.tiny_models import WIDTH, add_modules, build_encoder, write_json
from vectorize_pipelines.encoders import Encoder, forecast_load, load_encoder
from vectorize_pipelines.encoders.engines.base import LoadRequest
from vectorize_pipelines.encoders.engines.equality import MEAN_COSINE, WORST_COSINE, compare, sample_texts
from vectorize_pipelines.encoders.engines.numpy_forward import encode_ids, erf
from vectorize_pipelines.encoders.models.network import read_arrays
from vectorize_pipelines.encoders.models.tokenizer import model_tokenizer
from vectorize_pipelines.errors import SettingsError, UnknownModelError

pytestmark = pytest.mark.slow

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = passages(14, longest=120) + ODD
LIBRARIES = ("torch", "transformers", "sentence_transformers")
MEAN = {"pooling_mode_mean_tokens": True}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Calling it takes the libraries away: to the test they are not installed."""

    def take_away() -> None:
        for name in LIBRARIES:
            monkeypatch.setitem(sys.modules, name, None)

    return take_away


def load(model: Path | str, cache_directory: Path, engine: str = "auto", **options: Any) -> Encoder:
    return load_encoder(str(model), device="cpu", engine=engine, cache_directory=cache_directory, **options)


def numpy_vectors(model: Path | str, cache_directory: Path, texts: list[str]) -> Any:
    request = LoadRequest(str(model), "cpu", cache_directory)
    tokenizer = model_tokenizer(request.layout, cache_directory=None, revision=request.spec.revision)
    network = read_arrays(request.layout.transformer_directory)
    return encode_ids(network, request.layout, tokenizer.ids(texts))


def test_architectures(tiny_model: Path, cache_directory: Path, tmp_path: Path, bare: Callable[[], None]) -> None:
    expected = load(tiny_model, cache_directory, "sentence-transformers").encode(TEXTS)
    bare()
    built = load(tiny_model, tmp_path, precision="float32")
    assert built.choice.engine == "openvino"
    assert "Held against a forward pass in numpy" in built.choice.reason
    for vectors in (built.encode(TEXTS), numpy_vectors(tiny_model, tmp_path, TEXTS)):
        found = compare(vectors, expected)
        assert found.equal, found
        assert found.worst_cosine > 0.99999


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode_max_tokens": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
    ],
)
def test_pooling(
    plain_model: Callable[[str], Path], tmp_path: Path, pooling: dict[str, bool], bare: Callable[[], None]
) -> None:
    model = add_modules(build_encoder(tmp_path / "model", "bert"), pooling=pooling, normalize=False)
    expected = load(model, tmp_path / "with", "sentence-transformers").encode(TEXTS)
    bare()
    for vectors in (
        load(model, tmp_path / "without", precision="float32").encode(TEXTS),
        numpy_vectors(model, tmp_path, TEXTS),
    ):
        assert compare(vectors, expected).worst_cosine > 0.99999


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_activations(tmp_path: Path, activation: str, bare: Callable[[], None]) -> None:
    model = build_encoder(tmp_path / "model", "bert")
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", {**config, "hidden_act": activation})
    expected = load(model, tmp_path / "with", "sentence-transformers").encode(TEXTS)
    bare()
    for vectors in (
        load(model, tmp_path / "without", precision="float32").encode(TEXTS),
        numpy_vectors(model, tmp_path, TEXTS),
    ):
        assert compare(vectors, expected).worst_cosine > 0.99999


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_of_half_the_width(tmp_path: Path, dtype: str, bare: Callable[[], None]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    model = build_encoder(tmp_path / "model", "bert")
    weights = load_file(model / "model.safetensors")
    halves = {name: each.to(getattr(torch, dtype)) for name, each in weights.items()}
    save_file(halves, model / "model.safetensors", metadata={"format": "pt"})
    expected = load(model, tmp_path / "with", "sentence-transformers").encode(TEXTS)
    bare()
    found = compare(load(model, tmp_path / "without", precision="float32").encode(TEXTS), expected)
    assert found.worst_cosine > 0.99999


def test_vectors_that_are_cut(tmp_path: Path, bare: Callable[[], None]) -> None:
    model = add_modules(build_encoder(tmp_path / "model", "bert"), pooling=MEAN, general={"truncate_dim": 12})
    expected = load(model, tmp_path / "with", "sentence-transformers").encode(TEXTS)
    bare()
    for vectors in (
        load(model, tmp_path / "without", precision="float32").encode(TEXTS),
        numpy_vectors(model, tmp_path, TEXTS),
    ):
        assert vectors.shape == (len(TEXTS), 12)
        assert compare(vectors, expected).worst_cosine > 0.99999


def test_weights_in_several_files(tmp_path: Path, bare: Callable[[], None]) -> None:
    from safetensors.numpy import load_file, save_file

    model = build_encoder(tmp_path / "model", "bert")
    weights = load_file(model / "model.safetensors")
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    places = {name: names[number % 2] for number, name in enumerate(sorted(weights))}
    for file in names:
        part = {name: weights[name] for name, place in places.items() if place == file}
        save_file(part, model / file, metadata={"format": "pt"})
    write_json(model / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    (model / "model.safetensors").unlink()
    expected = load(model, tmp_path / "with", "sentence-transformers").encode(TEXTS)
    bare()
    for vectors in (
        load(model, tmp_path / "without", precision="float32").encode(TEXTS),
        numpy_vectors(model, tmp_path, TEXTS),
    ):
        assert compare(vectors, expected).worst_cosine > 0.99999


def test_distilbert_takes_no_notice_of_a_stated_epsilon(tmp_path: Path, bare: Callable[[], None]) -> None:
    model = build_encoder(tmp_path / "model", "distilbert")
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", {**config, "layer_norm_eps": 10.0})
    expected = load(model, tmp_path / "with", "sentence-transformers").encode(TEXTS)
    bare()
    for vectors in (
        load(model, tmp_path / "without", precision="float32").encode(TEXTS),
        numpy_vectors(model, tmp_path, TEXTS),
    ):
        assert compare(vectors, expected).worst_cosine > 0.99999


def test_bundled_model_on_passages_of_every_length(
    cache_directory: Path, tmp_path: Path, bare: Callable[[], None]
) -> None:
    texts, sample = passages(14, longest=200), sample_texts(256)
    encoder = load(BUNDLED, cache_directory, "sentence-transformers", token_budget=SMALL_BATCH)
    expected, of_sample = encoder.encode(texts), encoder.encode(sample)
    bare()
    found = compare(load(BUNDLED, tmp_path).encode(texts), expected)
    assert (found.mean_cosine >= MEAN_COSINE, found.worst_cosine >= WORST_COSINE) == (True, True), found
    (of_numpy,) = tmp_path.glob("exports/*/reference.npy")
    assert compare(np.load(of_numpy), of_sample).worst_cosine > 0.999999


def test_the_error_function() -> None:
    values = np.linspace(-6, 6, 10_001, dtype=np.float32)
    exact = np.array([math.erf(value) for value in values])
    assert np.abs(erf(values) - exact).max() < 1e-6


def test_an_export_that_was_traced_is_used_without_the_libraries(
    plain_model: Callable[[str], Path], exported_bert: Path, bare: Callable[[], None]
) -> None:
    bare()
    choice = load(plain_model("bert"), exported_bert).choice
    assert "Held against sentence-transformers" in choice.reason
    assert len(list((exported_bert / "exports").glob("*/model.xml"))) == 1


def test_with_the_libraries_it_is_traced_and_held_against_them(
    plain_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as bare:
        for name in LIBRARIES:
            bare.setitem(sys.modules, name, None)
        load(plain_model("bert"), tmp_path)
    choice = load(plain_model("bert"), tmp_path).choice
    assert "Held against sentence-transformers" in choice.reason


@pytest.mark.parametrize(("engine", "folder"), [("openvino", "exports"), ("torch", "torch")])
def test_what_was_held_against_numpy_goes_once_it_is_held_against_the_libraries(
    plain_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, folder: str
) -> None:
    with monkeypatch.context() as bare:
        for name in LIBRARIES[1:]:
            bare.setitem(sys.modules, name, None)
        load(plain_model("bert"), tmp_path, engine)
    (made,) = (tmp_path / folder).glob("*/reference.npy")
    load(plain_model("bert"), tmp_path, engine)
    (left,) = (tmp_path / folder).glob("*/reference.npy")
    assert made.parent.name == f"{left.parent.name}-numpy"


def test_a_traced_export_that_cannot_be_read_is_not_replaced_by_what_does_not_cover_it(
    plain_model: Callable[[str], Path], tmp_path: Path, bare: Callable[[], None]
) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    modules = [Transformer(str(plain_model("bert"))), Pooling(WIDTH, "cls"), Dense(WIDTH, WIDTH)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(tmp_path / "model"))
    load(tmp_path / "model", tmp_path / "cache", "openvino")
    (graph,) = (tmp_path / "cache" / "exports").glob("*/model.xml")
    graph.write_bytes(b"x" * graph.stat().st_size)
    bare()
    with pytest.raises(SettingsError, match="not Transformer, Pooling, Dense") as raised:
        load(tmp_path / "model", tmp_path / "cache", "openvino")
    assert "pip install 'vectorize-pipelines[sentence-transformers]'" in str(raised.value)
    assert not list((tmp_path / "cache" / "exports").glob("*/model.xml"))


def test_a_graph_that_differs_is_refused(
    plain_model: Callable[[str], Path], tmp_path: Path, bare: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof is one: a fault of the graph's does not pass."""
    monkeypatch.setattr(
        "vectorize_pipelines.encoders.engines.openvino.build._Builder._activated", lambda _, values: values
    )
    bare()
    with pytest.raises(SettingsError, match="not equal to the model's own"):
        load(plain_model("bert"), tmp_path)


def _more_layers(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "num_hidden_layers": 1}


def _another_architecture(config: dict[str, Any]) -> dict[str, Any]:
    return {**config, "model_type": "albert"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [(_more_layers, "says 1 layers, and its weights have 2"), (_another_architecture, "architecture albert")],
)
def test_what_it_cannot_be_sure_of_is_left_to_the_libraries(
    tmp_path: Path, bare: Callable[[], None], change: Callable[[dict[str, Any]], dict[str, Any]], reason: str
) -> None:
    model = build_encoder(tmp_path / "model", "bert")
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", change(config))
    bare()
    with pytest.raises(SettingsError, match=reason) as raised:
        load(model, tmp_path / "cache")
    assert "pip install 'vectorize-pipelines[sentence-transformers]'" in str(raised.value)


def test_a_part_that_is_not_known(tmp_path: Path, bare: Callable[[], None]) -> None:
    from safetensors.numpy import load_file, save_file

    model = build_encoder(tmp_path / "model", "bert")
    weights = load_file(model / "model.safetensors")
    save_file({**weights, "encoder.layer.0.adapter.weight": np.zeros((2, 2), np.float32)}, model / "model.safetensors")
    bare()
    with pytest.raises(SettingsError, match=r"parts that are not known, such as encoder\.layer\.0\.adapter"):
        load(model, tmp_path / "cache")


def test_a_tokenizer_that_transformers_would_change(tmp_path: Path, bare: Callable[[], None]) -> None:
    model = build_encoder(tmp_path / "model", "bert")
    config = json.loads((model / "tokenizer_config.json").read_text())
    write_json(model / "tokenizer_config.json", {**config, "do_lower_case": False})
    bare()
    with pytest.raises(SettingsError, match="differ in do_lower_case"):
        load(model, tmp_path / "cache")


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("sentence_bert_config.json", {"config_args": {"hidden_act": "relu"}}, "hidden_act in config_args"),
        ("sentence_bert_config.json", {"config_kwargs": {"num_hidden_layers": 1}}, "num_hidden_layers in config_kw"),
        ("sentence_bert_config.json", {"tokenizer_args": {"do_lower_case": False}}, "do_lower_case in tokenizer_args"),
        ("sentence_bert_config.json", {"processor_kwargs": {"truncation_side": "left"}}, "truncation_side in proc"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "cut at their beginning"),
        ("tokenizer_config.json", {"add_prefix_space": True}, "differ in add_prefix_space"),
    ],
)
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_settings_that_only_transformers_goes_by(
    tmp_path: Path,
    plain_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    change: dict[str, Any],
    reason: str,
    engine: str,
) -> None:
    model = add_modules(Path(shutil.copytree(plain_model("roberta"), tmp_path / "model")), pooling=MEAN)
    write_json(model / file, {**json.loads((model / file).read_text()), **change})
    for name in LIBRARIES[1:]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SettingsError, match=reason):
        load(model, tmp_path / "cache", engine)


def test_arguments_that_change_no_vector(
    tmp_path: Path, plain_model: Callable[[str], Path], bare: Callable[[], None]
) -> None:
    settings = {
        "max_seq_length": 64,
        "model_args": {"torch_dtype": "float16", "attn_implementation": "eager"},
        "tokenizer_args": {"model_max_length": 48},
        "config_args": {},
    }
    copied = Path(shutil.copytree(plain_model("bert"), tmp_path / "model"))
    model = add_modules(copied, pooling=MEAN, settings=settings)
    expected = load(model, tmp_path / "with", "sentence-transformers").encode(TEXTS)
    bare()
    found = compare(load(model, tmp_path / "without", precision="float32").encode(TEXTS), expected)
    assert found.worst_cosine > 0.99999


def _shorter_positions(weights: dict[str, Any]) -> dict[str, Any]:
    name = "embeddings.position_embeddings.weight"
    return {**weights, name: weights[name][:20]}


def _narrower_output(weights: dict[str, Any]) -> dict[str, Any]:
    name = "encoder.layer.0.output.dense.weight"
    return {**weights, name: weights[name][:-1]}


def _fewer_bias_rows(weights: dict[str, Any]) -> dict[str, Any]:
    name = "encoder.relative_attention_bias.weight"
    return {**weights, name: weights[name][:16]}


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("bert", _shorter_positions, "out of bounds"),
        ("bert", _narrower_output, "shape"),
        ("mpnet", _fewer_bias_rows, "an attention bias of 16 rows, where mpnet has 32"),
    ],
)
def test_weights_that_do_not_fit_together(
    tmp_path: Path,
    plain_model: Callable[[str], Path],
    bare: Callable[[], None],
    kind: str,
    change: Callable[[dict[str, Any]], dict[str, Any]],
    reason: str,
) -> None:
    from safetensors.numpy import load_file, save_file

    model = Path(shutil.copytree(plain_model(kind), tmp_path / "model"))
    weights = change(load_file(model / "model.safetensors"))
    save_file({name: np.ascontiguousarray(each) for name, each in weights.items()}, model / "model.safetensors")
    bare()
    with pytest.raises(SettingsError, match=rf"openvino: its weights are not what its configuration says .*{reason}"):
        load(model, tmp_path / "cache")


def test_more_heads_than_the_weights_have_room_for(tmp_path: Path, bare: Callable[[], None]) -> None:
    model = build_encoder(tmp_path / "model", "bert")
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", {**config, "num_attention_heads": 5})
    bare()
    with pytest.raises(SettingsError, match=r"openvino: its weights are not what its configuration says .*reshape"):
        load(model, tmp_path / "cache")


def test_a_width_that_the_weights_do_not_have(tmp_path: Path, bare: Callable[[], None]) -> None:
    pooling = {**MEAN, "word_embedding_dimension": WIDTH // 2}
    model = add_modules(build_encoder(tmp_path / "model", "bert"), pooling=pooling)
    bare()
    with pytest.raises(SettingsError, match="vectors of 32 numbers, not 16"):
        load(model, tmp_path / "cache")


@pytest.mark.parametrize(
    ("place", "error", "reason"),
    [
        ("numpy_forward.encode_ids", MemoryError("3 GiB"), "memory ran out while its vectors were computed in numpy"),
        ("openvino.build.build_graph", MemoryError("3 GiB"), "memory ran out while it was exported: 3 GiB"),
        ("openvino.build.build_graph", RuntimeError("no op"), r"its graph cannot be exported \(RuntimeError: no op\)"),
    ],
)
def test_what_fails_while_an_export_is_made_is_a_refusal(
    tmp_path: Path,
    plain_model: Callable[[str], Path],
    bare: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: Exception,
    reason: str,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"vectorize_pipelines.encoders.engines.{place}", fail)
    bare()
    with pytest.raises(SettingsError, match=f"openvino: {reason}.*; torch: "):
        load(plain_model("bert"), tmp_path)


def test_damaged_weights_are_the_models_fault(tmp_path: Path, bare: Callable[[], None]) -> None:
    model = build_encoder(tmp_path / "model", "bert")
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[:-100])
    bare()
    with pytest.raises(UnknownModelError, match="cannot be loaded"):
        load(model, tmp_path / "cache")


@pytest.mark.parametrize(("engine", "extra"), [("torch", "torch"), ("sentence-transformers", "sentence-transformers")])
def test_an_engine_that_was_asked_for_and_is_not_installed(
    plain_model: Callable[[str], Path], tmp_path: Path, engine: str, extra: str, bare: Callable[[], None]
) -> None:
    bare()
    with pytest.raises(SettingsError, match=rf"which is not installed: pip install 'vectorize-pipelines\[{extra}\]'"):
        load(plain_model("bert"), tmp_path, engine)


def test_the_engine_torch_needs_no_other_library(
    plain_model: Callable[[str], Path],
    cache_directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = load(plain_model("mpnet"), cache_directory, "sentence-transformers").encode(TEXTS)
    for name in LIBRARIES[1:]:
        monkeypatch.setitem(sys.modules, name, None)
    encoder = load(plain_model("mpnet"), tmp_path, "torch")
    assert "Held against a forward pass in numpy" in encoder.choice.reason
    assert compare(encoder.encode(TEXTS), expected).equal


def test_what_would_run_is_forecast(
    plain_model: Callable[[str], Path], tmp_path: Path, bare: Callable[[], None]
) -> None:
    bare()
    choice, memory = forecast_load(str(plain_model("bert")), "cpu", cache_directory=tmp_path)
    assert (choice.engine, choice.precision) == ("openvino", "")
    assert memory > 0
