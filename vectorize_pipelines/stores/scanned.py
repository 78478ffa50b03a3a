"""A base of stores of others that keep rows and cannot filter, count or compare vectors: the rows answer it all.

`docs/adding-a-store.md` shows one. What a database can do by itself, its store overrides.
"""

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from vectorize_pipelines.core.records import RECORD_FIELDS
from vectorize_pipelines.stores.base import VectorStore
from vectorize_pipelines.stores.contents import checked_query, result_schema, vectors_of
from vectorize_pipelines.stores.filters.expressions import Filter
from vectorize_pipelines.stores.filters.matching import check_filter, matches, value_of
from vectorize_pipelines.stores.filters.metadata_terms import entries_of
from vectorize_pipelines.stores.filters.operands import check_text_field

StoredRow: TypeAlias = Mapping[str, Any]
TIMES = ("occurred_at", "embedded_at")
#: Shorter vectors than that are taken for this long: a vector of zeros is near nothing.
SHORTEST = 1e-30


class ScannedStore(VectorStore):
    """A store whose every call reads every row of its collection: for ten thousand rows, or until it can do better."""

    @abstractmethod
    def rows(self, physical: str) -> Iterable[StoredRow]:
        """Yield all records of a physical collection: the fields of `records.record_schema`, times with their zone."""

    def matching(self, name: str, where: Filter | None) -> Iterator[StoredRow]:
        """Yield the records that match. Raises `StoreError` for a filter that means nothing."""
        if where is not None:
            check_filter(where)
        return (row for row in self.rows(self.collection(name).physical) if where is None or matches(where, row))

    def fetch(self, name: str, where: Filter | None, columns: Sequence[str]) -> pa.Table:
        """Return rows as the protocol says; `where` None: all rows."""
        schema = result_schema(self.collection(name).dimension, columns)
        return pa.Table.from_pylist(list(self.matching(name, where)), schema)

    def scan(
        self, name: str, columns: Sequence[str], where: Filter | None = None, batch_rows: int = 8192
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows as the protocol says, but with all that matches in memory."""
        return iter(self.fetch(name, where, columns).to_batches(batch_rows))

    def count(self, name: str, where: Filter | None = None) -> int:
        """Count rows as the protocol says."""
        return sum(1 for _ in self.matching(name, where))

    def count_by(self, name: str, field: str, where: Filter | None = None) -> dict[str, int]:
        """Count rows by a field as the protocol says."""
        check_text_field(field)
        values = (value_of(row, field) for row in self.matching(name, where))
        return dict(Counter(value for value in values if isinstance(value, str)))

    def search(self, name: str, vector: npt.NDArray[np.float32], limit: int, where: Filter | None = None) -> pa.Table:
        """Search as the protocol says; every vector is compared with the query."""
        query = checked_query(vector, self.collection(name).dimension, name)
        found = self.fetch(name, where, [*RECORD_FIELDS, "vector"])
        vectors = vectors_of(found)
        lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
        scores = (vectors @ query / np.maximum(lengths, SHORTEST)).astype(np.float32)
        hits = found.drop_columns("vector").append_column("score", pa.array(scores, pa.float32()))
        return hits.sort_by([("score", "descending"), ("id", "ascending")]).slice(0, limit)

    def searches_exactly(self, name: str) -> bool:
        """Return True: there is no index."""
        return True

    def maintain(self, name: str) -> Mapping[str, int | float]:
        """Return no figures: there is nothing to compact or to index."""
        return {"rows": self.count(name)}


def text_of(row: StoredRow) -> str:
    """Return a record as one text, for a store that keeps it so. Raises `StoreError` where its metadata is not JSON."""
    entries_of(row["metadata"])
    return json.dumps({**row, **{name: row[name].isoformat() for name in TIMES}})


def row_of(text: str) -> StoredRow:
    """Return the record that `text_of` made a text of."""
    row = json.loads(text)
    return {**row, **{name: datetime.fromisoformat(row[name]) for name in TIMES}}
