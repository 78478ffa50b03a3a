"""Weaviate as a `VectorStore`: a server (1.33 or later) that many processes use at once.

Opened by `open_store` for the kind `weaviate`. A collection of ours is one of Weaviate's, whose description names the
model (see `collections`); aliases are the server's own, so turning one is one step for every reader. With
`store.weaviate.tenant` every call goes to that tenant of multi-tenant collections.

Objects have their record's id, so writing one again replaces it. An upsert returns when the server has acknowledged
every object: it is then in the server's write-ahead log and found by every query, unless the server indexes vectors
asynchronously (ASYNC_INDEXING), which lets searches by vector lag behind; `maintain` tells by how much. Requests that
find no server, and objects that are refused for a reason that may pass, are tried again; what stays refused is named.
`Written` counts what was there when the call began: of two calls that write the same new id at once, both may count
it as inserted; it is there once.

A write that is cut off, by the end of the server or of this process, can leave objects that are stored and in no index.
The server takes an equal object for one that it has already, and leaves it so: `repair` has them indexed again. What is
acknowledged outlives the server, since every write ends with `writing.flush`.
"""

import contextlib
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vectorize_pipelines.core.records import RECORD_FIELDS
from vectorize_pipelines.core.urls import shown_url
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import StoreError, UnanswerableFilterError
from vectorize_pipelines.stores.base import Collection, VectorStore, Written, physical_name
from vectorize_pipelines.stores.contents import check_model, checked_query, checked_records, result_schema
from vectorize_pipelines.stores.filters.expressions import Filter
from vectorize_pipelines.stores.filters.metadata_terms import number_term, text_of
from vectorize_pipelines.stores.filters.operands import METADATA
from vectorize_pipelines.stores.servers import pauses, retry
from vectorize_pipelines.stores.weaviate.catalogue import Catalogue
from vectorize_pipelines.stores.weaviate.collections import Described, add_metadata_properties
from vectorize_pipelines.stores.weaviate.connection import (
    DEFAULT_URL,
    connect,
    failures,
    may_pass,
    translate_errors,
)
from vectorize_pipelines.stores.weaviate.filters import (
    ID_PROPERTY,
    condition,
    conjunction,
    metadata_names,
    native_filter,
    property_of,
    text_property,
)
from vectorize_pipelines.stores.weaviate.reading import MOST_ROWS, PageReader, between, count, page_rows, pieces
from vectorize_pipelines.stores.weaviate.rows import (
    UNINDEXED,
    check_offsets,
    metadata_entries,
    objects,
    record_batch,
    result_table,
    scored,
)
from vectorize_pipelines.stores.weaviate.texts import (
    collection_name,
    number_property,
    property_name,
    read,
    written_column,
)
from vectorize_pipelines.stores.weaviate.writing import insert, reinsert, remove, stored

if TYPE_CHECKING:
    from weaviate.collections import Collection as Native

    from vectorize_pipelines.settings import StoreSettings
    from vectorize_pipelines.stores.weaviate.filters import Condition

#: How long a search relies on what the server last said of a collection, in seconds. It asks again where that fails.
DESCRIPTION_AGE = 1.0
#: The server's own grouping is slow for many values; from so many on they are read and counted here.
GROUPS = 100
#: Rows that `repair` has in memory at a time.
REPAIRED_TOGETHER = 2_000
#: How often in a row the number of rows has to be the same before `repair` reads them, and how long it waits for that.
REST_LOOKS = 5
REST_SECONDS = 5.0


