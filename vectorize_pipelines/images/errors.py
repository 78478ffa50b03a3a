"""Reasons why an image cannot be embedded. Run metadata counts these by class, so their names stay as they are.

The caller puts the file's name in front of the message; the message says what is wrong and what to do.
"""

from vectorize_pipelines.errors import CostlyItemError, ItemError


class EmptyImageError(ItemError):
    """An image file without any bytes."""


class UnsupportedImageError(ItemError):
    """A file that is no image, or an image of a kind that is not decoded here."""


class CorruptImageError(ItemError):
    """The image is damaged, cut short, or is not what its first bytes say."""


class ImageTooLargeError(ItemError):
    """More bytes or more pixels than the limits allow; it was not decoded."""


class ImageTimeoutError(CostlyItemError):
    """Decoding that took longer than `images.timeout_seconds`; its process was killed."""


class ImageMemoryError(CostlyItemError):
    """Decoding that needed more memory than `images.memory_bytes`."""


class ImageCrashedError(CostlyItemError):
    """The process that decoded it died, or failed in a way that no codec should."""
