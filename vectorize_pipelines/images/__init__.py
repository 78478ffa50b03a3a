"""Images: from the bytes of a file to the pixels that a model takes. No model is loaded here."""

from vectorize_pipelines.core.image_limits import ImageLimits
from vectorize_pipelines.images.decoding import ImageHeader, decode, read_header
from vectorize_pipelines.images.errors import (
    CorruptImageError,
    EmptyImageError,
    ImageCrashedError,
    ImageMemoryError,
    ImageTimeoutError,
    ImageTooLargeError,
    UnsupportedImageError,
)
from vectorize_pipelines.images.pool import ImageDecoders
from vectorize_pipelines.images.preprocessing import Preprocessing

__all__ = [
    "CorruptImageError",
    "EmptyImageError",
    "ImageCrashedError",
    "ImageDecoders",
    "ImageHeader",
    "ImageLimits",
    "ImageMemoryError",
    "ImageTimeoutError",
    "ImageTooLargeError",
    "Preprocessing",
    "UnsupportedImageError",
    "decode",
    "read_header",
]
