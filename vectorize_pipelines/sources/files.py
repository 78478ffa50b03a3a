"""Listing of the files below a local folder or any fsspec URL: what is there, how large, changed when.

Nothing is read here. `pipeline.files.folder` compares a listing with the manifest and has what differs parsed; the
sensor for new files does the same comparison and stops there. Files come one by one in the order of their source ids
(by code points, as the manifest has them), so that a bucket of any size is compared without being held; what is held
are the names of one folder, and of a local tree those of its folders (`remote_listing` says of which buckets more).
"""

import errno
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pathspec

from vectorize_pipelines.core.temporary_files import is_temporary
from vectorize_pipelines.core.urls import shown_text
from vectorize_pipelines.errors import SourceError
from vectorize_pipelines.sources.content import LEADS_OUT, kind_of, leads_out, missing_package
from vectorize_pipelines.sources.remote_listing import Info, remote_files

#: Where fsspec's file systems put a file's modification time, and what identifies its version.
_TIME_KEYS = ("mtime", "LastModified", "last_modified", "updated", "modified", "created")
NOT_UTF8 = "its name is not valid UTF-8; rename it"
#: Why a link is listed and not read. Its rows, if it was followed once, stay.
NOT_FOLLOWED = (
    f"{LEADS_OUT}, and is not followed; exclude it, or, where it is meant, set VECTORIZE_CORPUS__FOLLOW_LINKS (for "
    "images VECTORIZE_GALLERY__FOLLOW_LINKS), or `vectorize ingest --follow-links`"
)
#: Why a link is listed that leads nowhere. Rows of what lay there stay.
LEADS_NOWHERE = "is a link, and what it leads to is not there; mount or restore that, or remove the link"
_EARLIEST = int(datetime(1, 1, 2, tzinfo=UTC).timestamp())
_LATEST = int(datetime(9999, 12, 30, tzinfo=UTC).timestamp())
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "sha", "checksum")


def time_of(modified_ns: int) -> datetime:
    """Return nanoseconds since 1970 as a time; what no calendar has, as its first or last second."""
    seconds, nanoseconds = divmod(modified_ns, 1_000_000_000)
    seconds = min(max(seconds, _EARLIEST), _LATEST)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=nanoseconds // 1000)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it lies there now.

    source_id    absolute path, or URI
    size         bytes
    modified_ns  modification time in nanoseconds since 1970, UTC; 0 where the file system keeps none
    version      the file system's own mark of this content (an ETag), or empty
    within       the real path of the folder that its content has to lie in; None: anywhere
    """

    source_id: str
    size: int
    modified_ns: int
    version: str = ""
    within: str | None = None

    @property
    def occurred_at(self) -> datetime:
        """The file's own time, to the microsecond."""
        return time_of(self.modified_ns)


class OrderedListing:
    """The files below a root, in the order of their source ids. Iterated once, which raises `SourceError`.

    While it is iterated the other two are filled: what they say of a name is there before a later name comes.

    unreadable   folders and files that could not be looked at, are no regular files, or are links that are not
                 followed, with the reason; what the manifest knows below them is neither changed nor vanished
    hidden       links that lead nowhere now and, by their names, to files of other kinds; of these, too, what the
                 manifest knows below them has not vanished
    other_kinds  suffix in lower case, empty where there is none -> how many files were passed over for it; nothing
                 where `include` decides
    left_out     how many files were passed over as `core.temporary_files` names them
    found        how many files have come
    """

    def __init__(
        self,
        files: "Callable[[OrderedListing], Iterator[SourceFile]]",
        passes_over: Callable[[str], bool] = lambda source_id: False,
    ):
        """`passes_over` returns whether a file that does not come lies there, and is of another kind."""
        self._passes_over = passes_over
        self.unreadable: dict[str, str] = {}
        self.hidden: set[str] = set()
        self.other_kinds: Counter[str] = Counter()
        self.left_out = 0
        self.found = 0
        self._files = files

    def __iter__(self) -> Iterator[SourceFile]:
        for file in self._files(self):
            self.found += 1
            yield file

    def hides(self, source_id: str) -> bool:
        """Return whether a file may lie there though it did not come.

        It, or a folder that it lies in, could not be looked at; or it is of another kind: who ingests one file by its
        name has it read by what it holds. Raises `SourceError`.
        """
        name = source_id if self.unreadable or self.hidden else ""
        while name:
            if name in self.unreadable or name + "/" in self.unreadable or name in self.hidden:
                return True
            name = name.rpartition("/")[0]
        return self._passes_over(source_id)


