"""Records that LanceDB appends because they are new: whatever stores and aliases do, every id is there once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import lancedb
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vectorize_pipelines.errors import StoreError
from vectorize_pipelines.settings import StoreSettings
from vectorize_pipelines.stores import open_store
from vectorize_pipelines.stores.base import Written, physical_name
from vectorize_pipelines.stores.conformance.records import COLLECTION, Row, many, row, spec, table
from vectorize_pipelines.stores.filters.expressions import In
from vectorize_pipelines.stores.lancedb import new_ids as lancedb_new_ids
from vectorize_pipelines.stores.lancedb.location import Location
from vectorize_pipelines.stores.lancedb.maintenance import Maintenance
from vectorize_pipelines.stores.lancedb.new_ids import NewIds
from vectorize_pipelines.stores.lancedb.store import LanceDBStore

pytestmark = pytest.mark.slow

EDITIONS = tuple(physical_name(COLLECTION, spec(), edition) for edition in (1, 2))
COLUMNS = tuple(many(1).schema.names)
EAGER = Maintenance(
    fragments=2, rows_per_fragment=10**9, unindexed_rows=1, scalar_index_rows=1, vector_index_rows=10**9
)

writers = st.integers(0, 1)
steps = st.tuples(
    st.sampled_from(["upsert"] * 6 + ["fail before", "fail after", "delete", "maintain", "drop", "alias", "restart"]),
    writers,
    st.sets(st.integers(0, 20), min_size=1, max_size=8),
)


@dataclass
class History:
    """Two stores on one directory, and dictionaries of what they must hold."""

    home: Path
    patch: pytest.MonkeyPatch
    rows: dict[str, dict[str, Row]] = field(default_factory=lambda: {name: {} for name in EDITIONS})
    alias: str = EDITIONS[0]

    def __post_init__(self) -> None:
        self.stores = [self._opened(), self._opened()]
        for edition in (1, 2):
            self.stores[0].ensure_collection(COLLECTION, spec(), aliased=edition == 1, edition=edition)

    def _opened(self) -> LanceDBStore:
        location = self.home / "lancedb"
        return LanceDBStore(Location.folder(location), maintenance=EAGER)

    def step(self, kind: str, writer: int, keys: set[int], moment: int) -> None:
        store = self.stores[writer]
        expected = self.rows[self.alias]
        new = {one["id"]: one for one in (row(f"{key % 4}.txt", key, text=f"at {moment}") for key in sorted(keys))}
        match kind:
            case "upsert":
                inserted = len(new.keys() - expected.keys())
                assert store.upsert(COLLECTION, table(new.values())) == Written(inserted, len(new) - inserted)
                expected |= new
            case "fail before" | "fail after":
                if self._failed(store, table(new.values()), kind == "fail after"):
                    expected |= new
            case "delete":
                assert store.delete(COLLECTION, In("id", tuple(new))) == len(new.keys() & expected.keys())
                self.rows[self.alias] = {one: fields for one, fields in expected.items() if one not in new}
            case "maintain":
                store.maintain(COLLECTION)
            case "drop":
                store.drop(self.alias)
                edition = 1 + EDITIONS.index(self.alias)
                self.stores[1 - writer].ensure_collection(COLLECTION, spec(), edition=edition)
                self.rows[self.alias] = {}
            case "alias":
                self.alias = EDITIONS[1 - EDITIONS.index(self.alias)]
                store.set_alias(COLLECTION, self.alias)
            case "restart":
                self.stores[writer] = self._opened()

    def _failed(self, store: LanceDBStore, records: pa.Table, committed: bool) -> bool:
        """Whether the records were written; LanceDB says that it failed at once or after the commit."""
        with self.patch.context() as patch:
            failing = _failing(lancedb.table.LanceTable.add, committed)
            patch.setattr(lancedb.table.LanceTable, "add", failing)
            failing_merge = _failing(lancedb.merge.LanceMergeInsertBuilder.execute, committed)
            patch.setattr(lancedb.merge.LanceMergeInsertBuilder, "execute", failing_merge)
            with pytest.raises(StoreError, match="the disk is broken"):
                store.upsert(COLLECTION, records)
        return committed

    def check(self) -> None:
        for store in self.stores:
            for name, expected in self.rows.items():
                found = [one for batch in store.scan(name, COLUMNS) for one in batch.to_pylist()]
                assert {one["id"]: one for one in found} == expected
                assert len(found) == len(expected)


def _failing(call: Callable[..., Any], committed: bool) -> Callable[..., Any]:
    def fail(*arguments: Any, **named: Any) -> None:
        if committed:
            call(*arguments, **named)
        raise OSError("the disk is broken")

    return fail


@pytest.mark.parametrize("words", [(2,), (2**19,), (8, 16, 32)], ids=["mistaken", "exact", "growing"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(history=st.lists(steps, max_size=12))
def test_two_stores_on_one_directory_are_one_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    words: tuple[int, ...],
    history: list[tuple[str, int, set[int]]],
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lancedb_new_ids, "_FILTER_WORDS", words)
        stores = History(tmp_path_factory.mktemp("home"), patch)
        for moment, (kind, writer, keys) in enumerate(history):
            stores.step(kind, writer, keys, moment)
        stores.check()


def test_what_is_known_survives_own_commits_only(tmp_path: Path) -> None:
    """Where Lance should ever put its manifests elsewhere, every upsert would still be right, but slow."""
    database = lancedb.connect(tmp_path)
    database.create_table("rows", many(10).slice(0, 0))
    of_others = lancedb.connect(tmp_path)
    new_ids = NewIds(tmp_path)

    def append(first: int) -> bool:
        with new_ids.followed("rows", database.open_table) as followed:
            records = many(10, first=first)
            followed.table.add(records)
            return followed.ids is not None and followed.ids.add(records["id"])

    assert [append(0), append(10), append(15), append(30)] == [True, True, False, True]
    with new_ids.followed("rows", database.open_table) as followed:
        followed.table.optimize()
    assert append(50)
    of_others.open_table("rows").delete("item_index = 0")
    assert not append(70)
    of_others.open_table("rows").delete("true")
    assert append(70)


def test_a_table_that_others_changed_is_opened_anew_whatever_versions_are_left_of_it(tmp_path: Path) -> None:
    """A tag keeps the version that this store left, though the next one is gone."""
    stores = [open_store(StoreSettings(), tmp_path) for _ in range(2)]
    physical = stores[0].ensure_collection(COLLECTION, spec()).physical
    stores[0].upsert(COLLECTION, many(5))
    dataset = lance.dataset(str(tmp_path / "lancedb" / f"{physical}.lance"))
    left = dataset.version
    dataset.tags.create("kept", left)
    for first in range(5, 25, 5):
        stores[1].upsert(COLLECTION, many(5, first=first))
    lance.dataset(dataset.uri).cleanup_old_versions(timedelta(0), error_if_tagged_old_versions=False)
    versions = [version["version"] for version in lance.dataset(dataset.uri).versions()]
    assert left in versions
    assert left + 1 not in versions
    assert stores[0].upsert(COLLECTION, many(5, first=10)) == Written(inserted=0, updated=5)
    assert stores[0].delete(COLLECTION, In("id", tuple(many(5, first=10)["id"].to_pylist()))) == 5
    assert stores[1].count(COLLECTION) == 20
