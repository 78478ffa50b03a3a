"""The engine `remote`: vectors of a real provider, in order, each item's failure its own, within its limits."""

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.images.pictures import encoded, photo
from tests.providers.installation import SECRETS, installed, serve_keys
from tests.servers.provider import Fault, KeyLimits, ProviderServer
from tests.servers.provider_answers import REFUSED_TEXT, vector_of
from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.encoders import describe_model, lease_encoder, load_encoder, load_tokenizer
from vectorize_pipelines.encoders.base import Encoder, Vectors
from vectorize_pipelines.encoders.configured import describe_options, load_options
from vectorize_pipelines.encoders.engines.remote.tokenizer import EstimatedTokenizer
from vectorize_pipelines.encoders.inventory import describe_known
from vectorize_pipelines.errors import (
    ContentRefusedError,
    ItemError,
    ModelNotFetchedError,
    NoKeyAvailableError,
    ProviderUnavailableError,
    SettingsError,
)
from vectorize_pipelines.settings import Settings

MODEL = "remote:embed"
TEXTS = [f"text {n} " + "words " * (n % 7) for n in range(150)]


@contextmanager
def loaded(settings: Settings, model: str = MODEL, dimension: int | None = None) -> Iterator[Encoder]:
    with closing(load_encoder(model, "cpu", dimension=dimension, **load_options(settings))) as encoder:
        yield encoder


