"""Encoders as the settings say. Called by the GPU resource, `vectorize search`, `vectorize models` and `doctor`."""

from contextlib import AbstractContextManager

from vectorize_pipelines import home
from vectorize_pipelines.encoders import LoadOptions, encoder_cache, lease_encoder
from vectorize_pipelines.encoders.protocol import Encoder
from vectorize_pipelines.images.decoding import ImageLimits
from vectorize_pipelines.settings import Settings


def load_options(settings: Settings) -> LoadOptions:
    """What `load_encoder` and its like are to be told, beside model, device and engine."""
    return {
        "precision": settings.encoder.precision,
        "token_budget": settings.encoder.token_budget,
        "image_limits": ImageLimits(settings.images.max_file_bytes, settings.images.max_pixels),
        "decoding_threads": settings.images.decoding_threads,
        "cache_directory": home.model_cache(settings),
    }


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
