"""Scaling and cropping against open_clip's own transform."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.images.pictures import photo
from vectorize_pipelines.images import Preprocessing

SIZES = [(224, 224), (300, 200), (200, 300), (65, 64), (33, 20), (7, 500), (641, 480), (64, 64), (1, 1), (50, 51)]
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def theirs(preprocessing: Preprocessing, image: Image.Image) -> Any:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    height, width = preprocessing.height, preprocessing.width
    config = PreprocessCfg(
        size=height if height == width else (height, width),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation=preprocessing.interpolation,
        resize_mode=preprocessing.resize_mode,
        fill_color=preprocessing.fill_color,
    )
    return np.asarray(image_transform_v2(config, is_train=False)(image)).transpose(1, 2, 0) * 255


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    ("resize_mode", "height", "width", "fill_color"),
    [
        ("shortest", 64, 64, 0),
        ("squash", 64, 64, 0),
        ("longest", 64, 64, 7),
        ("shortest", 48, 64, 0),
        ("longest", 64, 48, 0),
    ],
)
def test_pixels_are_those_of_open_clip(
    resize_mode: str, height: int, width: int, fill_color: int, interpolation: str
) -> None:
    preprocessing = Preprocessing(height, width, MEAN, STD, interpolation, resize_mode, fill_color)
    for number, size in enumerate(SIZES):
        if resize_mode == "longest" and min(size) * 64 < max(size):
            continue  # less than one pixel wide, which open_clip refuses
        image = photo(number, *size)
        ours = preprocessing.pixels(image)
        assert ours.shape == (height, width, 3)
        assert ours.dtype == np.uint8
        difference = np.abs(ours - theirs(preprocessing, image))
        if max(size) <= 8 * min(size) or resize_mode == "squash":
            assert difference.max() < 0.01, size
        assert difference.mean() < 0.5, size


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(60_000, 1), (1, 60_000)])
def test_a_strip_is_not_blown_up(resize_mode: str, size: tuple[int, int]) -> None:
    pixels = Preprocessing(64, 64, MEAN, STD, resize_mode=resize_mode).pixels(Image.new("RGB", size, "red"))
    assert pixels.shape == (64, 64, 3)


def test_the_longer_side_of_the_input_decides_how_far_an_image_may_be_scaled_down() -> None:
    assert Preprocessing(48, 64, MEAN, STD).shortest_side == 64
