"""Encoders, and the decoders of their images, as the settings say.

Called by the GPU resource, the readers of files and messages, and the commands `search`, `models` and `doctor`.
"""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypedDict

from vectorize_pipelines.encoders import LoadOptions, encoder_cache, lease_encoder
from vectorize_pipelines.encoders.base import Encoder
from vectorize_pipelines.encoders.hardware.machine import physical_cores
from vectorize_pipelines.images.pool import ImageDecoders
from vectorize_pipelines.settings import Settings
from vectorize_pipelines.state import home


class DescribeOptions(TypedDict):
    """What `describe_model`, `find_model` and `load_tokenizer` are to be told."""

    cache_directory: Path
    pickled_weights: bool
    settings: Settings


def describe_options(settings: Settings) -> DescribeOptions:
    """What `describe_model` and its like are to be told, beside the model."""
    return {
        "cache_directory": home.model_cache(settings),
        "pickled_weights": settings.models.allow_pickled_weights,
        "settings": settings,
    }


def load_options(settings: Settings) -> LoadOptions:
    """What `load_encoder` and its like are to be told, beside model, device and engine."""
    return {
        "precision": settings.encoder.precision,
        "token_budget": settings.encoder.token_budget,
        "token_budget_share": settings.encoder.token_budget_share,
        "image_limits": settings.images.limits,
        "decoding_threads": settings.images.decoding_threads,
        **describe_options(settings),
    }


def image_decoders(settings: Settings) -> ImageDecoders:
    """Return the processes that decode images under these settings, which an encoder with the same ones uses too."""
    return ImageDecoders(settings.images.limits, settings.images.decoding_threads or physical_cores())


def lease_configured(settings: Settings, model: str, dimension: int | None = None) -> AbstractContextManager[Encoder]:
    """`lease_encoder` under the settings' limits; `dimension` None gives the model's own. Raises as `load_encoder`."""
    encoder_cache().limit(settings.encoder.max_loaded, settings.encoder.memory_bytes)
    return lease_encoder(
        model,
        settings.encoder.device,
        settings.encoder.engine,
        dimension=dimension,
        **load_options(settings),
    )
