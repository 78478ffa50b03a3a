"""Reading of a file's bytes, wherever it lies. Called by the pool of parsers, by the readers of files and by checks.

A local name may lead to anything: a pipe that nobody writes to, a device without end, a socket. So what is opened is
looked at before it is read, is never waited for, and is read to a limit.
"""

import errno
import os
import stat
from pathlib import Path
from urllib.parse import urlsplit

from vectorize_pipelines.core.extras import install_command
from vectorize_pipelines.core.urls import shown_text
from vectorize_pipelines.errors import UnreadableFileError

#: Opening a named pipe would wait for its writer, and a terminal could become this process's own.
_OPENED = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_BLOCK_BYTES = 64 * 2**10
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}
#: Protocol -> the extra of this project that has its package.
EXTRA_OF_SCHEME = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
#: The same whether or not anything lies where the link leads.
LEADS_OUT = "is, or lies behind, a link that leads out of the folder"


def read_content(uri: str, limit: int, within: str | None = None) -> bytes:
    """Return at most `limit` bytes of a file; a plain path is opened directly, anything else through fsspec.

    within  the real path of the folder that a local file has to lie in, wherever links lead; None: anywhere

    Raises `UnreadableFileError`.
    """
    if "://" in uri:
        return _read_remote(uri, limit)
    try:
        if within is not None:
            return read_below(Path(within), real_parts(uri, within), limit)
        return _read_open(os.open(Path(uri), _OPENED), limit)
    except OSError as error:
        raise UnreadableFileError(not_opened(error)) from error


def open_local(path: str) -> int:
    """Return the descriptor of a regular file, open for reading. Raises `UnreadableFileError`."""
    try:
        descriptor = os.open(Path(path), _OPENED)
    except OSError as error:
        raise UnreadableFileError(not_opened(error)) from error
    kind = kind_of(os.fstat(descriptor).st_mode)
    if kind is not None:
        os.close(descriptor)
        raise UnreadableFileError(f"is no regular file but {kind}; exclude it")
    return descriptor


def kind_of(mode: int) -> str | None:
    """Return what something is that is no regular file, by its mode; None for a regular file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no regular file")


def leads_out(path: str, root: str) -> bool:
    """Return whether what lies behind a path lies outside of a folder, which is named by its real path."""
    return not _lies_in(os.path.realpath(path), root)


def real_parts(path: str, root: str) -> tuple[str, ...]:
    """Return the real path of something, from a folder on. Raises `UnreadableFileError` where it lies outside of it."""
    real = os.path.realpath(path)  # once: a link may lead elsewhere a moment later
    if not _lies_in(real, root):
        raise UnreadableFileError(LEADS_OUT)
    return Path(real).relative_to(root).parts


def _lies_in(real: str, root: str) -> bool:
    return real == root or real.startswith(root.rstrip("/") + "/")


def read_below(root: Path, parts: tuple[str, ...], limit: int) -> bytes:
    """Return at most `limit` bytes of the regular file at `root / parts`, which are real paths.

    Step by step, following no link: one that was put there after the path was resolved leads nowhere. Raises
    `OSError`, and `UnreadableFileError` for what is no regular file.
    """
    if not parts:
        raise UnreadableFileError("is a folder")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        opened = os.open(parts[-1], _OPENED | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)
    return _read_open(opened, limit)


def missing_package(url: str, error: ImportError) -> str:
    """Return what to install for URLs like this one: an extra of this project where there is one."""
    extra = EXTRA_OF_SCHEME.get(urlsplit(url).scheme)
    return f"its package is not installed; `{install_command(extra)}` installs it" if extra else f"{error}"


def not_opened(error: OSError) -> str:
    """Return why something could not be opened or read."""
    if error.errno == errno.ENXIO:  # what opening a socket says
        return "is no regular file but a socket or a device; exclude it"
    return f"cannot be read: {error.strerror or error}"


def _read_open(descriptor: int, limit: int) -> bytes:
    """Read an open file, and close it in any case."""
    try:
        status = os.fstat(descriptor)
        if (kind := kind_of(status.st_mode)) is not None:
            raise UnreadableFileError(f"is no regular file but {kind}; exclude it")
        blocks: list[bytes] = []
        left = limit
        while left > 0 and (block := os.read(descriptor, min(left, max(_BLOCK_BYTES, status.st_size + 1)))):
            blocks.append(block)
            left -= len(block)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)
    except BlockingIOError:  # some files of the kernel's have the mode of a regular one, and wait for what comes
        raise UnreadableFileError("is no regular file: reading it would wait; exclude it") from None
    finally:
        os.close(descriptor)


def _read_remote(uri: str, limit: int) -> bytes:
    import fsspec

    try:
        with fsspec.open(uri, "rb") as file:
            return bytes(file.read(limit))
    except MemoryError:
        raise
    except ImportError as error:
        raise UnreadableFileError(f"cannot be read: {missing_package(uri, error)}") from error
    except Exception as error:  # noqa: BLE001 (every file system has exceptions of its own, which hold the whole URI)
        reason = shown_text(" ".join(str(error).split()), uri) or type(error).__name__
        raise UnreadableFileError(f"cannot be read: {reason}") from None
