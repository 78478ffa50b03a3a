"""The identity of commits to LanceDB tables, found without LanceDB's help. Called by the other modules of `lancedb`.

A version's number would not do: a table that is made again begins at 1 again. The manifest of a version names its
transaction and all its files of data by UUIDs, so what the file says is the commit's identity. Manifests lie where
Lance has put them since the second version of their naming; a table in which they lie elsewhere has no identity here.
"""

import hashlib
import os
from pathlib import Path

_SUFFIX = ".manifest"
_NAME_LENGTH = 20 + len(_SUFFIX)
_HIGHEST = 2**64 - 1


def table_folder(directory: Path, table: str) -> Path:
    """Return the folder in which everything of a table lies."""
    return directory / f"{table}.lance"


def manifest_file(directory: Path, table: str, version: int) -> Path:
    """Return the file that makes a version of a table; it appears whole or not at all while the system runs."""
    # The newest sorts first.
    return _versions(directory, table) / f"{_HIGHEST - version:020}{_SUFFIX}"


def versions(directory: Path, table: str) -> list[int]:
    """Return the versions of a table, the newest first; none where there is no table, or where they lie elsewhere."""
    return [_HIGHEST - int(name.removesuffix(_SUFFIX)) for name in sorted(_manifests(directory, table))]


def commit_of(directory: Path, table: str, version: int) -> bytes | None:
    """Return the identity of a version of a table; None where it has none."""
    return _identity(manifest_file(directory, table, version))


def listing(directory: Path, table: str) -> tuple[int, int] | None:
    """Return a stamp that changes whenever a version is added or removed; None where there is no table.

    It is the folder's time of change, so what happens within a tick of the system's clock may not show.
    """
    try:
        found = _versions(directory, table).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def newest_commit(directory: Path, table: str) -> bytes | None:
    """Return the identity of the newest version of a table that has few; None where there is no table or identity."""
    names = _manifests(directory, table)
    return _identity(_versions(directory, table) / min(names)) if names else None


def _manifests(directory: Path, table: str) -> list[str]:
    """Return the names of the manifests, in no order; none where one of them is named in the older way."""
    try:
        # Not `Path.iterdir`: this is asked at every call of the store.
        names = [name for name in os.listdir(_versions(directory, table)) if name.endswith(_SUFFIX)]  # noqa: PTH208
    except FileNotFoundError:
        return []
    return names if all(len(name) == _NAME_LENGTH for name in names) else []


def _versions(directory: Path, table: str) -> Path:
    return table_folder(directory, table) / "_versions"


def _identity(manifest: Path) -> bytes | None:
    try:
        return hashlib.blake2b(manifest.read_bytes(), digest_size=16).digest()
    except FileNotFoundError:
        return None
