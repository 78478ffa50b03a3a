"""Perceptual hashes of groups' pictures: pictures that look alike differ in few bits."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TypeAlias

from vectorize_pipelines.encoders.hardware.machine import physical_cores
from vectorize_pipelines.errors import ItemError
from vectorize_pipelines.images.pool import ImageDecoders
from vectorize_pipelines.images.preprocessing import Pixels, Preprocessing
from vectorize_pipelines.messaging.detections import TrafficGroup
from vectorize_pipelines.settings import Settings

#: Group's number -> its picture, shrunk, once it is decoded.
Shrinking: TypeAlias = "Mapping[int, Future[Pixels]]"

#: A row of pixels is one longer than the comparisons that are made in it.
_SHRUNK = Preprocessing(8, 9, (0.0,) * 3, (1.0,) * 3, interpolation="bilinear", resize_mode="squash")


class PictureHashes:
    """Hashes of pictures, which are decoded in processes that are confined, several side by side."""

    def __init__(self, settings: Settings) -> None:
        images = settings.images
        self._decoders = ImageDecoders(images.limits, images.decoding_threads or physical_cores())

    def begin(self, groups: Sequence[TrafficGroup]) -> Shrinking:
        """Begin with the pictures of a detection's groups. One that cannot be had is left to whoever judges it."""
        begun: dict[int, Future[Pixels]] = {}
        for group in groups:
            try:
                content = group.image()
            except ItemError:
                continue
            if content is not None:
                begun[group.group_index] = self._decoders.submit(content, _SHRUNK)
        return begun

    def collect(self, begun: Shrinking) -> dict[int, int]:
        """Return the hashes by group's number, without the pictures that cannot be decoded; waits for them."""
        hashes: dict[int, int] = {}
        for number, future in begun.items():
            try:
                hashes[number] = difference_hash(future.result())
            except ItemError:
                continue
        return hashes

    def close(self) -> None:
        """End the processes."""
        self._decoders.close()


def difference_hash(pixels: Pixels) -> int:
    """Return 64 bits, one for each of 8 by 8 places: whether it gets brighter to the right there.

    pixels  uint8, shape (8, 9, 3)
    """
    import numpy as np

    grey = pixels.astype(np.int32).sum(axis=2)
    return int.from_bytes(np.packbits(grey[:, 1:] > grey[:, :-1]).tobytes(), "big")
