"""Reads a file's bytes, wherever it lies. Called in the parser processes, by the reader of images and by checks."""

from pathlib import Path
from stat import S_ISREG

from vectorize_pipelines.errors import UnreadableFileError


def read_content(uri: str, limit: int) -> bytes:
    """At most `limit` bytes of a file; a plain path is opened directly, anything else through fsspec.

    Raises `UnreadableFileError`.
    """
    return _read_remote(uri, limit) if "://" in uri else _read_local(Path(uri), limit)


def _read_local(path: Path, limit: int) -> bytes:
    try:
        if not S_ISREG(path.stat().st_mode):  # opening a named pipe would wait for its writer
            raise UnreadableFileError("is no regular file; exclude it")
        with path.open("rb") as file:
            return file.read(limit)
    except OSError as error:
        raise UnreadableFileError(f"cannot be read: {error.strerror or error}") from error


def _read_remote(uri: str, limit: int) -> bytes:
    import fsspec

    try:
        with fsspec.open(uri, "rb") as file:
            return bytes(file.read(limit))
    except MemoryError:
        raise
    except Exception as error:  # every file system has exceptions of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableFileError(f"cannot be read: {reason}") from error
