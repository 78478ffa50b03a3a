"""A check that everything that a version of a LanceDB table needs is there. Called by `durability` and `catalogue`.

It finds files that are missing, empty or cut off, and version files that are none; not what changed within a file.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa

#: The end of every file of data.
_MAGIC = b"LANC"


def is_whole(folder: Path, version: int) -> bool:
    """Return whether a version can be read; `folder` is that of the table."""
    import lance

    try:
        dataset = lance.dataset(str(folder), version=version)
        if dataset.version != version or not dataset.schema.names:
            return False  # of a file of zeros LanceDB reads a version without columns
        fragments = dataset.get_fragments()
        return all(_has_files(folder, fragment) for fragment in fragments) and all(
            _has_index(folder, part.uuid) for index in dataset.describe_indices() for part in index.segments
        )
    except (OSError, RuntimeError, ValueError, pa.ArrowException):
        return False


def _has_files(folder: Path, fragment: Any) -> bool:
    data = fragment.metadata.files
    deletions = fragment.deletion_file()
    return all(_is_data(folder / "data" / file.path, file.file_size_bytes) for file in data) and (
        deletions is None or _size(folder / deletions) > 0
    )


def _is_data(file: Path, size: int | None) -> bool:
    if _size(file) < len(_MAGIC) or size not in (None, _size(file)):
        return False
    with file.open("rb") as opened:
        opened.seek(-len(_MAGIC), 2)
        return opened.read() == _MAGIC


def _has_index(folder: Path, uuid: str) -> bool:
    files = [*(folder / "_indices" / str(uuid)).glob("*")]
    return bool(files) and all(_size(file) > 0 for file in files)


def _size(file: Path) -> int:
    return file.stat().st_size
