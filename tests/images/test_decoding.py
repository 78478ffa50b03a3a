"""Every format and colour mode comes out as it looks; what cannot be decoded says so, and why."""

import contextlib
import os
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, features

from tests.images.pictures import encoded, photo
from vectorize_pipelines.errors import ItemError, UnreadableFileError
from vectorize_pipelines.images import (
    CorruptImageError,
    EmptyImageError,
    ImageLimits,
    ImageTooLargeError,
    UnsupportedImageError,
    decode,
    read_header,
)
from vectorize_pipelines.images.decoding import SUPPORTED_SUFFIXES

PICTURE = photo(1, 96, 64)


def values(image: Image.Image) -> npt.NDArray[np.float64]:
    return np.asarray(image, dtype=np.float64)


def difference(image: Image.Image, wanted: Image.Image) -> float:
    assert image.mode == "RGB"
    assert image.size == wanted.size
    return float(np.abs(values(image) - values(wanted)).max())


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("PNG", {}),
        ("PNG", {"interlace": 1}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_a_lossless_format_gives_the_very_pixels(file_format: str, options: dict[str, object]) -> None:
    assert difference(decode(encoded(PICTURE, file_format, **options)), PICTURE) == 0


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "subsampling": 0, "progressive": True}),
        ("WEBP", {"quality": 95}),
        *([("AVIF", {"quality": 95})] if features.check("avif") else []),
    ],
)
def test_a_lossy_format_gives_nearly_the_pixels(file_format: str, options: dict[str, object]) -> None:
    decoded = decode(encoded(PICTURE, file_format, **options))
    assert np.abs(values(decoded) - values(PICTURE)).mean() < 8


def test_the_first_frame_of_an_animation_or_page_of_a_document_is_taken() -> None:
    frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "green", "blue")]
    for file_format in ("GIF", "PNG", "TIFF", "WEBP"):
        content = encoded(frames[0], file_format, save_all=True, append_images=frames[1:])
        assert difference(decode(content), frames[0]) <= 2, file_format


def test_a_photograph_with_a_second_picture_in_it_gives_the_first() -> None:
    content = encoded(PICTURE, "MPO", save_all=True, append_images=[PICTURE.rotate(180)], quality=95, subsampling=0)
    assert np.abs(values(decode(content)) - values(PICTURE)).mean() < 4
    assert read_header(content).format == "JPEG"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_the_orientation_of_the_camera_is_applied(orientation: int, file_format: str) -> None:
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # members of Image.Transpose that undo what EXIF says
    inverse_of = {**inverse, 6: int(Image.Transpose.ROTATE_90), 8: int(Image.Transpose.ROTATE_270)}
    upright = photo(2, 320, 192).resize((40, 24))
    method = inverse_of.get(orientation)
    stored = upright if method is None else upright.transpose(Image.Transpose(method))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, file_format, exif=exif, **({} if file_format == "TIFF" else {"quality": 95}))
    for each in (content, with_exif_behind_pixels(content) if file_format == "PNG" else content):
        decoded = decode(each)
        assert decoded.size == upright.size
        assert np.abs(values(decoded) - values(upright)).mean() < 5
        header = read_header(each)
        assert (header.format, header.width, header.height) == (file_format, *upright.size)


def with_exif_behind_pixels(png: bytes) -> bytes:
    """A PNG file with its EXIF where some programs write it: behind the pixels."""
    start = png.index(b"eXIf") - 4
    chunk = png[start : start + 12 + int.from_bytes(png[start : start + 4])]
    return png.replace(chunk, b"").replace(png[-12:], chunk + png[-12:])


def test_the_header_of_a_png_decodes_no_pixels() -> None:
    header = read_header(png_of(4000, 3000, b"no pixels at all"))
    assert (header.width, header.height) == (4000, 3000)


@pytest.mark.parametrize("name", ["exif6.jpg", "photo.jfif"])
def test_a_camera_says_which_way_up(name: str) -> None:
    content = (Path(__file__).parent / "cases" / name).read_bytes()
    header = read_header(content)
    assert (header.format, header.width, header.height) == ("JPEG", *decode(content).size) == ("JPEG", 320, 200)
    assert Path(name).suffix in SUPPORTED_SUFFIXES


