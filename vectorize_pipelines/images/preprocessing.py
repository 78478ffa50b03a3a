"""Scaling and cropping an image to what a model takes, as open_clip's `image_transform` does for inference.

Called by `images.worker`. Needs Pillow and numpy, not torch or torchvision.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

Pixels: TypeAlias = "npt.NDArray[np.uint8]"

RESIZE_MODES = ("shortest", "longest", "squash")
INTERPOLATIONS = ("bicubic", "bilinear")

#: Of an image that scaling would make longer than so many times the model's input, only the part that is not cropped
#: is computed: a strip of 1 by 50,000 pixels would be scaled up to gigabytes. Pillow may then resize along the other
#: side first, and what it rounds and clips in between differs.
LONGEST_SCALED = 8


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """The form in which a model wants its images.

    height, width  of the model's input, in pixels
    mean, std      of each colour channel, on the scale 0 to 1
    interpolation  one of `INTERPOLATIONS`
    resize_mode    `shortest`: the image covers the input and is cropped in the middle; `longest`: it fits into
                   the input, the rest is `fill_color`; `squash`: both sides are scaled on their own
    fill_color     grey level 0 to 255
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0

    @property
    def shortest_side(self) -> int:
        """The pixels that an image's shorter side is scaled to at most: what `decode` needs to know."""
        return max(self.height, self.width)

    def pixels(self, image: "Image.Image") -> Pixels:
        """Return an RGB image as uint8 array of shape (height, width, 3), not normalised yet.

        Equal to open_clip's; at sharp edges of very long images a few grey levels apart, see `LONGEST_SCALED`.
        """
        import numpy as np

        return np.asarray(self.prepared(image))

    def prepared(self, image: "Image.Image") -> "Image.Image":
        """Return an RGB image, scaled, cropped and padded to what the model takes."""
        return self._padded(self._resized(image, self._scaled_size(*image.size)))

    def _scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the image after scaling, before cropping and padding."""
        if self.resize_mode == "squash":
            return self.width, self.height
        if self.resize_mode == "shortest" and self.height == self.width:
            longer = self.width * max(width, height) // min(width, height)
            return (self.width, longer) if width <= height else (longer, self.width)
        ratios = width / self.width, height / self.height
        ratio = max(ratios) if self.resize_mode == "longest" else min(ratios)
        return max(1, round(width / ratio)), max(1, round(height / ratio))

    def _resized(self, image: "Image.Image", scaled: tuple[int, int]) -> "Image.Image":
        """Return the middle of the scaled image."""
        from PIL import Image

        # open_clip's `ResizeKeepRatio` for inputs that are not square takes no interpolation and so is bicubic.
        bilinear = self.interpolation == "bilinear" and (self.height == self.width or self.resize_mode != "shortest")
        filter_ = Image.Resampling.BILINEAR if bilinear else Image.Resampling.BICUBIC
        left, right = _middle(scaled[0], self.width)
        top, bottom = _middle(scaled[1], self.height)
        if max(scaled) <= LONGEST_SCALED * self.shortest_side:
            return image.resize(scaled, filter_).crop((left, top, right, bottom))
        across, down = image.width / scaled[0], image.height / scaled[1]
        box = (left * across, top * down, min(right * across, image.width), min(bottom * down, image.height))
        return image.resize((right - left, bottom - top), filter_, box=box)

    def _padded(self, image: "Image.Image") -> "Image.Image":
        from PIL import Image

        if image.size == (self.width, self.height):
            return image
        canvas = Image.new("RGB", (self.width, self.height), (self.fill_color,) * 3)
        canvas.paste(image, ((self.width - image.width) // 2, (self.height - image.height) // 2))
        return canvas


def shrunk(image: "Image.Image", longest_side: int) -> "Image.Image":
    """Return an image in its own proportions, scaled down to this size where it is larger: a thumbnail for people."""
    from PIL import Image

    image.thumbnail((longest_side, longest_side), Image.Resampling.BICUBIC)
    return image


def _middle(scaled: int, wanted: int) -> tuple[int, int]:
    """Return where the middle `wanted` of `scaled` pixels along one side begin and end."""
    start = max(0, round((scaled - wanted) / 2.0))
    return start, min(scaled, start + wanted)
