"""A bucket of any size that lies nowhere: `simulated://FOLDERSxFILES` lists so many folders with so many files each."""

from typing import Any

import fsspec
from fsspec import AbstractFileSystem

PROTOCOL = "simulated"


class SimulatedBucket(AbstractFileSystem):  # type: ignore[misc]
    """Names are made as they are listed. `standing`: the folders that are still there, None for all."""

    protocol = PROTOCOL
    cachable = False
    standing: int | None = None

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        bucket, _, folder = self._strip_protocol(path).partition("/")
        folders, files = map(int, bucket.split("x"))
        if not folder:
            return [
                {"name": f"{bucket}/{n:06}", "type": "directory", "size": 0} for n in range(folders)[: self.standing]
            ]
        return [
            {"name": f"{bucket}/{folder}/{n:06}.md", "type": "file", "size": n + 1, "ETag": f"{n}", "LastModified": n}
            for n in reversed(range(files))
        ]

    def info(self, path: str, **options: Any) -> Any:
        return {"name": self._strip_protocol(path), "type": "directory", "size": 0}


def register() -> None:
    """Have fsspec know it."""
    fsspec.register_implementation(PROTOCOL, SimulatedBucket, clobber=True)