def test_metadata_that_cannot_be_read_does_not_matter() -> None:
    content = encoded(PICTURE, "JPEG", exif=b"Exif\0\0garbage that is no TIFF", quality=95, subsampling=0)
    assert decode(content).size == PICTURE.size


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_laid_on_white(mode: str, file_format: str) -> None:
    alpha = Image.linear_gradient("L").resize(PICTURE.size)
    image = PICTURE.convert(mode)
    image.putalpha(alpha)
    weight = values(alpha)[..., None] / 255
    wanted = values(PICTURE.convert(mode[:-1]).convert("RGB")) * weight + 255 * (1 - weight)
    options = {"lossless": True, "exact": True} if file_format == "WEBP" else {}
    decoded = decode(encoded(image.convert("RGBA") if file_format == "WEBP" else image, file_format, **options))
    assert np.abs(values(decoded) - wanted).max() <= 1


def test_a_transparent_colour_is_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((0, 0), 0)
    for file_format in ("PNG", "GIF"):
        decoded = decode(encoded(image, file_format, transparency=1))
        assert decoded.getpixel((0, 0)) == (255, 0, 0), file_format
        assert decoded.getpixel((2, 2)) == (255, 255, 255), file_format


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_few_colours_become_rgb(mode: str) -> None:
    image = PICTURE.convert(mode)
    assert difference(decode(encoded(image, "PNG")), image.convert("RGB")) == 0


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_grey_of_16_bits_is_scaled_not_clipped(file_format: str) -> None:
    ramp = np.linspace(0, 65535, 256 * 16).reshape(16, 256).astype(np.uint16)
    decoded = decode(encoded(Image.fromarray(ramp), file_format))
    assert np.abs(values(decoded)[..., 0] - ramp / 257).max() <= 0.5


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-40.0, 1800.0)])
def test_floating_point_grey_is_stretched(low: float, high: float) -> None:
    ramp = np.linspace(low, high, 64, dtype=np.float32).reshape(8, 8)
    ramp[0, 1] = np.nan if low < 0 else ramp[0, 1]
    decoded = values(decode(encoded(Image.fromarray(ramp), "TIFF")))[..., 0]
    assert (decoded[0, 0], decoded[-1, -1]) == (0, 255)


def test_one_grey_value_throughout_is_no_division_by_zero() -> None:
    assert decode(encoded(Image.fromarray(np.full((4, 4), 7.5, dtype=np.float32)), "TIFF")).getpixel((0, 0)) == (
        0,
        0,
        0,
    )


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_four_colours_of_print_look_as_they_do_on_paper(file_format: str) -> None:
    cyan, black = Image.new("CMYK", (16, 16), (255, 0, 0, 0)), Image.new("CMYK", (16, 16), (0, 0, 0, 255))
    options = {"quality": 100} if file_format == "JPEG" else {}  # Pillow writes Adobe's inverted kind
    assert np.allclose(values(decode(encoded(cyan, file_format, **options))), [0, 255, 255], atol=3)
    assert np.allclose(values(decode(encoded(black, file_format, **options))), 0, atol=3)


