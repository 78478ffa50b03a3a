"""Tells commits of LanceDB tables apart, without LanceDB's help. Called by the other `lancedb` modules.

A version's number would not do: a table that is made anew begins at 1 again. The manifest of a version names its
transaction and all its files of data by UUIDs, so what the file says is the commit's identity. Manifests lie where
Lance has put them since the second version of their naming; a table in which they lie elsewhere has no identity here.
"""

import hashlib
from pathlib import Path

_SUFFIX = ".manifest"
_NAME_LENGTH = 20 + len(_SUFFIX)


def commit_of(directory: Path, table: str, version: int) -> bytes | None:
    """The identity of a version of a table; None where it has none."""
    # The newest sorts first.
    return _identity(_versions(directory, table) / f"{2**64 - 1 - version:020}{_SUFFIX}")


def listing(directory: Path, table: str) -> tuple[int, int] | None:
    """Changes whenever a version is added or removed; None where there is no table.

    It is the folder's time of change, so what happens within a tick of the system's clock may not show.
    """
    try:
        found = _versions(directory, table).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def newest_commit(directory: Path, table: str) -> bytes | None:
    """The identity of the newest version of a table that has few; None where there is no table or no identity."""
    try:
        names = [file.name for file in _versions(directory, table).iterdir() if file.suffix == _SUFFIX]
    except FileNotFoundError:
        return None
    if not names or any(len(name) != _NAME_LENGTH for name in names):
        return None
    return _identity(_versions(directory, table) / min(names))


def _versions(directory: Path, table: str) -> Path:
    return directory / f"{table}.lance" / "_versions"


def _identity(manifest: Path) -> bytes | None:
    try:
        return hashlib.blake2b(manifest.read_bytes(), digest_size=16).digest()
    except FileNotFoundError:
        return None
