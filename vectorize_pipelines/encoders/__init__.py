"""Encoders: from texts and images to vectors, by whichever engine is fastest and reproduces the model.

encoder = load_encoder("sentence-transformers/all-MiniLM-L6-v2")
vectors = encoder.encode(["a text", "another"])  # float32, (2, 384)
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

from vectorize_pipelines.core.image_limits import DEFAULT_LIMITS, ImageLimits
from vectorize_pipelines.encoders.base import CountTokens, Encoder, EncoderSpec, EngineChoice, Tokenizer
from vectorize_pipelines.encoders.cache import EncoderCache, EncoderKey, encoder_cache, too_large
from vectorize_pipelines.encoders.engines.base import PRECISIONS, Engine, LoadRequest
from vectorize_pipelines.encoders.engines.measured_folder import MeasuredFolder
from vectorize_pipelines.encoders.engines.registry import (
    candidates,
    engine_names,
    forecast,
    load_engine,
    load_with_first,
)
from vectorize_pipelines.encoders.hardware.devices import device_kind, free_memory, resolve_device
from vectorize_pipelines.encoders.models.locate import LocatedModel, check_name, default_cache_directory
from vectorize_pipelines.encoders.truncation import truncated, truncated_spec
from vectorize_pipelines.errors import ModelTooLargeError, SettingsError, UnknownModelError

if TYPE_CHECKING:
    from vectorize_pipelines.settings import Settings

__all__ = [
    "PRECISIONS",
    "Encoder",
    "EncoderCache",
    "EncoderKey",
    "EncoderSpec",
    "EngineChoice",
    "LoadOptions",
    "Tokenizer",
    "default_cache_directory",
    "describe_model",
    "encoder_cache",
    "engine_names",
    "find_measured",
    "find_model",
    "forecast_load",
    "lease_encoder",
    "load_encoder",
    "load_token_counter",
    "load_tokenizer",
]


class LoadOptions(TypedDict, total=False):
    """What `load_encoder` and `lease_encoder` may be told of how a model is to run.

    precision         one of `PRECISIONS`; auto, the default, is the fastest that was measured equal to float32
    token_budget      tokens that one batch may have, padding included; by default what the engine found best
    token_budget_share  part of that budget that a batch takes; by default all of it
    image_limits      which images are refused, and what decoding one may take
    decoding_threads  images decoded side by side, each in a process; by default one a core
    cache_directory   for exports and hashes; by default `default_cache_directory()`
    pickled_weights   whether weights that are not safetensors are read: a pickle can run code. By default they are not
    settings          for remote models: providers, keys, prices; by default those in force
    """

    precision: str
    token_budget: int | None
    token_budget_share: float
    image_limits: ImageLimits
    decoding_threads: int | None
    cache_directory: Path | None
    pickled_weights: bool
    settings: "Settings | None"


def load_encoder(
    model: str,
    device: str = "auto",
    engine: str = "auto",
    *,
    dimension: int | None = None,
    **options: Unpack[LoadOptions],
) -> Encoder:
    """Loads a model, ready to encode.

    model      a folder, a name of the Hugging Face hub or of sentence-transformers
    device     auto, cpu, cuda, cuda:N, mps
    engine     auto, or one of `engine_names()`
    dimension  vectors are cut to so many dimensions and scaled to unit length, which Matryoshka models are made for
    options    see `LoadOptions`

    `auto` takes the first engine that reproduces the model; `encoder.choice.reason` says why that one. Raises
    `UnknownModelError` where there is no such model or it cannot be loaded, `ModelTooLargeError` where it does not
    fit into memory, and `SettingsError` for an unknown engine, device or precision, for an engine that cannot run
    this model or does not equal it in this precision, and for a dimension that the model has not.
    """
    request = _request(model, device, engine, options)
    if dimension is not None:  # refuse one that the model has not before loading
        describe_model(
            model,
            engine=engine,
            dimension=dimension,
            cache_directory=request.cache_directory,
            pickled_weights=request.pickled_weights,
            settings=request.settings,
        )

    def make_room(needed: int) -> None:
        free = free_memory(request.device)
        if needed > free:
            raise ModelTooLargeError(too_large(model, request.device, needed, free))

    return truncated(load_with_first(request, engine, make_room), dimension)


@contextlib.contextmanager
def lease_encoder(
    model: str,
    device: str = "auto",
    engine: str = "auto",
    *,
    dimension: int | None = None,
    **options: Unpack[LoadOptions],
) -> Iterator[Encoder]:
    """`load_encoder` through the process's cache: loads at most once, and closes only what nobody uses.

    with lease_encoder(settings.models.text) as encoder:
        vectors = encoder.encode(texts)

    Dimensions of one model share what is loaded. The limits are those of `encoder_cache()`.
    """
    request = _request(model, device, engine, options)
    found, describing = _describing(model, engine, options)
    spec = found.describe(describing)
    truncated_spec(spec, dimension)  # refuse one that the model has not before loading
    key = EncoderKey(
        spec.fingerprint,
        engine,
        request.device,
        request.precision,
        request.token_budget,
        request.token_budget_share,
        request.image_limits,
        request.decoding_threads,
        found.access(request),
    )
    cache = encoder_cache()

    def load() -> Encoder:
        return load_with_first(request, engine, lambda needed: cache.make_room(key, model, needed))

    with cache.lease(key, load) as encoder:
        yield truncated(encoder, dimension)


def describe_model(
    model: str,
    *,
    engine: str = "auto",
    dimension: int | None = None,
    cache_directory: Path | None = None,
    fetch: bool = True,
    pickled_weights: bool = False,
    settings: "Settings | None" = None,
) -> EncoderSpec:
    """What a model is, without loading its weights; its vectors cut to `dimension`, as `load_encoder` cuts them.

    Raises `UnknownModelError`, `ModelNotFetchedError` where it would have to be fetched and `fetch` is false, and
    `SettingsError` for a dimension that the model has not.
    """
    options = LoadOptions(cache_directory=cache_directory, pickled_weights=pickled_weights, settings=settings)
    found, request = _describing(model, engine, options, fetch=fetch)
    return truncated_spec(found.describe(request), dimension)


def forecast_load(
    model: str, device: str = "auto", engine: str = "auto", **options: Unpack[LoadOptions]
) -> tuple[EngineChoice, int]:
    """What `load_encoder` would choose, as far as that is known without loading, and the bytes that it would take.

    Fetches nothing. The choice's precision is empty where it has not been measured on this machine yet. Raises as
    `load_encoder`, and `ModelNotFetchedError`.
    """
    return forecast(_request(model, device, engine, options, fetch=False), engine)


def find_measured(model: str, device: str = "auto", **options: Unpack[LoadOptions]) -> list[MeasuredFolder]:
    """Where lies what the engines for a device make of a model and measure, made or not, best first. Fetches nothing.

    Raises as `load_encoder`, and `ModelNotFetchedError`.
    """
    request = _request(model, device, "auto", options, fetch=False)
    kind = device_kind(request.device)
    engines = [each for each in candidates(model, "auto") if each.lacking is None and kind in each.devices]
    folders = [each.measured_folder(request) for each in engines if each.refusal(request) is None]
    return [folder for folder in folders if folder is not None]


def find_model(model: str, **options: Unpack[LoadOptions]) -> LocatedModel:
    """Where a model lies on this machine. Raises `ModelNotFetchedError` or `UnknownModelError` where it does not."""
    found, request = _describing(model, "auto", options, fetch=False)
    return found.locate(request)


def load_tokenizer(model: str, **options: Unpack[LoadOptions]) -> Tokenizer:
    """The model's own tokenizer, for cutting texts to its length. Raises `UnknownModelError`, also for CLIP models.

    That of a remote model estimates.
    """
    found, request = _describing(model, "auto", options)
    return found.tokenizer(request)


def load_token_counter(model: str, **options: Unpack[LoadOptions]) -> CountTokens:
    """Return what counts the tokens of a model's texts, without its weights; that of a remote model estimates.

    Raises `UnknownModelError`.
    """
    found, request = _describing(model, "auto", options)
    return found.count_tokens(request)


def _describing(model: str, engine: str, options: LoadOptions, *, fetch: bool = True) -> tuple[Engine, LoadRequest]:
    """The engine that knows what a model is, and what to ask it."""
    check_name(model)
    for each in candidates(model, engine):
        return each, LoadRequest(
            model,
            "cpu",
            options.get("cache_directory") or default_cache_directory(),
            fetch=fetch,
            pickled_weights=options.get("pickled_weights", False),
            settings=options.get("settings"),
        )
    raise UnknownModelError(f"no engine knows a model {model!r}")


def _request(model: str, device: str, engine: str, options: LoadOptions, *, fetch: bool = True) -> LoadRequest:
    """The request that these arguments make. Refuses a misspelt name before anybody looks for the model."""
    check_name(model)
    if engine != "auto":
        load_engine(engine)
    precision = options.get("precision", "auto")
    if precision not in PRECISIONS:
        raise SettingsError(f"unknown precision {precision!r}; choose one of {', '.join(PRECISIONS)}")
    return LoadRequest(
        name=model,
        device=resolve_device(device),
        cache_directory=options.get("cache_directory") or default_cache_directory(),
        precision=precision,
        token_budget=options.get("token_budget"),
        token_budget_share=options.get("token_budget_share", 1.0),
        image_limits=options.get("image_limits", DEFAULT_LIMITS),
        decoding_threads=options.get("decoding_threads"),
        fetch=fetch,
        pickled_weights=options.get("pickled_weights", False),
        settings=options.get("settings"),
    )