@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (900, 700), (480, 640), (2000, 500)])
def test_a_jpeg_scaled_down_early_hardly_differs(width: int, height: int) -> None:
    content = encoded(photo(3, width, height), "JPEG", quality=85)
    early, full = decode(content, shortest_side=112), decode(content)
    assert min(early.size) >= 224
    assert early.size <= full.size
    small = (early.width * 112 // min(early.size), early.height * 112 // min(early.size))
    error = values(early.resize(small, Image.Resampling.BICUBIC)) - values(full.resize(small, Image.Resampling.BICUBIC))
    assert float(np.sqrt((error**2).mean())) < 1.5


def test_only_a_much_larger_jpeg_is_scaled_down_early() -> None:
    assert decode(encoded(photo(4, 400, 300), "JPEG"), shortest_side=224).size == (400, 300)
    assert decode(encoded(photo(4, 640, 512), "PNG"), shortest_side=64).size == (640, 512)


def test_threads_decode_side_by_side() -> None:
    contents = [encoded(photo(seed, 200, 150), "JPEG") for seed in range(12)]
    with ThreadPoolExecutor(4) as pool:
        assert [each.tobytes() for each in pool.map(decode, contents)] == [decode(each).tobytes() for each in contents]


def test_a_file_is_read(tmp_path: Path) -> None:
    file = tmp_path / "picture.of.no.known.suffix"
    file.write_bytes(encoded(PICTURE, "PNG"))
    assert difference(decode(file), PICTURE) == 0


def png_of(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG whose header says what we like."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


HUGE = {
    "a bomb of zeros": png_of(60_000, 60_000, bytes(100_000)),
    "sides beyond 2**31": png_of(2**31 - 1, 2**31 - 1),
    "more than Pillow takes": png_of(20_000, 20_000),
    "more than the limit": png_of(10_001, 9_000),
    "a GIF's canvas": b"GIF89a"
    + struct.pack("<HH", 65535, 65535)
    + bytes([0x80, 0, 0, 0, 0, 0, 9, 9, 9])
    + b","
    + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    + b"\x02\x02\x4c\x01\x00\x3b",
    "a BMP": b"BM"
    + struct.pack("<IHHI", 100, 0, 0, 54)
    + struct.pack("<IiiHHIIiiII", 40, 60000, 60000, 1, 24, *[0] * 6),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest undoes the filter of `decode`
@pytest.mark.parametrize("name", HUGE)
def test_huge_images_are_refused_by_their_header(name: str) -> None:
    with pytest.raises(ImageTooLargeError, match="scale the image down"):
        decode(HUGE[name])


def test_the_limits_are_the_callers() -> None:
    content = encoded(PICTURE, "PNG")
    with pytest.raises(
        ImageTooLargeError, match=r"96x64 pixels, and at most 6,000 are decoded.*VECTORIZE_IMAGES__MAX_PIXELS"
    ):
        decode(content, limits=ImageLimits(max_pixels=6000))
    with pytest.raises(ImageTooLargeError, match="bytes, and at most 100 are read"):
        decode(content, limits=ImageLimits(max_bytes=100))
    assert decode(content, limits=ImageLimits(max_pixels=96 * 64)).size == (96, 64)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "large.png"
    with file.open("wb") as stream:
        stream.truncate(10 * 2**40 if os.name == "posix" else 2**20)
    with pytest.raises(ImageTooLargeError, match="make the image smaller, or raise VECTORIZE_IMAGES__MAX_FILE_BYTES"):
        decode(file, limits=ImageLimits(max_bytes=1000))


CORRUPT = {
    **{name: encoded(PICTURE, name)[:-300] for name in ("JPEG", "PNG", "WEBP", "BMP")},
    "TIFF": encoded(PICTURE, "TIFF")[:-3000],
    "GIF": encoded(PICTURE, "GIF")[:600],
    "header of a PNG": encoded(PICTURE, "PNG")[:20],
    "header of a JPEG": b"\xff\xd8\xff\xe0\x00\x10JFIF",
    "no width": png_of(0, 5),
    "no pixels": png_of(5, 5),
    "garbled PNG": encoded(PICTURE, "PNG")[:60] + bytes(500) + encoded(PICTURE, "PNG")[560:],
}


@pytest.mark.parametrize("name", CORRUPT)
def test_damaged_images_say_so(name: str) -> None:
    with pytest.raises(CorruptImageError, match="damaged"):
        decode(CORRUPT[name])


@pytest.mark.parametrize(
    "content",
    [b"plain text", b"%PDF-1.7\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", bytes(1000), b"x", b"P6 1 1 255\n..."],
)
def test_what_is_no_image_says_what_is(content: bytes) -> None:
    with pytest.raises(UnsupportedImageError, match="JPEG, PNG"):
        decode(content)


def test_heif_names_the_package_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vectorize_pipelines.images.decoding._formats", lambda: ("JPEG", "PNG"))
    with pytest.raises(UnsupportedImageError, match=r"pip install 'vectorize-pipelines\[heif\]'"):
        decode(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))


def test_a_colour_space_without_conversion_is_refused() -> None:
    with pytest.raises(UnsupportedImageError, match="save it as RGB"):
        decode(encoded(Image.new("LAB", (8, 8)), "TIFF"))


def test_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    for content in (b"", tmp_path / "empty.jpg"):
        with pytest.raises(EmptyImageError):
            decode(content)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.jpg", tmp_path):
        with pytest.raises(UnreadableFileError) as caught:
            decode(path)
        assert caught.value.retryable


@pytest.mark.filterwarnings("ignore::UserWarning")  # pytest undoes the filter of `decode`
def test_hostile_bytes_raise_nothing_but_errors_of_items() -> None:
    random = np.random.default_rng(5)
    small = PICTURE.resize((24, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    for file_format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        original = np.frombuffer(encoded(small, file_format, exif=exif), dtype=np.uint8)
        for _ in range(60):
            garbled = original.copy()
            places = random.integers(0, len(garbled), size=random.integers(1, 12))
            garbled[places] = random.integers(0, 256, size=len(places))
            with contextlib.suppress(ItemError):
                assert decode(garbled.tobytes()).mode == "RGB"
            with contextlib.suppress(ItemError):
                assert read_header(garbled.tobytes()).format == file_format
