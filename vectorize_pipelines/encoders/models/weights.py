"""The size of a model, read from the heads of its weight files. Called before a model is loaded."""

import json
import math
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

from vectorize_pipelines.errors import UnknownModelError

#: Bytes of a parameter in a file of torch's own format, whose head does not say; a few models keep 2.
TORCH_BYTES_PER_PARAMETER = 4

#: In OpenAI's own archives of CLIP.
TORCHSCRIPT_BYTES_PER_PARAMETER = 2


_METADATA = "__metadata__"

#: What the format allows.
LARGEST_HEADER_BYTES = 100_000_000


def count_parameters(files: Iterable[Path]) -> int:
    """Return the parameters in all of the files: exact for safetensors, by size for torch's formats.

    Raises `UnknownModelError` where a file is no safetensors.
    """
    return sum(_in_safetensors(file) if file.suffix == ".safetensors" else _by_size(file) for file in files)


def safetensors_header(path: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor in a safetensors file: eight bytes of length, then a JSON object.

    Raises `UnknownModelError` where it cannot be read.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, LARGEST_HEADER_BYTES)))  # cut short it is no JSON
        return {name: [int(side) for side in entry["shape"]] for name, entry in header.items() if name != _METADATA}
    except (
        OSError,
        ValueError,
        OverflowError,
        MemoryError,
        TypeError,
        KeyError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        raise UnknownModelError(f"cannot read {path}: it is no whole safetensors file ({error!r})") from error


def _in_safetensors(path: Path) -> int:
    return sum(math.prod(shape) for shape in safetensors_header(path).values())


def _by_size(path: Path) -> int:
    return path.stat().st_size // (
        TORCHSCRIPT_BYTES_PER_PARAMETER if is_torchscript(path) else TORCH_BYTES_PER_PARAMETER
    )


def is_torchscript(weights: Path) -> bool:
    """Return whether these are OpenAI's own files: archives of TorchScript, no plain weights to torch."""
    if not zipfile.is_zipfile(weights):
        return False
    with zipfile.ZipFile(weights) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())
