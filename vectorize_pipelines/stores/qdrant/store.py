"""Qdrant as a `VectorStore`: a server over gRPC, or the client's local mode in a folder, for experiments.

Opened by `open_store` for the kind `qdrant`. A collection is a collection of Qdrant's, with the model in its metadata;
aliases are Qdrant's own, which a reader sees switch in one step. `points` says what a point looks like,
`filters` how filters become conditions, `connection` what is retried.

Every request that writes waits until it is applied: then it is in the write-ahead log and visible. An upsert is several
requests. A process that dies, or a server that stays away, may leave some of them written; they are whole, and since
ids are the same every time, the next call writes the same rows again.

What is inserted and what updated is counted by looking the ids up first, and what is deleted by counting first. In a
folder, and among the threads of a process, writers take turns; of two processes that write the same new id to a server
at the same moment both count it as inserted, though it is there once.

A scan goes through the ids in their order and is no snapshot: a row that is there from its beginning to its end comes
exactly once, one that is written or deleted meanwhile may come or not.

How local mode differs from a server: no index is built (a search compares all vectors, settings of the index have no
effect), values are counted by reading rows, since facets rewrite texts that look like UUIDs, and nothing is retried.
"""

import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vectorize_pipelines.core.records import RECORD_FIELDS
from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.errors import CollectionNotFoundError, StoreError
from vectorize_pipelines.stores.base import Collection, VectorStore, Written, physical_name
from vectorize_pipelines.stores.contents import check_model, checked_query, checked_records, result_schema
from vectorize_pipelines.stores.failures import no_such_collection
from vectorize_pipelines.stores.filters.expressions import Filter
from vectorize_pipelines.stores.filters.operands import parts
from vectorize_pipelines.stores.qdrant.collections import (
    DIMENSION,
    INDEXED_TEXTS,
    PHYSICAL,
    REVISION,
    check_optimizer,
    creation,
    deferral,
    described,
    is_collection,
    payload_indexes,
    restoration,
    search_parameters,
)
from vectorize_pipelines.stores.qdrant.connection import Connection, is_not_found, is_there_already, may_pass
from vectorize_pipelines.stores.qdrant.filters import (
    Translated,
    lets_through,
    text_payload_key,
    text_value,
    translated,
)
from vectorize_pipelines.stores.qdrant.points import Points, found_rows, payload_keys, rows
from vectorize_pipelines.stores.qdrant.upload import Upload

if TYPE_CHECKING:
    from vectorize_pipelines.settings import QdrantSettings, StoreSettings

#: More values of a field than that are counted by reading rows, so that an answer stays small.
MOST_FACETS = 50_000
#: How long a search relies on what the server last said of a collection, in seconds. It asks again where that fails.
DESCRIPTION_AGE = 1.0
_ROWS_READ_TOGETHER = 4096
_IDS_TOGETHER = 5_000

#: The physical name behind a collection's, and its dimension.
_Described: TypeAlias = tuple[str, int]


