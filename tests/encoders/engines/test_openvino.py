"""The OpenVINO engine against the reference engine; exporting, measuring, refusing; what it imports."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import LifoQueue
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.encoders.texts import ODD, SMALL_BATCH, passages
from tests.encoders.tiny_models import WIDTH, write_json
from vectorize_pipelines.encoders import Encoder, load_encoder
from vectorize_pipelines.encoders.base import Purpose
from vectorize_pipelines.encoders.engines import measured_folder as folder_module
from vectorize_pipelines.encoders.engines import registry as engines
from vectorize_pipelines.encoders.engines.base import LoadRequest
from vectorize_pipelines.encoders.engines.equality import Agreement, compare
from vectorize_pipelines.encoders.engines.openvino import export as export_module
from vectorize_pipelines.encoders.engines.openvino.engine import OpenVinoEncoder
from vectorize_pipelines.encoders.engines.openvino.graph import WIDTH_STEP, Graph, padded_width
from vectorize_pipelines.encoders.engines.openvino_runtime import (
    PRECISION_HINTS,
    import_openvino,
    scaled_to_unit_length,
)
from vectorize_pipelines.errors import ItemError, SettingsError, UnknownModelError

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = passages(28, longest=120) + ODD


def load(model: Path | str, cache_directory: Path, engine: str = "openvino", **asked: Any) -> Any:
    return load_encoder(str(model), device="cpu", engine=engine, cache_directory=cache_directory, **asked)


def assert_equal(model: Path, cache_directory: Path, purposes: Sequence[Purpose] = ("document",)) -> None:
    encoder, reference = load(model, cache_directory), load(model, cache_directory, "sentence-transformers")
    for purpose in purposes:
        found = compare(encoder.encode(TEXTS, purpose), reference.encode(TEXTS, purpose))
        assert found.equal, f"{purpose}: {found}"


def exports(cache_directory: Path) -> list[Path]:
    return [path for path in (cache_directory / "exports").iterdir() if path.is_dir()]


def copied(source: Path, target: Path) -> Path:
    """A model of its own for a test that damages it or its export."""
    shutil.copytree(source, target)
    return target


def test_architectures(tiny_model: Path, cache_directory: Path) -> None:
    assert_equal(tiny_model, cache_directory)


@pytest.mark.parametrize(
    ("kind", "name", "settings"),
    [
        ("bert", "cls", {"pooling": {"pooling_mode_cls_token": True}, "normalize": False}),
        ("roberta", "max", {"pooling": {"pooling_mode_max_tokens": True}}),
        ("bert", "both", {"pooling": {"pooling_mode": ["cls", "mean"]}}),
        ("roberta", "prompts", {"general": {"prompts": {"query": "storm before ", "document": "the harbour "}}}),
        *(
            (
                kind,
                "lower",
                {"settings": {"max_seq_length": 64, "do_lower_case": True}, "general": {"truncate_dim": 20}},
            )
            for kind in ("bert", "roberta")
        ),
    ],
)
def test_modules(
    sentence_model: Callable[..., Path], cache_directory: Path, kind: str, name: str, settings: dict[str, Any]
) -> None:
    assert_equal(sentence_model(kind, f"openvino-{name}", **settings), cache_directory, ("document", "query"))


def test_dense_layer_after_pooling(plain_model: Callable[[str], Path], cache_directory: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    modules = [Transformer(str(plain_model("mpnet"))), Pooling(WIDTH, "cls"), Dense(WIDTH, 20)]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    encoder = load_encoder(str(tmp_path), "cpu", "openvino", precision="float32", cache_directory=cache_directory)
    assert encoder.spec.dimension == 20
    reference = load(tmp_path, cache_directory, "sentence-transformers")
    assert compare(encoder.encode(TEXTS), reference.encode(TEXTS)).equal


def test_bundled_model_on_passages_of_every_length(cache_directory: Path) -> None:
    """1 to 256 tokens in seven kinds of text; one alone and in a crowd."""
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


def test_auto_takes_it_on_the_cpu_and_says_what_was_measured(cache_directory: Path) -> None:
    encoder = load(BUNDLED, cache_directory, "auto")
    assert isinstance(encoder, OpenVinoEncoder)
    assert (encoder.choice.engine, encoder.choice.device) == ("openvino", "cpu")
    assert encoder.choice.precision in encoder.choice.reason
    assert "mean cosine" in encoder.choice.reason
    assert encoder.memory_bytes > 40 * 2**20


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


@given(
    longest=st.integers(1, 600),
    max_length=st.integers(1, 600) | st.none(),
    precision=st.sampled_from([*PRECISION_HINTS]),
)
def test_a_batch_is_never_narrower_than_its_texts_nor_wider_than_the_model(
    longest: int, max_length: int | None, precision: str
) -> None:
    width = padded_width(longest, precision, max_length)
    assert longest <= width < longest + WIDTH_STEP
    if width > longest:
        assert max_length is not None
        assert width == max_length or (width % WIDTH_STEP == 0 and width < max_length)


@pytest.mark.parametrize(
    ("longest", "precision", "max_length", "width"),
    [
        (97, "bfloat16", 512, 112),
        (112, "bfloat16", 512, 112),
        (97, "bfloat16", 100, 100),
        (95, "bfloat16", 512, 95),
        (97, "bfloat16", None, 97),
        (97, "float32", 512, 97),
    ],
)
def test_long_batches_in_bfloat16_are_as_wide_as_the_kernels(
    longest: int, precision: str, max_length: int | None, width: int
) -> None:
    assert padded_width(longest, precision, max_length) == width


def test_a_graph_pads_to_that_width_and_gives_vectors_of_length_1(
    cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(BUNDLED, cache_directory)
    shapes: list[tuple[int, ...]] = []

    class Inference:
        def infer(self, inputs: list[Any], share_inputs: bool) -> None:
            shapes.append(inputs[0].shape)

        def get_output_tensor(self, number: int) -> Any:
            return SimpleNamespace(data=np.full((shapes[-1][0], 384), 0.5, np.float32))

    requests: LifoQueue[Any] = LifoQueue()
    requests.put(Inference())
    monkeypatch.setattr(encoder._graph, "precision", "bfloat16")
    monkeypatch.setattr(encoder._graph, "_requests", requests)
    vectors = encoder.encode(["lamp " * 120])
    assert shapes == [(1, 128)], "of 122 tokens"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_rounded_vectors_are_scaled_back_to_length_1() -> None:
    """In float16 OpenVINO rounds the vectors that it has normalised."""
    vectors = np.random.default_rng(0).standard_normal((20, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rounded = vectors.astype(np.float16).astype(np.float32)
    rounded[7] = 0
    assert scaled_to_unit_length(rounded, "float32") is rounded
    lengths = np.linalg.norm(scaled_to_unit_length(rounded, "float16"), axis=1)
    np.testing.assert_allclose(np.delete(lengths, 7), 1, atol=1e-6)
    assert lengths[7] == 0


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


def test_encoders_are_closed_while_others_work(plain_model: Callable[[str], Path], cache_directory: Path) -> None:
    """Destroying a compiled graph must not wait for a thread that waits for the interpreter."""
    model = plain_model("bert")
    for _ in range(8):
        encoder = load(model, cache_directory)
        encoder.encode(TEXTS)
        encoder.close()
        del encoder


def test_second_process_imports_neither_torch_nor_transformers(cache_directory: Path) -> None:
    load(BUNDLED, cache_directory).close()
    script = (
        "import sys; from pathlib import Path; from vectorize_pipelines.encoders import load_encoder\n"
        f"encoder = load_encoder({BUNDLED!r}, device='cpu', cache_directory=Path({str(cache_directory)!r}))\n"
        "assert encoder.choice.engine == 'openvino', encoder.choice\n"
        "assert encoder.encode(['a', 'text']).shape == (2, 384)\n"
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'huggingface_hub', 'openvino_telemetry'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout.strip(), result.stderr) == ("[]", "")


@pytest.mark.parametrize(("wished", "found"), [(None, "128"), ("1024", "1024")])
def test_few_kernels_are_kept_unless_the_user_wants_more(wished: str | None, found: str) -> None:
    name = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
    script = (
        "import os; from vectorize_pipelines.encoders.engines.openvino_runtime import import_openvino\n"
        "import_openvino()\n"
        f"print(os.environ[{name!r}])"
    )
    environment = {key: value for key, value in os.environ.items() if key != name} | ({name: wished} if wished else {})
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == found


def test_openvino_does_not_report_its_use() -> None:
    openvino = import_openvino()
    assert "openvino_telemetry" not in sys.modules
    assert hasattr(openvino, "Core")


def test_export_is_made_once_by_processes_that_start_together(
    plain_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """From the weights, as if torch were not there: importing it is what takes long."""
    model = plain_model("bert")
    script = (
        "import logging, sys; from pathlib import Path; from vectorize_pipelines.encoders import load_encoder\n"
        "sys.modules.update(dict.fromkeys(('torch', 'transformers', 'sentence_transformers')))\n"
        "logging.basicConfig(level=logging.INFO)\n"
        f"load_encoder({str(model)!r}, 'cpu', 'openvino', cache_directory=Path({str(tmp_path)!r})).encode(['a'])"
    )
    processes = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(2)]
    logs = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], logs
    assert sum(log.count("this happens once") for log in logs) == 1
    (export,) = exports(tmp_path)
    assert {"model.xml", "model.bin", "description.json", "measurement.json"} <= {
        path.name for path in export.iterdir()
    }


@pytest.mark.parametrize("damage", ["cut", "garbled", "gone"])
def test_damaged_export_is_made_anew(plain_model: Callable[[str], Path], exported_bert: Path, damage: str) -> None:
    model = plain_model("bert")
    expected = load(model, exported_bert).encode(TEXTS)
    (export,) = exports(exported_bert)
    graph = export / "model.xml"
    if damage == "cut":
        graph.write_bytes(graph.read_bytes()[:1000])
    elif damage == "garbled":
        graph.write_bytes(b"x" * graph.stat().st_size)
    else:
        graph.unlink()
    assert compare(load(model, exported_bert).encode(TEXTS), expected).equal


def test_half_an_export_of_a_killed_process_is_in_nobodys_way(
    plain_model: Callable[[str], Path], exported_bert: Path
) -> None:
    (export,) = exports(exported_bert)
    partial = export.with_name(f".partial-{export.name}")
    export.rename(partial)
    (partial / "model.bin").unlink()
    assert load(plain_model("bert"), exported_bert).encode(["a"]).shape == (1, WIDTH)
    assert not partial.exists()


def test_another_cpu_measures_again_without_torch(
    plain_model: Callable[[str], Path], exported_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (export,) = exports(exported_bert)
    monkeypatch.setattr(folder_module, "device_identity", lambda _: "another CPU")
    monkeypatch.setattr(export_module, "_write_files", lambda *_: pytest.fail("exported again"))
    load(plain_model("bert"), exported_bert)
    measured = json.loads((export / "measurement.json").read_text())
    assert len(measured) == 2
    (machine,) = (name for name in measured if name.startswith("another CPU"))
    assert all(each["worst_cosine"] > 0.999 for each in measured[machine]["text"].values())


def measured_as(**agreements: Agreement) -> Callable[..., Agreement]:
    """`compare` that finds what is given for each precision, in the order in which they are measured."""
    found = iter(agreements.values())
    return lambda *_: next(found)


SAME = Agreement(1.0, 1.0, 0.0)
OFF = Agreement(0.97, 0.9, 0.0)


@pytest.mark.parametrize(
    ("bf16", "precision"), [(SAME, "bfloat16"), (Agreement(0.99995, 0.99, 0.0), "float32"), (OFF, "float32")]
)
def test_reduced_precision_only_where_it_was_measured_equal(
    plain_model: Callable[[str], Path],
    unmeasured_bert: Path,
    monkeypatch: pytest.MonkeyPatch,
    bf16: Agreement,
    precision: str,
) -> None:
    monkeypatch.setattr(export_module, "native_precisions", lambda: ("bfloat16", "float32"))
    monkeypatch.setattr(export_module, "compare", measured_as(bfloat16=bf16, float32=SAME))
    choice = load(plain_model("bert"), unmeasured_bert).choice
    assert choice.precision == precision
    assert str(bf16) in choice.reason
    assert ("bfloat16 is not equal" in choice.reason) == (precision == "float32")


def test_graph_that_differs_is_refused_and_auto_goes_on(
    plain_model: Callable[[str], Path], unmeasured_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain_model("bert")
    monkeypatch.setattr(export_module, "compare", lambda *_: OFF)
    encoder = load(model, unmeasured_bert, "auto")
    assert encoder.choice.engine == "torch"
    assert "mean cosine 0.970000, worst 0.900000" in encoder.choice.reason
    with pytest.raises(SettingsError, match=r"0\.97"):
        load(model, unmeasured_bert)


def test_model_that_cannot_be_converted_is_remembered(
    plain_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain_model("bert")

    def fail(encoder: Encoder) -> None:
        raise RuntimeError("No conversion rule found for operations: aten::strange\nand a long trace")

    monkeypatch.setattr(export_module, "_convert", fail)
    reason = load(model, tmp_path, "auto").choice.reason
    assert "No conversion rule found for operations: aten::strange" in reason
    assert "trace" not in reason
    monkeypatch.setattr(export_module, "_write_files", lambda *_: pytest.fail("tried again"))
    assert load(model, tmp_path, "auto").choice.reason == reason


def test_want_of_memory_is_not_remembered(
    plain_model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = plain_model("bert")
    with monkeypatch.context() as patch:
        patch.setattr(export_module, "_convert", lambda _: (_ for _ in ()).throw(MemoryError("bad_alloc")))
        assert load(model, tmp_path, "auto").choice.engine == "torch"
    assert exports(tmp_path) == []
    assert load(model, tmp_path, "auto").choice.engine == "openvino"


def test_unwritable_cache_directory_leaves_the_reference_engine(
    plain_model: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a directory")
    encoder = load(plain_model("bert"), tmp_path / "file", "auto")
    assert encoder.choice.engine == "sentence-transformers"
    assert "export" in encoder.choice.reason


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        ([("", "Transformer"), ("1", "Pooling"), ("2", "LSTM")], "module LSTM"),
        ([("", "WordEmbeddings"), ("1", "Pooling")], "module WordEmbeddings"),
        ([("", "Transformer"), ("2", "Normalize")], "followed by pooling"),
    ],
)
def test_modules_that_are_not_covered(
    sentence_model: Callable[..., Path], tmp_path: Path, modules: list[tuple[str, str]], reason: str
) -> None:
    model = copied(sentence_model("bert"), tmp_path / "model")
    write_json(
        model / "modules.json",
        [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in modules],
    )
    write_json(model / "1" / "config.json", {"word_embedding_dimension": WIDTH})
    refusal = engines.load_engine("openvino").refusal(LoadRequest(str(model), "cpu", tmp_path))
    assert reason in str(refusal)


def test_pooling_without_the_prompt_is_left_to_the_reference(
    sentence_model: Callable[..., Path], cache_directory: Path
) -> None:
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    general = {"prompts": {"document": "the harbour "}}
    model = sentence_model("bert", "without-prompt", pooling=pooling, general=general)
    choice = load(model, cache_directory, "auto").choice
    assert choice.engine == "sentence-transformers"
    assert "leaves the prompt out" in choice.reason


def test_corrupt_weights_are_the_models_fault(plain_model: Callable[[str], Path], tmp_path: Path) -> None:
    model = copied(plain_model("bert"), tmp_path / "model")
    (model / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(UnknownModelError, match=r"model\.safetensors: it is no whole safetensors file"):
        load(model, tmp_path / "cache")


def test_batch_that_does_not_fit_is_split(
    plain_model: Callable[[str], Path], cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(plain_model("bert"), cache_directory)
    expected = encoder.encode(TEXTS)
    whole = Graph._infer
    failures: list[int] = []

    def small_machine(self: Graph, batch: Any, tokens: Any, mask: Any, vectors: Any) -> None:
        if tokens.size > 300:
            failures.append(tokens.size)
            raise RuntimeError("std::bad_alloc")
        whole(self, batch, tokens, mask, vectors)

    monkeypatch.setattr(Graph, "_infer", small_machine)
    assert compare(encoder.encode(TEXTS), expected).equal
    assert failures
    failures.clear()
    encoder.encode(TEXTS)
    assert len(failures) < 3, "the smaller budget was not remembered"


def test_other_failures_reach_the_caller(
    plain_model: Callable[[str], Path], cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(plain_model("bert"), cache_directory)

    def broken(*_: object) -> None:
        raise RuntimeError("the graph is broken")

    monkeypatch.setattr(Graph, "_infer", broken)
    with pytest.raises(RuntimeError, match="the graph is broken"):
        encoder.encode(TEXTS)
    monkeypatch.undo()
    assert encoder.encode(["a"]).shape == (1, WIDTH)
