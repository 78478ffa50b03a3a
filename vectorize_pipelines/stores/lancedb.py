"""LanceDB as a `VectorStore`: the embedded default, a directory (or bucket) that several processes may use.

Opened by `open_store` for the kind `lancedb`. A collection is a table with the columns of a record and one more,
`metadata_terms` (see `lancedb_filters`); what model its vectors are of stands in the table's schema metadata.
Aliases are the rows of the table `_aliases`.

Every write is one commit: a process that dies at any moment leaves the table as it was before or after it. Every
call opens the table anew and therefore reads the newest version, and that one only, to its end. Old versions are
kept for `RETENTION`, which bounds how long a scan may take while others write and maintain.

Concurrent merges of a new id can both insert it. Two things prevent that: writers of a table in a directory take
turns, by a lock file in its folder `.locks`; and `id` is declared the table's (unenforced) primary key, on which
LanceDB detects such a conflict at commit and merges again. Writers in object storage from several machines have
the second only.

LanceDB runs threads of its own, which do not survive a fork: start processes with `spawn`.
"""

import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit
from urllib.request import url2pathname

import filelock
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from vectorize_pipelines.encoders.protocol import EncoderSpec
from vectorize_pipelines.errors import (
    CollectionNotFoundError,
    ModelMismatchError,
    SettingsError,
    StoreError,
    VectorizeError,
)
from vectorize_pipelines.records import RECORD_FIELDS, record_schema
from vectorize_pipelines.stores.filters import Filter
from vectorize_pipelines.stores.lancedb_filters import METADATA_TERMS, terms_column, text_value_sql, to_sql
from vectorize_pipelines.stores.protocol import Collection, VectorStore, Written, physical_name

if TYPE_CHECKING:
    from vectorize_pipelines.settings import StoreSettings

ALIASES = "_aliases"
RETENTION = timedelta(hours=1)
LOCK_TIMEOUT = 600.0

#: Schemes of object stores that LanceDB reads and writes itself; credentials come from the environment.
OBJECT_STORES = ("s3", "gs", "az", "abfss")

# LanceDB offers no arguments for these. Its defaults read up to 2 GiB ahead and several fragments at once: with
# them, compacting 300,000 rows of 384 dimensions took 420 MB over the process's own size, with these 150 MB, and
# a flat search of as many became a quarter faster.
_READ_AHEAD = {
    "LANCE_DEFAULT_IO_BUFFER_SIZE": str(64 * 2**20),
    "LANCE_DEFAULT_FRAGMENT_READAHEAD": "1",
    "LANCE_DEFAULT_BATCH_SIZE": "2048",
}
_INDEX_CACHE_BYTES = 512 * 2**20
_METADATA_CACHE_BYTES = 64 * 2**20

_PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}
_ALIAS_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False, metadata=_PRIMARY_KEY),
        pa.field("physical", pa.string(), nullable=False),
    ]
)
_MODEL, _REVISION, _DIMENSION = b"vectorize.model", b"vectorize.revision", b"vectorize.dimension"

_SCALAR_INDEXES = {"id": "BTree", "source_id": "BTree", "partition": "Bitmap"}
_VECTOR_INDEX = "vector_of_"

# With these the quantized index found every one of the ten nearest of 100,000 vectors without any structure.
_PROBES = 32
_REFINEMENT = 4

_SEARCH_COLUMNS = (*RECORD_FIELDS, "_distance")

# What LanceDB's and Arrow's calls raise; anything else that comes out of this module is a defect of it.
_FAILURES = (OSError, RuntimeError, ValueError, pa.ArrowException)

_ADVICE = (
    ("No space left", "the disk is full: free some space"),
    ("os error 13", "permission is denied: check owner and mode of the directory"),
    ("Permission denied", "permission is denied: check owner and mode of the directory"),
    ("Read-only file system", "the file system is read-only"),
    ("has NaNs", "a vector contains NaN: check the model and its precision"),
    ("Commit conflict", "another process writes to the collection: call again"),
    ("commit conflict", "another process writes to the collection: call again"),
    ("LanceError(IO)", "a file is missing, damaged or out of reach: check the disk, else drop and ingest again"),
    ("Not found", "a file is missing: it was deleted, or removed as an old version during a very long read"),
)