@dataclass(frozen=True, slots=True)
class Listing:
    """A listing that is held: the files by source id, and what `OrderedListing` has beside them."""

    files: Mapping[str, SourceFile]
    unreadable: Mapping[str, str]
    other_kinds: Mapping[str, int]
    left_out: int


class FileSource:
    """The files below `root` that the patterns take.

    Patterns are those of .gitignore, relative to the root. Without `include`, files with one of `suffixes` are
    taken. Temporary files (`core.temporary_files`) are not, unless a pattern of `include` names such files, as `*.tmp`
    does. Links to files and folders are followed, each folder once; those that lead out of the root only with
    `follow_links`, and else listed as unreadable. The root itself may be a link.
    """

    def __init__(
        self,
        root: str,
        suffixes: Collection[str],
        include: Collection[str],
        exclude: Collection[str],
        *,
        follow_links: bool = False,
    ):
        """Raise `SourceError` as `normalised_root` does."""
        self._follow_links = follow_links
        self._suffixes = frozenset(suffixes)
        self._longer_suffixes = tuple(suffix for suffix in suffixes if suffix.count(".") > 1)
        self._include = pathspec.GitIgnoreSpec.from_lines(include) if include else None
        temporary = [pattern for pattern in include if is_temporary(re.sub(r".*/|\\", "", pattern))]
        self._temporary_taken = pathspec.GitIgnoreSpec.from_lines(temporary)
        self._exclude = pathspec.GitIgnoreSpec.from_lines(exclude)
        self.root = normalised_root(root)

    def holds(self, source_id: str) -> bool:
        """Return whether a file of this name would belong to this source, were it there."""
        return source_id == self.root or source_id.startswith(self.root.rstrip("/") + "/")

    def takes(self, source_id: str) -> bool:
        """Return whether a file of this source is one that the patterns take, by its name alone."""
        return self._takes(self._relative(source_id), None)

    def _relative(self, source_id: str) -> str:
        return source_id[len(self.root.rstrip("/")) + 1 :] or source_id.rsplit("/", 1)[-1]

    def ordered(self) -> OrderedListing:
        """Begin a listing. Raises `SourceError` where the root does not exist or cannot be looked at."""
        return self._remote() if "://" in self.root else self._local()

    def list(self) -> Listing:
        """List the files of a source that is known to be small. Raises as `ordered` and its listing do."""
        listing = self.ordered()
        files = {file.source_id: file for file in listing}
        return Listing(files, listing.unreadable, listing.other_kinds, listing.left_out)

    def has_any(self) -> bool:
        """Return whether there is a file of this source at all; a single file counts by its name. Raises as `list`."""
        if "://" in self.root or not Path(self.root).is_dir():
            return any(self.takes(file.source_id) for file in self.ordered())
        start = len(self.root.rstrip("/")) + 1
        entries = _walk(self.root, self._exclude, {}, self._within(), set())
        return any(self._takes(entry.path[start:], None) and entry.is_file() for entry in entries)

    def _within(self) -> str | None:
        return None if self._follow_links else os.path.realpath(self.root)

    def _takes(self, relative: str, listing: OrderedListing | None) -> bool:
        """Return whether a file is taken; count in `listing`, where given, what its name alone rules out."""
        if self._is_temporary(relative):
            folder = relative.rpartition("/")[0]
            if listing is not None and not (folder and self._exclude.match_file(folder + "/")):
                listing.left_out += 1
            return False
        if self._exclude.match_file(relative):
            return False
        if self._include is not None:
            return self._include.match_file(relative)
        if not self._has_suffix(relative):
            if listing is not None:
                listing.other_kinds[_suffix(relative)] += 1
            return False
        return True

    def _has_suffix(self, relative: str) -> bool:
        return _suffix(relative) in self._suffixes or relative.lower().endswith(self._longer_suffixes)

    def _is_of_other_kind(self, source_id: str) -> bool:
        """Return whether a file's suffix alone is why it is not taken."""
        relative = self._relative(source_id)
        return self._include is None and not self._has_suffix(relative) and not self._is_excluded(relative)

    def _is_temporary(self, relative: str) -> bool:
        name = relative.rpartition("/")[2]
        return is_temporary(name) and not self._temporary_taken.match_file(relative)

    def _is_away(self, relative: str) -> bool:
        """Return whether a link that leads nowhere may stand for what is taken: a folder has no suffix, mostly."""
        return self._takes(relative, None) or not _suffix(relative)

    def _is_excluded(self, relative: str) -> bool:
        """Return whether something is left out by its name, be it a file or a folder."""
        names = (relative, relative + "/")
        return self._is_temporary(relative) or any(map(self._exclude.match_file, names))

    def _local(self) -> OrderedListing:
        try:
            status = Path(self.root).stat()
        except OSError as error:
            raise SourceError(
                f"{self.root}: {error.strerror}; give a folder, a file or a URL that exists "
                "(the rows of a deleted file go when its folder is ingested)"
            ) from None
        if not stat.S_ISDIR(status.st_mode):
            file = SourceFile(self.root, status.st_size, status.st_mtime_ns)
            return OrderedListing(lambda _: iter((file,)))
        return OrderedListing(self._local_files, lambda name: self._is_of_other_kind(name) and Path(name).is_file())

    def _local_files(self, listing: OrderedListing) -> Iterator[SourceFile]:
        within = self._within()
        start = len(self.root.rstrip("/")) + 1
        for entry in _in_order(self.root, self._exclude, listing.unreadable, within):
            relative = entry.path[start:]
            if entry.is_file():
                if not self._takes(relative, listing):
                    continue
            elif _leads_nowhere(entry):
                if self._is_excluded(relative):
                    continue
                if not self._is_away(relative):
                    listing.hidden.add(entry.path)
                    continue
            elif not self._takes(relative, None):
                continue
            found = _file(entry, within)
            if isinstance(found, SourceFile):
                yield found
            elif found is not None:
                listing.unreadable[ascii(entry.path)[1:-1] if found == NOT_UTF8 else entry.path] = found

    def _remote(self) -> OrderedListing:
        import fsspec

        with self._translated():
            filesystem, path = fsspec.core.url_to_fs(self.root)
            filesystem.invalidate_cache()  # a code server lives for days
            found, refused = remote_files(filesystem, path), None
            try:
                # Now, so that a root that cannot be listed fails at once. First, since an object may have the name of
                # a folder. What a web server lists is no folder.
                first = [] if self.root.lower().startswith(("http://", "https://")) else list(islice(found, 1))
            except (FileNotFoundError, NotADirectoryError) as error:
                first, refused = [], error
            itself = None if first else _info(filesystem, path)
            if refused is not None and itself is not None and itself["type"] != "file":
                raise refused  # a folder that is there is not empty because it was not listed
        if not first and itself is None:
            raise SourceError(f"{self.root}: nothing lies there; give a folder, a file or a URL that exists")
        if itself is not None and itself["type"] == "file":
            file = _remote_file(self.root, itself)
            return OrderedListing(lambda _: iter((file,)))
        base = path.rstrip("/") + "/"

        def passes_over(source_id: str) -> bool:
            with self._translated():
                name = base + self._relative(source_id)
                return self._is_of_other_kind(source_id) and _info(filesystem, name) is not None

        return OrderedListing(partial(self._remote_files, chain(first, found), base), passes_over)

    def _remote_files(
        self, found: Iterator[tuple[str, Info]], base: str, listing: OrderedListing
    ) -> Iterator[SourceFile]:
        with self._translated():
            for name, info in found:
                relative = name.removeprefix(base)
                if self._takes(relative, listing):
                    # Files go by the name of the root as it was given: file systems know several spellings of a
                    # protocol.
                    yield _remote_file(f"{self.root.rstrip('/')}/{relative}", info)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Raise `SourceError` in the place of what a file system raises."""
        try:
            yield
        except ImportError as error:
            raise SourceError(f"{self.root} cannot be listed: {missing_package(self.root, error)}") from error
        except Exception as error:  # noqa: BLE001 (every file system has errors of its own; some hold keys)
            reason = f"{type(error).__name__}: {shown_text(str(error))}"
            raise SourceError(f"{self.root} cannot be listed: {reason}") from None


def _suffix(name: str) -> str:
    """Return the suffix in lower case; empty where what follows the last dot is none, as in `Dr. Smith's letter`."""
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (pathlib is ten times slower)
    return suffix if suffix[1:].isalnum() else ""


def normalised_root(root: str) -> str:
    """Return the one spelling of a folder, file or URL: an absolute path without `..`, or a URL without a final slash.

    Raises `SourceError` for a URL with credentials, a query or a fragment, which would end up in every record and in
    the configuration of runs, and for chained URLs (`zip://…::…`).
    """
    if "://" not in root:
        return os.path.normpath(Path(root).expanduser().absolute())
    shown = f"{root.partition('://')[0]}://…"
    if "::" in root:
        raise SourceError(f"{shown}: chained URLs are not supported; unpack or mount what lies inside")
    try:
        parts = urlsplit(root)
        _ = parts.port  # which is read only now, and may be part of a password
    except ValueError:
        raise SourceError(f"{shown}: is no address: its host or its port cannot be read") from None
    if "@" in parts.netloc or "?" in root or "#" in root:
        raise SourceError(
            f"{shown}: credentials, a query or a fragment in a URL would end up in every record and in the "
            "configuration of runs; give them in the environment or in fsspec's configuration file (a ? or # that "
            "belongs to a file's name is written %3F or %23 after file://)"
        )
    if parts.scheme == "file":
        return os.path.normpath(Path(url2pathname(root[len("file://") :])).absolute())
    return root.rstrip("/")


def _in_order(
    root: str, exclude: pathspec.GitIgnoreSpec, unreadable: dict[str, str], within: str | None
) -> Iterator[os.DirEntry[str]]:
    """Yield what `_walk` does, in the order of the paths.

    The folders are walked twice, since which of several names of one folder counts has to be known before the first
    file comes; only their names are held.
    """
    folders = {root}
    for _ in _walk(root, exclude, unreadable, within, folders):
        pass

    def entries(folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as found:
                # What lies in a folder comes where its name with a slash does: behind `a.md`, before `a0.md`.
                in_order = sorted(found, key=lambda entry: entry.name + "/" * (entry.path in folders))
        except OSError as error:
            unreadable[folder] = _reason(error)
            return
        yield from in_order

    under_way = [entries(root)]
    while under_way:
        entry = next(under_way[-1], None)
        if entry is None:
            under_way.pop()
        elif entry.path in folders:
            under_way.append(entries(entry.path))
        elif entry.path not in unreadable and not _is_folder(entry, unreadable):
            yield entry


def _is_folder(entry: os.DirEntry[str], unreadable: dict[str, str]) -> bool:
    """Return whether an entry is a folder, or nobody can tell."""
    try:
        return entry.is_dir()
    except OSError as error:
        unreadable[entry.path] = _reason(error)
        return True


def _walk(
    root: str, exclude: pathspec.GitIgnoreSpec, unreadable: dict[str, str], within: str | None, visited: set[str]
) -> Iterator[os.DirEntry[str]]:
    """Yield everything below `root` that is no folder; what cannot be looked at is noted in `unreadable`.

    The folders that were looked into are added to `visited`.

    Folders come before links to folders and in the order of their names, so that of several names of one folder
    it is always the same that counts. Links to folders outside of `within`, where that is given, are noted as well.
    """
    seen = {_identity(Path(root).stat())}
    folders, links = deque([root]), deque[str]()
    while folders or links:
        folder = folders.popleft() if folders else links.popleft()
        try:
            with os.scandir(folder) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise SourceError(f"{root}: {error.strerror}") from None
            unreadable[folder] = _reason(error)
            continue
        if folder != root and not _first_visit(folder, seen, unreadable):
            continue
        visited.add(folder)
        for entry in found:
            try:
                if entry.is_dir():
                    relative = entry.path[len(root.rstrip("/")) + 1 :]
                    if exclude.match_file(relative + "/"):
                        continue
                    if within is not None and entry.is_symlink() and leads_out(entry.path, within):
                        unreadable[entry.path] = NOT_FOLLOWED
                        continue
                    (links if entry.is_symlink() else folders).append(entry.path)
                else:
                    yield entry
            except OSError as error:
                unreadable[entry.path] = _reason(error)


def _file(entry: os.DirEntry[str], within: str | None) -> "SourceFile | str | None":
    """Return a file as it lies there now; why it is not read; or None for a link that is gone by now."""
    try:
        entry.path.encode()
        # First of all: what is said of such a link must not tell what lies outside.
        if within is not None and entry.is_symlink() and leads_out(entry.path, within):
            return NOT_FOLLOWED
        status = entry.stat()
    except UnicodeEncodeError:
        return NOT_UTF8
    except OSError as error:
        if isinstance(error, FileNotFoundError) and entry.is_symlink():
            return LEADS_NOWHERE if os.path.lexists(entry.path) else None
        return _reason(error)
    if (kind := kind_of(status.st_mode)) is not None:
        return f"is no regular file but {kind}; exclude it"
    return SourceFile(entry.path, status.st_size, status.st_mtime_ns, within=within)


def _reason(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "is a link that leads back to itself; remove it, or make it lead to the file or folder that is meant"
    return f"{error.strerror}"


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a link, and nothing lies where it leads."""
    try:
        if not entry.is_symlink():
            return False
        entry.stat()
    except FileNotFoundError:
        return os.path.lexists(entry.path)
    except OSError:
        return False
    return False


