"""Decoding of an image file's bytes to upright RGB pixels. Called by `images.worker`, in processes that are confined.

`decode` reads hostile bytes in C: a process that holds anything of value goes through `images.pool`.
"""

import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from stat import S_ISREG
from typing import TYPE_CHECKING

from vectorize_pipelines.core.extras import install_command, is_installed
from vectorize_pipelines.core.image_limits import DEFAULT_LIMITS, ImageLimits
from vectorize_pipelines.errors import ItemError, UnreadableFileError
from vectorize_pipelines.images.errors import (
    CorruptImageError,
    EmptyImageError,
    ImageTooLargeError,
    UnsupportedImageError,
)

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

#: Files that are taken for images, by their names.
SUPPORTED_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"),
        *(".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"),
    }
)

#: What is decoded. Pillow knows more formats; those are rare, and each is more code that reads hostile bytes.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

#: JPEG's own downscaling leaves at least so many times the pixels that are needed, on each side. With 2 the result
#: of the resizing that follows differs from that of the full image by less than one grey level in root mean square.
DRAFT_FACTOR = 2

#: EXIF tag 0x0112 "Orientation" -> `Image.Transpose` that sets the image upright (Exif 3.0, section 4.6.5).
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}

#: Those that make the width of what is stored the height of what is shown.
_SIDEWAYS = (5, 6, 7, 8)
#: Chunks of a PNG file that are gone through for its EXIF.
MAX_CHUNKS = 100_000

_WHITE = (255, 255, 255)

#: Pixels of grey above 8 bits that are converted at a time.
STRIP_PIXELS = 2**20

#: Bytes that Pillow keeps of a pixel; four in all other modes.
_STORED_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
#: Pixels that are kept beside the decoded one: converted, and turned upright.
_BESIDE_BYTES = 8
#: Formats whose codec keeps a decoded frame of its own: bytes of a pixel of that.
_CODEC_BYTES = {"AVIF": 8, "HEIF": 8, "TIFF": 4, "WEBP": 4, "GIF": 4}

#: Stands for the range of values of an image of one value.
_SMALLEST_RANGE = 1e-30