class WeaviateStore(VectorStore):
    """Collections on a server. See the module for what its guarantees rest on."""

    kind = "weaviate"
    needs_repair = True

    @classmethod
    def open(cls, settings: "StoreSettings", home: Path) -> Self:
        """Connect to `settings.url`, by default http://localhost:8080. `home` is not used.

        Raises `SettingsError` for a URL that cannot be one of Weaviate's, `StoreError` where no server answers, the
        key is refused or the server is too old.
        """
        return cls(settings)

    def __init__(self, settings: "StoreSettings") -> None:
        self._settings = settings
        self._own = settings.weaviate
        self._place = shown_url(settings.url or DEFAULT_URL)
        self._secret = None if settings.api_key is None else settings.api_key.get_secret_value()
        self._pauses = pauses(self._own.retries, self._own.retry_seconds)
        self._known: dict[str, tuple[float, Described]] = {}
        with self._explained("opening"):
            self._client = connect(settings)
        self._catalogue = Catalogue(self._client, self._place, self._own, self._attempt)
        # Who forgets to close leaves no connection behind.
        self._closing = weakref.finalize(self, self._client.close)

    # ---- collections

    def ensure_collection(self, name: str, spec: EncoderSpec, *, aliased: bool = True, edition: int = 1) -> Collection:
        physical = physical_name(name, spec, edition)
        named = name if aliased else physical
        with self._explained(f"creating the collection {name!r}"):
            found = self._catalogue.found(named) or self._catalogue.made(named, spec, physical)
            check_model(self._catalogue.collection(named, found), found.revision, spec)
            self._catalogue.check_tenancy(named, found)
            self._catalogue.ensure_tenant(found)
        return self._catalogue.collection(named, found)

    def collection(self, name: str) -> Collection:
        with self._explained(f"looking up the collection {name!r}"):
            return self._catalogue.collection(name, self._catalogue.resolved(name))

    def collections(self) -> list[Collection]:
        with self._explained("listing collections"):
            standing = self._catalogue.all_described()
            aliases = self._catalogue.aliases()
            names = {name: native for name, native in aliases.items() if native in standing}
            unnamed = standing.keys() - set(names.values())
            names |= {standing[native].physical: native for native in unnamed}
            return [
                self._catalogue.collection(name, standing[native])
                for name, native in sorted(names.items())
                if self._catalogue.is_readable(standing[native])
            ]

    def set_alias(self, name: str, physical: str) -> None:
        with self._explained(f"pointing the alias {name!r} at {physical!r}"):
            self._catalogue.turn_alias(name, self._catalogue.physical(physical).native)

    def drop(self, physical: str) -> None:
        with self._explained(f"dropping {physical!r}"):
            native = self._catalogue.physical(physical).native
            for alias in self._client.alias.list_all(collection=native):
                self._client.alias.delete(alias_name=alias)
            self._client.collections.delete(native)
            self._known.clear()

    # ---- rows

    def upsert(self, name: str, records: pa.Table) -> Written:
        state = "some of the records may be written; writing all of them again mends it"
        with self._explained(f"writing to {name!r}", state):
            found = self._catalogue.resolved(name)
            rows = checked_records(records, found.dimension)
            check_offsets(rows)
            entries = metadata_entries(rows)
            if not rows.num_rows:
                return Written(inserted=0, updated=0)
            indexed = self._indexed(found, entries)
            native = self._catalogue.native(found)
            updated = count(native, self._with_ids(rows), self._attempt)
            resent = insert(native, objects(rows, entries, indexed), self._own, self._pauses)
        return Written(inserted=rows.num_rows - updated, updated=updated, resent=resent)

    def repair(self, name: str, ids: Sequence[str]) -> int:
        with self._explained(f"indexing rows of {name!r} again", "some of the rows may not be found yet"):
            native = self._catalogue.native(self._catalogue.resolved(name))
            missing, there = list(ids), 0
            # A busy server may store what a killed sender sent only while other rows are indexed again.
            while missing and (found := self._indexed_again(native, missing)):
                missing = [id_ for id_ in missing if id_ not in found]
                there += len(found)
        return there

    def _indexed_again(self, native: "Native[Any, Any]", ids: Sequence[str]) -> set[str]:
        self._await_rest(native)
        found: set[str] = set()
        for start in range(0, len(ids), REPAIRED_TOGETHER):
            some = stored(native, ids[start : start + REPAIRED_TOGETHER], self._own, self._attempt)
            if some:
                reinsert(native, some, self._own, self._pauses)
            found.update(read(one.properties[ID_PROPERTY]) for one in some)
        return found

    def delete(self, name: str, where: Filter) -> int:
        with self._explained(f"deleting from {name!r}", "some of the rows may be gone"):
            found = self._catalogue.resolved(name)
            matching = self._condition(found, where)
            return remove(self._catalogue.native(found), matching, self._pauses)

    def fetch(self, name: str, where: Filter, columns: Sequence[str]) -> pa.Table:
        with self._explained(f"reading from {name!r}"):
            found = self._catalogue.resolved(name)
            schema = result_schema(found.dimension, columns)
            pages = self._reader(found, self._condition(found, where), schema, MOST_ROWS).pages()
            return result_table(pages, schema)

    def scan(
        self, name: str, columns: Sequence[str], where: Filter | None = None, batch_rows: int = 8192
    ) -> Iterator[pa.RecordBatch]:
        """See `VectorStore.scan`. No snapshot: rows that are written meanwhile may come or not, each once at most."""
        with self._explained(f"reading from {name!r}"):
            found = self._catalogue.resolved(name)
            schema = result_schema(found.dimension, columns)
            matching = self._condition(found, where)
        return self._batches(name, self._reader(found, matching, schema, batch_rows), schema)

    def count(self, name: str, where: Filter | None = None) -> int:
        with self._explained(f"counting in {name!r}"):
            found = self._catalogue.resolved(name)
            return count(self._catalogue.native(found), self._condition(found, where), self._attempt)

    def count_by(self, name: str, field: str, where: Filter | None = None) -> dict[str, int]:
        held = text_property(field)
        with self._explained(f"counting in {name!r}"):
            found = self._catalogue.resolved(name)
            matching = self._condition(found, where)
            self._check_indexed(found, [field.removeprefix(METADATA)] if field.startswith(METADATA) else [])
            if matching is False or held not in found.properties:
                return {}
            counts = self._grouped(found, held, matching) or self._counted(found, held, matching)
        values = {read(form): rows for form, rows in counts.items()}
        if not field.startswith(METADATA):
            return values
        return {text: rows for term, rows in values.items() if (text := text_of(term)) is not None}

    def search(self, name: str, vector: npt.NDArray[np.float32], limit: int, where: Filter | None = None) -> pa.Table:
        """See `VectorStore.search`. Equal scores come in the order of their ids.

        The candidates come from the vector index, which is approximate, unless a filter leaves few rows. Where it
        has fewer than `limit` although more match, the rows are compared one by one. Raises `StoreError` for a
        `limit` beyond the server's QUERY_MAXIMUM_RESULTS.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}; it must be at least 1")
        with self._explained(f"searching {name!r}"):
            recent = None if _compares_metadata(where) else self._recent(name)
            if recent is not None:
                # Where it fails, the name may stand for another collection by now.
                with contextlib.suppress(StoreError, *failures()):
                    return self._searched(name, recent, vector, limit, where)
            found = self._catalogue.resolved(name)
            self._known[name] = (time.monotonic(), found)
            return self._searched(name, found, vector, limit, where)

    # ---- care

    def searches_exactly(self, name: str) -> bool:
        with self._explained(f"looking up the index of {name!r}"):
            return self._catalogue.resolved(name).exact

    def maintain(self, name: str) -> Mapping[str, int | float]:
        """Return how far Weaviate is, which compacts and indexes by itself. Cheap, and changes nothing.

        Returns `rows`, `shards`, `vectors_waiting` (to be indexed; 0 unless the server indexes asynchronously) and
        `seconds`.
        """
        started = time.perf_counter()
        with self._explained(f"maintaining {name!r}", "its rows are unchanged"):
            found = self._catalogue.resolved(name)
            rows = count(self._catalogue.native(found), True, self._attempt)
            nodes = self._attempt(lambda: self._client.cluster.nodes(collection=found.native, output="verbose"))
            shards = [
                shard
                for node in nodes
                for shard in node.shards or []
                if not found.multi_tenant or shard.name == self._own.tenant
            ]
        return {
            "rows": rows,
            "shards": len(shards),
            "vectors_waiting": sum(shard.vector_queue_length for shard in shards),
            "seconds": time.perf_counter() - started,
        }

    def close(self) -> None:
        self._closing()

    def _await_rest(self, native: "Native[Any, Any]") -> None:
        """Wait until the number of rows stands still: the server may be at work on a request whose sender is gone."""
        counts = [-1] * REST_LOOKS
        end = time.monotonic() + REST_SECONDS
        while len(set(counts)) > 1 or counts[0] < 0:
            counts = [*counts[1:], count(native, True, self._attempt)]
            if time.monotonic() > end:
                return  # others write to the collection
            time.sleep(REST_SECONDS / 50)

    # ---- searching and counting

    def _recent(self, name: str) -> Described | None:
        asked, found = self._known.get(name, (-math.inf, None))
        return found if time.monotonic() - asked < DESCRIPTION_AGE else None

    def _searched(
        self, name: str, found: Described, vector: npt.NDArray[np.float32], limit: int, where: Filter | None
    ) -> pa.Table:
        query = checked_query(vector, found.dimension, name).tolist()
        matching = self._condition(found, where)
        if matching is False:
            return scored([], [], limit)
        # By the name that was asked for: the server knows what it stands for at this moment.
        native = self._catalogue.bound(collection_name(name) or name)
        hits = self._nearest(native, query, limit, matching)
        if len(hits) < limit:
            rows = count(native, matching, self._attempt)
            if len(hits) < min(limit, rows):
                hits = self._nearest_by_pieces(native, query, limit, matching, rows, found.exact_rows)
        similarities = [found.similarity(hit.metadata.distance) for hit in hits]
        return scored(hits, similarities, limit)

    def _nearest(self, native: "Native[Any, Any]", query: list[float], limit: int, matching: "Condition") -> list[Any]:
        found = self._attempt(
            lambda: native.query.near_vector(
                query,
                limit=limit,
                filters=native_filter(matching),
                return_metadata=["distance"],
                return_properties=_SEARCH_PROPERTIES,
            )
        )
        hits: list[Any] = found.objects
        return hits

    def _nearest_by_pieces(
        self,
        native: "Native[Any, Any]",
        query: list[float],
        limit: int,
        matching: "Condition",
        rows: int,
        exact_rows: int,
    ) -> list[Any]:
        """Return the nearest of pieces that are small enough for the server to compare every row of them."""
        hits: list[Any] = []
        for start, end in pieces(1 + 2 * rows // exact_rows):
            hits += self._nearest(native, query, limit, conjunction([matching, between(start, end)]))
        return hits

    def _grouped(self, found: Described, held: str, matching: "Condition") -> dict[str, int]:
        """Return rows by the property's value, as the server groups them; nothing where there are too many values."""
        from weaviate.classes.aggregate import GroupByAggregate

        native = self._catalogue.native(found)
        answer = self._attempt(
            lambda: native.aggregate.over_all(
                group_by=GroupByAggregate(prop=held, limit=GROUPS),
                total_count=True,
                filters=native_filter(matching),
            )
        )
        groups = {str(group.grouped_by.value): int(group.total_count or 0) for group in answer.groups}
        return {} if len(groups) >= GROUPS else groups

    def _counted(self, found: Described, held: str, matching: "Condition") -> dict[str, int]:
        reader = PageReader(self._catalogue.native(found), matching, [held], False, MOST_ROWS, self._attempt)
        counts: dict[str, int] = {}
        for page in reader.pages():
            for one in page:
                value = one.properties.get(held)
                if value is not None:
                    counts[value] = counts.get(value, 0) + 1
        return counts

    def _reader(self, found: Described, matching: "Condition", schema: pa.Schema, rows: int) -> PageReader:
        with_vector = "vector" in schema.names
        properties = [property_of(name) for name in schema.names if name != "vector"]
        page = page_rows(found.dimension, with_vector, rows)
        return PageReader(self._catalogue.native(found), matching, properties, with_vector, page, self._attempt)

    def _batches(self, name: str, reader: PageReader, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        with self._explained(f"reading from {name!r}"):
            for page in reader.pages():
                yield record_batch(page, schema)

    # ---- filters

    def _condition(self, found: Described, where: Filter | None) -> "Condition":
        if where is None:
            return True
        matching = condition(where, found.properties.__contains__)
        self._check_indexed(found, list(metadata_names(where)))
        return matching

    def _check_indexed(self, found: Described, names: Sequence[str]) -> None:
        """Raise `UnanswerableFilterError` where rows have metadata of these names that no index holds."""
        if not names or UNINDEXED not in found.properties:
            return
        from weaviate.classes.query import Filter as Native

        among = Native.by_property(UNINDEXED).contains_any([property_name(name) for name in names])
        rows = count(self._catalogue.native(found), among, self._attempt)
        if rows:
            raise UnanswerableFilterError(
                f"{rows} rows of {found.physical!r} have metadata named {' or '.join(map(repr, names))} that is not "
                f"indexed, because the collection had {self._own.metadata_names} names already: raise "
                "VECTORIZE_STORE__WEAVIATE__METADATA_NAMES and ingest again with --force"
            )

    def _with_ids(self, rows: pa.Table) -> "Condition":
        from weaviate.classes.query import Filter as Native

        return Native.by_property(ID_PROPERTY).contains_any(written_column(rows["id"]).to_pylist())

    def _indexed(self, found: Described, entries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        """Return names of metadata with the properties that hold them, made where there is room for more."""
        names = dict.fromkeys(name for own in entries for name, value in own.items() if value is not None)
        held = {name: property_name(name) for name in names}
        missing = list(dict.fromkeys(one for one in held.values() if one not in found.properties))
        room = max(0, self._own.metadata_names - len(found.metadata_properties))
        made = missing[:room]
        beyond = [UNINDEXED] if len(missing) > room and UNINDEXED not in found.properties else []
        there = found.properties | set(made)
        indexed = {name: one for name, one in held.items() if one in there}
        numbers = {
            number_property(name)
            for own in entries
            for name, value in own.items()
            if name in indexed and number_term(value) is not None
        }
        add_metadata_properties(self._client, found.native, made + beyond + sorted(numbers - found.properties))
        return indexed

    # ---- calls

    def _attempt(self, call: Callable[[], Any]) -> Any:
        return retry(call, self._pauses, may_pass)

    def _explained(self, doing: str, state: str = "") -> AbstractContextManager[None]:
        return translate_errors(self._place, self._secret, doing, state)


_SEARCH_PROPERTIES = [property_of(name) for name in RECORD_FIELDS]


def _compares_metadata(where: Filter | None) -> bool:
    return where is not None and any(True for _ in metadata_names(where))
