"""The files below a folder of an fsspec file system, one by one in the order of their names.

S3 is listed page by page. Other object stores list all objects by one call, and everything is held: folder by folder
they leave out keys with an empty part, as in `a//b`, and objects that have the name of a folder. Everything else, whose
`find` would leave out folders that cannot be listed, is listed folder by folder.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, TypeAlias

Info: TypeAlias = Mapping[str, Any]

#: Objects that are taken over from the loop of an asynchronous file system at once.
OBJECTS_TOGETHER = 1000


def remote_files(filesystem: Any, path: str) -> Iterator[tuple[str, Info]]:
    """Yield every file below a folder, with what the file system says of it; raise what the file system raises."""
    # S3 lists a whole bucket page by page, in order; fsspec has that in no public method.
    if hasattr(filesystem, "_iterdir"):
        return _flat(filesystem, path)
    return _at_once(filesystem, path) if _has_own_find(filesystem) else _folder_by_folder(filesystem, path)


def _flat(filesystem: Any, path: str) -> Iterator[tuple[str, Info]]:
    from fsspec.asyn import sync

    bucket, key, _ = filesystem.split_path(path)
    prefix = f"{key.rstrip('/')}/" if key else ""
    objects = filesystem._iterdir(bucket, delimiter="", prefix=prefix)
    while some := sync(filesystem.loop, _some, objects):
        yield from ((info["name"], info) for info in some if not info["name"].endswith("/"))


async def _some(objects: AsyncIterator[Info]) -> list[Info]:
    found: list[Info] = []
    async for info in objects:
        found.append(info)
        if len(found) == OBJECTS_TOGETHER:
            break
    return found


def _has_own_find(filesystem: Any) -> bool:
    from fsspec import AbstractFileSystem
    from fsspec.asyn import AsyncFileSystem

    method, plain = (
        ("_find", AsyncFileSystem) if isinstance(filesystem, AsyncFileSystem) else ("find", AbstractFileSystem)
    )
    return getattr(type(filesystem), method) is not getattr(plain, method)


def _at_once(filesystem: Any, path: str) -> Iterator[tuple[str, Info]]:
    listed = filesystem.find(path, detail=True)
    if not isinstance(listed, Mapping):  # adlfs: the name of a blob, whatever lies in the folder of that name
        container, _, prefix = path.partition("/")
        listed = filesystem.find(container, prefix=prefix, detail=True)
    filesystem.invalidate_cache()  # which would keep everything
    below = path.rstrip("/") + "/"
    for name in sorted(listed):
        if name.startswith(below) and not name.endswith("/") and listed[name]["type"] == "file":
            yield name, listed[name]


def _folder_by_folder(filesystem: Any, path: str) -> Iterator[tuple[str, Info]]:
    under_way = [_folder(filesystem, path)]
    while under_way:
        found = next(under_way[-1], None)
        if found is None:
            under_way.pop()
        elif found[1]["type"] == "directory":
            try:
                under_way.append(_folder(filesystem, found[0]))
            except FileNotFoundError:
                if _is_listed(filesystem, found[0]):
                    raise
                continue  # it was removed since its parent was listed
        else:
            yield found


def _folder(filesystem: Any, folder: str) -> Iterator[tuple[str, Info]]:
    """Yield the files and folders of one folder. What lies in a folder comes where its name with a slash does."""
    # In an object store a file and a folder may have the same name.
    found = [
        (info["name"].rstrip("/"), info)
        for info in _entries(filesystem, folder)
        if info["type"] in ("directory", "file") and info["name"].rstrip("/") != folder.rstrip("/")
    ]
    filesystem.invalidate_cache()  # which would keep every folder
    return iter(sorted(found, key=lambda each: each[0] + "/" * (each[1]["type"] == "directory")))


def _entries(filesystem: Any, folder: str) -> list[Info]:
    entries: list[Info] = filesystem.ls(folder, detail=True)
    # fsspec's FTP gives nothing where the server refuses or fails, and keeps only what it was told.
    if not entries and filesystem.protocol == "ftp" and filesystem._strip_protocol(folder) not in filesystem.dircache:
        raise OSError(f"the server does not list {folder}")
    return entries


def _is_listed(filesystem: Any, folder: str) -> bool:
    """Return whether a folder is there, by what its parent has now."""
    filesystem.invalidate_cache()
    entries = _entries(filesystem, folder.rpartition("/")[0])
    return any(info["name"].rstrip("/") == folder for info in entries)