class QdrantStore(VectorStore):
    """Collections of a Qdrant server, or in a folder. See the module for what its guarantees rest on."""

    kind = "qdrant"

    @classmethod
    def open(cls, settings: "StoreSettings", home: Path) -> Self:
        """Connect to the server that `settings.url` names, or open the folder, by default `home/qdrant`.

        Raises `SettingsError` for another kind of URL; `StoreError` where the server cannot be reached, refuses the
        key or is too old, and where another process has the folder open.
        """
        return cls(Connection(settings, home), settings.qdrant)

    def __init__(self, connection: Connection, settings: "QdrantSettings") -> None:
        self._connection = connection
        self._settings = settings
        self._writing = threading.RLock()
        self._rows_since_maintenance: Counter[str] = Counter()
        self._known: dict[str, tuple[float, _Described]] = {}

    # ---- collections

    def ensure_collection(self, name: str, spec: EncoderSpec, *, aliased: bool = True, edition: int = 1) -> Collection:
        physical = physical_name(name, spec, edition)
        named = name if aliased else physical
        with self._connection.translate_errors(f"creating the collection {name!r}"), self._writing:
            info = self._found(named)
            if info is None:
                self._create(spec, physical)
                check_model(self._collection(physical), self._info(physical).config.metadata[REVISION], spec)
                if aliased and self._found(named) is None:
                    self._point(named, physical)
                info = self._info(named)
            collection = described(info, named, self.kind, self._connection.location)
            check_model(collection, info.config.metadata[REVISION], spec)
            self._index_payload(collection.physical, info)
        return collection

    def collection(self, name: str) -> Collection:
        with self._connection.translate_errors(f"looking up the collection {name!r}"):
            return self._collection(name)

    def collections(self) -> list[Collection]:
        with self._connection.translate_errors("listing collections"):
            physicals, aliases = self._names()
            names = [*aliases, *(physicals - set(aliases.values()))]
            infos = [(name, self._found(name, any_kind=True)) for name in sorted(names)]
            return [
                described(info, name, self.kind, self._connection.location)
                for name, info in infos
                if info is not None and is_collection(info)
            ]

    def set_alias(self, name: str, physical: str) -> None:
        with self._connection.translate_errors(f"pointing the alias {name!r} at {physical!r}"), self._writing:
            physicals, _ = self._names()
            if physical not in physicals:
                raise self._not_found(physical)
            if name in physicals:
                raise StoreError(
                    f"{name!r} is itself a collection in {self._connection.location}: choose another alias"
                )
            self._point(name, physical)

    def drop(self, physical: str) -> None:
        with self._connection.translate_errors(f"dropping {physical!r}"), self._writing:
            if physical not in self._names()[0]:
                raise self._not_found(physical)
            self._connection.call("delete_collection", collection_name=physical)  # with its aliases

    # ---- rows

    def upsert(self, name: str, records: pa.Table) -> Written:
        """See `VectorStore.upsert`. A `StoreError` says how many of the records were written."""
        with self._connection.translate_errors(
            f"writing {records.num_rows} records to {name!r}", "nothing was written"
        ):
            info = self._info(name)
            physical = info.config.metadata[PHYSICAL]
            checked = checked_records(records, _dimension(info))
            points = Points(checked, unit_length=self._settings.distance == "cosine")
            if not points.ids:
                return Written(inserted=0, updated=0)
        with self._writing:
            with self._connection.translate_errors(
                f"writing {records.num_rows} records to {name!r}", "nothing was written"
            ):
                there = self._count_there(physical, points.ids)
                self._put_off_indexing(physical, info, len(points.ids))
            upload = Upload(self._connection, physical, self._settings)
            with self._connection.translate_errors(f"writing to {name!r}", upload.state):
                upload.write(points)
        return Written(inserted=len(points.ids) - there, updated=there)

    def delete(self, name: str, where: Filter) -> int:
        deleted = 0
        conditions = [self._translated(part) for part in parts(where, _IDS_TOGETHER)]
        with (
            self._connection.translate_errors(f"deleting from {name!r}", "some of the rows may be gone"),
            self._writing,
        ):
            physical = self._physical(name)
            for condition in conditions:
                deleted += self._delete(physical, condition)
        return deleted

    def fetch(self, name: str, where: Filter, columns: Sequence[str]) -> pa.Table:
        condition, physical, schema = self._reading(name, columns, where)
        return pa.Table.from_batches(self._batches(name, physical, condition, schema, _ROWS_READ_TOGETHER), schema)

    def scan(
        self, name: str, columns: Sequence[str], where: Filter | None = None, batch_rows: int = 8192
    ) -> Iterator[pa.RecordBatch]:
        condition, physical, schema = self._reading(name, columns, where)
        return self._batches(name, physical, condition, schema, batch_rows)

    def count(self, name: str, where: Filter | None = None) -> int:
        condition = self._translated(where)
        with self._connection.translate_errors(f"counting in {name!r}"):
            physical = self._physical(name)
            if condition.rest is None:
                return self._count(physical, condition)
            return sum(len(points) for points in self._points(physical, condition, []))

    def count_by(self, name: str, field: str, where: Filter | None = None) -> dict[str, int]:
        key = text_payload_key(field)
        condition = self._translated(where)
        with self._connection.translate_errors(f"counting by {field} in {name!r}"):
            physical = self._physical(name)
            if field in INDEXED_TEXTS and condition.rest is None and not self._connection.local:
                hits = self._connection.call(
                    "facet",
                    collection_name=physical,
                    key=key,
                    facet_filter=condition.filter,
                    limit=MOST_FACETS,
                    exact=True,
                ).hits
                if len(hits) < MOST_FACETS:
                    return {hit.value: hit.count for hit in hits}
            values = (
                text_value(field, point.payload or {})
                for point in chain.from_iterable(self._points(physical, condition, [key]))
            )
            return dict(Counter(value for value in values if value is not None))

    def search(self, name: str, vector: npt.NDArray[np.float32], limit: int, where: Filter | None = None) -> pa.Table:
        """See `VectorStore.search`. `score` is the cosine similarity for vectors of any length, with the setting
        `distance: dot` the inner product, with `euclid` 1 - d²/2 of the distance d, which for vectors of length 1 is
        the cosine too. Equal scores come in the order of their ids; at the end of the hits any of them may be left out.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}; it must be at least 1")
        condition = self._translated(where)
        with self._connection.translate_errors(f"searching {name!r}"):
            recent = self._recent(name)
            try:
                return self._searched(name, recent or self._looked_up(name), vector, limit, condition)
            except Exception as error:
                # The name may stand for another collection by now.
                if recent is None or may_pass(error) or (now := self._looked_up(name)) == recent:
                    raise
            return self._searched(name, now, vector, limit, condition)

    def _recent(self, name: str) -> _Described | None:
        asked, found = self._known.get(name, (-math.inf, None))
        return found if time.monotonic() - asked < DESCRIPTION_AGE else None

    def _looked_up(self, name: str) -> _Described:
        info = self._info(name)
        found = (info.config.metadata[PHYSICAL], _dimension(info))
        self._known[name] = (time.monotonic(), found)
        return found

    def _searched(
        self, name: str, described: _Described, vector: npt.NDArray[np.float32], limit: int, condition: Translated
    ) -> pa.Table:
        query = checked_query(vector, described[1], name)
        if self._settings.distance == "cosine":
            query = query / np.linalg.norm(query)
        # By the name that was asked for: the server knows what it stands for at this moment.
        points = self._nearest(name, query.tolist(), limit, condition)
        scores = np.array([point.score for point in points], np.float32)
        if self._settings.distance == "euclid":
            scores = np.float32(1) - scores**2 / np.float32(2)
        return found_rows(points, scores, limit)

    # ---- care

    def searches_exactly(self, name: str) -> bool:
        with self._connection.translate_errors(f"looking up the index of {name!r}"):
            info = self._info(name)
            return self._connection.local or self._settings.exact or not info.indexed_vectors_count

    def maintain(self, name: str) -> Mapping[str, int | float]:
        """Index again what a bulk load has put off, be it one that died; a server compacts and indexes by itself.

        Called at the end of a run and every few batches; a few requests, none of which waits for an index. Returns
        `rows`, `segments`, `indexed_rows`, `indexing` (1 while the server is at it), `restored` (1 where indexing had
        been put off) and `seconds`. Raises `StoreError` where the server's optimizer has failed.
        """
        started = time.perf_counter()
        with self._connection.translate_errors(f"maintaining {name!r}", "its rows are unchanged"), self._writing:
            info = self._info(name)
            physical = info.config.metadata[PHYSICAL]
            restored = restoration(info)
            if restored is not None:
                self._connection.call("update_collection", collection_name=physical, **restored)
            self._rows_since_maintenance.pop(physical, None)
            check_optimizer(info, name, self._connection.location)
            count = self._count(physical, self._translated(None))
        return {
            "rows": count,
            "segments": info.segments_count,
            "indexed_rows": info.indexed_vectors_count or 0,
            "indexing": int(restored is not None or info.status != "green"),
            "restored": int(restored is not None),
            "seconds": time.perf_counter() - started,
        }

    def close(self) -> None:
        self._connection.close()

    # ---- collections and their names

    def _names(self) -> tuple[set[str], dict[str, str]]:
        """Return the physical collections, this project's and others, and the aliases."""
        collections = self._connection.call("get_collections").collections
        aliases = self._connection.call("get_aliases").aliases
        return {one.name for one in collections}, {one.alias_name: one.collection_name for one in aliases}

    def _found(self, name: str, *, any_kind: bool = False) -> Any:
        """Return what `get_collection` does for an alias or a physical name; None where there is no such thing."""
        try:
            info = self._connection.call("get_collection", collection_name=name)
        except Exception as error:
            if is_not_found(error):
                return None
            raise
        if not any_kind and not is_collection(info):
            raise StoreError(f"{name!r} in {self._connection.location} is not a collection of this project")
        return info

    def _info(self, name: str) -> Any:
        info = self._found(name)
        if info is None:
            raise self._not_found(name)
        return info

    def _physical(self, name: str) -> str:
        physical: str = self._info(name).config.metadata[PHYSICAL]
        return physical

    def _collection(self, name: str) -> Collection:
        return described(self._info(name), name, self.kind, self._connection.location)

    def _not_found(self, name: str) -> CollectionNotFoundError:
        physicals, aliases = self._names()
        return no_such_collection(name, self._connection.location, physicals | set(aliases))

    def _create(self, spec: EncoderSpec, physical: str) -> None:
        """Create a collection. Another process may come first: then its collection stands."""
        if self._found(physical) is not None:
            return
        try:
            self._connection.call("create_collection", **creation(spec, physical, self._settings))
        except Exception as error:
            if not is_there_already(error):
                raise

    def _index_payload(self, physical: str, info: Any) -> None:
        """Create the indexes that are missing, as after a process that died in between, or a new tenant field."""
        if self._connection.local:
            return
        for key, index in payload_indexes(self._settings).items():
            if key not in info.payload_schema:
                self._connection.call(
                    "create_payload_index", collection_name=physical, field_name=key, field_schema=index
                )

    def _point(self, name: str, physical: str) -> None:
        from qdrant_client import models

        changes: list[Any] = []
        if name in self._names()[1]:
            changes.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=name)))
        alias = models.CreateAlias(collection_name=physical, alias_name=name)
        changes.append(models.CreateAliasOperation(create_alias=alias))
        self._connection.call("update_collection_aliases", change_aliases_operations=changes)

    # ---- reading

    def _translated(self, where: Filter | None) -> Translated:
        return translated(where, self._settings.tenant_field)

    def _count(self, physical: str, condition: Translated) -> int:
        answer = self._connection.call("count", collection_name=physical, count_filter=condition.filter, exact=True)
        return int(answer.count)

    def _points(
        self,
        physical: str,
        condition: Translated,
        payload: Sequence[str],
        rows_together: int = _ROWS_READ_TOGETHER,
        with_vectors: bool = False,
    ) -> Iterator[list[Any]]:
        """Yield the points that match, with these payload keys, a number of them at a time."""
        keys = sorted({*payload, *condition.payload})
        offset: Any = None
        while True:
            points, offset = self._connection.call(
                "scroll",
                collection_name=physical,
                scroll_filter=condition.filter,
                limit=rows_together,
                offset=offset,
                with_payload=keys or False,
                with_vectors=with_vectors,
            )
            yield _matching(points, condition)
            if offset is None:
                return

    def _reading(self, name: str, columns: Sequence[str], where: Filter | None) -> tuple[Translated, str, pa.Schema]:
        condition = self._translated(where)
        with self._connection.translate_errors(f"reading from {name!r}"):
            info = self._info(name)
            return condition, info.config.metadata[PHYSICAL], result_schema(_dimension(info), columns)

    def _batches(
        self, name: str, physical: str, condition: Translated, schema: pa.Schema, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        with self._connection.translate_errors(f"reading from {name!r}"):
            keys = payload_keys(schema.names)
            for points in self._points(physical, condition, keys, batch_rows, "vector" in schema.names):
                if points:
                    yield rows(points, schema)

    def _nearest(self, name: str, query: list[float], limit: int, condition: Translated) -> list[Any]:
        """Return the nearest points; where the filter is not exact, take more and more hits until enough match."""
        wanted = limit
        while True:
            points = self._connection.call(
                "query_points",
                collection_name=name,
                query=query,
                query_filter=condition.filter,
                limit=wanted,
                search_params=None if self._connection.local else search_parameters(self._settings),
                with_payload=sorted({*payload_keys(RECORD_FIELDS), *condition.payload}),
            ).points
            matching = _matching(points, condition)
            if len(matching) >= limit or len(points) < wanted:
                return matching[:limit]
            wanted *= 4

    # ---- writing

    def _count_there(self, physical: str, ids: list[str]) -> int:
        there = 0
        for first in range(0, len(ids), _IDS_TOGETHER):
            there += len(
                self._connection.call(
                    "retrieve",
                    collection_name=physical,
                    ids=ids[first : first + _IDS_TOGETHER],
                    with_payload=False,
                    with_vectors=False,
                )
            )
        return there

    def _put_off_indexing(self, physical: str, info: Any, count: int) -> None:
        self._rows_since_maintenance[physical] += count
        bulk = 0 < self._settings.bulk_rows <= self._rows_since_maintenance[physical]
        change = deferral(info) if bulk and not self._connection.local else None
        if change is not None:
            self._connection.call("update_collection", collection_name=physical, **change)

    def _delete(self, physical: str, condition: Translated) -> int:
        from qdrant_client import models

        if condition.rest is None:
            everything = models.FilterSelector(filter=condition.filter)
            selectors: list[tuple[Any, int]] = [(everything, self._count(physical, condition))]
        else:
            found = [[point.id for point in points] for points in self._points(physical, condition, [])]
            selectors = [(models.PointIdsList(points=ids), len(ids)) for ids in found]
        for selector, count in selectors:
            if count:
                self._connection.change("delete", collection_name=physical, points_selector=selector, wait=True)
        return sum(count for _, count in selectors)


def _dimension(info: Any) -> int:
    return int(info.config.metadata[DIMENSION])


def _matching(points: list[Any], condition: Translated) -> list[Any]:
    if condition.rest is None:
        return points
    return [point for point in points if lets_through(condition.rest, point.payload or {})]
