"""The newest version of each LanceDB table that is known to be on the disk: a small file a table, below `.durable`.

Called by `durability`. Each file has two places, of a disk sector each, which are written in turn: the power
may go while one is written, and the other one then counts. Its length never changes, so that writing it costs the file
system no entry in its journal.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from vectorize_pipelines.core.durable_files import sync_folders

FOLDER = ".durable"
_SECTOR = 512


@dataclass(frozen=True, slots=True)
class Mark:
    """The things that are certain of a table.

    version   the newest version that is certainly on the disk; 0 for a table that is being made
    commit    the version's identity (`commits`)
    system    the run of the operating system (`durable_files.running_system`) whose processes write versions after it;
              empty where these must not be relied on
    doubtful  whether acknowledged rows may have been lost since somebody last compared the table with its source
    """

    version: int
    commit: str
    system: str
    doubtful: bool = False


class Marks:
    """The marks of the tables of one directory. Safe for use by several threads and processes."""

    def __init__(self, directory: Path) -> None:
        self._folder = directory / FOLDER

    def read(self, table: str) -> Mark | None:
        """Return the mark of a table; None where there is none, or none that can be read. Raises `OSError`."""
        try:
            content = self._file(table).read_bytes()
        except FileNotFoundError:
            return None
        return _newest(content)[1]

    def update(self, table: str, change: Callable[[Mark | None], Mark]) -> Mark:
        """Replace a mark by what `change` makes of it; on the disk when this returns. Raises `OSError`."""
        self._folder.mkdir(exist_ok=True)
        descriptor = os.open(self._file(table), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            content = os.pread(descriptor, 2 * _SECTOR, 0)
            sequence, before = _newest(content)
            after = change(before)
            if after == before:
                return after
            entry = _packed(sequence + 1, after)
            if len(content) < 2 * _SECTOR:
                os.pwrite(descriptor, entry + entry, 0)
                os.fsync(descriptor)
                sync_folders(self._folder)
            else:
                os.pwrite(descriptor, entry, _SECTOR * ((sequence + 1) % 2))
                os.fdatasync(descriptor)
            return after
        finally:
            os.close(descriptor)

    def remove(self, table: str) -> None:
        """Remove the mark of a table that is gone. Raises `OSError`."""
        self._file(table).unlink(missing_ok=True)

    def _file(self, table: str) -> Path:
        return self._folder / table


def _packed(sequence: int, mark: Mark) -> bytes:
    text = json.dumps({"sequence": sequence, **asdict(mark)}).encode()
    entry = b"%08x %s" % (zlib.crc32(text), text)
    assert len(entry) <= _SECTOR, "a mark fits into a sector"
    return entry.ljust(_SECTOR)


def _newest(content: bytes) -> tuple[int, Mark | None]:
    """Return the later one of the places that are whole, with its number."""
    found: tuple[int, Mark | None] = (0, None)
    for start in range(0, len(content), _SECTOR):
        checksum, _, text = content[start : start + _SECTOR].rstrip().partition(b" ")
        if checksum != b"%08x" % zlib.crc32(text):
            continue
        fields = json.loads(text)
        sequence = fields.pop("sequence")
        if sequence > found[0]:
            found = sequence, Mark(**fields)
    return found
