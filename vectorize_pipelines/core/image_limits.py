"""The limits of one image, which the settings set and `images` keeps."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The size above which an image is refused before it is decoded, and the resources that decoding may take.

    max_bytes   size of the file
    max_pixels  width times height as its header says. Decoded, a pixel takes one to four bytes, and as many again
                while it is converted. Above twice Pillow's own `Image.MAX_IMAGE_PIXELS` that one refuses.

    What bounds decoding itself, in `images.pool`:

    memory_bytes     address space of a process
    timeout_seconds  for one image
    decoding_bytes   that images of all processes may take together, decoded
    """

    max_bytes: int = 100 * 2**20
    max_pixels: int = 89_478_485
    memory_bytes: int = 2 * 2**30
    timeout_seconds: float = 60.0
    decoding_bytes: int = 2 * 2**30


DEFAULT_LIMITS = ImageLimits()
