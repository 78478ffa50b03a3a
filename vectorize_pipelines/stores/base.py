"""The contract that every vector store fulfils, and that the rest of the project may rely on.

Stores live beside this file or plug in through the entry point group `vectorize_pipelines.stores`; `open_store`
in the package's `__init__` picks one. `conformance` is the suite that each of them passes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.encoders.base import EncoderSpec
from vectorize_pipelines.stores.filters.expressions import Filter

if TYPE_CHECKING:
    import pyarrow as pa

    from vectorize_pipelines.settings import StoreSettings
    from vectorize_pipelines.state.table_locks import TableLocks


@dataclass(frozen=True, slots=True)
class Collection:
    """A collection as users name it, and what stands behind the name.

    name       the alias that users read, e.g. `articles`
    physical   the name in the store, which carries the model, e.g. `articles__all-minilm-l6-v2-384`
    store      the store's kind
    location   where it lies: a path or a URL, without credentials
    model      the model's name, as given to `load_encoder`
    dimension  length of its vectors
    """

    name: str
    physical: str
    store: str
    location: str
    model: str
    dimension: int


@dataclass(frozen=True, slots=True)
class Written:
    """The result of an upsert: rows that were new and rows that were there before.

    resent  rows that were sent more than once, since the store was away: see `VectorStore.repair`
    """

    inserted: int
    updated: int
    resent: int = 0


def physical_name(alias: str, spec: EncoderSpec, edition: int = 1) -> str:
    """Return the name in the store, such as `articles__all-minilm-l6-v2-384`; later editions end in `__2`, `__3`, …

    A collection that is embedded again with a model of the same name, or cut otherwise, is another edition.
    """
    name = f"{alias}__{model_slug(spec.name)}-{spec.dimension}"
    return name if edition == 1 else f"{name}__{edition}"


def model_slug(model: str) -> str:
    """Return the last part of a model's name as it may stand in a collection's: `all-minilm-l6-v2`."""
    slug = "".join(c if c.isalnum() and c.isascii() else "-" for c in model.rstrip("/").split("/")[-1].lower())
    return "-".join(part for part in slug.split("-") if part)


class VectorStore(ABC):
    """A vector store. Safe to use from several threads and several processes at once.

    `name` is an alias (or a physical name) wherever a method takes one; a name that does not exist raises
    `CollectionNotFoundError`. What makes or drops a collection, or points an alias at it, is durable when it returns;
    rows are when `flush` has returned. Any failure of the store raises `StoreError` and says whether anything was
    written; the caller acknowledges nothing and may call again, since every write is idempotent. Where the same call
    may succeed once the store is back, it is a `StoreUnavailableError`: a run waits and calls again.
    """

    kind: str
    #: Whether a write that was cut off can leave rows that some queries do not find, and that an upsert of the same
    #: content leaves so. Then the ids of every write are noted until it has ended, and `repair` is called for the rest.
    needs_repair: ClassVar[bool] = False
    #: Whether several machines write to the store's files, with no server between them: writers then take turns by the
    #: installation's locks, and without these the store can only be read.
    needs_table_locks: bool = False

    @classmethod
    @abstractmethod
    def open(cls, settings: "StoreSettings", home: Path) -> Self:
        """Open the store that the settings name, once a process; `home` is VECTORIZE_HOME."""

    def use_table_locks(self, locks: "TableLocks") -> None:  # noqa: B027 (only for stores that need them)
        """Serialise writers by the installation's locks, which `close` closes, too.

        Called by `open_store` where `needs_table_locks`, right after `open`.
        """

    @abstractmethod
    def ensure_collection(self, name: str, spec: EncoderSpec, *, aliased: bool = True, edition: int = 1) -> Collection:
        """Create the collection and its alias where they are missing. Called at the start of every run.

        With `aliased=False` the alias is left alone and the collection goes by its physical name, that of `edition`:
        that is how a collection is filled with another model's vectors before `set_alias` turns its readers to it.

        Raises `ModelMismatchError` where the name stands for a collection of another model or dimension.
        """

    @abstractmethod
    def collection(self, name: str) -> Collection:
        """Return the collection behind an alias or a physical name."""

    @abstractmethod
    def collections(self) -> list[Collection]:
        """Return every alias with what stands behind it, by name; a collection without one under its physical name."""

    def damaged(self) -> Mapping[str, str]:
        """Return what is wrong with each collection that cannot be read, by physical name, for `vectorize doctor`.

        `collections` leaves them out, and `drop` deletes them. A store that mends what it can does so before.
        """
        return {}

    def is_doubtful(self, name: str) -> bool:
        """Return whether rows that were acknowledged may be missing or as they were earlier, because a disk lost them.

        Asked at the start of a run from files, which then compares every file with the rows that are there.
        """
        return False

    def trust(self, name: str) -> None:  # noqa: B027 (as above)
        """Trust a doubtful collection again. Called once nothing said to be in it is taken for done any more."""

    @abstractmethod
    def set_alias(self, name: str, physical: str) -> None:
        """Point an alias at a physical collection in one step: a reader sees the old one or the new one.

        Once this returns, every call by the alias is about the new one, in other processes too.
        """

    @abstractmethod
    def drop(self, physical: str) -> None:
        """Delete a physical collection and the aliases that point at it."""

    @abstractmethod
    def upsert(self, name: str, records: "pa.Table") -> Written:
        """Write records (`records.record_schema`), replacing rows of the same id. Ids are distinct in a call.

        Called for every batch, by one thread a run. When it returns, the rows are visible; `flush` makes them durable.
        """

    def repair(self, name: str, ids: Sequence[str]) -> int:
        """Have every query find the rows of these ids, as far as the store has them; returns how many it had.

        Called where `needs_repair`, by the only writer of these rows at the moment: for rows whose write was
        cut off, for rows that a check did not find, and for what a run with `force` wrote. It raises as `upsert` does
        and may be called again.
        """
        return 0

    @abstractmethod
    def delete(self, name: str, where: Filter) -> int:
        """Delete what matches and return how many rows that were. By ids: `In("id", …)`; by source likewise."""

    def flush(self, names: Sequence[str] = ()) -> None:  # noqa: B027 (most servers have nothing to do here)
        """Return once what this object has upserted and deleted outlives a loss of power.

        So does then whatever the collections `names` hold or no longer hold, of any writer: a batch may have found
        its rows there, written by a run that was killed before it came to this, or that has not come to it yet. Where
        power goes meanwhile, none of them is left with rows that one named before it lacks. A name may stand for none.

        Called after a batch was written and before its source hears of it: file manifests, results and offsets are
        durable themselves, and must never say "done" of rows that may be lost. A store that does this with every write
        has nothing to do here. Where it fails, nothing that was written since the last success counts, whatever is
        visible: the batch is not acknowledged, and is written again.
        """

    @abstractmethod
    def fetch(self, name: str, where: Filter, columns: Sequence[str]) -> "pa.Table":
        """Return the matching rows with these columns, in no particular order, whole in memory: for bounded results."""

    @abstractmethod
    def scan(
        self, name: str, columns: Sequence[str], where: Filter | None = None, batch_rows: int = 8192
    ) -> "Iterator[pa.RecordBatch]":
        """Yield the matching rows batch by batch, memory bounded by a batch. A snapshot where the store has them."""

    @abstractmethod
    def count(self, name: str, where: Filter | None = None) -> int:
        """Return how many rows match."""

    @abstractmethod
    def count_by(self, name: str, field: str, where: Filter | None = None) -> dict[str, int]:
        """Return how many rows match for each value of a (text) field."""

    @abstractmethod
    def search(self, name: str, vector: npt.NDArray[np.float32], limit: int, where: Filter | None = None) -> "pa.Table":
        """Return the nearest rows, best first: the record's fields without the vector, and `score` (float32).

        `score` is the cosine similarity for normalised vectors: higher is nearer. The filter holds before the
        nearest are taken, so `limit` rows come back where that many match. Raises `StoreError` for a vector of another
        length than the collection's.
        """

    def searches_exactly(self, name: str) -> bool:
        """Return whether a search compares every vector now, as without an index; False also where it may not."""
        return False

    @abstractmethod
    def maintain(self, name: str) -> Mapping[str, int | float]:
        """Compact and index off the hot path, as far as it pays; return what was done, as numbers."""

    @abstractmethod
    def close(self) -> None:
        """Release connections. Called at the end of a process; the store is not used after."""
