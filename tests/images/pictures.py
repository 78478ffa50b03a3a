"""Pictures made in memory: with the spectrum of photographs, sharp edges, and in every file format."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Noise whose amplitude falls as 1/f, which is how photographs' spectra fall, with shapes and text on it."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    amplitude = 1 / np.maximum(frequency, 1 / max(width, height)) ** 1.1
    noise = [
        np.fft.irfft2(amplitude * np.exp(2j * np.pi * random.random(amplitude.shape)), s=(height, width))
        for _ in range(2)
    ]
    first, second = ((each - each.mean()) / max(each.std(), 1e-9) for each in noise)
    channels = [128 + random.uniform(-40, 40) + 50 * (first + 0.4 * random.normal() * second) for _ in range(3)]
    image = Image.fromarray(np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for number in range(8):
        left, top = int(random.integers(0, width)), int(random.integers(0, height))
        size = int(random.integers(2, max(3, width // 4)))
        colour = tuple(int(value) for value in random.integers(0, 255, 3))
        (draw.ellipse if number % 2 else draw.rectangle)([left, top, left + size, top + size], fill=colour)
    draw.text((width // 8, height // 8), "Straße 42", fill=(255, 255, 255), font_size=max(6, height // 12))
    return image


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """The bytes of `image` in a file format of Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()
