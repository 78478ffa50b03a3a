"""A precision or a token budget that is asked for is taken, or refused with the reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.encoders.texts import ODD, passages
from tests.encoders.tiny_clips import build_clip
from vectorize_pipelines.encoders import forecast_load, load_encoder, load_tokenizer
from vectorize_pipelines.encoders.batching import TokenBatch
from vectorize_pipelines.encoders.engines.equality import Agreement, compare
from vectorize_pipelines.encoders.engines.open_clip import export as clip_export_module
from vectorize_pipelines.encoders.engines.openvino import export as export_module
from vectorize_pipelines.encoders.engines.openvino.graph import Graph
from vectorize_pipelines.encoders.engines.registry import ENGINES
from vectorize_pipelines.encoders.engines.torch import precision as torch_precision
from vectorize_pipelines.encoders.models.locate import locate_model
from vectorize_pipelines.errors import SettingsError, UnknownModelError

TEXTS = passages(21, longest=120) + ODD
OFF = Agreement(0.97, 0.9, 0.0)
SAME = Agreement(1.0, 1.0, 0.0)


def test_misspelt_precision() -> None:
    with pytest.raises(SettingsError, match="unknown precision 'bf16'; choose one of auto, float32, bfloat16, float16"):
        load_encoder("any", "cpu", precision="bf16")


def test_full_precision_is_not_rounded(plain_model: Callable[[str], Path], cache_directory: Path) -> None:
    model = str(plain_model("bert"))
    encoder = load_encoder(model, "cpu", "openvino", precision="float32", cache_directory=cache_directory)
    assert encoder.choice.precision == "float32"
    assert "float32, mean cosine" in encoder.choice.reason
    reference = load_encoder(model, "cpu", "sentence-transformers", cache_directory=cache_directory)
    np.testing.assert_allclose(encoder.encode(TEXTS), reference.encode(TEXTS), atol=1e-5)


def test_a_reduced_precision_that_is_equal_is_taken(
    plain_model: Callable[[str], Path], unmeasured_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "native_precisions", lambda: ("bfloat16", "float32"))
    monkeypatch.setattr(export_module, "compare", lambda *_: SAME)
    encoder = load_encoder(str(plain_model("bert")), "cpu", precision="bfloat16", cache_directory=unmeasured_bert)
    assert (encoder.choice.engine, encoder.choice.precision) == ("openvino", "bfloat16")


def test_a_reduced_precision_that_is_not_equal_is_an_error_with_its_figures(
    plain_model: Callable[[str], Path], unmeasured_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "native_precisions", lambda: ("bfloat16", "float32"))
    monkeypatch.setattr(torch_precision, "torch_precisions", lambda _: ("bfloat16", "float32"))
    for module in (export_module, torch_precision):
        monkeypatch.setattr(module, "compare", lambda *_: OFF)
    said = r"in bfloat16.*0\.970000, worst 0\.900000.*recision auto takes"
    model = str(plain_model("bert"))
    for engine in ("auto", "openvino", "torch"):
        with pytest.raises(SettingsError, match=said):
            load_encoder(model, "cpu", engine, precision="bfloat16", cache_directory=unmeasured_bert)
        with pytest.raises(SettingsError, match=said):  # known now, so said without loading
            forecast_load(model, "cpu", engine, precision="bfloat16", cache_directory=unmeasured_bert)


def test_another_engine_may_have_the_precision(
    plain_model: Callable[[str], Path], unmeasured_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "native_precisions", lambda: ("float32",))
    monkeypatch.setattr(torch_precision, "torch_precisions", lambda _: ("bfloat16", "float32"))
    monkeypatch.setattr(torch_precision, "compare", lambda *_: SAME)
    choice = load_encoder(str(plain_model("bert")), "cpu", precision="bfloat16", cache_directory=unmeasured_bert).choice
    assert (choice.engine, choice.precision) == ("torch", "bfloat16")
    assert "openvino was passed over: this chip computes in float32, not in bfloat16" in choice.reason


def test_a_precision_that_the_cpu_has_not(
    plain_model: Callable[[str], Path], unmeasured_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "native_precisions", lambda: ("float32",))
    monkeypatch.setattr(torch_precision, "torch_precisions", lambda _: ("float32",))
    for engine in ("openvino", "torch"):
        with pytest.raises(SettingsError, match="this chip computes in float32, not in float16"):
            load_encoder(str(plain_model("bert")), "cpu", engine, precision="float16", cache_directory=unmeasured_bert)


def test_an_engine_without_it_refuses_it(plain_model: Callable[[str], Path], cache_directory: Path) -> None:
    with pytest.raises(SettingsError, match="runs in float32 only, not in float16"):
        load_encoder(
            str(plain_model("bert")),
            "cpu",
            "sentence-transformers",
            precision="float16",
            cache_directory=cache_directory,
        )


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_clip(tmp_path_factory.mktemp("clips") / "plain"))


def test_clip_in_the_precision_that_is_asked_for(clip: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = load_encoder(clip, "cpu", precision="float32", cache_directory=tmp_path)
    assert exact.choice.precision == "float32"
    monkeypatch.setattr(clip_export_module, "native_precisions", lambda: ("bfloat16", "float32"))
    monkeypatch.setattr(clip_export_module, "compare", lambda *_: OFF)
    with pytest.raises(SettingsError, match=r"image vectors are not equal.*bfloat16: mean cosine 0\.970000"):
        load_encoder(clip, "cpu", precision="bfloat16", cache_directory=tmp_path)
    with pytest.raises(SettingsError, match="not in float16"):
        load_encoder(clip, "cpu", precision="float16", cache_directory=tmp_path)


def test_a_clip_model_has_no_tokenizer_to_cut_documents_by(clip: str, cache_directory: Path) -> None:
    for name in (clip, "ViT-B/32"):
        with pytest.raises(UnknownModelError, match=r"is a CLIP model: .* choose a text model"):
            load_tokenizer(name, cache_directory=cache_directory)


def test_the_token_budget_bounds_every_batch(
    plain_model: Callable[[str], Path], cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, sizes = str(plain_model("bert")), []
    expected = load_encoder(model, "cpu", "openvino", cache_directory=cache_directory).encode(TEXTS)
    infer = Graph._infer

    def recorded(self: Graph, batch: TokenBatch, tokens: Any, mask: Any, vectors: Any) -> None:
        sizes.append(tokens.size)
        infer(self, batch, tokens, mask, vectors)

    monkeypatch.setattr(Graph, "_infer", recorded)
    encoder = load_encoder(
        model, "cpu", "openvino", token_budget=400, token_budget_share=0.5, cache_directory=cache_directory
    )
    assert compare(encoder.encode(TEXTS), expected).equal
    assert 96 <= max(sizes) <= 200


@pytest.mark.parametrize(
    ("budget", "share", "texts"),
    [(None, 1.0, 32), (None, 0.5, 16), (96 * 5, 1.0, 5), (96 * 8, 0.25, 2), (1, 0.5, 1), (10**9, 1.0, 32)],
)
def test_the_reference_engine_counts_the_longest_texts(
    plain_model: Callable[[str], Path],
    cache_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    budget: int | None,
    share: float,
    texts: int,
) -> None:
    encoder: Any = load_encoder(
        str(plain_model("bert")),
        "cpu",
        "sentence-transformers",
        token_budget=budget,
        token_budget_share=share,
        cache_directory=cache_directory,
    )
    sizes, forward = [], encoder.model.forward

    def recorded(features: Any, **settings: Any) -> Any:
        sizes.append(len(features["input_ids"]))
        return forward(features, **settings)

    monkeypatch.setattr(encoder.model, "forward", recorded)
    encoder.encode(passages(40))
    assert max(sizes) == texts


#: What a model's configuration says, and what then stands in front of documents and of queries.
PROMPTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "both": ({"prompts": {"query": "storm before ", "document": "the harbour "}}, "the harbour ", "storm before "),
    "query-only": ({"prompts": {"query": "storm before "}}, "", "storm before "),
    "passage": ({"prompts": {"query": "storm before ", "passage": "the harbour "}}, "the harbour ", "storm before "),
    "default": ({"prompts": {"all": "the harbour "}, "default_prompt_name": "all"}, "the harbour ", "the harbour "),
    "none": ({}, "", ""),
}


@pytest.mark.parametrize("prompts", PROMPTS)
def test_every_engine_puts_the_prompts_in_front(
    sentence_model: Callable[..., Path], cache_directory: Path, prompts: str
) -> None:
    from sentence_transformers import SentenceTransformer

    general, document, query = PROMPTS[prompts]
    model = str(sentence_model("bert", f"prompts-{prompts}", general=general))
    reference = SentenceTransformer(str(locate_model(model).directory), device="cpu")
    documents, queries = reference.encode(TEXTS, prompt=document), reference.encode(TEXTS, prompt=query)
    for engine in (name for name in ENGINES if name not in ("open_clip", "remote")):
        encoder = load_encoder(model, "cpu", engine, cache_directory=cache_directory)
        assert compare(encoder.encode(TEXTS), documents).equal, engine
        assert compare(encoder.encode(TEXTS, "query"), queries).equal, engine