_SIGNATURES = (
    (b"\xff\xd8\xff", 0, "JPEG"),
    (b"\x89PNG\r\n\x1a\n", 0, "PNG"),
    (b"GIF8", 0, "GIF"),
    (b"BM", 0, "BMP"),
    (b"II*\0", 0, "TIFF"),
    (b"MM\0*", 0, "TIFF"),
    (b"WEBP", 8, "WebP"),
    (b"ftypavif", 4, "AVIF"),
    (b"ftypavis", 4, "AVIF"),
)
_HEIF_SIGNATURES = (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypheim", b"ftypheis", b"ftypmif1", b"ftypmsf1")


def decode(
    content: bytes | bytearray | Path,
    shortest_side: int | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    reserve: Callable[[int], None] | None = None,
) -> "Image.Image":
    """Return the first frame or page of an image, mode RGB, turned upright as its EXIF orientation says.

    shortest_side  pixels that the caller will scale the image's shorter side to; a much larger JPEG is then
                   decoded at 1/2, 1/4 or 1/8 of its size, never below `DRAFT_FACTOR` times `shortest_side`.
                   None: full size
    reserve        called with the bytes that decoding is going to take, before it takes them

    Transparency is composited on white. 16-bit grey is divided by 257; other grey above 8 bits is stretched from
    its smallest to its largest value, except floating point within 0 to 1. CMYK is converted as Pillow does
    (JPEGs of Adobe's inverted kind included), and colour profiles are ignored: models have been trained so.

    Raises `UnreadableFileError`, `EmptyImageError`, `ImageTooLargeError`, `UnsupportedImageError` or
    `CorruptImageError`, whose message leaves the file's name to the caller.
    """
    data = read_image(content, limits)
    with _opened(data) as image, _damage_reported(data):
        _check_size(image.size, limits)
        if shortest_side is not None:
            side = DRAFT_FACTOR * shortest_side
            image.draft(None, (side, side))  # does nothing but for JPEGs
        if reserve is not None:
            reserve(image.width * image.height * _bytes_per_pixel(image))
        image.load()
        return _upright(_to_rgb(image), _orientation(image, data))


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """The header of an image: its format as Pillow names it, and its size in pixels as it is shown.

    A camera's JPEG with further pictures in it, of which Pillow makes the format MPO, is a JPEG.
    """

    format: str
    width: int
    height: int


def read_header(content: bytes | bytearray, limits: ImageLimits = DEFAULT_LIMITS) -> ImageHeader:
    """Read the header and decode nothing. Raises as `decode`, as far as the header shows it."""
    data = read_image(content, limits)
    with _opened(data) as image, _damage_reported(data):
        _check_size(image.size, limits)
        width, height = image.size
        # Of a TIFF file Pillow gives the size as it is shown from the beginning.
        if image.format != "TIFF" and _orientation(image, data) in _SIDEWAYS:
            width, height = height, width
        return ImageHeader("JPEG" if image.format == "MPO" else image.format or "", width, height)


def read_image(content: bytes | bytearray | Path, limits: ImageLimits) -> bytes | bytearray:
    """Return the bytes of an image's file. Raises `UnreadableFileError`, `ImageTooLargeError` or `EmptyImageError`."""
    data: bytes | bytearray
    if isinstance(content, Path):
        try:
            status = content.stat()
            if not S_ISREG(status.st_mode):
                raise UnreadableFileError("not a regular file")
            size = status.st_size
            data = content.read_bytes() if size <= limits.max_bytes else b""
        except OSError as error:
            raise UnreadableFileError(f"cannot be read: {error.strerror or error}") from error
    else:
        size, data = len(content), content
    if size > limits.max_bytes:
        raise ImageTooLargeError(
            f"{size:,} bytes, and at most {limits.max_bytes:,} are read; "
            "make the image smaller, or raise VECTORIZE_IMAGES__MAX_FILE_BYTES"
        )
    if not data:
        raise EmptyImageError("the file has no bytes; replace it")
    return data


@cache
def _formats() -> tuple[str, ...]:
    """Return what Pillow can decode of `FORMATS`, and HEIF where the package pillow-heif is installed."""
    from PIL import Image, features

    # Pillow warns from MAX_IMAGE_PIXELS on, where our own limit decides, and of damaged metadata, which nobody reads.
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    formats = tuple(name for name in FORMATS if name != "AVIF" or features.check("avif"))
    if not is_installed("heif"):
        return formats
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*formats, "HEIF")


def prepare_codecs() -> None:
    """Load what decoding needs, for a process that decodes one image at a time: codecs start no threads.

    Before its memory is bounded: an import that fails for want of it would look like a damaged image.
    """
    import numpy  # noqa: F401
    from PIL import AvifImagePlugin, Image

    _formats()
    Image.init()
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1


def formats_taken() -> tuple[str, ...]:
    """Return what `ImageHeader.format` may be."""
    return (*FORMATS, "HEIF")


@contextmanager
def _opened(data: bytes | bytearray) -> "Iterator[Image.Image]":
    """Open the image, with its header read and nothing decoded."""
    from PIL import Image, UnidentifiedImageError

    formats = _formats()
    try:
        with _damage_reported(data):
            image = Image.open(BytesIO(data), formats=formats)
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ImageTooLargeError(
            f"more than {most:,} pixels, as decompression bombs have and no setting allows; scale the image down"
        ) from error
    except CorruptImageError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise _unidentified(data, formats) from error.__cause__
        raise
    with image:
        yield image


def _unidentified(data: bytes | bytearray, formats: tuple[str, ...]) -> ItemError:
    """Return the error for bytes that no codec accepts: damaged where they start as an image does, else unsupported."""
    kind = _kind(data)
    if kind is not None:
        return CorruptImageError(
            f"starts as a {kind} image, but its header cannot be read; the file is damaged or cut short, replace it"
        )
    readable = ", ".join(formats)
    if data[4:12] in _HEIF_SIGNATURES:
        return UnsupportedImageError(
            f"a HEIF image, which needs the package pillow-heif: `{install_command('heif')}` installs it; "
            f"or convert to one of {readable}"
        )
    return UnsupportedImageError(f"not an image of a known format; convert it to one of {readable}")


