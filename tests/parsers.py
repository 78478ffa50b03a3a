"""Parser processes that a module of tests shares, where what is tested is runs over documents and not the processes."""

from collections.abc import Iterator
from typing import Any

import pytest

from vectorize_pipelines.documents.pool import ParserPool
from vectorize_pipelines.pipeline.files import documents as documents_module
from vectorize_pipelines.settings import load_settings


@pytest.fixture(scope="module")
def parsers() -> Iterator[ParserPool]:
    """One pool for all runs: starting its processes is what takes time."""
    with ParserPool(load_settings({}).documents) as pool:
        yield pool


@pytest.fixture
def shared_parsers(parsers: ParserPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run over a folder starts parser processes of its own."""

    class Shared:
        def __init__(self, *_: Any) -> None: ...

        def __enter__(self) -> "Shared":
            return self

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> None: ...

        submit = staticmethod(parsers.submit)

    monkeypatch.setattr(documents_module, "ParserPool", Shared)
