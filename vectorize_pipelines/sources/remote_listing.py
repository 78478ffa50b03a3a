"""The files of an fsspec file system, one by one in the order of their names, and never all in memory.

fsspec's own `find` returns everything at once, and leaves out folders that cannot be listed.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, TypeAlias

Info: TypeAlias = Mapping[str, Any]

#: Objects that are taken over from the loop of an asynchronous file system at once.
OBJECTS_TOGETHER = 1000


def remote_files(filesystem: Any, path: str) -> Iterator[tuple[str, Info]]:
    """Yield every file below a folder, with what the file system says of it; raise what the file system raises."""
    # S3 lists a whole bucket page by page, in order; fsspec has that in no public method.
    return _flat(filesystem, path) if hasattr(filesystem, "_iterdir") else _folder_by_folder(filesystem, path)


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


def _folder_by_folder(filesystem: Any, path: str) -> Iterator[tuple[str, Info]]:
    under_way = [_folder(filesystem, path)]
    while under_way:
        found = next(under_way[-1], None)
        if found is None:
            under_way.pop()
        elif found[1]["type"] == "directory":
            under_way.append(_folder(filesystem, found[0]))
        else:
            yield found


def _folder(filesystem: Any, folder: str) -> Iterator[tuple[str, Info]]:
    """Yield the files and folders of one folder. What lies in a folder comes where its name with a slash does."""
    # In an object store a file and a folder may have the same name.
    found = [
        (info["name"].rstrip("/"), info)
        for info in filesystem.ls(folder, detail=True)
        if info["type"] in ("directory", "file") and info["name"].rstrip("/") != folder.rstrip("/")
    ]
    filesystem.invalidate_cache()  # which would keep every folder
    return iter(sorted(found, key=lambda each: each[0] + "/" * (each[1]["type"] == "directory")))