def expected(texts: list[str], model: str = "embed", dimension: int = 32) -> Vectors:
    vectors = np.array([vector_of(model, text, dimension) for text in texts], dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def test_vectors_are_the_providers_scaled_and_in_order(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, max_inputs=20)
    settings = installed(home, provider, max_embedding_batch=20)
    with loaded(settings) as encoder:
        vectors = encoder.encode(TEXTS)
        np.testing.assert_allclose(vectors, expected(TEXTS), atol=1e-6)
        assert vectors.dtype == np.float32
        assert encoder.encode([]).shape == (0, 32)
        assert encoder.choice.engine == "remote"
    assert provider.report().statuses == {"200": 1 + 8}  # the dimension, and 150 texts


def test_requests_keep_to_the_tokens_that_they_may_have(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, max_input_tokens=100)
    with loaded(installed(home, provider, max_embedding_tokens=100)) as encoder:
        np.testing.assert_allclose(encoder.encode(TEXTS), expected(TEXTS), atol=1e-6)
    assert set(provider.report().statuses) == {"200"}


def test_the_dimension_is_asked_once_and_remembered(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, dimension=48)
    settings = installed(home, provider)
    options = describe_options(settings)
    with pytest.raises(ModelNotFetchedError, match="vectorize models prefetch remote:embed"):
        describe_model(MODEL, fetch=False, **options)
    assert provider.report().requests == 0
    specs = [describe_model(name, **options) for name in (MODEL, MODEL, "remote:default/embed")]
    assert {spec.dimension for spec in specs} == {48}
    assert len({spec.fingerprint for spec in specs}) == 1
    assert provider.report().requests == 1
    assert describe_model(MODEL, fetch=False, **options).modalities == {Modality.TEXT}
    assert describe_model("remote:other", **options).fingerprint != specs[0].fingerprint


def test_what_is_known_of_it_is_shown_without_asking(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    settings = installed(home, provider)
    known = describe_known(settings, MODEL)
    assert (known.origin, known.location, known.engine, known.dimension) == ("remote", provider.url, "remote", None)
    assert "prefetch" in known.reason
    assert provider.report().requests == 0
    describe_model(MODEL, **describe_options(settings))
    known = describe_known(settings, MODEL)
    assert (known.origin, known.dimension, known.size) == ("remote", 32, None)


def test_dimensions_that_are_wanted_are_asked_of_the_provider(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    settings = installed(home, provider, embedding_dimensions={"embed": 8})
    with loaded(settings) as encoder:
        assert encoder.spec.dimension == 8
        np.testing.assert_allclose(encoder.encode(TEXTS[:3]), expected(TEXTS[:3], dimension=8), atol=1e-6)
    assert describe_model(MODEL, **describe_options(installed(home, provider))).dimension == 32


def test_vectors_can_be_cut_here_too(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    with loaded(installed(home, provider), dimension=4) as encoder:
        metered = encoder.encode_metered(TEXTS[:3])
    whole = expected(TEXTS[:3])[:, :4]
    np.testing.assert_allclose(metered.vectors, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-6)
    assert metered.tokens is not None


def test_one_bad_item_fails_alone(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    texts = [*TEXTS]
    texts[17] = texts[90] = REFUSED_TEXT
    with loaded(installed(home, provider)) as encoder:
        vectors, errors = encoder.encode_each(texts)
        with pytest.raises(ContentRefusedError):
            encoder.encode(texts)
    assert set(errors) == {17, 90}
    good = [n for n in range(len(texts)) if n not in errors]
    np.testing.assert_allclose(vectors[good], expected([texts[n] for n in good]), atol=1e-6)
    assert np.isnan(vectors[[17, 90]]).all()


def test_where_every_request_is_refused_no_item_is_to_blame(
    home: Path, provider: ProviderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vectorize_pipelines.providers.embeddings.PROVEN_SECONDS", 0.0)
    serve_keys(provider)
    with loaded(installed(home, provider)) as encoder:
        provider.change(faults=[Fault("refused", count=None)])
        with pytest.raises(SettingsError, match="cannot be asked for embeddings"):
            encoder.encode_each(TEXTS[:4])


def test_what_providers_do_is_survived(home: Path, provider: ProviderServer) -> None:
    """429s are waited for, also where they last longer than a call may take; failures are tried again."""
    serve_keys(provider)
    with loaded(installed(home, provider, deadline_seconds=3.0, max_embedding_batch=8)) as encoder:
        kinds = ["rate_limited", "server_error", "bad_gateway", "cut"]
        provider.change(faults=[*(Fault(kind, every=5, count=2, seconds=0.1) for kind in kinds)])
        np.testing.assert_allclose(encoder.encode(TEXTS), expected(TEXTS), atol=1e-6)
        provider.change(faults=[Fault("rate_limited", count=12, seconds=0.5)])
        np.testing.assert_allclose(encoder.encode(TEXTS[:2]), expected(TEXTS[:2]), atol=1e-6)


def test_a_provider_that_stays_away_fails_the_call(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    with loaded(installed(home, provider, deadline_seconds=0.2, keys={"max_retry_per_key": 1})) as encoder:
        provider.change(faults=[Fault("server_error", count=None)])
        with pytest.raises(ProviderUnavailableError):
            encoder.encode(TEXTS)


def test_keys_that_are_all_refused_fail_the_call(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    with loaded(installed(home, provider)) as encoder:
        provider.change(faults=[Fault("unauthorized", count=None)])
        with pytest.raises(NoKeyAvailableError):
            encoder.encode(TEXTS)


def test_limits_of_keys_are_kept(home: Path, provider: ProviderServer) -> None:
    provider.reset(keys={SECRETS["first"]: KeyLimits(concurrency=3)}, answer_seconds=0.02)
    settings = installed(home, provider, ("first",), max_embedding_batch=2)
    file = Path(settings.providers.keys_file)
    file.write_text(file.read_text().replace('"name"', '"max_concurrency": 3, "name"'))
    with loaded(settings) as encoder:
        encoder.encode(TEXTS[:40])
    assert provider.report().violations == 0


def test_tokens_and_cost_are_those_that_the_provider_counted(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider)
    settings = installed(home, provider, prices={"embed": {"input_per_million": 1e6}})
    with loaded(settings) as encoder:
        metered = encoder.encode_metered(TEXTS)
    counted = sum(max(1, len(text) // 4) for text in TEXTS)
    assert metered.tokens is not None
    assert sum(metered.tokens) == counted
    assert metered.cost == pytest.approx(counted)


def test_images_where_the_model_embeds_them(home: Path, provider: ProviderServer, tmp_path: Path) -> None:
    serve_keys(provider)
    file = tmp_path / "image.jpg"
    file.write_bytes(encoded(photo(1, 64, 48), "JPEG"))
    settings = installed(home, provider, image_embedding_models=["see"])
    with loaded(settings, "remote:see") as encoder:
        assert encoder.spec.modalities == {Modality.TEXT, Modality.IMAGE}
        vectors, errors = encoder.encode_each([file, "a text", file.read_bytes(), tmp_path / "missing.jpg"])
    assert set(errors) == {3}
    np.testing.assert_array_equal(vectors[0], vectors[2])
    assert not np.array_equal(vectors[0], vectors[1])
    with loaded(settings) as encoder, pytest.raises(ItemError, match="embeds text only"):
        encoder.encode([file])


def test_callers_side_by_side_get_each_its_own(home: Path, provider: ProviderServer) -> None:
    serve_keys(provider, answer_seconds=0.02)
    results: dict[int, Vectors] = {}
    settings = installed(home, provider)
    with lease_encoder(MODEL, "cpu", **load_options(settings)) as encoder:

        def encode(n: int) -> None:
            results[n] = encoder.encode([f"{n} {text}" for text in TEXTS[:20]])

        threads = [threading.Thread(target=encode, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for n in range(8):
        np.testing.assert_allclose(results[n], expected([f"{n} {text}" for text in TEXTS[:20]]), atol=1e-6)


@pytest.mark.parametrize("engine", ["api", "remote", "openvino", "auto"])
def test_a_remote_model_is_the_providers_whatever_engine_is_set(
    engine: str, home: Path, provider: ProviderServer
) -> None:
    serve_keys(provider)
    with closing(load_encoder(MODEL, "cpu", engine, **load_options(installed(home, provider)))) as encoder:
        assert encoder.choice.engine == "remote"


def test_a_model_of_this_machine_is_not_the_engines(home: Path, provider: ProviderServer) -> None:
    with pytest.raises(SettingsError, match="remote:PROVIDER/MODEL only, not some/model"):
        load_encoder("some/model", "cpu", "api", **load_options(installed(home, provider)))


def test_a_provider_by_name(home: Path, provider: ProviderServer) -> None:
    """Keys of another provider are not sent there."""
    serve_keys(provider)
    settings = installed(home, provider, base_url="http://127.0.0.1:9/v1", base_urls={"other": provider.url})
    file = Path(settings.providers.keys_file)
    with pytest.raises(NoKeyAvailableError):
        describe_model("remote:other/org/embed", **describe_options(settings))
    assert provider.report().requests == 0
    file.write_text(file.read_text().replace('"name"', '"provider": "other", "name"'))
    with loaded(settings, "remote:other/org/embed") as encoder:
        np.testing.assert_allclose(encoder.encode(TEXTS[:2]), expected(TEXTS[:2], "org/embed"), atol=1e-6)


@given(st.lists(st.text(), max_size=5))
def test_estimated_tokens_lie_in_their_text_and_add_up(texts: list[str]) -> None:
    tokenizer = EstimatedTokenizer()
    for text, offsets in zip(texts, tokenizer.offsets(texts), strict=True):
        ends = [0, *(end for _, end in offsets)]
        assert all(before <= start < end for before, (start, end) in zip(ends, offsets, strict=False))
        words = [len(each) for each in tokenizer.offsets(text.split())]
        assert sum(words) == len(offsets)


def test_documents_are_cut_by_estimated_tokens(home: Path, provider: ProviderServer) -> None:
    tokenizer = load_tokenizer(MODEL, **describe_options(installed(home, provider)))
    assert tokenizer.offsets(["a lighthouse 灯塔!"]) == [
        [(0, 1), (2, 6), (6, 10), (10, 12), (13, 14), (14, 15), (15, 16)]
    ]
    assert provider.report().requests == 0


def test_other_settings_have_another_connection(home: Path, provider: ProviderServer) -> None:
    """What a process keeps loaded is used for those alone who reach the provider in the same way."""
    serve_keys(provider)
    one = installed(home, provider)
    other = installed(home, provider, max_embedding_batch=1)
    with lease_encoder(MODEL, "cpu", **load_options(one)) as encoder:
        with lease_encoder(MODEL, "cpu", **load_options(installed(home, provider))) as same:
            assert same is encoder
        with lease_encoder(MODEL, "cpu", **load_options(other)) as another:
            assert another is not encoder
            another.encode(["a", "b"])
    assert provider.report().requests == 1 + 2
