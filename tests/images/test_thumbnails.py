"""Thumbnails come out of confined processes: upright, in their proportions, and never larger than asked for."""

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from tests.images.pictures import encoded, photo
from vectorize_pipelines.images import (
    CorruptImageError,
    ImageDecoders,
    ImageLimits,
    ImageTooLargeError,
    UnsupportedImageError,
)


@pytest.fixture(scope="module")
def decoders() -> Iterator[ImageDecoders]:
    with closing(ImageDecoders(ImageLimits(max_bytes=2**20, max_pixels=2**22), 1)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (192, 256)), ((480, 640), (256, 192)), ((64, 32), (32, 64)), ((1, 4000), (256, 1))],
)
def test_an_image_keeps_its_proportions_and_is_never_enlarged(
    decoders: ImageDecoders, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    pixels = decoders.thumbnail(encoded(Image.new("RGB", size, "green"), "PNG"), 256)
    assert pixels.shape == (*expected, 3)


def test_an_image_is_upright_and_looks_as_it_did(decoders: ImageDecoders) -> None:
    image = Image.new("RGB", (400, 200), "red")
    image.paste("blue", (0, 0, 200, 200))
    exif = Image.Exif()
    exif[0x0112] = 6  # is to be turned by 90 degrees
    pixels = decoders.thumbnail(encoded(image, "JPEG", exif=exif, quality=95), 100)
    assert pixels.shape == (100, 50, 3)
    assert np.abs(pixels[20, 25].astype(int) - (0, 0, 255)).max() < 20
    assert np.abs(pixels[80, 25].astype(int) - (255, 0, 0)).max() < 20


def test_what_is_no_image_says_so(decoders: ImageDecoders) -> None:
    with pytest.raises(UnsupportedImageError):
        decoders.thumbnail(b"root:x:0:0:root:/root:/bin/bash\n", 256)
    with pytest.raises(CorruptImageError):
        decoders.thumbnail(encoded(photo(1, 64, 64), "PNG")[:300], 256)
    with pytest.raises(ImageTooLargeError):
        decoders.thumbnail(encoded(Image.new("L", (4096, 4096)), "PNG"), 256)
    with pytest.raises(ImageTooLargeError):
        decoders.thumbnail(bytes(2**20 + 1), 256)
