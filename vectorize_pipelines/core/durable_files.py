"""Files and folders put on the disk itself, so that they outlive a loss of power.

A file that was written and closed lies in the system's memory for half a minute or more; its name lies there too, until
its folder is synchronized. All of this is about local file systems: who writes elsewhere needs none of it.
"""

import ctypes
import os
from collections.abc import Collection
from concurrent.futures import Executor
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def sync(path: str | Path) -> None:
    """Put a file, or the list of names of a folder, on the disk; one that is gone meanwhile is left out."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(paths: Collection[str], executor: Executor) -> None:
    """Put many paths on the disk at once: the file system then writes its journal once for several of them.

    Measured on ext4 for the six paths of a commit of 2,048 rows: 3.5 ms, one after the other 17 ms.
    """
    for _ in executor.map(sync, paths):
        pass


def sync_folders(folder: Path) -> None:
    """Make the names of a folder and of all those above it durable; those that nobody may read here are older."""
    for each in (folder, *folder.parents):
        try:
            sync(each)
        except PermissionError:
            return


def sync_file_system(path: Path) -> bool:
    """Put everything that was written to the file system of a path on the disk; False where the system cannot."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):
        return False
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if library.syncfs(descriptor) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
    finally:
        os.close(descriptor)
    return True


@cache
def running_system() -> str:
    """Return what tells this run of the operating system from others, anywhere; empty where it has no name.

    What processes of one run have written is seen by all of its processes, whether or not it is on the disk.
    """
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
