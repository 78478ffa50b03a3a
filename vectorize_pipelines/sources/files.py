"""Lists the files below a local folder or any fsspec URL: what is there, how large, changed when.

Nothing is read here. `pipeline.folder` compares a listing with the manifest and has what differs parsed; the
sensor for new files does the same comparison and stops there.
"""

import os
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pathspec

from vectorize_pipelines.errors import SourceError

#: Where fsspec's file systems put a file's modification time, and what identifies its version.
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "sha", "checksum")


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it lies there now.

    source_id    absolute path, or URI
    size         bytes
    modified_ns  modification time in nanoseconds since 1970, UTC; 0 where the file system keeps none
    version      the file system's own mark of this content (an ETag), or empty
    """

    source_id: str
    size: int
    modified_ns: int
    version: str = ""

    @property
    def occurred_at(self) -> datetime:
        """The file's own time, to the microsecond."""
        seconds, nanoseconds = divmod(self.modified_ns, 1_000_000_000)
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)


@dataclass(frozen=True, slots=True)
class Listing:
    """What lies below a root.

    unreadable  folders and files that could not be looked at, with the reason; what the manifest knows below
                them is neither changed nor vanished
    ignored     files that no pattern takes
    """

    files: Mapping[str, SourceFile]
    unreadable: Mapping[str, str]
    ignored: int


class FileSource:
    """The files below `root` that the patterns take.

    Patterns are those of .gitignore, relative to the root. Without `include`, files with one of `suffixes` are
    taken. Links to files and folders are followed, each folder once.
    """

    def __init__(self, root: str, suffixes: Collection[str], include: Collection[str], exclude: Collection[str]):
        """Raises `SourceError` where the root holds a password or names no known file system."""
        self._suffixes = frozenset(suffixes)
        self._include = pathspec.GitIgnoreSpec.from_lines(include) if include else None
        self._exclude = pathspec.GitIgnoreSpec.from_lines(exclude)
        self.root = _normalised_root(root)

    def holds(self, source_id: str) -> bool:
        """Whether a file of this name would belong to this source, were it there."""
        return source_id == self.root or source_id.startswith(self.root.rstrip("/") + "/")

    def list(self) -> Listing:
        """Raises `SourceError` where the root does not exist or cannot be read at all."""
        if "://" in self.root:
            return self._list_remote()
        return self._list_local()

    def _takes(self, relative: str) -> bool:
        if self._exclude.match_file(relative):
            return False
        if self._include is not None:
            return self._include.match_file(relative)
        return os.path.splitext(relative)[1].lower() in self._suffixes  # noqa: PTH122 (pathlib is ten times slower)

    def _list_local(self) -> Listing:
        try:
            status = Path(self.root).stat()
        except OSError as error:
            raise SourceError(f"{self.root}: {error.strerror}; give a folder, a file or a URL that exists") from None
        if not stat.S_ISDIR(status.st_mode):
            file = SourceFile(self.root, status.st_size, status.st_mtime_ns)
            return Listing({file.source_id: file}, {}, 0)
        files: dict[str, SourceFile] = {}
        unreadable: dict[str, str] = {}
        ignored = 0
        for entry in _walk(self.root, self._exclude, unreadable):
            if not self._takes(entry.path[len(self.root.rstrip("/")) + 1 :]):
                ignored += 1
                continue
            try:
                entry.path.encode()
                status = entry.stat()
            except UnicodeEncodeError:
                unreadable[ascii(entry.path)[1:-1]] = "its name is not valid UTF-8; rename it"
            except OSError as error:
                unreadable[entry.path] = f"{error.strerror}"
            else:
                files[entry.path] = SourceFile(entry.path, status.st_size, status.st_mtime_ns)
        return Listing(files, unreadable, ignored)

    def _list_remote(self) -> Listing:
        import fsspec

        try:
            filesystem, path = fsspec.core.url_to_fs(self.root)
            found: dict[str, Mapping[str, Any]] = filesystem.find(path, detail=True)
            if not found and not filesystem.exists(path):
                raise SourceError(f"{self.root}: nothing lies there; give a folder, a file or a URL that exists")
        except (OSError, ValueError, ImportError) as error:
            raise SourceError(f"{self.root} cannot be listed: {error}") from None
        base = path.rstrip("/") + "/"
        files: dict[str, SourceFile] = {}
        for name, info in found.items():
            if name == path or self._takes(name.removeprefix(base)):
                file = _remote_file(filesystem.unstrip_protocol(name), info)
                files[file.source_id] = file
        return Listing(files, {}, len(found) - len(files))


def _normalised_root(root: str) -> str:
    if "://" not in root:
        return str(Path(root).expanduser().absolute())
    if root.startswith("file://"):
        return str(Path(urlsplit(root).path))
    if urlsplit(root).password:
        raise SourceError(
            f"{urlsplit(root).scheme}://…@{urlsplit(root).hostname}: a URL with a password would end up in every "
            "record; give the credentials in the environment or in fsspec's configuration file"
        )
    return root.rstrip("/")


def _walk(root: str, exclude: pathspec.GitIgnoreSpec, unreadable: dict[str, str]) -> Iterator[os.DirEntry[str]]:
    """Every regular file below `root`; folders that cannot be opened are noted in `unreadable`."""
    seen: set[tuple[int, int]] = set()
    waiting = [root]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir():
                        relative = entry.path[len(root.rstrip("/")) + 1 :]
                        if not exclude.match_file(relative + "/") and _first_visit(entry, seen):
                            waiting.append(entry.path)
                    elif entry.is_file():
                        yield entry
        except OSError as error:
            if folder == root:
                raise SourceError(f"{root}: {error.strerror}") from None
            unreadable[folder] = f"{error.strerror}"


def _first_visit(entry: os.DirEntry[str], seen: set[tuple[int, int]]) -> bool:
    """Whether a folder is met for the first time: links can lead in circles."""
    status = entry.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in seen:
        return False
    seen.add(identity)
    return True


def _remote_file(uri: str, info: Mapping[str, Any]) -> SourceFile:
    modified = next((info[key] for key in _TIME_KEYS if info.get(key) is not None), 0)
    if isinstance(modified, str):
        modified = datetime.fromisoformat(modified)
    if isinstance(modified, datetime):
        modified = modified.astimezone(UTC).timestamp()
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    return SourceFile(uri, int(info.get("size") or 0), round(float(modified) * 1_000_000) * 1000, version)
