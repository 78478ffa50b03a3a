"""Vectors cut to fewer dimensions, against sentence-transformers' own."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.encoders.texts import ODD, passages
from tests.encoders.tiny_models import WIDTH
from vectorize_pipelines.encoders import describe_model, encoder_cache, lease_encoder, load_encoder
from vectorize_pipelines.encoders.base import Encoder, EngineChoice, Purpose, Vectors
from vectorize_pipelines.encoders.engines.equality import compare
from vectorize_pipelines.encoders.models.locate import locate_model
from vectorize_pipelines.encoders.truncation import truncated
from vectorize_pipelines.errors import ItemError, SettingsError
from vectorize_pipelines.stores.base import physical_name

pytestmark = pytest.mark.slow

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
#: None of them long, so that a batch of them is not, either.
TEXTS = passages(14, longest=40) + ODD[:-1]


@cache
def reference(model: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(locate_model(model).directory), device="cpu")


def by_hand(model: str, dimension: int, purpose: Purpose = "document") -> Vectors:
    encode = reference(model).encode_query if purpose == "query" else reference(model).encode_document
    return np.asarray(encode(TEXTS, normalize_embeddings=True, truncate_dim=dimension))


def test_the_reference_engine_gives_the_very_vectors(cache_directory: Path) -> None:
    encoder = load_encoder(BUNDLED, "cpu", "sentence-transformers", dimension=256, cache_directory=cache_directory)
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (len(TEXTS), 256)
    assert vectors.dtype == np.float32
    assert vectors.flags.c_contiguous
    np.testing.assert_allclose(vectors, by_hand(BUNDLED, 256), atol=1e-5)
    assert encoder.encode([]).shape == (0, 256)
    assert encoder.memory_bytes > 80 * 2**20
    encoder.close()


@pytest.mark.parametrize("dimension", [1, 64, 256, 384])
def test_the_fast_engine_is_equal_in_every_dimension(cache_directory: Path, dimension: int) -> None:
    encoder = load_encoder(BUNDLED, "cpu", "openvino", dimension=dimension, cache_directory=cache_directory)
    assert compare(encoder.encode(TEXTS), by_hand(BUNDLED, dimension)).mean_cosine > 0.9999
    assert encoder.spec == describe_model(BUNDLED, dimension=dimension, cache_directory=cache_directory)


def test_queries_keep_their_prompt(sentence_model: Callable[..., Path], cache_directory: Path) -> None:
    general = {"prompts": {"query": "storm before ", "document": "the harbour "}}
    model = str(sentence_model("bert", "prompts", general=general))
    encoder = load_encoder(model, "cpu", "sentence-transformers", dimension=8, cache_directory=cache_directory)
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), by_hand(model, 8, "query"), atol=1e-5)
    np.testing.assert_allclose(encoder.encode(TEXTS), by_hand(model, 8), atol=1e-5)


def test_the_dimension_is_part_of_what_a_collection_is(cache_directory: Path) -> None:
    whole = describe_model(BUNDLED, cache_directory=cache_directory)
    short = describe_model(BUNDLED, dimension=256, cache_directory=cache_directory)
    assert (short.dimension, short.normalized, short.revision) == (256, True, whole.revision)
    assert short.fingerprint != whole.fingerprint
    assert physical_name("articles", short) == "articles__all-minilm-l6-v2-256"
    assert describe_model(BUNDLED, dimension=384, cache_directory=cache_directory) == whole


def test_a_model_that_does_not_normalise_does_once_it_is_cut(
    sentence_model: Callable[..., Path], cache_directory: Path
) -> None:
    model = str(sentence_model("bert", "raw", normalize=False))
    whole = load_encoder(model, "cpu", dimension=WIDTH, cache_directory=cache_directory)
    assert not whole.spec.normalized
    short = load_encoder(model, "cpu", dimension=8, cache_directory=cache_directory)
    assert short.spec.normalized
    assert np.allclose(np.linalg.norm(short.encode(TEXTS), axis=1), 1, atol=1e-5)
    assert not np.allclose(np.linalg.norm(whole.encode(TEXTS), axis=1), 1, atol=1e-2)


@pytest.mark.parametrize("dimension", [385, 100_000, 0, -1])
def test_a_dimension_that_the_model_has_not(cache_directory: Path, dimension: int) -> None:
    with pytest.raises(SettingsError, match=f"384 dimensions, which cannot be cut to {dimension}; choose 1 to 384"):
        load_encoder(BUNDLED, "cpu", dimension=dimension, cache_directory=cache_directory)
    with (
        pytest.raises(SettingsError, match="384 dimensions"),
        lease_encoder(BUNDLED, "cpu", dimension=dimension, cache_directory=cache_directory),
    ):
        pass
    assert encoder_cache().loaded() == {}
    with pytest.raises(SettingsError, match="384 dimensions"):
        describe_model(BUNDLED, dimension=dimension, cache_directory=cache_directory)


def test_dimensions_share_what_is_loaded(plain_model: Callable[[str], Path], cache_directory: Path) -> None:
    model = str(plain_model("bert"))
    for dimension in (None, 8, 16):
        with lease_encoder(model, "cpu", dimension=dimension, cache_directory=cache_directory) as encoder:
            assert encoder.encode(["a"]).shape == (1, dimension or WIDTH)
    assert len(encoder_cache().loaded()) == 1
    encoder_cache().clear()


class FirstFails(Encoder):
    """Two vectors, the first of an item that failed, the second of length 0."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec
        self.choice = EngineChoice("stub", "cpu", "float32", "")

    def encode(self, items: object, purpose: str = "document") -> Vectors:
        raise ItemError("the first fails")

    def encode_each(self, items: object, purpose: str = "document") -> tuple[Vectors, dict[int, ItemError]]:
        vectors = np.zeros((2, self.spec.dimension), dtype=np.float32)
        vectors[0] = np.nan
        return vectors, {0: ItemError("the first fails")}

    def close(self) -> None:
        pass


def test_items_that_failed_stay_failed_and_nothing_is_divided_by_zero(cache_directory: Path) -> None:
    encoder = truncated(FirstFails(describe_model(BUNDLED, cache_directory=cache_directory)), 4)
    vectors, failures = encoder.encode_each(["", ""])
    assert set(failures) == {0}
    assert np.isnan(vectors[0]).all()
    assert vectors[1].tolist() == [0, 0, 0, 0]
