"""The store of docs/adding-a-store.md, taken from the page, under the conformance suite."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vectorize_pipelines.settings import PROJECT_ROOT, StoreSettings
from vectorize_pipelines.stores import conformance
from vectorize_pipelines.stores.base import VectorStore

PAGE = PROJECT_ROOT / "docs" / "adding-a-store.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]


def _store() -> Any:
    module: dict[str, Any] = {}
    exec(compile(CODE, str(PAGE), "exec"), module)
    return module["SQLiteStore"]


def test_the_store_is_as_short_as_it_is_said_to_be() -> None:
    assert len(CODE.splitlines()) < 100


class _AsInTheDocumentation:
    @pytest.fixture
    def open_again(self, tmp_path: Path) -> Callable[[], VectorStore]:
        store = _store()
        return lambda: store.open(StoreSettings(kind="sqlite"), tmp_path)


class TestCollections(_AsInTheDocumentation, conformance.Collections):
    pass


class TestRows(_AsInTheDocumentation, conformance.Rows):
    pass


class TestSearch(_AsInTheDocumentation, conformance.Search):
    pass


class TestFilters(_AsInTheDocumentation, conformance.Filters):
    pass


class TestHistories(_AsInTheDocumentation, conformance.Histories):
    pass
