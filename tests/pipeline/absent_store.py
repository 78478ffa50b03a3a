"""A folder and its collection whose store is away now and then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.pipeline.files.installation import Installation
from vectorize_pipelines.errors import StoreUnavailableError
from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.pipeline.writing import DirectWriter, written
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import VectorStore


class Away:
    """A store in front of another one: a call that `fails`, by its name, finds it away."""

    def __init__(self, store: VectorStore, fails: Callable[[str], bool]):
        self._store, self._fails = store, fails

    def __getattr__(self, name: str) -> Any:
        really = getattr(self._store, name)
        if not callable(really):
            return really

        def called(*arguments: Any) -> Any:
            if self._fails(name):
                raise StoreUnavailableError("the store is away")
            return really(*arguments)

        return called


def installation(tmp_path: Path, **pipeline: Any) -> Installation:
    settings = load_settings(
        {"VECTORIZE_HOME": str(tmp_path)}, cache={"enabled": "auto"}, pipeline={"batch_items": 32, **pipeline}
    )
    (tmp_path / "folder").mkdir(exist_ok=True)
    return Installation(settings, tmp_path / "folder", open_store(settings.store, settings.home))


def fill(folder: Path, files: int, first: int = 0) -> None:
    for n in range(first, first + files):
        (folder / f"{n}.txt").write_text(f"Note {n} tells of storm number {n}.")


def load(one: Installation, store: VectorStore | None = None) -> EmbeddingStream:
    one.store, really = store or one.store, one.store
    try:
        with one.open() as stream:
            for _ in written(DirectWriter(one.settings, one.store), stream):
                pass
    finally:
        one.store = really
    return stream