def _kind(data: bytes | bytearray) -> str | None:
    return next((kind for magic, start, kind in _SIGNATURES if data.startswith(magic, start)), None)


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise CorruptImageError(f"its header says {width}x{height} pixels; the file is damaged, replace it")
    if width * height > limits.max_pixels:
        raise ImageTooLargeError(
            f"{width}x{height} pixels, and at most {limits.max_pixels:,} are decoded; "
            "scale the image down, or raise VECTORIZE_IMAGES__MAX_PIXELS"
        )


@contextmanager
def _damage_reported(data: bytes | bytearray) -> Iterator[None]:
    """Turn whatever a codec raises over damaged bytes into a `CorruptImageError`.

    Put around Pillow only: beside OSError its plugins raise SyntaxError, ValueError, struct.error, IndexError and
    more that no documentation lists.
    """
    from PIL import Image

    try:
        yield
    except (ItemError, MemoryError, Image.DecompressionBombError):
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        kind = _kind(data) or "image"
        raise CorruptImageError(
            f"cannot be decoded as {kind} ({reason[:300]}); the file is damaged or cut short, replace it"
        ) from error


def _bytes_per_pixel(image: "Image.Image") -> int:
    """Return how many bytes are taken at most for a pixel while the image is decoded."""
    return _STORED_BYTES.get(image.mode, 4) + _BESIDE_BYTES + _CODEC_BYTES.get(image.format or "", 0)


def _to_rgb(image: "Image.Image") -> "Image.Image":
    if image.mode == "LAB":
        raise UnsupportedImageError("its colours are L*a*b*; save it as RGB")
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey_of_8_bits(image)
    if image.has_transparency_data:
        return _on_white(image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")


def _on_white(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    background = Image.new("RGB", image.size, _WHITE)
    background.paste(image, mask=image.getchannel("A"))
    return background


def _grey_of_8_bits(image: "Image.Image") -> "Image.Image":
    """Return grey of 16 bits, 32 bits or floating point as mode L; Pillow's own conversion clips at 255.

    In strips: as floating point of 64 bits the whole would take eight bytes a pixel, several times over.
    """
    import numpy as np
    from PIL import Image

    extremes = [(float(each.min()), float(each.max())) for _, each in _strips(image)]
    darkest, brightest = _value_range(image.mode, min(low for low, _ in extremes), max(high for _, high in extremes))
    result = Image.new("L", image.size)
    for top, values in _strips(image):
        grey = (values - darkest) * (255.0 / max(brightest - darkest, _SMALLEST_RANGE))
        result.paste(Image.fromarray(np.rint(grey).astype(np.uint8)), (0, top))
    return result


def _strips(image: "Image.Image") -> "Iterator[tuple[int, npt.NDArray[np.float64]]]":
    """Yield the rows of a grey image, some at a time, and where they begin."""
    import numpy as np

    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        yield top, np.nan_to_num(np.asarray(strip, dtype=np.float64), posinf=0.0, neginf=0.0)


def _value_range(mode: str, darkest: float, brightest: float) -> tuple[float, float]:
    """Return the values that stand for black and white: what the mode implies, else the smallest and the largest."""
    if mode.startswith("I;16") or (mode == "I" and darkest >= 0 and 255 < brightest <= 65535):
        return 0.0, 65535.0
    if mode == "F" and darkest >= 0 and brightest <= 1:
        return 0.0, 1.0
    if mode == "I" and darkest >= 0 and brightest <= 255:
        return 0.0, 255.0
    return darkest, brightest


def _orientation(image: "Image.Image", data: bytes | bytearray) -> int:
    """Return 1 to 8; 1 (upright) also where the metadata cannot be read, which says nothing about the pixels.

    Decodes nothing: PNG's own `getexif` decodes the pixels to look behind them, so that is done here.
    """
    from PIL import Image

    try:
        if image.format == "PNG" and "exif" not in image.info and (exif := _exif_of_png(data)) is not None:
            image.info["exif"] = exif
        orientation = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, LookupError, TypeError, OSError, struct.error):
        return 1
    return orientation if isinstance(orientation, int) else 1


def _exif_of_png(data: bytes | bytearray) -> bytes | None:
    place = 8
    for _ in range(MAX_CHUNKS):
        if place + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"eXIf":
            return bytes(data[place + 8 : place + 8 + length])
        place += 12 + length
    return None


def _upright(image: "Image.Image", orientation: int) -> "Image.Image":
    from PIL import Image

    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(Image.Transpose[method])
