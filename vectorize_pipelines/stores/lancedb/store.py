"""LanceDB as a `VectorStore`: the embedded default, a directory or an object store that several processes may use.

Opened by `open_store` for the kind `lancedb`. A collection is a table with the columns of a record and one more,
`metadata_terms` (see `filters`); what model its vectors are of stands in the table's schema metadata.
Aliases are the rows of the table `_aliases`.

Every write is one commit: a process that dies at any moment leaves the table as it was before or after it, and a
machine whose power goes as it was at the last `flush` or later (see `durability`). Every
call opens the table again and therefore reads the newest version, and that one only, to its end; but for writers, whose
table stays open as long as nobody else touches it. Old versions are kept for `RETENTION`, which bounds how long a scan
may take while others write and maintain.

Records that are certainly new are appended, all others merged by id (see `new_ids`).

Concurrent merges of a new id can both insert it. Writers of a table therefore take turns (`locks`): by a file in the
directory's folder `.locks`, or by a lease of the installation's database where the table lies in an object store. A
lease can be lost while its holder is stalled; so writers there make certain of it just before they commit, and what is
stalled within a commit is refused by LanceDB where anybody has written the same rows meanwhile (see `writing`).

LanceDB runs threads of its own, which do not survive a fork: start processes with `spawn`.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vectorize_pipelines.core.records import RECORD_FIELDS
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import DamagedCollectionError, StoreError, StoreUnavailableError
from vectorize_pipelines.stores.base import Collection, VectorStore, Written, physical_name
from vectorize_pipelines.stores.contents import check_model, checked_query, result_schema
from vectorize_pipelines.stores.filters.expressions import Filter
from vectorize_pipelines.stores.filters.operands import parts
from vectorize_pipelines.stores.lancedb.aliases import ALIASES
from vectorize_pipelines.stores.lancedb.catalogue import KIND, Catalogue
from vectorize_pipelines.stores.lancedb.failures import translate_errors
from vectorize_pipelines.stores.lancedb.filters import text_value_sql, to_sql
from vectorize_pipelines.stores.lancedb.location import Location
from vectorize_pipelines.stores.lancedb.locks import FolderLocks, InstallationLocks, ReadOnly
from vectorize_pipelines.stores.lancedb.maintenance import (
    VECTOR_INDEX,
    Maintenance,
    MaintenanceSchedule,
    MaintenanceWork,
    carry_out,
)
from vectorize_pipelines.stores.lancedb.maintenance_process import MaintenanceProcesses
from vectorize_pipelines.stores.lancedb.new_ids import NewIds
from vectorize_pipelines.stores.lancedb.tables import dimension_of, prepared, revision_of, scored
from vectorize_pipelines.stores.lancedb.writing import RowWriter

if TYPE_CHECKING:
    from vectorize_pipelines.settings import StoreSettings
    from vectorize_pipelines.state.table_locks import TableLocks

#: LanceDB's memory for a list of values grows with the list times the fragments.
VALUES_DELETED_TOGETHER = 500

# With these the quantized index found every one of the ten nearest of 100,000 vectors without any structure.
_PROBES = 32
_REFINEMENT = 4

_SEARCH_COLUMNS = (*RECORD_FIELDS, "_distance")

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _mending(method: _Method) -> _Method:
    """Have a method on a collection called once more where its table, or that of aliases, has fallen back meanwhile."""

    @wraps(method)
    def called(store: "LanceDBStore", name: str, *arguments: Any, **named: Any) -> Any:
        try:
            return method(store, name, *arguments, **named)
        except DamagedCollectionError:
            if not store._tables.mended(name):
                raise
            return method(store, name, *arguments, **named)

    return cast("_Method", called)


class LanceDBStore(VectorStore):
    """Collections in a directory or a bucket. See the module for what its guarantees rest on."""

    kind = KIND

    @classmethod
    def open(cls, settings: "StoreSettings", home: Path) -> Self:
        """Open `settings.url`, by default `home/lancedb`; a directory is created where it is missing.

        What lies in an object store can be written to once `use_table_locks` was called. Raises `SettingsError` as
        `Location.of`, `StoreError` where the location cannot be made or read.
        """
        return cls(Location.of(settings, home))

    def __init__(self, location: Location, *, maintenance: Maintenance | None = None) -> None:
        self._location = location
        self.needs_table_locks = location.directory is None
        self._shown_location = location.shown
        self._schedule = MaintenanceSchedule(maintenance or Maintenance())
        self._processes = MaintenanceProcesses(location)
        self._new_ids = NewIds(location.directory)
        self._writer = RowWriter(in_object_store=location.directory is None)
        with self._explained("opening"):
            folder = location.directory
            locks = ReadOnly(location.shown) if folder is None else FolderLocks(folder / ".locks")
            self._tables = Catalogue(location, locks, self._new_ids.forget)
        self._durability = self._tables.durability

    def use_table_locks(self, locks: "TableLocks") -> None:
        """See `VectorStore`; for an object store. A folder has locks of its own."""
        self._tables.locks = InstallationLocks(self._location.identity, locks)

    # ---- collections

    @_mending
    def ensure_collection(self, name: str, spec: EncoderSpec, *, aliased: bool = True, edition: int = 1) -> Collection:
        physical = physical_name(name, spec, edition)
        named = name if aliased else physical
        with self._explained(f"creating the collection {name!r}"):
            self._tables.check(physical)
            found = self._tables.standing(named)
            if found is None:
                with self._tables.locked(ALIASES):
                    found = self._tables.standing(named) or self._tables.make(named, spec, physical)
            self._tables.flush((), (found.physical, ALIASES))  # somebody may have been killed who made them
            check_model(found, revision_of(self._tables.table(found.physical)), spec)
        return found

    @_mending
    def collection(self, name: str) -> Collection:
        with self._explained(f"looking up the collection {name!r}"):
            return self._tables.describe(name, self._tables.physical(name))

    def collections(self) -> list[Collection]:
        try:
            return self._collections()
        except DamagedCollectionError:  # the table of aliases: of the others each is left out for itself
            if not self._tables.mended(ALIASES):
                raise
            return self._collections()

    def _collections(self) -> list[Collection]:
        with self._explained("listing collections"):
            return self._tables.all()

    def damaged(self) -> Mapping[str, str]:
        with self._explained("looking for damaged collections"):
            return dict.fromkeys(self._tables.damaged(), "none of its versions has all of its files")

    def is_doubtful(self, name: str) -> bool:
        with self._explained(f"looking up {name!r}"):
            physical = self._tables.physical(name)
            return self._durability is not None and self._durability.is_doubtful(physical)

    def trust(self, name: str) -> None:
        with self._explained(f"noting that {name!r} is compared with its source"):
            if self._durability is not None:
                self._durability.trust(self._tables.physical(name))

    @_mending
    def set_alias(self, name: str, physical: str) -> None:
        with self._explained(f"pointing the alias {name!r} at {physical!r}"), self._tables.locked(ALIASES):
            tables = self._tables.names()
            if physical not in tables:
                raise self._tables.not_found(physical)
            if name in tables:
                raise StoreError(f"{name!r} is itself a collection in {self._shown_location}: choose another alias")
            self._tables.flush((), (physical,))  # with the rows that its filling has found there
            self._tables.point_alias(name, physical)
            self._tables.flush((), (ALIASES,))

    @_mending
    def drop(self, physical: str) -> None:
        with self._explained(f"dropping {physical!r}"), self._tables.locked(ALIASES):
            self._tables.drop(physical)

    # ---- rows

    @_mending
    def upsert(self, name: str, records: pa.Table) -> Written:
        with self._explained(f"writing {records.num_rows} records to {name!r}", "nothing was written"):
            physical = self._tables.physical(name)
            rows = prepared(records, self._tables.dimension(physical))
            if rows.num_rows == 0:
                return Written(inserted=0, updated=0)
            with self._tables.locked(physical), self._new_ids.followed(physical, self._tables.table) as followed:
                self._tables.writing(physical)
                if followed.ids is not None and followed.ids.add(rows["id"]):
                    followed.version = self._writer.append(followed.table, rows)
                    return Written(inserted=rows.num_rows, updated=0)
                written = self._writer.merge(followed.table, rows)
        if written.inserted + written.updated != rows.num_rows:
            raise StoreError(
                f"{rows.num_rows} records were written to {name!r} in {self._shown_location}, but LanceDB inserted "
                f"{written.inserted} and updated {written.updated}: the collection may hold an id twice; "
                "drop it and ingest again"
            )
        return written

    @_mending
    def delete(self, name: str, where: Filter) -> int:
        deleted = 0
        with self._explained(f"deleting from {name!r}", "some of the rows may be gone"):
            physical = self._tables.physical(name)
            for condition in [to_sql(part) for part in parts(where, VALUES_DELETED_TOGETHER)]:
                with self._tables.locked(physical), self._new_ids.followed(physical, self._tables.table) as followed:
                    matching: int = followed.table.count_rows(condition)
                    if matching:
                        self._tables.writing(physical)
                        self._writer.delete(followed.table, condition)
                deleted += matching
        return deleted

    def flush(self, names: Sequence[str] = ()) -> None:
        """See `VectorStore.flush`. Takes 1 to 4 ms on a solid-state disk, for batches of 32 to 2,048 rows.

        The aliases are always among the `names`: a writer of a collection has found it by its alias.
        """
        with self._explained("putting what was written on the disk", "what was written since the last time is undone"):
            aliases = self._tables.aliases.all()
            relied_on = [*(aliases.get(name, name) for name in names), ALIASES]
            for table in relied_on:
                self._tables.check(table)
            self._tables.flush(None, relied_on)

    @_mending
    def fetch(self, name: str, where: Filter, columns: Sequence[str]) -> pa.Table:
        condition = to_sql(where)
        with self._explained(f"reading from {name!r}"):
            table = self._tables.open(name)
            schema = result_schema(dimension_of(table), columns)
            found = table.search().where(condition).select(schema.names).limit(None).to_arrow()
            return found.cast(schema)

    @_mending
    def scan(
        self, name: str, columns: Sequence[str], where: Filter | None = None, batch_rows: int = 8192
    ) -> Iterator[pa.RecordBatch]:
        condition = None if where is None else to_sql(where)
        with self._explained(f"reading from {name!r}"):
            table = self._tables.open(name)
            schema = result_schema(dimension_of(table), columns)
        return self._batches(name, table, schema, condition, batch_rows)

    @_mending
    def count(self, name: str, where: Filter | None = None) -> int:
        condition = None if where is None else to_sql(where)
        with self._explained(f"counting in {name!r}"):
            rows: int = self._tables.open(name).count_rows(condition)
            return rows

    @_mending
    def count_by(self, name: str, field: str, where: Filter | None = None) -> dict[str, int]:
        expression, decode = text_value_sql(field)
        condition = None if where is None else to_sql(where)
        counts: dict[str, int] = {}
        with self._explained(f"counting in {name!r}"):
            table = self._tables.open(name)
            values = _where(table.search(), condition).select({"value": expression}).limit(None)
            for batch in values.to_batches(65_536):
                for entry in pc.value_counts(batch.column("value")).to_pylist():
                    value = None if entry["values"] is None else decode(entry["values"])
                    if value is not None:
                        counts[value] = counts.get(value, 0) + entry["counts"]
        return counts

    @_mending
    def search(self, name: str, vector: npt.NDArray[np.float32], limit: int, where: Filter | None = None) -> pa.Table:
        """See `VectorStore.search`. `score` is the cosine similarity for vectors of any length but zero, which
        have no direction and are never found. Equal scores come in the order of their ids.

        Exact until `maintain` has indexed the vectors; from then on the candidates come from the index, the
        scores are still exact, and rows written since are compared one by one.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}; it must be at least 1")
        condition = None if where is None else to_sql(where)
        with self._explained(f"searching {name!r}"):
            table = self._tables.open(name)
            query = table.search(checked_query(vector, dimension_of(table), name), vector_column_name="vector")
            # No upper limit of probes: a filter that leaves few rows must not lose them with their partitions.
            query = query.distance_type("cosine").minimum_nprobes(_PROBES).maximum_nprobes(0)
            nearest = _where(query.refine_factor(_REFINEMENT), condition).limit(limit).select(list(_SEARCH_COLUMNS))
            return scored(nearest.to_arrow(), result_schema(dimension_of(table), RECORD_FIELDS))

    # ---- care

    @_mending
    def searches_exactly(self, name: str) -> bool:
        with self._explained(f"looking up the indexes of {name!r}"):
            indexes = self._tables.open(name).list_indices()
            return not any(index.name.startswith(VECTOR_INDEX) for index in indexes)

    @_mending
    def maintain(self, name: str) -> Mapping[str, int | float]:
        """Compact, remove old versions and build indexes where the table has grown enough for it to pay.

        Called at the end of a run, and cheap enough (a few ms where nothing is due) to be called every few
        batches. Writers of the table wait meanwhile; readers do not. Returns `rows`, `fragments_before`,
        `fragments`, `compacted` (0 or 1), `indexes_built` and `seconds`.
        """
        started = time.perf_counter()
        with self._explained(f"maintaining {name!r}", "its rows are unchanged"):
            physical = self._tables.physical(name)
            with self._tables.locked(physical), self._new_ids.followed(physical, self._tables.table) as followed:
                table = followed.table
                before = table.stats()
                indexes = {index.name: index for index in table.list_indices()}
                work = self._schedule.due(table, before, indexes)
                if work.anything:
                    self._tables.writing(physical)
                    self._carry_out(table, work, before["num_rows"])
                elif self._schedule.is_soon(table, before, indexes):
                    self._processes.prepare()
                fragments = table.stats()["fragment_stats"]["num_fragments"]
        return {
            "rows": before["num_rows"],
            "fragments_before": before["fragment_stats"]["num_fragments"],
            "fragments": fragments,
            "compacted": int(work.compact),
            "indexes_built": len(work.scalar_indexes) + int(work.vector_index is not None),
            "seconds": time.perf_counter() - started,
        }

    def close(self) -> None:
        """Put what was written on the disk; LanceDB's connection has no close and goes with its last reference.

        Everything is closed also where that fails. Raises `StoreError`.
        """
        with ExitStack() as closed:
            closed.callback(self._writer.close)
            closed.callback(self._new_ids.close)
            closed.callback(self._processes.close)
            with self._explained("putting what was written on the disk"):
                self._tables.close()

    def _carry_out(self, table: Any, work: MaintenanceWork, rows: int) -> None:
        if self._schedule.is_apart(rows):
            self._processes.carry_out(table.name, work)
            table.checkout_latest()
        else:
            carry_out(table, work, lambda: self._tables.flush((table.name,)))

    def _batches(
        self, name: str, table: Any, schema: pa.Schema, condition: str | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        try:
            with self._explained(f"reading from {name!r}"):
                rows = _where(table.search(), condition).select(schema.names).limit(None).to_batches(batch_rows)
                for batch in rows:
                    yield batch.cast(schema)
        except DamagedCollectionError as error:
            if not self._tables.mended(name):
                raise
            raise StoreUnavailableError(f"{name!r} fell back to an earlier version: read it again; {error}") from error

    def _explained(self, doing: str, state: str = "") -> AbstractContextManager[None]:
        return translate_errors(self._location, doing, state)


def _where(query: Any, condition: str | None) -> Any:
    return query if condition is None else query.where(condition)
