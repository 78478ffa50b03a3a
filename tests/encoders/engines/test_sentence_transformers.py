"""The reference engine, against sentence-transformers called by hand; every spec against its own values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.encoders.texts import ODD, passages
from tests.encoders.tiny_models import WIDTH
from tests.encoders.tokenizers import local_tokenizer
from vectorize_pipelines.encoders import load_encoder
from vectorize_pipelines.encoders.models.locate import locate_model
from vectorize_pipelines.errors import ItemError

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = passages(14, longest=120) + ODD


def load(model: Path | str, cache_directory: Path) -> Any:
    return load_encoder(str(model), device="cpu", engine="sentence-transformers", cache_directory=cache_directory)


def by_hand(model: Path | str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(locate_model(str(model)).directory), device="cpu")


def test_architectures(tiny_model: Path, cache_directory: Path) -> None:
    modules = (tiny_model / "modules.json").exists()
    encoder, reference = load(tiny_model, cache_directory), by_hand(tiny_model)
    vectors = encoder.encode(TEXTS)
    np.testing.assert_allclose(vectors, reference.encode(TEXTS), atol=1e-5)
    spec = encoder.spec
    assert (spec.dimension, spec.max_length) == (reference.get_embedding_dimension(), reference.max_seq_length)
    assert spec.max_length == (64 if modules else 96)
    assert spec.normalized == modules == bool(np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4))
    assert spec.pooling == "mean"
    ids = local_tokenizer(str(tiny_model), cache_directory=cache_directory).ids(TEXTS)
    assert ids == [reference.preprocess([text])["input_ids"][0].tolist() for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("cls", {"pooling_mode_cls_token": True}),
        ("max", {"pooling_mode_max_tokens": True}),
        ("both", {"pooling_mode": ["cls", "mean"]}),
    ],
)
def test_pooling(
    sentence_model: Callable[..., Path], cache_directory: Path, name: str, pooling: dict[str, Any]
) -> None:
    model = sentence_model("bert", name, pooling=pooling, normalize=False)
    encoder, reference = load(model, cache_directory), by_hand(model)
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), encoder.spec.dimension)
    assert encoder.spec.dimension == reference.get_embedding_dimension()
    np.testing.assert_allclose(vectors, reference.encode(TEXTS), atol=1e-5)


def test_prompts(sentence_model: Callable[..., Path], cache_directory: Path) -> None:
    general = {"prompts": {"query": "storm before ", "document": "the harbour "}}
    model = sentence_model("bert", "prompts", general=general)
    encoder, reference = load(model, cache_directory), by_hand(model)
    np.testing.assert_allclose(encoder.encode(TEXTS), reference.encode_document(TEXTS), atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), reference.encode_query(TEXTS), atol=1e-5)
    plain = load(sentence_model("bert"), cache_directory)
    np.testing.assert_allclose(encoder.encode(["tide"]), plain.encode(["the harbour tide"]), atol=1e-5)
    assert not np.allclose(encoder.encode(TEXTS), encoder.encode(TEXTS, "query"), atol=1e-3)


def test_lower_casing_and_truncated_dimension(sentence_model: Callable[..., Path], cache_directory: Path) -> None:
    settings = {"max_seq_length": 64, "do_lower_case": True}
    model = sentence_model("roberta", "lower", settings=settings, general={"truncate_dim": 20})
    encoder, reference = load(model, cache_directory), by_hand(model)
    assert (encoder.spec.dimension, encoder.spec.normalized) == (20, False)
    np.testing.assert_allclose(encoder.encode(TEXTS), reference.encode(TEXTS), atol=1e-5)
    tokenizer = local_tokenizer(str(model), cache_directory=cache_directory)
    assert tokenizer.ids(["The TIDE"]) == tokenizer.ids(["the tide"])


def test_bundled_model(cache_directory: Path) -> None:
    encoder, reference = load(BUNDLED, cache_directory), by_hand(BUNDLED)
    vectors = encoder.encode(TEXTS)
    np.testing.assert_allclose(vectors, reference.encode(TEXTS), atol=1e-5)
    assert encoder.spec.max_length == reference.max_seq_length
    near, far = (
        encoder.encode(["a boat sails to the harbour", "a ship arrives in port"]),
        encoder.encode(["income tax"]),
    )
    assert near[0] @ near[1] > near[0] @ far[0] + 0.2
    assert encoder.memory_bytes > 80 * 2**20
    encoder.close()


def test_shape_and_order(sentence_model: Callable[..., Path], cache_directory: Path) -> None:
    encoder = load(sentence_model("bert"), cache_directory)
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    assert vectors.shape == (len(TEXTS), WIDTH)
    assert encoder.encode([]).shape == (0, WIDTH)
    assert encoder.encode([]).dtype == np.float32
    order = np.random.default_rng(7).permutation(len(TEXTS))
    np.testing.assert_allclose(encoder.encode([TEXTS[n] for n in order]), vectors[order], atol=1e-5)
    np.testing.assert_allclose(np.vstack([encoder.encode([text]) for text in TEXTS]), vectors, atol=1e-5)


def test_images_are_refused(sentence_model: Callable[..., Path], cache_directory: Path) -> None:
    encoder = load(sentence_model("bert"), cache_directory)
    for image in (Path("picture.png"), b"\x89PNG"):
        with pytest.raises(ItemError, match="item 1 is an image"):
            encoder.encode(["text", image])


def test_nothing_is_printed(
    sentence_model: Callable[..., Path], cache_directory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load(sentence_model("bert"), cache_directory).encode(TEXTS)
    assert capfd.readouterr() == ("", "")


def test_batches_are_halved_where_memory_is_short(
    sentence_model: Callable[..., Path], cache_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(sentence_model("bert"), cache_directory)
    expected = encoder.encode(TEXTS)
    forward = encoder.model.forward

    def small_machine(features: Any, **settings: Any) -> Any:
        if len(features["input_ids"]) > 5:
            raise RuntimeError("can't allocate memory")
        return forward(features, **settings)

    monkeypatch.setattr(encoder.model, "forward", small_machine)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=1e-5)
    monkeypatch.setattr(encoder.model, "forward", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        encoder.encode(TEXTS)


def test_modules_that_only_sentence_transformers_covers(
    plain_model: Callable[[str], Path], cache_directory: Path, tmp_path: Path
) -> None:
    import tokenizers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    vocabulary = tokenizers.Tokenizer.from_file(str(plain_model("bert") / "tokenizer.json"))
    reference = SentenceTransformer(modules=[StaticEmbedding(vocabulary, embedding_dim=24)], device="cpu")
    reference.save(str(tmp_path))
    encoder = load_encoder(str(tmp_path), device="cpu", cache_directory=cache_directory)
    assert encoder.choice.engine == "sentence-transformers"
    assert "StaticEmbedding" in encoder.choice.reason
    assert (encoder.spec.dimension, encoder.spec.max_length, encoder.spec.pooling) == (24, None, "none")
    np.testing.assert_allclose(encoder.encode(TEXTS), reference.encode(TEXTS), atol=1e-5)
