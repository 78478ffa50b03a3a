"""Images: from the bytes of a file to the pixels that a model takes. No model is loaded here."""

from vectorize_pipelines.images.decoding import ImageHeader, ImageLimits, decode, read_header
from vectorize_pipelines.images.errors import (
    CorruptImageError,
    EmptyImageError,
    ImageTooLargeError,
    UnsupportedImageError,
)
from vectorize_pipelines.images.preprocessing import Preprocessing

__all__ = [
    "CorruptImageError",
    "EmptyImageError",
    "ImageHeader",
    "ImageLimits",
    "ImageTooLargeError",
    "Preprocessing",
    "UnsupportedImageError",
    "decode",
    "read_header",
]
