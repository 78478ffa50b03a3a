"""Encoders: from texts and images to vectors, by whichever engine is fastest and reproduces the model.

encoder = load_encoder("sentence-transformers/all-MiniLM-L6-v2")
vectors = encoder.encode(["a text", "another"])  # float32, (2, 384)
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from vectorize_pipelines.encoders.cache import EncoderCache, EncoderKey, encoder_cache
from vectorize_pipelines.encoders.devices import resolve_device
from vectorize_pipelines.encoders.engines import LoadRequest, candidates, engine_names, load_engine, load_with_first
from vectorize_pipelines.encoders.models import default_cache_directory
from vectorize_pipelines.encoders.protocol import Encoder, EncoderSpec, EngineChoice, Tokenizer
from vectorize_pipelines.encoders.tokenizer import ModelTokenizer, model_tokenizer
from vectorize_pipelines.errors import UnknownModelError

__all__ = [
    "Encoder",
    "EncoderCache",
    "EncoderKey",
    "EncoderSpec",
    "EngineChoice",
    "Tokenizer",
    "default_cache_directory",
    "describe_model",
    "encoder_cache",
    "engine_names",
    "lease_encoder",
    "load_encoder",
    "load_tokenizer",
]


def load_encoder(
    model: str, device: str = "auto", engine: str = "auto", *, cache_directory: Path | None = None
) -> Encoder:
    """Loads a model, ready to encode.

    model            a folder, a name of the Hugging Face hub or of sentence-transformers
    device           auto, cpu, cuda, cuda:N, mps
    engine           auto, or one of `engine_names()`
    cache_directory  for exports and hashes; by default `default_cache_directory()`

    `auto` takes the first engine that reproduces the model; `encoder.choice.reason` says why that one. Raises
    `UnknownModelError` where there is no such model or it cannot be loaded, `SettingsError` for an unknown
    engine or device, or an engine that cannot run this model.
    """
    if engine != "auto":
        load_engine(engine)  # refuse a misspelt name before looking for the model
    request = LoadRequest(model, resolve_device(device), cache_directory or default_cache_directory())
    return load_with_first(request, engine)


@contextlib.contextmanager
def lease_encoder(
    model: str, device: str = "auto", engine: str = "auto", *, cache_directory: Path | None = None
) -> Iterator[Encoder]:
    """`load_encoder` through the process's cache: loads at most once, and closes only what nobody uses.

    with lease_encoder(settings.models.text) as encoder:
        vectors = encoder.encode(texts)
    """
    spec = describe_model(model, engine=engine, cache_directory=cache_directory)
    key = EncoderKey(spec.fingerprint, engine, resolve_device(device))
    with encoder_cache().lease(
        key, lambda: load_encoder(model, device, engine, cache_directory=cache_directory)
    ) as encoder:
        yield encoder


def describe_model(model: str, *, engine: str = "auto", cache_directory: Path | None = None) -> EncoderSpec:
    """What a model is, without loading its weights. Raises `UnknownModelError`."""
    request = _describing(model, cache_directory)
    for each in candidates(model, engine):
        return each.describe(request)
    raise UnknownModelError(f"no engine knows a model {model!r}")


def load_tokenizer(model: str, *, cache_directory: Path | None = None) -> ModelTokenizer:
    """The model's own tokenizer, for cutting texts to its length. Raises `UnknownModelError`."""
    request = _describing(model, cache_directory)
    return model_tokenizer(request.layout, cache_directory=request.cache_directory, revision=request.spec.revision)


def _describing(model: str, cache_directory: Path | None) -> LoadRequest:
    return LoadRequest(model, "cpu", cache_directory or default_cache_directory())