@dataclass(frozen=True, slots=True)
class Maintenance:
    """When `maintain` does what.

    Every call pays for each small fragment (0.1 ms), compaction for every row that it rewrites; hence a
    threshold that grows with the table, and work that stays a small part of what the writes themselves cost.

    fragments, rows_per_fragment  compact from `fragments + rows / rows_per_fragment` fragments on
    unindexed_rows                bring indexes up to date from so many rows on that they lack
    scalar_index_rows             index id, source and partition from so many rows on
    vector_index_rows             index the vectors from so many rows on; below, every search is exact
    retrain_growth                train the vector index anew when the table has grown by this factor
    """

    fragments: int = 64
    rows_per_fragment: int = 5_000
    unindexed_rows: int = 50_000
    scalar_index_rows: int = 20_000
    vector_index_rows: int = 200_000
    retrain_growth: int = 4


class LanceDBStore(VectorStore):
    """Collections in a directory or a bucket. See the module for what its guarantees rest on."""

    kind = "lancedb"

    @classmethod
    def open(cls, settings: "StoreSettings", home: Path) -> Self:
        """Opens `settings.url`, by default `home/lancedb`; a directory is created where it is missing.

        Raises `SettingsError` for a URL that is neither a path nor object storage, `StoreError` where the
        directory cannot be made or read.
        """
        location = settings.url or str(home / "lancedb")
        scheme = urlsplit(location).scheme if "://" in location else ""
        if scheme in OBJECT_STORES:
            return cls(location, home / "locks")
        if scheme not in ("", "file"):
            raise SettingsError(
                f"store.url: {scheme}:// is not for lancedb; give a path, or one of {', '.join(OBJECT_STORES)}"
            )
        path = Path(url2pathname(urlsplit(location).path)) if scheme else Path(location)
        directory = path.expanduser().absolute()
        return cls(str(directory), directory / ".locks", local=True)

    def __init__(
        self, location: str, locks: Path, *, local: bool = False, maintenance: Maintenance | None = None
    ) -> None:
        """`local` says that every writer of the location takes the locks; `open` knows what to pass."""
        self._location = location
        self._shown_location = _without_credentials(location)
        self._locks = locks
        self._local = local
        self._maintenance = maintenance or Maintenance()
        with self._explained("opening"):
            locks.mkdir(parents=True, exist_ok=True)
            self._database: Any = _connect(location)
            self._table_names()

    # ---- collections

    def ensure_collection(self, name: str, spec: EncoderSpec, *, aliased: bool = True) -> Collection:
        physical = physical_name(name, spec)
        with self._explained(f"creating the collection {name!r}"):
            standing = self._aliases().get(name) if aliased else physical
            if standing in self._table_names():
                return _checked(self._describe(name if aliased else physical, standing), self._table(standing), spec)
            with self._locked(ALIASES):
                self._create(physical, _table_schema(spec))
                collection = self._describe(name if aliased else physical, physical)
                _checked(collection, self._table(physical), spec)
                if aliased:
                    self._write_alias(name, physical)
        return collection

    def collection(self, name: str) -> Collection:
        with self._explained(f"looking up the collection {name!r}"):
            return self._describe(name, self._physical(name))

    def collections(self) -> list[Collection]:
        with self._explained("listing collections"):
            tables = self._table_names()
            aliases = {name: physical for name, physical in self._aliases().items() if physical in tables}
            names = aliases | {table: table for table in tables - set(aliases.values())}
            return [
                self._describe(name, physical)
                for name, physical in sorted(names.items())
                if _is_ours(self._table(physical))
            ]

    def set_alias(self, name: str, physical: str) -> None:
        with self._explained(f"pointing the alias {name!r} at {physical!r}"), self._locked(ALIASES):
            tables = self._table_names()
            if physical not in tables:
                raise self._not_found(physical)
            if name in tables:
                raise StoreError(f"{name!r} is itself a collection in {self._shown_location}: choose another alias")
            self._write_alias(name, physical)

    def drop(self, physical: str) -> None:
        with self._explained(f"dropping {physical!r}"), self._locked(ALIASES):
            if physical not in self._table_names():
                raise self._not_found(physical)
            if ALIASES in self._all_table_names():
                self._database.open_table(ALIASES).delete(f"physical = '{_quoted(physical)}'")
            with self._locked(physical):
                self._database.drop_table(physical)

    # ---- rows

    def upsert(self, name: str, records: pa.Table) -> Written:
        with self._explained(f"writing {records.num_rows} records to {name!r}", "nothing was written"):
            physical = self._physical(name)
            rows = _prepared(records, _dimension(self._table(physical)))
            if rows.num_rows == 0:
                return Written(inserted=0, updated=0)
            with self._locked(physical):
                table = self._table(physical)
                merge = table.merge_insert("id").use_index(self._join_by_index(table, rows.num_rows))
                result = merge.when_matched_update_all().when_not_matched_insert_all().execute(rows)
        written = Written(inserted=result.num_inserted_rows, updated=result.num_updated_rows)
        if written.inserted + written.updated != rows.num_rows:
            raise StoreError(
                f"{rows.num_rows} records were written to {name!r} in {self._shown_location}, but LanceDB inserted "
                f"{written.inserted} and updated {written.updated}: the collection may hold an id twice; "
                "drop it and ingest again"
            )
        return written

    def delete(self, name: str, where: Filter) -> int:
        condition = to_sql(where)
        with self._explained(f"deleting from {name!r}", "nothing was deleted"):
            physical = self._physical(name)
            with self._locked(physical):
                table = self._table(physical)
                matching: int = table.count_rows(condition)
                if matching:
                    table.delete(condition)
        return matching

    def fetch(self, name: str, where: Filter, columns: Sequence[str]) -> pa.Table:
        condition = to_sql(where)
        with self._explained(f"reading from {name!r}"):
            table = self._table(self._physical(name))
            schema = _result_schema(table, columns)
            found = table.search().where(condition).select(schema.names).limit(None).to_arrow()
            return found.cast(schema)

    def scan(
        self, name: str, columns: Sequence[str], where: Filter | None = None, batch_rows: int = 8192
    ) -> Iterator[pa.RecordBatch]:
        condition = None if where is None else to_sql(where)
        with self._explained(f"reading from {name!r}"):
            table = self._table(self._physical(name))
            schema = _result_schema(table, columns)
        return self._batches(name, table, schema, condition, batch_rows)

    def count(self, name: str, where: Filter | None = None) -> int:
        condition = None if where is None else to_sql(where)
        with self._explained(f"counting in {name!r}"):
            rows: int = self._table(self._physical(name)).count_rows(condition)
            return rows

    def count_by(self, name: str, field: str, where: Filter | None = None) -> dict[str, int]:
        expression, decode = text_value_sql(field)
        condition = None if where is None else to_sql(where)
        counts: dict[str, int] = {}
        with self._explained(f"counting in {name!r}"):
            table = self._table(self._physical(name))
            values = _where(table.search(), condition).select({"value": expression}).limit(None)
            for batch in values.to_batches(65_536):
                for entry in pc.value_counts(batch.column("value")).to_pylist():
                    value = None if entry["values"] is None else decode(entry["values"])
                    if value is not None:
                        counts[value] = counts.get(value, 0) + entry["counts"]
        return counts

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
            table = self._table(self._physical(name))
            query = table.search(_checked_query(vector, _dimension(table), name), vector_column_name="vector")
            # No upper limit of probes: a filter that leaves few rows must not lose them with their partitions.
            query = query.distance_type("cosine").minimum_nprobes(_PROBES).maximum_nprobes(0)
            nearest = _where(query.refine_factor(_REFINEMENT), condition).limit(limit).select(list(_SEARCH_COLUMNS))
            return _scored(nearest.to_arrow(), _result_schema(table, RECORD_FIELDS))

    # ---- care

    def maintain(self, name: str) -> Mapping[str, int | float]:
        """Compacts, removes old versions and builds indexes where the table has grown enough for it to pay.

        Called at the end of a run, and cheap enough (a few ms where nothing is due) to be called every few
        batches. Writers of the table wait meanwhile; readers do not. Gives `rows`, `fragments_before`,
        `fragments`, `compacted` (0 or 1), `indexes_built` and `seconds`.
        """
        started = time.perf_counter()
        with self._explained(f"maintaining {name!r}", "its rows are unchanged"):
            physical = self._physical(name)
            with self._locked(physical):
                table = self._table(physical)
                before = table.stats()
                rows = before["num_rows"]
                indexes = {index.name: index for index in table.list_indices()}
                compacted = self._compaction_is_due(before, indexes)
                if compacted:
                    table.optimize(cleanup_older_than=RETENTION)
                built = self._build_scalar_indexes(table, rows, set(indexes))
                built += self._build_vector_index(table, rows, set(indexes))
                fragments = table.stats()["fragment_stats"]["num_fragments"]
        return {
            "rows": rows,
            "fragments_before": before["fragment_stats"]["num_fragments"],
            "fragments": fragments,
            "compacted": int(compacted),
            "indexes_built": built,
            "seconds": time.perf_counter() - started,
        }

    def close(self) -> None:
        """LanceDB's connection has no close; its files and caches go with the last reference."""
        self._database = None

    def _compaction_is_due(self, stats: Mapping[str, Any], indexes: Mapping[str, Any]) -> bool:
        limits = self._maintenance
        unindexed = max((index.num_unindexed_rows or 0 for index in indexes.values()), default=0)
        fragments = stats["fragment_stats"]["num_fragments"]
        return bool(
            fragments >= limits.fragments + stats["num_rows"] // limits.rows_per_fragment
            or unindexed >= limits.unindexed_rows
        )

    def _build_scalar_indexes(self, table: Any, rows: int, existing: set[str]) -> int:
        from lancedb import index

        if rows < self._maintenance.scalar_index_rows:
            return 0
        missing = [column for column in _SCALAR_INDEXES if f"{column}_idx" not in existing]
        for column in missing:
            table.create_index(column, config=getattr(index, _SCALAR_INDEXES[column])(), name=f"{column}_idx")
        return len(missing)

    def _build_vector_index(self, table: Any, rows: int, existing: set[str]) -> int:
        """The index's name says of how many rows it was trained: its partitions suit a table of that size."""
        from lancedb.index import IvfSq

        trained = {name: int(name.removeprefix(_VECTOR_INDEX)) for name in existing if name.startswith(_VECTOR_INDEX)}
        enough = max((of * self._maintenance.retrain_growth for of in trained.values()), default=0)
        if rows < max(self._maintenance.vector_index_rows, enough):
            return 0
        table.create_index("vector", config=IvfSq(distance_type="cosine"), name=f"{_VECTOR_INDEX}{rows}")
        for outgrown in trained:
            table.drop_index(outgrown)
        return 1

    # ---- tables

    def _physical(self, name: str) -> str:
        return self._aliases().get(name, name)

    def _aliases(self) -> dict[str, str]:
        try:
            table = self._database.open_table(ALIASES)
        except ValueError as error:
            if _is_not_found(error):
                return {}
            raise
        rows = table.search().limit(None).to_arrow()
        return dict(zip(rows["name"].to_pylist(), rows["physical"].to_pylist(), strict=True))

    def _write_alias(self, name: str, physical: str) -> None:
        self._create(ALIASES, _ALIAS_SCHEMA)
        row = pa.Table.from_pylist([{"name": name, "physical": physical}], schema=_ALIAS_SCHEMA)
        merge = self._database.open_table(ALIASES).merge_insert("name")
        merge.when_matched_update_all().when_not_matched_insert_all().execute(row)

    def _create(self, table: str, schema: pa.Schema) -> None:
        """In object storage another machine may come first: then its table stands."""
        if table in self._all_table_names():
            return
        try:
            self._database.create_table(table, schema=schema)
        except ValueError as error:
            if "already exists" not in str(error):
                raise

    def _table(self, physical: str) -> Any:
        try:
            return self._database.open_table(physical)
        except ValueError as error:
            if not _is_not_found(error):
                raise
            raise self._not_found(physical) from error

    def _not_found(self, name: str) -> CollectionNotFoundError:
        known = ", ".join(sorted(self._table_names() | set(self._aliases()))) or "none"
        return CollectionNotFoundError(
            f"there is no collection or alias {name!r} in {self._shown_location}; there are: {known}"
        )

    def _table_names(self) -> set[str]:
        return {name for name in self._all_table_names() if not name.startswith("_")}

    def _all_table_names(self) -> set[str]:
        names: set[str] = set()
        page = self._database.list_tables()
        names.update(page.tables)
        while page.page_token:
            page = self._database.list_tables(page_token=page.page_token)
            names.update(page.tables)
        return names

    def _describe(self, name: str, physical: str) -> Collection:
        table = self._table(physical)
        if not _is_ours(table):
            raise StoreError(f"the table {physical!r} in {self._shown_location} is not a collection of this project")
        metadata = table.schema.metadata
        return Collection(
            name=name,
            physical=physical,
            store=self.kind,
            location=self._shown_location,
            model=metadata[_MODEL].decode(),
            dimension=int(metadata[_DIMENSION]),
        )

    def _batches(
        self, name: str, table: Any, schema: pa.Schema, condition: str | None, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        with self._explained(f"reading from {name!r}"):
            rows = _where(table.search(), condition).select(schema.names).limit(None).to_batches(batch_rows)
            for batch in rows:
                yield batch.cast(schema)

    def _join_by_index(self, table: Any, rows: int) -> bool:
        """Whether a merge finds its rows through the index on `id`, or by reading every id.

        Measured: through the index 10 ms, and 1.2 ms for each small fragment, which it reads whole; without it
        0.1 ms for 1,000 rows of the table. Merges through the index do not detect conflicts on the primary
        key, so where the locks do not hold off every writer it is not used.
        """
        if not self._local:
            return False
        stats = table.stats()
        small_fragments = stats["fragment_stats"]["num_small_fragments"]
        return bool(stats["num_rows"] > 100_000 + 12_000 * small_fragments + 600 * rows)

    # ---- locks and failures

    @contextmanager
    def _locked(self, table: str) -> Iterator[None]:
        lock = filelock.FileLock(self._locks / f"{table}.lock", timeout=LOCK_TIMEOUT)
        try:
            lock.acquire(poll_interval=0.01)
        except filelock.Timeout as error:
            raise StoreError(
                f"another process has held {lock.lock_file} for {LOCK_TIMEOUT:.0f} seconds; end it and call again"
            ) from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _explained(self, doing: str, state: str = "") -> Iterator[None]:
        """Translates LanceDB's failures; what the project raised itself says enough already."""
        try:
            yield
        except VectorizeError:
            raise
        except _FAILURES as error:
            reason = _reason(error)
            advice = next((text for sign, text in _ADVICE if sign in reason), "")
            parts = [f"{doing} failed in {self._shown_location}", state, advice, reason]
            raise StoreError("; ".join(part for part in parts if part)) from error


def _connect(location: str) -> Any:
    for name, value in _READ_AHEAD.items():
        os.environ.setdefault(name, value)

    import lancedb

    session = lancedb.Session(
        index_cache_size_bytes=_INDEX_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
    )
    return lancedb.connect(location, session=session)


def _without_credentials(location: str) -> str:
    if "://" not in location:
        return location
    parts = urlsplit(location)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _reason(error: BaseException) -> str:
    """LanceDB appends the place in its source, and a traceback where a callback failed."""
    return str(error).split("Detail: Python exception")[0].split(", /root/.cargo")[0].split(", /rustc")[0].strip()


def _is_not_found(error: ValueError) -> bool:
    return "was not found" in str(error)


def _quoted(text: str) -> str:
    return text.replace("'", "''")


# ---- schemas and checks


def _table_schema(spec: EncoderSpec) -> pa.Schema:
    record = record_schema(spec.dimension)
    schema = record.set(0, record.field(0).with_metadata(_PRIMARY_KEY))
    return schema.append(pa.field(METADATA_TERMS, pa.string(), nullable=False)).with_metadata(
        {_MODEL: spec.name, _REVISION: spec.revision, _DIMENSION: str(spec.dimension)}
    )


def _is_ours(table: Any) -> bool:
    return _MODEL in (table.schema.metadata or {})


def _dimension(table: Any) -> int:
    return int(table.schema.field("vector").type.list_size)


def _checked(collection: Collection, table: Any, spec: EncoderSpec) -> Collection:
    """A model of the same revision under another name, e.g. a local copy, gives the same vectors and is let in."""
    same_model = spec.name == collection.model or spec.revision.encode() == table.schema.metadata[_REVISION]
    if same_model and spec.dimension == collection.dimension:
        return collection
    raise ModelMismatchError(
        f"the collection {collection.name!r} ({collection.physical} in {collection.location}) holds vectors of "
        f"{collection.model} with {collection.dimension} dimensions, not of {spec.name} with {spec.dimension}; "
        "use another collection, or embed this one again with the new model"
    )


def _result_schema(table: Any, columns: Sequence[str]) -> pa.Schema:
    """LanceDB forgets that a vector's components are never null, hence results are cast to the record's schema."""
    schema = record_schema(_dimension(table))
    unknown = [column for column in columns if column not in schema.names]
    if unknown or not columns:
        raise StoreError(f"no such columns: {unknown}; a record has {', '.join(schema.names)}")
    return pa.schema([schema.field(column) for column in columns])


def _prepared(records: pa.Table, dimension: int) -> pa.Table:
    """The records as the table takes them, without copying; raises `StoreError` for what it must not take."""
    schema = record_schema(dimension)
    if records.schema.names != schema.names:
        raise StoreError(f"records have the columns {records.schema.names}; they must be {schema.names}")
    given = records.schema.field("vector").type
    if not pa.types.is_fixed_size_list(given) or given.list_size != dimension:
        raise StoreError(f"vectors are {given}; the collection's have {dimension} components")
    rows = records.cast(schema)
    for field in schema:
        if not field.nullable and rows[field.name].null_count:
            raise StoreError(f"{rows[field.name].null_count} records have no {field.name!r}, which every record has")
    _check_ids(rows["id"])
    _check_vectors(rows)
    return rows.append_column(pa.field(METADATA_TERMS, pa.string(), nullable=False), terms_column(rows["metadata"]))


def _check_ids(ids: pa.ChunkedArray) -> None:
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    repeated = next(entry["values"] for entry in pc.value_counts(ids).to_pylist() if entry["counts"] > 1)
    raise StoreError(f"the id {repeated!r} occurs more than once in a call")


def _check_vectors(rows: pa.Table) -> None:
    for batch in rows.select(["id", "vector"]).to_batches():
        # Not `.values`, which ignores where a sliced batch begins.
        components = batch.column("vector").flatten()
        finite = np.isfinite(components.to_numpy(zero_copy_only=False))
        if not finite.all():
            index = int(np.argmin(finite)) // (len(components) // batch.num_rows)
            row = batch.column("id")[index].as_py()
            raise StoreError(f"the vector of {row!r} is not finite: check the model and its precision")


def _checked_query(vector: npt.NDArray[np.float32], dimension: int, name: str) -> npt.NDArray[np.float32]:
    if vector.shape != (dimension,):
        raise StoreError(
            f"the query vector has the shape {vector.shape}, but vectors of {name!r} have {dimension} components; "
            "encode the query with the collection's model"
        )
    length = float(np.linalg.norm(vector))
    if not math.isfinite(length) or length == 0:
        raise StoreError(f"the query vector has the length {length}: it points nowhere")
    return np.ascontiguousarray(vector, dtype=np.float32)


def _where(query: Any, condition: str | None) -> Any:
    return query if condition is None else query.where(condition)


def _scored(nearest: pa.Table, schema: pa.Schema) -> pa.Table:
    score = pc.cast(pc.subtract(pa.scalar(1.0, pa.float32()), nearest["_distance"]), pa.float32())
    hits = nearest.select(schema.names).cast(schema).append_column("score", score)
    return hits.sort_by([("score", "descending"), ("id", "ascending")])