def _first_visit(folder: str, seen: set[tuple[int, int]], unreadable: dict[str, str]) -> bool:
    """Return whether a folder is met for the first time: links can lead in circles."""
    try:
        identity = _identity(Path(folder).stat())
    except OSError as error:
        unreadable[folder] = _reason(error)
        return False
    if identity in seen:
        return False
    seen.add(identity)
    return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _info(filesystem: Any, path: str) -> Info | None:
    """Return what a file system says of a path; None where nothing lies there. Raises what the file system raises."""
    try:
        info: Info = filesystem.info(path)
    except FileNotFoundError:
        return None
    return info


def _remote_file(uri: str, info: Mapping[str, Any]) -> SourceFile:
    modified = next((info[key] for key in _TIME_KEYS if info.get(key) is not None), 0)
    version = next((str(info[key]) for key in _VERSION_KEYS if info.get(key)), "")
    return SourceFile(uri, int(info.get("size") or 0), round(_seconds(modified) * 1_000_000) * 1000, version)


def _seconds(modified: Any) -> float:
    """Return seconds since 1970 of a time as file systems have it; 0 for one in a form that none of them documents."""
    if isinstance(modified, str):
        try:
            modified = datetime.fromisoformat(modified)
        except ValueError:
            return 0.0
    if isinstance(modified, datetime):
        return (modified if modified.tzinfo else modified.replace(tzinfo=UTC)).timestamp()
    return float(modified)
